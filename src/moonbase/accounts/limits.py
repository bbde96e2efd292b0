"""How much may be asked for: open requests, requests and tokens a minute, tokens a day (moonshot-api.md 11).

An organization, a project and a key may each have limits, and all must hold. Minutes and days are those of the calendar
in UTC. Tokens are counted when a request is admitted, its prompt and all the output that it may have, and are
not given back.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from msgspec import Struct

from moonbase.accounts.tiers import organization_limits
from moonbase.errors import LimitKind, LimitScope, RateLimited
from moonbase.store.records import Caller, Limits

_MINUTE_MS = 60_000
_DAY_MS = 86_400_000
_REMEMBERED = 16_384  # callers whose bounds are kept


class Bound(Struct, frozen=True):
    """A limit of somebody: `id` is that of the organization, project or key."""

    scope: LimitScope
    id: str
    kind: LimitKind
    limit: int


class Bounds(Struct, frozen=True):
    """All that holds for a caller: what its entry takes, and what its tokens take."""

    entry: tuple[Bound, ...]
    tokens: tuple[Bound, ...]


def bounds(caller: Caller) -> Bounds:
    """The limits that hold for a caller, the organization's first."""
    scopes: list[tuple[LimitScope, str, Limits]] = [
        ("organization", caller.organization_id, organization_limits(caller)),
        ("project", caller.project_id, caller.project_limits),
        ("key", caller.key_id, caller.key_limits),
    ]

    def of(kind: LimitKind, name: str) -> list[Bound]:
        found = [(scope, owner, getattr(limits, name)) for scope, owner, limits in scopes]
        return [Bound(scope, owner, kind, limit) for scope, owner, limit in found if limit is not None]

    return Bounds((*of("concurrency", "concurrency"), *of("RPM", "rpm")), (*of("TPM", "tpm"), *of("TPD", "tpd")))


def exceeds(bound: Bound, current: int, amount: int) -> bool:
    """Whether `amount` more is too much: the one comparison for all scopes and kinds."""
    return current + amount > bound.limit


class Counters:
    """What has been counted in this process, by the owner and kind of a limit.

    It forgets a window when the next one begins, so it holds no more than those who asked in this minute and day.
    """

    def __init__(self, *, clock: Callable[[], int]) -> None:
        """`clock` gives milliseconds since the epoch, UTC. A clock set back does not bring a window back."""
        self._clock = clock
        self._minute = self._day = 0
        self._counts: dict[LimitKind, dict[str, int]] = {"concurrency": {}, "RPM": {}, "TPM": {}, "TPD": {}}

    def take(self, wanted: tuple[Bound, ...], amount: int) -> tuple[Bound, int] | None:
        """Count `amount` for all that is `wanted`, or nothing: then the first limit in the way and what it would be."""
        self._turn()
        counts = self._counts
        for bound in wanted:
            current = counts[bound.kind].get(bound.id, 0)
            if exceeds(bound, current, amount):
                return bound, current + amount
        for bound in wanted:
            owners = counts[bound.kind]
            owners[bound.id] = owners.get(bound.id, 0) + amount
        return None

    def leave(self, taken: tuple[Bound, ...]) -> None:
        """A request is over: it is open no more."""
        open_requests = self._counts["concurrency"]
        for bound in taken:
            if bound.kind == "concurrency":
                left = open_requests[bound.id] - 1
                if left:
                    open_requests[bound.id] = left
                else:
                    del open_requests[bound.id]

    def _turn(self) -> None:
        now = self._clock()
        if now // _MINUTE_MS > self._minute:
            self._minute = now // _MINUTE_MS
            self._counts["RPM"] = {}
            self._counts["TPM"] = {}
        if now // _DAY_MS > self._day:
            self._day = now // _DAY_MS
            self._counts["TPD"] = {}


class Admission:
    """A request of `caller` that was let in. Leaving gives back the place that it occupied."""

    __slots__ = ("_bounds", "_counters", "caller")

    def __init__(self, caller: Caller, counters: Counters, held: Bounds) -> None:
        self.caller = caller
        self._counters = counters
        self._bounds = held

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._counters.leave(self._bounds.entry)

    def charge(self, tokens: int) -> None:
        """Count the tokens that the request may use. Raises `RateLimited`, and then counts none."""
        refused = self._counters.take(self._bounds.tokens, tokens)
        if refused is not None:
            raise _refusal(self.caller, *refused)


class Limiter:
    """Admits callers within their limits."""

    def __init__(self, *, clock: Callable[[], int]) -> None:
        self._counters = Counters(clock=clock)
        self._bounds: dict[str, tuple[Caller, Bounds]] = {}

    def admit(self, caller: Caller) -> Admission:
        """Count a request and take a place for it; use the admission as a context manager. Raises `RateLimited`."""
        held = self._of(caller)
        refused = self._counters.take(held.entry, 1)
        if refused is not None:
            raise _refusal(caller, *refused)
        return Admission(caller, self._counters, held)

    def _of(self, caller: Caller) -> Bounds:
        known = self._bounds.get(caller.key_id)
        if known is not None and known[0] is caller:
            return known[1]
        if len(self._bounds) >= _REMEMBERED:
            self._bounds.clear()
        held = bounds(caller)
        self._bounds[caller.key_id] = caller, held
        return held


def _refusal(caller: Caller, bound: Bound, current: int) -> RateLimited:
    return RateLimited(
        caller.organization_id, caller.key_id, scope=bound.scope, kind=bound.kind, current=current, limit=bound.limit
    )
