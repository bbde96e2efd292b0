"""`moonbase db`: care for the database."""

from pathlib import Path
from typing import Annotated

import typer

from moonbase.cli.options import ConfigOption
from moonbase.errors import BackupFailed

app = typer.Typer(name="db", help="Care for the database.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `backup` a subcommand while it is the only one."""


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new file to write.")],
    config_file: ConfigOption = None,
) -> None:
    """Copy the SQLite database to FILE, consistently, also while a server is using it."""
    from moonbase import config
    from moonbase.store.backup import backup as copy
    from moonbase.store.database import Database, database_url

    settings = config.load(config_file)
    source = Database(database_url(settings.database.url, config.home()))
    if source.path is None:
        raise BackupFailed("the database is PostgreSQL; back it up with pg_dump")
    copy(source.path, file)
    typer.echo(f"Wrote {file}.", err=True)
