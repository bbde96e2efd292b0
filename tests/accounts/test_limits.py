"""Limits of organizations, projects and keys: what counts, for how long, and who is told what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from moonbase.accounts.limits import Bound, Counters, Limiter, exceeds
from moonbase.accounts.tiers import TIERS, organization_limits
from moonbase.errors import LimitKind, LimitScope, RateLimited
from moonbase.store.records import NO_LIMITS, Caller, Limits

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


@pytest.fixture
def limiter(clock: Clock) -> Limiter:
    return Limiter(clock=clock)


def _limited(scope: LimitScope, **limits: int) -> Caller:
    return replace(CALLER, **{f"{scope}_limits": Limits(**limits)})


def _refusal(limiter: Limiter, caller: Caller, tokens: int = 0) -> RateLimited | None:
    """How a request of so many tokens that ends at once is refused."""
    try:
        with (admission := limiter.admit(caller)):
            admission.charge(tokens)
    except RateLimited as error:
        return error
    return None


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", FIELDS)
def test_every_limit_of_every_scope_lets_as_much_through_as_it_says(
    limiter: Limiter, scope: LimitScope, kind: LimitKind
) -> None:
    caller = _limited(scope, **{FIELDS[kind]: 30})
    if kind in ("TPM", "TPD"):
        assert _refusal(limiter, caller, 20) is None
        refused = _refusal(limiter, caller, 11)
        assert _refusal(limiter, caller, 10) is None
    else:
        admissions = [limiter.admit(caller) for _ in range(30)]
        refused = _refusal(limiter, caller)
        for admission in admissions:
            admission.__exit__(None, None, None)
        assert (_refusal(limiter, caller) is None) == (kind == "concurrency")
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
def test_the_sentences_are_the_services(limiter: Limiter, scope: LimitScope, kind: LimitKind, sentence: str) -> None:
    caller = _limited(scope, **{FIELDS[kind]: 1})
    open_request = limiter.admit(caller) if kind in ("concurrency", "RPM") else None
    refused = _refusal(limiter, caller, 3)
    assert refused is not None
    assert refused.sentence == f"Your account org-a<ak-a> request reached {sentence}"
    assert (refused.status, refused.type) == (429, "rate_limit_reached_error")
    assert open_request is None or open_request.caller is caller


def test_requests_are_counted_by_the_calendars_minute(limiter: Limiter, clock: Clock) -> None:
    """The times of moonshot-api.md 11.2."""
    caller = _limited("organization", rpm=3)
    outcomes = []
    for seconds in (15.0, 35.0, 49.0, 59.05, 60.45, 61.0, 62.0, 119.9, 120.0):
        clock.now = MINUTE + round(seconds * 1000)
        outcomes.append(_refusal(limiter, caller) is None)
    assert outcomes == [True, True, True, False, True, True, True, False, True]


def test_tokens_of_a_day_are_counted_until_midnight_in_utc(limiter: Limiter, clock: Clock) -> None:
    caller = _limited("organization", tpd=100)
    clock.now = MINUTE - MINUTE % 86_400_000
    assert _refusal(limiter, caller, 100) is None
    clock.now += 86_399_999
    assert _refusal(limiter, caller, 1) is not None
    clock.now += 1
    assert _refusal(limiter, caller, 1) is None


def test_a_clock_set_back_does_not_bring_a_minute_back(limiter: Limiter, clock: Clock) -> None:
    caller = _limited("organization", rpm=1)
    assert _refusal(limiter, caller) is None
    clock.now -= 60_000
    assert _refusal(limiter, caller) is not None


def test_a_refused_request_counts_nowhere(limiter: Limiter) -> None:
    both = replace(_limited("organization", tpm=100), key_limits=Limits(tpm=10))
    assert _refusal(limiter, both, 11) is not None
    other_key = replace(_limited("organization", tpm=100), key_id="ak-b")
    assert _refusal(limiter, other_key, 100) is None
    full = replace(_limited("organization", concurrency=5, rpm=5), key_limits=Limits(concurrency=1), key_id="ak-c")
    with limiter.admit(full):
        assert [_refusal(limiter, full) is None for _ in range(3)] == [False] * 3
        others = replace(full, key_id="ak-d", key_limits=NO_LIMITS)
        assert [_refusal(limiter, others) is None for _ in range(5)] == [True] * 4 + [False]


def test_keys_of_an_organization_share_its_limits_and_not_their_own(limiter: Limiter) -> None:
    first = _limited("organization", rpm=3)
    assert [_refusal(limiter, replace(first, key_id=f"ak-{n}")) is None for n in range(4)] == [True] * 3 + [False]
    own = [replace(CALLER, key_id=f"ak-{n}", key_limits=Limits(rpm=1)) for n in range(3)]
    assert [_refusal(limiter, caller) is None for caller in own] == [True] * 3


def test_a_request_that_fails_gives_its_place_back_and_stays_counted(limiter: Limiter) -> None:
    caller = _limited("organization", concurrency=1, rpm=2)
    for _ in range(2):
        with pytest.raises(KeyError), limiter.admit(caller):
            raise KeyError
    refused = _refusal(limiter, caller)
    assert refused is not None
    assert "max RPM: 2" in refused.sentence


def test_limits_changed_while_requests_run_hold_from_then_on(limiter: Limiter) -> None:
    before, after = _limited("key", concurrency=1), _limited("key", concurrency=2)
    with limiter.admit(before):
        assert _refusal(limiter, before) is not None
        with limiter.admit(after):
            assert _refusal(limiter, after) is not None
    assert _refusal(limiter, before) is None


def test_a_limit_that_is_new_while_a_request_runs_does_not_count_that_one(limiter: Limiter) -> None:
    with limiter.admit(CALLER):
        limited = _limited("key", concurrency=1)
        with limiter.admit(limited):
            pass
    assert _refusal(limiter, limited) is None


@pytest.mark.parametrize("tier", range(6))
def test_an_organization_has_the_limits_of_its_tier_but_for_its_own(tier: int) -> None:
    prepaid = replace(CALLER, tier=tier, postpaid=False)
    assert organization_limits(prepaid) == TIERS[tier]
    own = replace(prepaid, organization_limits=Limits(rpm=7))
    assert organization_limits(own) == replace(TIERS[tier], rpm=7)
    assert organization_limits(replace(own, postpaid=True)) == Limits(rpm=7)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_the_one_comparison_lets_exactly_the_limit_through(limit: int, current: int, amount: int) -> None:
    assert exceeds(Bound("key", "ak-a", "TPM", limit), current, amount) == (current + amount > limit)


@given(st.lists(st.tuples(st.integers(0, 200_000), st.integers(1, 50)), max_size=40))
def test_no_window_ever_holds_more_than_its_limit(steps: list[tuple[int, int]]) -> None:
    clock = Clock()
    counters = Counters(clock=clock)
    bound = Bound("organization", "org-a", "TPM", 100)
    granted: dict[int, int] = {}
    for pause, amount in steps:
        clock.now += pause
        minute = clock.now // 60_000
        refused = counters.take((bound,), amount)
        assert (refused is None) == (granted.get(minute, 0) + amount <= 100)
        if refused is None:
            granted[minute] = granted.get(minute, 0) + amount
    assert all(total <= 100 for total in granted.values())
