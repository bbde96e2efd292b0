"""Counters in Redis: processes that die, a Redis that does, and what a request waits for."""

import asyncio
import logging
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace
from tests.redis_child import RedisChild

from moonbase.accounts.changes import milliseconds
from moonbase.accounts.limits import Admission, Limiter
from moonbase.accounts.shared_counters import SharedCounters
from moonbase.errors import ConfigurationError, LimitsUnavailable, RateLimited
from moonbase.store.records import Caller, Limits
from moonbase.store.shared_counters import SharedStore
from moonbase.telemetry import Metrics

pytestmark = pytest.mark.anyio

CALLER = Caller("org-a", "proj-a", "ak-a", "u", 5, "USD", postpaid=True)
NOBODY = "redis://127.0.0.1:1/0"


class Clock:
    """Milliseconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1_795_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def prefix() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def child() -> Iterator[RedisChild]:
    pytest.importorskip("redis", reason="Redis left out: install moonbase[redis]")
    with RedisChild() as child:
        yield child


def _process(
    url: str, prefix: str = "test", *, lease_ms: int = 30_000, timeout: float = 30, **options: Any
) -> SharedCounters:
    """Counters as one process has them, but for how long they wait for Redis: a busy machine is no Redis that hangs."""
    store = SharedStore(url, prefix=prefix, lease_ms=lease_ms, timeout=timeout)
    return SharedCounters(store, **({"clock": milliseconds, "metrics": Metrics(), "tick": 0.05} | options))


def _limited(**limits: int) -> Caller:
    return replace(CALLER, organization_limits=Limits(**limits))


async def _admitted(counters: SharedCounters, caller: Caller, tokens: int = 1) -> Admission:
    admission = Limiter(counters).admit(caller)
    try:
        await admission.charge(tokens)
    except BaseException:
        admission.__exit__(None, None, None)
        raise
    return admission


async def _passes(counters: SharedCounters, caller: Caller) -> bool:
    try:
        (await _admitted(counters, caller)).__exit__(None, None, None)
    except RateLimited:
        return False
    await counters.flush()
    return True


async def _soon(what: Any) -> None:
    deadline = time.monotonic() + 5
    while not await what():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.01)


async def test_a_place_given_back_in_one_process_is_free_in_the_other(redis_url: str, prefix: str) -> None:
    caller = _limited(concurrency=1)
    async with _process(redis_url, prefix) as one, _process(redis_url, prefix) as other:
        admission = await _admitted(one, caller)
        assert not await _passes(other, caller)
        admission.__exit__(None, None, None)
        await _soon(lambda: _passes(other, caller))


async def test_the_places_of_a_process_that_died_are_free_when_its_lease_ends(redis_url: str, prefix: str) -> None:
    caller, clock = _limited(concurrency=1), Clock()
    async with _process(redis_url, prefix, clock=clock) as died, _process(redis_url, prefix, clock=clock) as other:
        await _admitted(died, caller)
        clock.now += 29_999
        assert not await _passes(other, caller)
        clock.now += 1
        assert await _passes(other, caller)


async def test_a_request_that_runs_long_keeps_its_place_while_its_process_lives(redis_url: str, prefix: str) -> None:
    caller = _limited(concurrency=1)
    async with _process(redis_url, prefix, lease_ms=400) as other:
        async with _process(redis_url, prefix, lease_ms=400) as one:
            await _admitted(one, caller)
            for _ in range(8):
                await asyncio.sleep(0.15)
                assert not await _passes(other, caller)
        await _soon(lambda: _passes(other, caller))


async def test_a_client_that_leaves_while_it_waits_holds_no_place_and_is_counted(redis_url: str, prefix: str) -> None:
    caller = _limited(concurrency=1, rpm=3)
    async with _process(redis_url, prefix) as counters:
        for rounds in (0, 1):  # before it is sent, and while it is under way
            waiting = asyncio.create_task(_admitted(counters, caller))
            for _ in range(1 + 2 * rounds):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            await counters.flush()
        assert [await _passes(counters, caller) for _ in range(2)] == [True, False]


async def test_a_request_costs_one_script_and_what_comes_meanwhile_goes_together(child: RedisChild) -> None:
    caller = _limited(concurrency=1000, rpm=100_000, tpm=10**9)
    async with _process(child.url) as counters:
        for number in range(1, 11):
            assert await _passes(counters, caller)
            assert child.calls("evalsha") == number
        await asyncio.gather(*(_admitted(counters, caller) for _ in range(500)))
        assert child.calls("evalsha") <= 10 + 4
        for _ in range(100):
            Limiter(counters).admit(CALLER).__exit__(None, None, None)
            await _admitted(counters, CALLER)
        assert child.calls("evalsha") <= 10 + 4  # where there are no limits, nothing is counted


async def test_a_window_that_is_full_is_refused_without_asking(child: RedisChild) -> None:
    caller, clock = _limited(rpm=1, tpm=100), Clock()
    async with _process(child.url, clock=clock) as one, _process(child.url, clock=clock) as other:
        assert await _passes(one, caller)
        assert not await _passes(other, caller)
        before = child.calls("evalsha")
        for _ in range(50):
            with pytest.raises(RateLimited):
                Limiter(other).admit(caller)
        assert child.calls("evalsha") == before
        clock.now += 60_000
        assert await _passes(other, caller)


async def test_a_redis_that_forgot_the_script_is_taught_it_again(child: RedisChild) -> None:
    caller = _limited(rpm=2)
    async with _process(child.url) as counters:
        assert await _passes(counters, caller)
        child.command("SCRIPT FLUSH")
        assert [await _passes(counters, caller) for _ in range(2)] == [True, False]


async def test_all_keys_of_an_organization_lie_in_one_slot_and_end_by_themselves(child: RedisChild) -> None:
    caller = replace(
        _limited(concurrency=9, rpm=9, tpm=9, tpd=9), project_limits=Limits(rpm=9), key_limits=Limits(concurrency=9)
    )
    async with _process(child.url) as counters:
        await _admitted(counters, caller)
        names = child.command("KEYS *").split()[2::2]
        counted = [name for name in names if name != "test:probe"]
        assert len(counted) == 6
        assert all(name.startswith("test:{org-a}:") for name in counted)
        assert all(int(child.command(f"PTTL {name}").strip(":\r\n")) > 0 for name in counted)


async def test_without_redis_each_process_counts_alone_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics, caller = Metrics(), _limited(concurrency=2, rpm=3, tpm=100)
    with caplog.at_level(logging.INFO):
        async with _process(NOBODY, metrics=metrics) as counters:
            assert [await _passes(counters, caller) for _ in range(5)] == [True] * 3 + [False] * 2
            async with _process(NOBODY) as other:
                assert await _passes(other, caller)
            await asyncio.sleep(0.2)
    assert metrics.without_redis == 5
    assert b"moonbase_limits_without_redis_total 5.0" in metrics.exposition()
    sentence = "Redis is away (ConnectionError); until it is back each process counts alone"
    assert [record.getMessage() for record in caplog.records] == [sentence] * 2  # of two processes


async def test_without_redis_requests_may_be_refused_but_for_those_without_limits() -> None:
    async with _process(NOBODY, without_redis="refuse") as counters:
        with pytest.raises(LimitsUnavailable) as refused:
            Limiter(counters).admit(_limited(rpm=1))
        assert (refused.value.status, refused.value.retry_after) == (503, 1)
        await _admitted(counters, CALLER)


async def test_a_redis_that_dies_and_comes_back_is_used_again(
    child: RedisChild, caplog: pytest.LogCaptureFixture
) -> None:
    caller = _limited(concurrency=2)
    with caplog.at_level(logging.INFO):
        async with _process(child.url) as one, _process(child.url) as other:
            first = await _admitted(one, caller)
            child.kill()
            alone = await _admitted(one, caller)  # the first is counted there, where nobody is
            await _admitted(other, caller)
            child.start()
            await _soon(lambda: _returns(caplog, 2))
            await _soon(lambda: _full(other, caller, at=2))  # the first took its place again
            first.__exit__(None, None, None)
            alone.__exit__(None, None, None)
            await _soon(lambda: _passes(other, caller))
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 2


async def _returns(caplog: pytest.LogCaptureFixture, count: int) -> bool:
    return [record.getMessage() for record in caplog.records].count("Redis counts again") == count


async def _full(counters: SharedCounters, caller: Caller, *, at: int) -> bool:
    """Whether a limit of `at` open requests has room for one less."""
    admissions = []
    try:
        for _ in range(at):
            admissions.append(await _admitted(counters, caller))
    except RateLimited:
        pass
    for admission in admissions:
        admission.__exit__(None, None, None)
    await counters.flush()
    return len(admissions) == at - 1


async def test_a_redis_that_hangs_delays_those_who_wait_for_it_once(child: RedisChild) -> None:
    caller = _limited(rpm=1_000)
    async with _process(child.url, timeout=0.25) as counters:
        assert await _passes(counters, caller)
        child.freeze()
        started = time.monotonic()
        for _ in range(100):
            (await _admitted(counters, caller)).__exit__(None, None, None)
            await asyncio.sleep(0.01)  # it is looked for meanwhile
        waited = time.monotonic() - started
        child.thaw()
    assert waited < 5  # not a hundred times a quarter of a second


async def test_places_given_back_while_redis_hangs_are_free_when_it_is_back(child: RedisChild) -> None:
    caller = _limited(concurrency=1)
    async with _process(child.url, timeout=0.25) as counters:
        admission = await _admitted(counters, caller)
        child.freeze()
        (await _admitted(counters, caller)).__exit__(None, None, None)  # finds out that it hangs, and counts alone
        admission.__exit__(None, None, None)
        child.thaw()
        await _soon(lambda: _is_back(counters))
        await counters.flush()
        assert await _passes(counters, caller)


async def _is_back(counters: SharedCounters) -> bool:
    return not counters.away


async def test_a_process_that_ends_gives_its_places_back(redis_url: str, prefix: str) -> None:
    caller = _limited(concurrency=1)
    async with _process(redis_url, prefix) as one:
        (await _admitted(one, caller)).__exit__(None, None, None)
    async with _process(redis_url, prefix) as other:
        assert await _passes(other, caller)


@pytest.mark.parametrize("url", ["", "localhost", "http://127.0.0.1", "redis://127.0.0.1:port"])
def test_what_is_no_url_stops_the_start(url: str) -> None:
    pytest.importorskip("redis", reason="Redis left out: install moonbase[redis]")
    with pytest.raises(ConfigurationError, match=r"^limits\.redis_url: "):
        SharedStore(url)
