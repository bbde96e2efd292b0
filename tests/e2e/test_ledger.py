"""Money through the front door: real servers, real databases, more requests than there is money for."""

import asyncio
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import create_async_engine
from tests.e2e.conftest import StartServer
from tests.e2e.payers import ask_at_once, books, prepaid_key
from tests.e2e.prompts import prompt_tokens
from tests.e2e.server import Server, chat_body, eventually

from moonbase.store.migrate import migrate
from moonbase.store.records import Balance

TEXT = "word " * 8
MAX_TOKENS = 4
COST = prompt_tokens(TEXT) * 600 + MAX_TOKENS * 2_500


@pytest.fixture
def ready(url: URL) -> URL:
    """A database of each kind with all tables."""
    asyncio.run(migrate(url))
    return url


def _servers(start: StartServer, url: URL, count: int, *options: str) -> list[Server]:
    options += ("--set", f"database.url={url.render_as_string(hide_password=False)}")
    return [start(*options, "--set", "engine.max_waiting=2000") for _ in range(count)]


@pytest.mark.parametrize(
    ("count", "workers"), [(1, 1), (3, 1), (1, 3)], ids=["one process", "three servers", "three workers"]
)
def test_of_a_thousand_requests_at_once_exactly_those_paid_for_succeed(
    start_server: StartServer, ready: URL, redis_url: str, count: int, workers: int
) -> None:
    key = prepaid_key(ready, "org-ten", cash=10 * COST)
    options = ("--workers", str(workers), "--set", f"limits.redis_url={redis_url}") if workers > 1 else ()
    servers = _servers(start_server, ready, count, *options)
    endings = ask_at_once([server.port for server in servers], chat_body(TEXT, max_tokens=MAX_TOKENS), key, 1_000)
    assert endings == {(200, ""): 10, (429, "exceeded_current_quota_error"): 990}
    for server in servers:
        server.close()
    assert books(ready, "org-ten") == (Balance(0, 0), [])


def test_without_money_the_refusal_is_the_services(start_server: StartServer, ready: URL) -> None:
    key = prepaid_key(ready, "org-poor", cash=30_000)
    (server,) = _servers(start_server, ready, 1)
    reply = server.post(chat_body(TEXT, max_tokens=MAX_TOKENS), key=key)
    assert reply.status == 429
    assert reply.json["error"]["type"] == "exceeded_current_quota_error"
    assert re.fullmatch(
        r"Your account org-poor <ak-[a-z0-9]{20}> is suspended due to insufficient balance, "
        "please recharge your account or check your plan and billing details",
        reply.json["error"]["message"],
    )
    assert reply.header("retry-after") is None
    assert server.get("/v1/users/me/balance", key=key).json["data"]["available_balance"] == 3e-05


def test_what_a_killed_server_owed_is_charged_by_the_next(start_server: StartServer, ready: URL) -> None:
    key = prepaid_key(ready, "org-a", cash=100 * COST)
    address = f"database.url={ready.render_as_string(hide_password=False)}"
    killed = start_server("--set", address)
    assert killed.post(chat_body(TEXT, max_tokens=MAX_TOKENS), key=key).status == 200
    killed.process.kill()
    killed.process.wait()
    before, leases = books(ready, "org-a")
    assert before in (Balance(100 * COST, 0), Balance(99 * COST, 0))
    assert leases
    start_server("--set", address, env={"MOONBASE_HOME": str(killed.home)}).close()
    assert books(ready, "org-a") == (Balance(99 * COST, 0), [])


@contextmanager
def _away(url: URL) -> Iterator[None]:
    """Nobody can use the database: PostgreSQL lets nobody in, SQLite lets nobody write."""
    if url.drivername.startswith("sqlite"):
        other = sqlite3.connect(str(url.database), isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")
        other.close()
        return
    name, server = url.database, url.set(database="postgres")
    asyncio.run(_execute(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
    asyncio.run(_execute(server, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"))
    yield
    asyncio.run(_execute(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))


async def _execute(server: URL, statement: str) -> None:
    engine = create_async_engine(server, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(statement))
    await engine.dispose()


def test_while_the_database_is_away_leased_money_is_spent_and_nothing_is_lost(
    start_server: StartServer, ready: URL
) -> None:
    leased, new = prepaid_key(ready, "org-leased"), prepaid_key(ready, "org-new", cash=10**9)
    (server,) = _servers(start_server, ready, 1)
    body = chat_body(TEXT, max_tokens=MAX_TOKENS)
    assert server.post(body, key=leased).status == 200
    with _away(ready):
        for _ in range(5):
            assert server.post(body, key=leased).status == 200
            time.sleep(0.6)  # longer than keys are known without asking
        refused = server.post(body, key=new)
        assert (refused.status, refused.json["error"]["type"]) == (503, "server_unavailable")
        assert refused.header("retry-after") is not None
        assert server.get("/healthz").status == 200
    eventually(lambda: server.post(body, key=new).status == 200, within=20)
    server.close()
    assert books(ready, "org-leased") == (Balance(10**15 - 6 * COST, 0), [])
    assert books(ready, "org-new")[0] == Balance(10**9 - COST, 0)
