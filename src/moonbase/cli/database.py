"""What commands that work on the database share."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from moonbase.errors import ConfigurationError

if TYPE_CHECKING:
    from moonbase.config import Settings
    from moonbase.store.database import Database

T = TypeVar("T")


def with_database(
    config_file: Path | None, use: "Callable[[Database, Settings], Awaitable[T]]", *, makes: bool = False
) -> T:
    """What `use` makes of the configured database, which is updated first.

    Where there is none, a command that `makes` one tells of it; others would look at nothing, and raise
    `ConfigurationError`.
    """
    import asyncio

    from moonbase import config  # with SQLAlchemy half a second, which `--help` should not cost
    from moonbase.store.database import Database, database_url
    from moonbase.store.migrate import migrate

    settings = config.load(config_file)

    async def run() -> T:
        database = Database(database_url(settings.database.url, config.home()))
        new = database.path is not None and not database.path.exists()
        if new and not makes:
            raise ConfigurationError(
                f"there is no database at {database}; a server's first start makes one. If its server has a "
                "configuration file, give that with --config; else MOONBASE_HOME must be the same"
            )
        await migrate(database.url)
        if new:
            typer.echo(f"Made the database {database}.", err=True)
        async with database:
            return await use(database, settings)

    return asyncio.run(run())
