"""Fixtures that several packages' tests share."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import create_async_engine

from moonbase.store.database import Database, database_url
from moonbase.store.migrate import migrate

_POSTGRES = os.environ.get("TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/test")
_REDIS = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/0")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the long tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long tests out unless asked for."""
    if not config.getoption("--full"):
        long = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL]:
    """A new, empty database of each kind."""
    if request.param == "sqlite":
        yield database_url(None, tmp_path / "home")
        return
    pytest.importorskip("asyncpg", reason="PostgreSQL left out: install moonbase[postgres]")
    server, name = database_url(_POSTGRES, tmp_path), f"moonbase_test_{uuid.uuid4().hex}"
    try:
        asyncio.run(_execute(server, f"CREATE DATABASE {name}"))
    except OSError:
        pytest.skip("PostgreSQL left out: no server answers; start one or set TEST_POSTGRES_URL")
    yield server.set(database=name)
    asyncio.run(_execute(server, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def database(url: URL) -> AsyncIterator[Database]:
    """An open database of each kind with all tables."""
    await migrate(url)
    async with Database(url) as database:
        yield database


@pytest.fixture
def redis_url() -> str:
    """A Redis that answers; others may be using it."""
    redis = pytest.importorskip("redis", reason="Redis left out: install moonbase[redis]")
    try:
        with redis.Redis.from_url(_REDIS, socket_connect_timeout=2) as client:
            client.ping()
    except redis.RedisError:
        pytest.skip("Redis left out: no server answers; start one or set TEST_REDIS_URL")
    return _REDIS


async def _execute(server: URL, statement: str) -> None:
    engine = create_async_engine(server, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(statement))
    await engine.dispose()
