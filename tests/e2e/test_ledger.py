"""Money through the front door: real servers, real databases, more requests than there is money for."""

import asyncio
import re

import pytest
from sqlalchemy import URL
from tests.e2e.conftest import StartServer
from tests.e2e.payers import ask_at_once, books, prepaid_key
from tests.e2e.prompts import prompt_tokens
from tests.e2e.server import Server, chat_body

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


def _servers(start: StartServer, url: URL, count: int) -> list[Server]:
    address = url.render_as_string(hide_password=False)
    return [start("--set", f"database.url={address}", "--set", "engine.max_waiting=2000") for _ in range(count)]


@pytest.mark.parametrize("processes", [1, 3])
def test_of_a_thousand_requests_at_once_exactly_those_paid_for_succeed(
    start_server: StartServer, ready: URL, processes: int
) -> None:
    key = prepaid_key(ready, "org-ten", cash=10 * COST)
    servers = _servers(start_server, ready, processes)
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
