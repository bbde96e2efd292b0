"""The command line. Commands import what they need when they run, so that `--help` is quick."""

import os
import sys
from typing import Annotated

import typer

from moonbase import __version__
from moonbase.cli import (
    admin,
    audit,
    chat,
    credit,
    db,
    keys,
    ledger,
    models,
    orgs,
    prices,
    projects,
    serve,
    usage,
    verify,
)
from moonbase.errors import ConfigurationError, MoonbaseError, NotFound

app = typer.Typer(
    name="moonbase",
    help="The Kimi API on your own machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("serve")(serve.serve)
app.command("chat")(chat.chat)
app.command("verify")(verify.verify)
app.add_typer(orgs.app, name="orgs")
app.add_typer(projects.app, name="projects")
app.add_typer(keys.app, name="keys")
app.add_typer(credit.app, name="credit")
app.add_typer(prices.app, name="prices")
app.command("usage")(usage.usage)
app.command("audit")(audit.audit)
app.add_typer(admin.app, name="admin")
app.add_typer(models.app, name="models")
app.add_typer(db.app, name="db")
app.add_typer(ledger.app, name="ledger")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"moonbase {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


_LISTS = {"organization": "orgs list", "project": "projects list", "key": "keys list", "admin key": "admin list"}


def _sentence(error: MoonbaseError) -> str:
    if isinstance(error, NotFound) and error.what in _LISTS:
        return f"{error}; `moonbase {_LISTS[error.what]}` shows the ids"
    return str(error)


def _check_encoding(arguments: list[str]) -> None:
    """Neither a database nor JSON can hold what is no text."""
    for argument in map(os.fsencode, arguments):
        try:
            argument.decode()
        except UnicodeDecodeError:
            raise ConfigurationError(f"the argument {argument!r} is not UTF-8") from None


def main() -> None:
    """Run a command; an error of ours becomes one sentence and exit code 1, of the configuration 2."""
    try:
        _check_encoding(sys.argv)
        app()
    except MoonbaseError as error:
        sys.stderr.write(f"moonbase: {_sentence(error)}\n")
        sys.exit(2 if isinstance(error, ConfigurationError) else 1)
    except BrokenPipeError:
        sys.exit(141)  # as a shell reports SIGPIPE; nobody reads any more
