"""Rate limits through the front door: the service's 429, its words and headers, in both dialects."""

import json
import re
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import URL
from tests.e2e.conftest import StartServer
from tests.e2e.payers import ask_at_once, prepaid_key
from tests.e2e.prompts import prompt_tokens
from tests.e2e.server import CHAT, K2, Reply, Server, chat_body, eventually, user
from tests.redis_child import RedisChild

from moonbase.store.database import database_url
from moonbase.store.records import Limits

TEXT = "Hello there"
MAX_TOKENS = 10
TOKENS = prompt_tokens(TEXT) + MAX_TOKENS
PATHS = [CHAT, "/anthropic/v1/messages", "/v1/messages"]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisChild]:
    pytest.importorskip("redis", reason="Redis left out: install moonbase[redis]")
    with RedisChild() as child:
        yield child


@pytest.fixture(scope="module", params=["memory", "redis"])
def limited(request: pytest.FixtureRequest, start_module_server: StartServer) -> Server:
    """A server that counts in memory, and one that does in Redis."""
    options = ["--set", "echo.delay=0.01"]
    if request.param == "redis":
        options += ["--set", f"limits.redis_url={request.getfixturevalue('redis').url}"]
    return start_module_server(*options)


@pytest.fixture
def url(limited: Server) -> URL:
    return database_url(None, limited.home)


@pytest.fixture(autouse=True)
def _within_a_minute() -> None:
    """Windows are those of the calendar: no test shall begin in one and end in the next."""
    _wait_for_a_minute_with(5)


def _wait_for_a_minute_with(seconds: float) -> None:
    if (left := 60 - time.time() % 60) < seconds:
        time.sleep(left)


def _body(**fields: object) -> bytes:
    return json.dumps({"model": K2, "messages": user(TEXT), "max_tokens": MAX_TOKENS} | fields).encode()


def _assert_refused(reply: Reply, sentence: str) -> None:
    """It is exactly the service's answer."""
    account = rb"Your account org-[a-z0-9-]+\\u003cak-[a-z0-9]{20}\\u003e request reached "
    body = rb'\{"error":\{"message":"%b%b","type":"rate_limit_reached_error"\}\}'
    assert reply.status == 429
    assert re.fullmatch(body % (account, re.escape(sentence.encode())), reply.body), reply.body
    assert reply.header("content-type") == "application/json; charset=utf-8"
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


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_tokens_are_counted_with_all_the_output_that_may_come(
    limited: Server, url: URL, path: str, stream: bool
) -> None:
    name = f"org-tokens{PATHS.index(path)}{int(stream)}"
    key = prepaid_key(url, name, limits=Limits(tpd=TOKENS), project_limits=Limits(tpm=2 * TOKENS))
    more = MAX_TOKENS + TOKENS
    _assert_refused(
        limited.post(_body(max_tokens=more + 1, stream=stream), path, key=key),
        f"project TPM rate limit, current: {2 * TOKENS + 1}, limit: {2 * TOKENS}, please try again after 1 seconds",
    )
    _assert_refused(
        limited.post(_body(max_tokens=more, stream=stream), path, key=key),
        f"organization TPD rate limit, current:{2 * TOKENS}, limit:{TOKENS}",
    )
    assert limited.post(_body(stream=stream), path, key=key).status == 200
    _assert_refused(
        limited.post(_body(max_tokens=1, stream=stream), path, key=key),
        f"organization TPD rate limit, current:{2 * TOKENS - MAX_TOKENS + 1}, limit:{TOKENS}",
    )


