"""`moonbase keys`: make, list, change and revoke the keys that clients authenticate with."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moonbase.cli.administration import (
    ConcurrencyOption,
    NewNameOption,
    RpmOption,
    TpdOption,
    TpmOption,
    administer,
    caps,
    changes,
    given,
    request,
)
from moonbase.cli.options import ConfigOption
from moonbase.cli.tables import Format, FormatOption, print_fields, print_rows, time

if TYPE_CHECKING:
    from moonbase.store.records import Key

_MAX_NAME = 100

app = typer.Typer(name="keys", help="Create, list, change and revoke API keys.", no_args_is_help=True)

_KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="The id of the key, `ak-…`.")]
_ModelsOption = Annotated[
    list[str] | None, typer.Option("--model", help="Opens this model only, or all; may be repeated.", metavar="ID|all")
]
_EndpointsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--endpoint",
        help="Opens this only: chat, messages, models, tokens, balance, usage, or all; may be repeated.",
        metavar="NAME|all",
    ),
]
_ExpiresOption = Annotated[
    str | None,
    typer.Option("--expires", help="A day, a time, a duration such as 30d, or never.", metavar="WHEN|never"),
]
_COLUMNS = ("id", "name", "project_id", "models", "endpoints", "limits", "created_at", "expires_at", "revoked_at")


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
    project_id: Annotated[
        str | None, typer.Option("--project", help="The project; by default the default one.", metavar="PROJECT_ID")
    ] = None,
    models: _ModelsOption = None,
    endpoints: _EndpointsOption = None,
    expires: _ExpiresOption = None,
    concurrency: ConcurrencyOption = None,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    tpd: TpdOption = None,
    config_file: ConfigOption = None,
) -> None:
    """Create a key and print its secret, which cannot be shown again, and nothing else."""
    from moonbase.accounts.requests import NewKey

    scopes = _scopes(models, endpoints, expires)
    new = request(NewKey, name=name, project_id=project_id, limits=caps(concurrency, rpm, tpm, tpd), **scopes)
    key, secret = administer(config_file, lambda administration: administration.keys.create(new), makes=True)
    typer.echo(secret)
    typer.echo(f"Created {key.id} ({name}). Keep the secret: it is not shown again.", err=True)


@app.command("list")
def list_(
    organization_id: Annotated[
        str | None, typer.Option("--org", help="Only those of this organization.", metavar="ORG_ID")
    ] = None,
    project_id: Annotated[
        str | None, typer.Option("--project", help="Only those of this project.", metavar="PROJECT_ID")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    format: FormatOption = None,
    config_file: ConfigOption = None,
) -> None:
    """List the keys: a table on a terminal, tab-separated lines in a pipe.

    On a terminal and in a pipe only what tells keys apart; all there is with `--format`.
    """
    found = administer(
        config_file,
        lambda administration: administration.keys.list(organization_id=organization_id, project_id=project_id),
    )
    if json or format is not None:
        print_rows(found, _COLUMNS, Format.json if json else format)
    elif not found:
        typer.echo("There are no keys; make one with `moonbase keys create --name NAME`.", err=True)
    elif sys.stdout.isatty():
        _print_table(found)
    else:
        for key in found:
            typer.echo("\t".join(_cells(key)))


@app.command()
def show(key_id: _KeyId, format: FormatOption = None, config_file: ConfigOption = None) -> None:
    """Show one key, without its secret."""
    print_fields(administer(config_file, lambda administration: administration.keys.show(key_id)), format)


@app.command()
def update(
    key_id: _KeyId,
    name: NewNameOption = None,
    models: _ModelsOption = None,
    endpoints: _EndpointsOption = None,
    expires: _ExpiresOption = None,
    concurrency: ConcurrencyOption = None,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    tpd: TpdOption = None,
    config_file: ConfigOption = None,
) -> None:
    """Change a key. Running servers follow within two seconds."""
    from moonbase.accounts.requests import KeyChanges

    scopes = _scopes(models, endpoints, expires)
    wanted = changes(KeyChanges, caps(concurrency, rpm, tpm, tpd), **given(name=name), **scopes)
    administer(config_file, lambda administration: administration.keys.update(key_id, wanted))
    typer.echo(f"Changed {key_id}.", err=True)


@app.command()
def revoke(key_id: _KeyId, config_file: ConfigOption = None) -> None:
    """Revoke a key for good. A running server refuses it within two seconds."""
    administer(config_file, lambda administration: administration.keys.revoke(key_id))
    typer.echo(f"Revoked {key_id}.", err=True)


def _scopes(models: list[str] | None, endpoints: list[str] | None, expires: str | None) -> dict[str, Any]:
    """What was given, as a request has it: `all` and `never` are null there."""
    scopes: dict[str, Any] = {}
    if models:
        scopes["models"] = None if models == ["all"] else models
    if endpoints:
        scopes["endpoints"] = None if endpoints == ["all"] else endpoints
    if expires is not None:
        scopes["expires"] = None if expires == "never" else expires
    return scopes


_SHORT = ("Id", "Name", "Secret", "Created", "Revoked")


def _cells(key: "Key") -> tuple[str, ...]:
    revoked = "" if key.revoked_at is None else time(key.revoked_at)
    return key.id, key.name, f"sk-…{key.hint}", time(key.created_at), revoked


def _print_table(keys: "list[Key]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in _SHORT:
        table.add_column(column, no_wrap=column == "Id")
    for key in keys:
        table.add_row(*map(Text, _cells(key)), style="dim" if key.revoked_at else None)
    Console().print(table)
