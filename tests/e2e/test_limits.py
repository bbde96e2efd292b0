"""Rate limits through the front door: the service's 429, its words and headers, in both dialects."""

import json
import re
import time

import pytest
from sqlalchemy import URL
from tests.e2e.conftest import StartServer
from tests.e2e.payers import prepaid_key
from tests.e2e.prompts import prompt_tokens
from tests.e2e.server import CHAT, K2, Reply, Server, chat_body, user

from moonbase.store.database import database_url
from moonbase.store.records import Limits

TEXT = "Hello there"
MAX_TOKENS = 10
TOKENS = prompt_tokens(TEXT) + MAX_TOKENS
PATHS = [CHAT, "/anthropic/v1/messages", "/v1/messages"]


@pytest.fixture(scope="module")
def limited(start_module_server: StartServer) -> Server:
    return start_module_server("--set", "echo.delay=0.01")


@pytest.fixture
def url(limited: Server) -> URL:
    return database_url(None, limited.home)


@pytest.fixture(autouse=True)
def _within_a_minute() -> None:
    """Windows are those of the calendar: no test shall begin in one and end in the next."""
    if (left := 60 - time.time() % 60) < 5:
        time.sleep(left)


def _body(**fields: object) -> bytes:
    return json.dumps({"model": K2, "messages": user(TEXT), "max_tokens": MAX_TOKENS} | fields).encode()


def _assert_refused(reply: Reply, sentence: str) -> None:
    assert reply.status == 429
    account = r"Your account org-[a-z0-9-]+<ak-[a-z0-9]{20}> request reached "
    assert re.fullmatch(account + re.escape(sentence), reply.json["error"]["message"])
    assert reply.json["error"]["type"] == "rate_limit_reached_error"
    assert [reply.header(name) for name in ("retry-after", "x-retry-after", "msh-cooldown-seconds")] == ["1"] * 3
    assert reply.header("msh-org-id") is not None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_requests_a_minute(limited: Server, url: URL, path: str, stream: bool) -> None:
    key = prepaid_key(url, f"org-rpm{PATHS.index(path)}{int(stream)}", limits=Limits(rpm=2))
    assert limited.post(_body(stream=stream), path, key=key).status == 200
    assert limited.post(b"{", path, key=key).status == 400  # counts
    sentence = "organization max RPM: 2, please try again after 1 seconds"
    _assert_refused(limited.post(_body(stream=stream), path, key=key), sentence)
    _assert_refused(limited.post(b"{", path, key=key), sentence)  # before the body is looked at
    assert limited.get("/v1/users/me/balance", key=key).status == 200
    assert limited.get("/v1/models", key=key).status == 200


@pytest.mark.parametrize("path", PATHS)
def test_tokens_are_counted_with_all_the_output_that_may_come(limited: Server, url: URL, path: str) -> None:
    key = prepaid_key(
        url, f"org-tokens{PATHS.index(path)}", limits=Limits(tpd=TOKENS), project_limits=Limits(tpm=2 * TOKENS)
    )
    more = MAX_TOKENS + TOKENS
    _assert_refused(
        limited.post(_body(max_tokens=more + 1), path, key=key),
        f"project TPM rate limit, current: {2 * TOKENS + 1}, limit: {2 * TOKENS}, please try again after 1 seconds",
    )
    _assert_refused(
        limited.post(_body(max_tokens=more), path, key=key),
        f"organization TPD rate limit, current:{2 * TOKENS}, limit:{TOKENS}",
    )
    assert limited.post(_body(), path, key=key).status == 200
    _assert_refused(
        limited.post(_body(max_tokens=1), path, key=key),
        f"organization TPD rate limit, current:{2 * TOKENS - MAX_TOKENS + 1}, limit:{TOKENS}",
    )


def test_every_choice_counts_its_output(limited: Server, url: URL) -> None:
    key = prepaid_key(url, "org-n", limits=Limits(tpm=TOKENS + MAX_TOKENS - 1))
    _assert_refused(
        limited.post(_body(n=2), key=key),
        f"organization TPM rate limit, current:{TOKENS + MAX_TOKENS}, limit:{TOKENS + MAX_TOKENS - 1}",
    )


@pytest.mark.parametrize("path", PATHS)
def test_open_requests(limited: Server, url: URL, path: str) -> None:
    key = prepaid_key(url, f"org-open{PATHS.index(path)}", key_limits=Limits(concurrency=1))
    body = chat_body("word " * 200, stream=True, max_tokens=300)
    with limited.streaming(body, key=key) as answer:
        answer.read(1)
        _assert_refused(
            limited.post(_body(), path, key=key), "key max concurrency: 1, please try again after 1 seconds"
        )
    deadline = time.monotonic() + 5
    while limited.post(_body(), path, key=key).status != 200:  # the one that was left has given its place back
        assert time.monotonic() < deadline


def test_a_key_of_the_first_start_meets_no_limit(limited: Server) -> None:
    assert {limited.chat(TEXT, max_tokens=1).status for _ in range(30)} == {200}


def test_a_prepaid_organization_has_the_limits_of_its_tier(limited: Server, url: URL) -> None:
    """Tier 5 may use five million tokens a minute."""
    key = prepaid_key(url, "org-tier")
    most = 5 * 200_000
    statuses = [limited.post(_body(n=5, max_tokens=200_000), key=key).status for _ in range(6)]
    assert statuses == [200] * (5_000_000 // most - 1) + [429] * (6 - 5_000_000 // most + 1)
