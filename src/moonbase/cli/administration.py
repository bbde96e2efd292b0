"""What the commands of administrators share: who does it, options, and requests made of them."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer

from moonbase.cli.database import with_database

if TYPE_CHECKING:
    from moonbase.accounts.administration import Administration
    from moonbase.config import Settings
    from moonbase.store.database import Database

T = TypeVar("T")

_DIGITS = 19

NameOption = Annotated[str, typer.Option("--name", help="What it is called.")]
NewNameOption = Annotated[str | None, typer.Option("--name", help="What it is called from now on.")]
TierOption = Annotated[int | None, typer.Option("--tier", help="Tier, 0 to 5.", metavar="N")]
NoteOption = Annotated[str, typer.Option("--note", help="Why, for the books.")]
BeforeOption = Annotated[
    int | None, typer.Option("--before", min=0, max=2**53, help="Only those before this id.", metavar="ID")
]
ConcurrencyOption = Annotated[
    str | None, typer.Option("--concurrency", help="Most requests open at once.", metavar="N|none")
]
RpmOption = Annotated[str | None, typer.Option("--rpm", help="Most requests a minute.", metavar="N|none")]
TpmOption = Annotated[str | None, typer.Option("--tpm", help="Most tokens a minute.", metavar="N|none")]
TpdOption = Annotated[str | None, typer.Option("--tpd", help="Most tokens a day.", metavar="N|none")]


def administer(config_file: Path | None, use: "Callable[[Administration], Awaitable[T]]", *, makes: bool = False) -> T:
    """What `use` makes of the configured database, as the user who runs this command; see `with_database`."""
    from moonbase.accounts.administration import Administration
    from moonbase.catalog.catalog import load_catalog

    async def run(database: "Database", settings: "Settings") -> T:
        catalog = load_catalog(settings.models)
        return await use(Administration(database, actor(), catalog, currency=settings.billing.currency))

    return with_database(config_file, run, makes=makes)


def request(type_: type[T], /, **fields: Any) -> T:
    """The request of that type with `fields`. Raises `InvalidRequest`."""
    import msgspec

    from moonbase.dialects.wrong_type import wrong_type

    try:
        return msgspec.convert(fields, type_)
    except msgspec.ValidationError as error:
        raise wrong_type(str(error)) from error


def changes(type_: type[T], limits: dict[str, int | None], /, **fields: Any) -> T:
    """The request of that type with `limits` and `fields`, of which there must be some. Raises `InvalidRequest`."""
    if not (limits or fields):
        raise typer.BadParameter("nothing to change was given; --help shows what can be")
    return request(type_, limits=limits, **fields)


def one_of(option: str, text: str, choices: Any) -> Any:
    """`text`, which must be one of the values of the type `choices`."""
    if text not in get_args(choices):
        raise typer.BadParameter(f"must be one of {', '.join(get_args(choices))}", param_hint=option)
    return text


def given(**fields: Any) -> dict[str, Any]:
    """Those of the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def caps(concurrency: str | None, rpm: str | None, tpm: str | None, tpd: str | None) -> dict[str, int | None]:
    """The limits that were given, as a request has them."""
    texts = given(concurrency=concurrency, rpm=rpm, tpm=tpm, tpd=tpd)
    return {name: _cap(name, text) for name, text in texts.items()}


def _cap(name: str, text: str) -> int | None:
    if text == "none":
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        raise typer.BadParameter(f"must be a number of at most {_DIGITS} digits, or none", param_hint=f"--{name}")
    return int(text)


def actor() -> str:
    """Who runs this command, for the audit log."""
    import getpass
    import os

    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a user without a name
        return f"cli:{os.getuid()}"
