import asyncio
import subprocess
import sys
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL, Connection, text

from moonbase.errors import ConfigurationError
from moonbase.store.database import Database
from moonbase.store.ledger import find_imbalances, read_balance
from moonbase.store.migrate import alembic_config, head, migrate
from moonbase.store.records import Balance
from moonbase.store.tables import metadata

pytestmark = pytest.mark.anyio


_USAGE = "'proj', 'ak', 'm', 'echo', 1, 0, 0, 1, 1, 1, 1, 1"
_BEFORE_THE_LEDGER = [
    *[
        f"INSERT INTO organization VALUES ('{name}', 'uid-{name}', '{name}', 1, 'USD', {granted}, {postpaid}, 5)"
        for name, granted, postpaid in [("org-rich", 100, "false"), ("org-poor", 5, "true"), ("org-new", 0, "true")]
    ],
    *[
        f"INSERT INTO usage VALUES ('{request_id}', '{name}', {_USAGE}, {cost}, 'USD', 'stop', 6, NULL, 7)"
        for request_id, name, cost in [("a", "org-rich", 30), ("b", "org-rich", 10), ("c", "org-poor", 40)]
    ],
    f"INSERT INTO usage VALUES ('d', 'org-poor', {_USAGE}, 0, 'USD', 'failed', 6, NULL, 7)",
]


def _upgrade_to(connection: Connection, revision: str) -> None:
    command.upgrade(alembic_config(connection), revision)


def _differences(connection: Connection) -> list[Any]:
    return compare_metadata(MigrationContext.configure(connection), metadata)


async def test_the_migrations_make_the_declared_tables(database: Database) -> None:
    async with database.read() as connection:
        assert await connection.run_sync(_differences) == []


async def test_money_granted_and_used_before_the_ledger_becomes_entries_that_add_up(url: URL) -> None:
    async with Database(url) as database:
        async with database.exclusive() as connection:
            await connection.run_sync(_upgrade_to, "0001")
        async with database.write() as connection:
            for statement in _BEFORE_THE_LEDGER:
                await connection.execute(text(statement))
        await migrate(url)
        async with database.read() as connection:
            assert await find_imbalances(connection) == []
            balances = {name: await read_balance(connection, name) for name in ("org-rich", "org-poor", "org-new")}
    assert balances == {"org-rich": Balance(0, 60), "org-poor": Balance(-35, 0), "org-new": Balance(0, 0)}


async def test_usage_from_before_the_rollups_is_in_them(url: URL) -> None:
    async with Database(url) as database:
        async with database.exclusive() as connection:
            await connection.run_sync(_upgrade_to, "0001")
        async with database.write() as connection:
            for statement in _BEFORE_THE_LEDGER:
                await connection.execute(text(statement))
        await migrate(url)
        async with database.read() as connection:
            assert await find_imbalances(connection) == []
            query = "SELECT organization_id, hour, requests, failed, cost_nano FROM usage_hour ORDER BY organization_id"
            hours = [tuple(row) for row in await connection.execute(text(query))]
    assert hours == [("org-poor", 0, 2, 1, 40), ("org-rich", 0, 2, 0, 40)]


async def test_several_starts_at_once_migrate_once(url: URL) -> None:
    await asyncio.gather(*(migrate(url) for _ in range(4)))
    async with Database(url) as database, database.read() as connection:
        assert (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalars().all() == [head()]


async def test_a_newer_schema_is_refused(url: URL) -> None:
    await migrate(url)
    async with Database(url) as database, database.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match=f"has schema 9999 and this program knows {head()}; install"):
        await migrate(url)


async def test_somebody_elses_tables_are_refused_and_left_alone(url: URL) -> None:
    async with Database(url) as database, database.write() as connection:
        await connection.execute(text("CREATE TABLE project (n INTEGER)"))
    with pytest.raises(ConfigurationError, match=r"already exists\); set database\.url to a database that only"):
        await migrate(url)
    async with Database(url) as database, database.write() as connection:
        await connection.execute(text("CREATE TABLE organization (n INTEGER)"))


async def test_an_up_to_date_database_needs_no_alembic(url: URL) -> None:
    await migrate(url)
    script = (
        "import asyncio, sys; from sqlalchemy import make_url; from moonbase.store.migrate import migrate;"
        f"asyncio.run(migrate(make_url({url.render_as_string(hide_password=False)!r})));"
        "sys.exit('alembic' in sys.modules)"
    )
    child = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", script])
    assert child.returncode == 0