def test_every_choice_counts_its_output(limited: Server, url: URL) -> None:
    key = prepaid_key(url, "org-n", limits=Limits(tpm=TOKENS + MAX_TOKENS - 1))
    _assert_refused(
        limited.post(_body(n=2), key=key),
        f"organization TPM rate limit, current:{TOKENS + MAX_TOKENS}, limit:{TOKENS + MAX_TOKENS - 1}",
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_open_requests(limited: Server, url: URL, path: str, stream: bool) -> None:
    key = prepaid_key(url, f"org-open{PATHS.index(path)}{int(stream)}", key_limits=Limits(concurrency=1))
    body = chat_body("word " * 200, stream=True, max_tokens=300)
    with limited.streaming(body, key=key) as answer:
        answer.read(1)
        refused = limited.post(_body(stream=stream), path, key=key)
        _assert_refused(refused, "key max concurrency: 1, please try again after 1 seconds")
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


@pytest.mark.parametrize("path", PATHS)
def test_other_errors_have_no_cooldown(limited: Server, path: str) -> None:
    reply = limited.post(b"{", path)
    assert (reply.status, reply.header("retry-after"), reply.header("x-retry-after")) == (400, None, None)
    assert reply.header("msh-cooldown-seconds") is None


@pytest.mark.parametrize("text", ["", "{"])
def test_a_request_asks_redis_once_at_most(start_server: StartServer, redis: RedisChild, text: str) -> None:
    server = start_server("--set", f"limits.redis_url={redis.url}")
    limits = Limits(concurrency=5, rpm=1_000, tpm=1_000_000)
    key = prepaid_key(database_url(None, server.home), f"org-once{len(text)}", limits=limits)
    before = redis.calls("evalsha")
    for _ in range(20):
        assert server.post(text.encode() or _body(), key=key).status == (400 if text else 200)
    assert server.chat(TEXT, max_tokens=1).status == 200  # has no limits
    assert 0 < redis.calls("evalsha") - before <= 20


@pytest.mark.parametrize(("servers", "workers"), [(3, 1), (1, 3)], ids=["three servers", "three workers"])
def test_processes_that_share_a_redis_let_exactly_the_limit_through(
    start_server: StartServer, redis: RedisChild, servers: int, workers: int
) -> None:
    redis_options = ("--set", f"limits.redis_url={redis.url}", "--workers", str(workers))
    first = start_server(*redis_options)
    url = database_url(None, first.home)
    options = (*redis_options, "--set", f"database.url=sqlite:///{url.database}")
    ports = [first.port, *[start_server(*options).port for _ in range(servers - 1)]]
    key = prepaid_key(url, f"org-three-{workers}", limits=Limits(rpm=100))
    _wait_for_a_minute_with(15)  # the servers took their time
    endings = ask_at_once(ports, _body(max_tokens=1), key, 300)
    assert endings == {(200, ""): 100, (429, "rate_limit_reached_error"): 200}


@pytest.mark.parametrize("path", PATHS)
def test_without_redis_a_process_counts_alone(start_server: StartServer, path: str) -> None:
    with RedisChild() as redis:
        server = start_server("--set", f"limits.redis_url={redis.url}", "--set", "metrics.token=m")
        key = prepaid_key(database_url(None, server.home), "org-alone", limits=Limits(rpm=2))
        assert server.post(_body(), path, key=key).status == 200
        redis.kill()
        assert [server.post(_body(), path, key=key).status for _ in range(3)] == [200, 200, 429]
        metrics = server.get("/metrics", key="m").body
        assert b"moonbase_limits_without_redis_total 3.0" in metrics
        told = [line for line in server.log if "Redis is away" in line["message"]]
        assert len(told) == 1
        redis.start()
        eventually(lambda: [line for line in server.log if line["message"] == "Redis counts again"])


def test_without_redis_requests_may_be_refused(start_server: StartServer) -> None:
    options = ("--set", "limits.redis_url=redis://127.0.0.1:1/0", "--set", "limits.without_redis=refuse")
    server = start_server(*options)
    key = prepaid_key(database_url(None, server.home), "org-refused", limits=Limits(rpm=2))
    reply = server.post(_body(), key=key)
    assert (reply.status, reply.header("retry-after"), reply.header("x-retry-after")) == (503, "1", None)
    message = "The rate limits cannot be checked, please try again later"
    assert reply.json == {"error": {"message": message, "type": "server_unavailable"}}
    assert server.chat(TEXT, max_tokens=1).status == 200  # has no limits
