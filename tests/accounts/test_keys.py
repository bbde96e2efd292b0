import asyncio
import hashlib
from pathlib import Path

import pytest
from sqlalchemy import URL, text
from tests.accounts.money import add_rich

from moonbase.accounts.changes import Changes
from moonbase.accounts.keys import Keys
from moonbase.accounts.requests import NewKey
from moonbase.errors import ConfigurationError, InvalidField, NotFound
from moonbase.store.database import Database, database_url
from moonbase.store.migrate import migrate

pytestmark = pytest.mark.anyio


def _keys(database: Database, now: int = 1_795_000_000_000) -> Keys:
    return Keys(Changes(database, "test", lambda: now), currency="CNY", models=())


async def test_the_first_start_tells_its_secret_once(database: Database) -> None:
    secret = await _keys(database).first_start()
    assert secret is not None
    assert secret.startswith("sk-")
    assert await _keys(database).first_start() is None
    assert [key.name for key in await _keys(database).list()] == ["default"]


async def test_of_many_first_starts_one_gets_the_secret(url: URL) -> None:
    async def start() -> str | None:
        await migrate(url)
        async with Database(url) as database:
            return await _keys(database).first_start()

    secrets = await asyncio.gather(*(start() for _ in range(5)))
    assert len([secret for secret in secrets if secret]) == 1


async def test_the_default_organization_is_postpaid_and_pays_in_the_configured_currency(database: Database) -> None:
    await _keys(database).first_start()
    async with database.read() as connection:
        tables = "organization JOIN balance ON organization_id = id"
        rows = await connection.execute(text(f"SELECT name, currency, cash_nano, voucher_nano, postpaid FROM {tables}"))
        assert [tuple(row) for row in rows] == [("default", "CNY", 0, 0, True)]


async def test_a_key_made_before_the_first_start_makes_a_first_key_needless(database: Database) -> None:
    key, secret = await _keys(database).create(NewKey(name="mine"))
    assert await _keys(database).first_start() is None
    assert await _keys(database).list() == [key]
    assert key.hint == secret[-4:]


async def test_a_renamed_default_project_does_not_stop_the_next_start(database: Database) -> None:
    await _keys(database).first_start()
    async with database.write() as connection:
        await connection.execute(text("UPDATE project SET name = 'web'"))
    assert await _keys(database).first_start() is None
    with pytest.raises(InvalidField, match="project_id"):
        await _keys(database).create(NewKey(name="mine"))


async def test_a_renamed_default_organization_gets_no_successor_at_the_next_start(database: Database) -> None:
    await _keys(database).first_start()
    async with database.write() as connection:
        await connection.execute(text("UPDATE organization SET name = 'acme'"))
    assert await _keys(database).first_start() is None


async def test_an_organization_that_an_administrator_named_default_does_not_stop_a_start(database: Database) -> None:
    await add_rich(database, "default")
    assert await _keys(database).first_start() is None


async def test_the_database_holds_the_hash_of_a_secret_and_nothing_else_of_it(database: Database) -> None:
    _, secret = await _keys(database).create(NewKey(name="mine"))
    async with database.read() as connection:
        stored = (await connection.execute(text("SELECT secret_hash FROM key"))).scalar_one()
    assert stored == hashlib.sha256(secret.encode()).hexdigest()


async def test_a_key_revoked_twice_keeps_its_first_time(database: Database) -> None:
    key, _ = await _keys(database).create(NewKey(name="mine"))
    await _keys(database, now=7).revoke(key.id)
    await _keys(database, now=8).revoke(key.id)
    assert [key.revoked_at for key in await _keys(database).list()] == [7]


async def test_an_unknown_key_cannot_be_revoked(database: Database) -> None:
    with pytest.raises(NotFound, match="there is no key 'ak-none'"):
        await _keys(database).revoke("ak-none")


async def test_a_first_start_that_the_database_refuses_is_a_configuration_error(tmp_path: Path) -> None:
    await migrate(database_url(None, tmp_path))
    file = tmp_path / "moonbase.db"
    file.write_bytes(file.read_bytes()[:4096].ljust(65_536, b"\xff"))
    with pytest.raises(ConfigurationError, match="is damaged; restore a backup"):
        async with Database(database_url(None, tmp_path)) as database:
            await _keys(database).first_start()
