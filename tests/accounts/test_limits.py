"""Limits of organizations, projects and keys: what counts, for how long, and who is told what."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from moonbase.accounts.limits import Admission, Bound, Counters, Limiter, bounds
from moonbase.accounts.local_counters import LocalCounters, Tally
from moonbase.accounts.shared_counters import SharedCounters
from moonbase.accounts.tiers import TIERS, effective_limits
from moonbase.errors import LimitKind, LimitScope, RateLimited
from moonbase.store.records import NO_LIMITS, Caller, Limits
from moonbase.store.shared_counters import SharedStore
from moonbase.telemetry import Metrics

pytestmark = pytest.mark.anyio

CALLER = Caller("org-a", "proj-a", "ak-a", "u", 5, "USD", postpaid=True)
MINUTE = 1_795_000_020_000 - 1_795_000_020_000 % 60_000
SCOPES: list[LimitScope] = ["organization", "project", "key"]
FIELDS: dict[LimitKind, str] = {"concurrency": "concurrency", "RPM": "rpm", "TPM": "tpm", "TPD": "tpd"}


class Clock:
    """Milliseconds that a test moves."""

    def __init__(self) -> None:
        self.now = MINUTE

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "redis"])
async def counters(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Counters]:
    """Counters of each kind that have counted nothing."""
    if request.param == "memory":
        yield LocalCounters(clock=clock)
        return
    async with _shared(request.getfixturevalue("redis_url"), _prefix(), clock) as shared:
        yield shared


@pytest.fixture
def limiter(counters: Counters) -> Limiter:
    return Limiter(counters)


def _prefix() -> str:
    return f"test-{uuid.uuid4().hex}"


def _shared(url: str, prefix: str, clock: Callable[[], int], *, lease_ms: int = 30_000) -> SharedCounters:
    """Counters that wait for Redis however busy the machine is: what they count is looked at, not how soon."""
    store = SharedStore(url, prefix=prefix, lease_ms=lease_ms, timeout=30)
    return SharedCounters(store, clock=clock, metrics=Metrics())


def _limited(scope: LimitScope, **limits: int) -> Caller:
    return replace(CALLER, **{f"{scope}_limits": Limits(**limits)})


async def _admitted(limiter: Limiter, caller: Caller, tokens: int = 0) -> Admission:
    """A request of so many tokens that stays open. Raises `RateLimited`."""
    admission = limiter.admit(caller)
    try:
        await admission.charge(tokens)
    except RateLimited:
        admission.__exit__(None, None, None)
        raise
    return admission


async def _end(limiter: Limiter, *admissions: Admission) -> None:
    for admission in admissions:
        admission.__exit__(None, None, None)
    await _settle(limiter)


async def _settle(limiter: Limiter) -> None:
    """All that is counted in the background is counted."""
    if isinstance(limiter.counters, SharedCounters):
        await limiter.counters.flush()


async def _refusal(limiter: Limiter, caller: Caller, tokens: int = 0) -> RateLimited | None:
    """How a request of so many tokens that ends at once is refused."""
    try:
        admission = await _admitted(limiter, caller, tokens)
    except RateLimited as error:
        return error
    await _end(limiter, admission)
    return None


async def _passes(limiter: Limiter, caller: Caller, tokens: int = 0) -> bool:
    return await _refusal(limiter, caller, tokens) is None


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", FIELDS)
async def test_every_limit_of_every_scope_lets_as_much_through_as_it_says(
    limiter: Limiter, scope: LimitScope, kind: LimitKind
) -> None:
    caller = _limited(scope, **{FIELDS[kind]: 30})
    if kind in ("TPM", "TPD"):
        assert await _passes(limiter, caller, 20)
        refused = await _refusal(limiter, caller, 11)
        assert await _passes(limiter, caller, 10)
    else:
        admissions = [await _admitted(limiter, caller) for _ in range(30)]
        refused = await _refusal(limiter, caller)
        await _end(limiter, *admissions)
        assert await _passes(limiter, caller) == (kind == "concurrency")
    assert refused is not None
    assert f" request reached {scope} " in refused.sentence
    assert refused.retry_after == 1


@pytest.mark.parametrize(
    ("scope", "kind", "sentence"),
    [
        ("organization", "concurrency", "organization max concurrency: 1, please try again after 1 seconds"),
        ("organization", "RPM", "organization max RPM: 1, please try again after 1 seconds"),
        ("organization", "TPM", "organization TPM rate limit, current:3, limit:1"),
        ("organization", "TPD", "organization TPD rate limit, current:3, limit:1"),
        ("project", "TPM", "project TPM rate limit, current: 3, limit: 1, please try again after 1 seconds"),
        ("key", "RPM", "key max RPM: 1, please try again after 1 seconds"),
    ],
)
async def test_the_sentences_are_the_services(
    limiter: Limiter, scope: LimitScope, kind: LimitKind, sentence: str
) -> None:
    caller = _limited(scope, **{FIELDS[kind]: 1})
    if kind in ("concurrency", "RPM"):
        await _admitted(limiter, caller)
    refused = await _refusal(limiter, caller, 3)
    assert refused is not None
    assert refused.sentence == f"Your account org-a<ak-a> request reached {sentence}"
    assert (refused.status, refused.type) == (429, "rate_limit_reached_error")


async def test_requests_are_counted_by_the_calendars_minute(limiter: Limiter, clock: Clock) -> None:
    """The times at which a real account of three requests a minute was let in and refused."""
    caller = _limited("organization", rpm=3)
    outcomes = []
    for seconds in (15.0, 35.0, 49.0, 59.05, 60.45, 61.0, 62.0, 119.9, 120.0):
        clock.now = MINUTE + round(seconds * 1000)
        outcomes.append(await _passes(limiter, caller))
    assert outcomes == [True, True, True, False, True, True, True, False, True]


async def test_tokens_of_a_day_are_counted_until_midnight_in_utc(limiter: Limiter, clock: Clock) -> None:
    caller = _limited("organization", tpd=100)
    clock.now = MINUTE - MINUTE % 86_400_000
    assert await _passes(limiter, caller, 100)
    clock.now += 86_399_999
    assert not await _passes(limiter, caller, 1)
    clock.now += 1
    assert await _passes(limiter, caller, 1)


async def test_a_clock_set_back_does_not_bring_a_minute_back(limiter: Limiter, clock: Clock) -> None:
    caller = _limited("organization", rpm=1)
    assert await _passes(limiter, caller)
    clock.now -= 60_000
    assert not await _passes(limiter, caller)


async def test_a_refused_request_counts_nowhere(limiter: Limiter) -> None:
    both = replace(_limited("organization", rpm=1, tpm=100, tpd=100), key_limits=Limits(tpm=10))
    assert not await _passes(limiter, both, 11)
    other_key = replace(both, key_id="ak-b", key_limits=NO_LIMITS)
    assert await _passes(limiter, other_key, 100)
    full = replace(_limited("organization", concurrency=5, rpm=6), key_limits=Limits(concurrency=1), key_id="ak-c")
    admission = await _admitted(limiter, replace(full, organization_id="org-b"))
    full = replace(full, organization_id="org-b")
    assert [await _passes(limiter, full) for _ in range(3)] == [False] * 3
    others = replace(full, key_id="ak-d", key_limits=NO_LIMITS)
    assert [await _passes(limiter, others) for _ in range(6)] == [True] * 5 + [False]
    await _end(limiter, admission)


async def test_a_request_over_the_limit_by_itself_never_passes(limiter: Limiter) -> None:
    refused = await _refusal(limiter, _limited("organization", tpm=100), 101)
    assert refused is not None
    assert refused.sentence.endswith("TPM rate limit, current:101, limit:100")


async def test_keys_of_an_organization_share_its_limits_and_not_their_own(limiter: Limiter) -> None:
    first = _limited("organization", rpm=3)
    shared = [await _passes(limiter, replace(first, key_id=f"ak-{n}")) for n in range(4)]
    assert shared == [True] * 3 + [False]
    own = [replace(CALLER, key_id=f"ak-{n}", key_limits=Limits(rpm=1)) for n in range(3)]
    assert [await _passes(limiter, caller) for caller in own] == [True] * 3


async def _fail(limiter: Limiter, caller: Caller, *, charged: bool) -> None:
    with limiter.admit(caller) as admission:
        if charged:
            await admission.charge(1)
        raise KeyError


async def test_a_request_that_fails_gives_its_place_back_and_stays_counted(limiter: Limiter) -> None:
    caller = _limited("organization", concurrency=1, rpm=2)
    for charged in (False, True):
        with pytest.raises(KeyError):
            await _fail(limiter, caller, charged=charged)
        await _settle(limiter)
    refused = await _refusal(limiter, caller)
    assert refused is not None
    assert "max RPM: 2" in refused.sentence


async def test_after_its_requests_ended_too_soon_a_caller_is_refused_at_its_entry(limiter: Limiter) -> None:
    caller = _limited("key", rpm=2)
    for _ in range(2):
        with limiter.admit(caller):
            pass
    await _settle(limiter)
    with pytest.raises(RateLimited):
        limiter.admit(caller)


async def test_limits_changed_while_requests_run_hold_from_then_on(limiter: Limiter) -> None:
    before, after = _limited("key", concurrency=1), _limited("key", concurrency=2)
    first = await _admitted(limiter, before)
    assert not await _passes(limiter, before)
    second = await _admitted(limiter, after)
    assert not await _passes(limiter, after)
    await _end(limiter, first, second)
    assert await _passes(limiter, before)


async def test_a_limit_that_is_new_while_a_request_runs_does_not_count_that_one(limiter: Limiter) -> None:
    limited = _limited("key", concurrency=1)
    with limiter.admit(CALLER) as admission:
        await admission.charge(1)
        await _end(limiter, await _admitted(limiter, limited))
    assert await _passes(limiter, limited)


@pytest.mark.parametrize("tier", range(6))
def test_an_organization_has_the_limits_of_its_tier_but_for_its_own(tier: int) -> None:
    assert effective_limits(NO_LIMITS, tier=tier, postpaid=False) == TIERS[tier]
    assert effective_limits(Limits(rpm=7), tier=tier, postpaid=False) == replace(TIERS[tier], rpm=7)
    assert effective_limits(Limits(rpm=7), tier=tier, postpaid=True) == Limits(rpm=7)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 10**9))
def test_a_limit_lets_exactly_itself_through(limit: int, current: int, amount: int) -> None:
    tally, bound = Tally(), Bound("key", "ak-a", "TPM", limit)
    tally.learn(bound, current)
    over = tally.over((bound,), amount)
    assert over == ((bound, current + amount) if current + amount > limit else None)


@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 50)), max_size=40))
def test_no_window_ever_holds_more_than_its_limit(steps: list[tuple[int, int]]) -> None:
    clock, tally = Clock(), Tally()
    bound = Bound("organization", "org-a", "TPM", 100)
    granted: dict[int, int] = {}
    for pause, amount in steps:
        clock.now += pause
        minute = clock.now // 60_000
        tally.turn(clock.now)
        over = tally.over((bound,), amount)
        assert (over is None) == (granted.get(minute, 0) + amount <= 100)
        if over is None:
            tally.add((bound,), amount)
            granted[minute] = granted.get(minute, 0) + amount
    assert all(total <= 100 for total in granted.values())


async def test_memory_holds_the_present_windows_only(clock: Clock) -> None:
    counters = LocalCounters(clock=clock)
    limiter = Limiter(counters)
    for number in range(50):
        clock.now += 86_400_000
        caller = replace(_limited("key", concurrency=1, rpm=1, tpm=1, tpd=1), key_id=f"ak-{number}")
        assert await _passes(limiter, caller, 1)
    assert [len(owners) for owners in counters.tally.counts.values()] == [0, 1, 1, 1]


FULL = Limits(concurrency=2, rpm=5, tpm=60, tpd=150)
CALLERS = [
    replace(CALLER, organization_limits=FULL),
    replace(CALLER, key_id="ak-b", organization_limits=FULL, key_limits=Limits(concurrency=1, rpm=2, tpm=20, tpd=40)),
    replace(CALLER, key_id="ak-c", project_id="proj-b", organization_limits=FULL, project_limits=Limits(rpm=3, tpm=30)),
    replace(CALLER, key_id="ak-d", organization_id="org-b", organization_limits=Limits(rpm=3, tpm=40)),
]
CALLS = st.tuples(st.sampled_from(["request", "open"]), st.sampled_from(CALLERS), st.integers(0, 45))
CLOSES = st.tuples(st.just("close"), st.just(CALLER), st.integers(0, 3))
PAUSES = st.tuples(st.just("pause"), st.just(CALLER), st.integers(1, 40_000))
BAD = st.tuples(st.just("bad"), st.just(CALLERS[3]), st.just(0))  # has no limit that is not looked at before its body


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(CALLS | CLOSES | PAUSES | BAD, max_size=25))
async def test_memory_and_redis_agree_step_by_step(redis_url: str, steps: list[tuple[str, Caller, int]]) -> None:
    clock = Clock()
    async with _shared(redis_url, _prefix(), clock, lease_ms=3_600_000) as shared:
        limiters = [Limiter(LocalCounters(clock=clock)), Limiter(shared)]
        opened: list[list[Admission]] = [[], []]
        for step in steps:
            if step[0] == "pause":
                clock.now += step[2]
                continue
            memory, redis = [
                await _step(limiter, admissions, *step) for limiter, admissions in zip(limiters, opened, strict=True)
            ]
            if memory != redis:  # a window known to be full is named before Redis is asked for the open requests
                assert memory is not None
                assert redis is not None
                assert "max concurrency" in memory
                assert "max concurrency" not in redis


async def _step(limiter: Limiter, opened: list[Admission], action: str, caller: Caller, number: int) -> str | None:
    """The sentence of a refusal."""
    if action == "close":
        if number < len(opened):
            await _end(limiter, opened.pop(number))
        return None
    try:
        if action == "bad":
            await _end(limiter, limiter.admit(caller))
            return None
        admission = await _admitted(limiter, caller, number)
    except RateLimited as error:
        return error.sentence
    if action == "open":
        opened.append(admission)
    else:
        await _end(limiter, admission)
    return None


@pytest.mark.parametrize("kind", FIELDS)
async def test_of_three_hundred_requests_at_once_to_three_processes_exactly_the_limit_passes(
    redis_url: str, clock: Clock, kind: LimitKind
) -> None:
    caller, prefix = _limited("organization", **{FIELDS[kind]: 100}), _prefix()
    async with AsyncExitStack() as stack:
        limiters = [Limiter(await stack.enter_async_context(_shared(redis_url, prefix, clock))) for _ in range(3)]
        asked = [_admitted(limiters[number % 3], caller, 1) for number in range(300)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert len([each for each in outcomes if isinstance(each, Admission)]) == 100
    assert len([each for each in outcomes if isinstance(each, RateLimited)]) == 200


def test_a_bound_names_whose_limit_it_is() -> None:
    held = bounds(replace(CALLERS[1], project_limits=Limits(tpd=7)))
    assert [(bound.scope, bound.kind, bound.limit) for bound in held.tokens] == [
        ("organization", "TPM", 60),
        ("key", "TPM", 20),
        ("organization", "TPD", 150),
        ("project", "TPD", 7),
        ("key", "TPD", 40),
    ]
