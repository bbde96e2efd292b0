"""Bring a database to the schema of this program.

Alembic is imported where it is used: 10 MB and 0.2 s of CPU that most starts need not spend.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import URL, Connection, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from moonbase.errors import ConfigurationError
from moonbase.store.database import Database

if TYPE_CHECKING:
    from alembic.config import Config

_MIGRATIONS = Path(__file__).parent / "migrations"


def head() -> str:
    """The newest revision in the package. Revisions are numbered: files `NNNN_what.py` of revision `NNNN`."""
    return max(path.name[:4] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))


async def migrate(url: URL) -> None:
    """Create or update the tables; nothing to do costs one query. Safe to run in several processes at once.

    Raises `ConfigurationError` when the database cannot be used or was made by a newer program.
    """
    async with Database(url) as database:
        with database.at_start():
            async with database.read() as connection:
                current = await connection.run_sync(_revision)
            if current == head():
                return
            if current is not None and current > head():
                raise ConfigurationError(
                    f"{database} has schema {current} and this program knows {head()}; "
                    "install the newer program or restore an older backup"
                )
            try:
                async with database.exclusive(timeout=None) as connection:
                    await connection.run_sync(_upgrade)
            except SQLAlchemyError as error:  # the statements failed, not the database: somebody else's tables
                reason = str(getattr(error, "orig", error)).rpartition(">: ")[2]
                raise ConfigurationError(
                    f"{database} cannot be brought to schema {head()} ({reason}); "
                    "set database.url to a database that only Moonbase uses"
                ) from error


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def _upgrade(connection: Connection) -> None:
    if _revision(connection) == head():
        return
    from alembic import command

    command.upgrade(alembic_config(connection), "head")


def alembic_config(connection: Connection) -> "Config":
    """What Alembic's commands need to work in the transaction of `connection`."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
