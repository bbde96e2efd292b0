"""`moonbase keys`: make, list and revoke the keys that clients authenticate with."""

import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from moonbase.cli.database import with_database
from moonbase.cli.options import ConfigOption

if TYPE_CHECKING:
    from moonbase.accounts.keys import Keys
    from moonbase.store.records import Key

T = TypeVar("T")

_MAX_NAME = 100

app = typer.Typer(name="keys", help="Create, list and revoke API keys.", no_args_is_help=True)


def _printable(name: str) -> str:
    """A name's control characters would make lines and columns of their own."""
    if not name.strip() or not name.isprintable():
        raise typer.BadParameter("must be printable text that is not empty")
    if len(name) > _MAX_NAME:
        raise typer.BadParameter(f"must have at most {_MAX_NAME} characters")
    return name


@app.command()
def create(
    name: Annotated[str, typer.Option("--name", callback=_printable, help="What the key is for, for `keys list`.")],
    config_file: ConfigOption = None,
) -> None:
    """Create a key and print its secret, which cannot be shown again, and nothing else."""

    key, secret = _with_keys(config_file, lambda keys: keys.create(name))
    typer.echo(secret)
    typer.echo(f"Created {key.id} ({name}). Keep the secret: it is not shown again.", err=True)


@app.command("list")
def list_(
    json: Annotated[bool, typer.Option("--json", help="Print a JSON array instead.")] = False,
    config_file: ConfigOption = None,
) -> None:
    """List all keys: a table on a terminal, tab-separated lines in a pipe."""
    found = _with_keys(config_file, lambda keys: keys.list())
    if json:
        import msgspec

        typer.echo(msgspec.json.encode(found).decode())
    elif not found:
        typer.echo("There are no keys; make one with `moonbase keys create --name NAME`.", err=True)
    elif sys.stdout.isatty():
        _print_table(found)
    else:
        for key in found:
            typer.echo("\t".join(_cells(key)))


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="The id of the key, `ak-…`.")],
    config_file: ConfigOption = None,
) -> None:
    """Revoke a key for good. A running server refuses it within two seconds."""
    _with_keys(config_file, lambda keys: keys.revoke(key_id))
    typer.echo(f"Revoked {key_id}.", err=True)


def _with_keys(config_file: Path | None, use: "Callable[[Keys], Awaitable[T]]") -> T:
    """What `use` makes of the keys of the configured database."""
    from moonbase.accounts.keys import Keys  # with SQLAlchemy half a second, which `--help` should not cost

    return with_database(
        config_file, lambda database, settings: use(Keys(database, currency=settings.billing.currency))
    )


_COLUMNS = ("Id", "Name", "Secret", "Created", "Revoked")


def _cells(key: "Key") -> tuple[str, ...]:
    revoked = "" if key.revoked_at is None else _time(key.revoked_at)
    return key.id, key.name, f"sk-…{key.hint}", _time(key.created_at), revoked


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds // 1000, UTC).isoformat().replace("+00:00", "Z")


def _print_table(keys: "list[Key]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in _COLUMNS:
        table.add_column(column, no_wrap=column == "Id")
    for key in keys:
        table.add_row(*map(Text, _cells(key)), style="dim" if key.revoked_at else None)
    Console().print(table)
