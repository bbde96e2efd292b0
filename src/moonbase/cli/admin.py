"""`moonbase admin`: the keys that open the admin API."""

from typing import Annotated

import typer

from moonbase.cli.administration import NameOption, administer, request
from moonbase.cli.options import ConfigOption
from moonbase.cli.tables import FormatOption, print_rows

app = typer.Typer(name="admin", help="Create, list and revoke keys of the admin API.", no_args_is_help=True)

_COLUMNS = ("id", "name", "created_at", "revoked_at")


@app.command()
def create(name: NameOption, config_file: ConfigOption = None) -> None:
    """Create an admin key and print its secret, which cannot be shown again, and nothing else.

    While there is one, the server has the admin API under /admin/v1.
    """
    from moonbase.accounts.requests import NewAdminKey

    new = request(NewAdminKey, name=name)
    key, secret = administer(config_file, lambda administration: administration.admins.create(new), makes=True)
    typer.echo(secret)
    typer.echo(f"Created {key.id} ({name}). Keep the secret: it is not shown again.", err=True)


@app.command("list")
def list_(format: FormatOption = None, config_file: ConfigOption = None) -> None:
    """List the admin keys, the revoked ones too."""
    print_rows(administer(config_file, lambda administration: administration.admins.list()), _COLUMNS, format)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="The id of the admin key, `admin-…`.")],
    config_file: ConfigOption = None,
) -> None:
    """Revoke an admin key for good. A running server refuses it within a second."""
    administer(config_file, lambda administration: administration.admins.revoke(key_id))
    typer.echo(f"Revoked {key_id}.", err=True)
