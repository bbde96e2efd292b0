"""How much may be asked for: open requests, requests and tokens a minute, tokens a day (moonshot-api.md 11).

An organization, a project and a key may each have limits, and all must hold. Minutes and days are those of the calendar
in UTC. Tokens are counted when a request is admitted, its prompt and all the output that it may have, and are
not given back.
"""

from types import TracebackType
from typing import Literal, Protocol, Self

from msgspec import Struct

from moonbase.accounts.tiers import effective_limits
from moonbase.errors import LimitKind, LimitScope, RateLimited
from moonbase.store.records import Caller, Limits

_REMEMBERED = 1_024  # callers whose bounds are kept, 3 KB each; working them out again takes 8 µs

Phase = Literal["entered", "asked", "charged", "left"]


class Bound(Struct, frozen=True):
    """A limit of somebody: `id` is that of the organization, project or key."""

    scope: LimitScope
    id: str
    kind: LimitKind
    limit: int


class Bounds(Struct, frozen=True):
    """All that holds for a caller: what its entry takes, and what its tokens take. `limited` if there is any."""

    entry: tuple[Bound, ...]
    tokens: tuple[Bound, ...]
    limited: bool


def bounds(caller: Caller) -> Bounds:
    """The limits that hold for a caller, the organization's first."""
    of_organization = effective_limits(caller.organization_limits, tier=caller.tier, postpaid=caller.postpaid)
    scopes: list[tuple[LimitScope, str, Limits]] = [
        ("organization", caller.organization_id, of_organization),
        ("project", caller.project_id, caller.project_limits),
        ("key", caller.key_id, caller.key_limits),
    ]

    def of(kind: LimitKind, name: str) -> list[Bound]:
        found = [(scope, owner, getattr(limits, name)) for scope, owner, limits in scopes]
        return [Bound(scope, owner, kind, limit) for scope, owner, limit in found if limit is not None]

    entry = (*of("concurrency", "concurrency"), *of("RPM", "rpm"))
    tokens = (*of("TPM", "tpm"), *of("TPD", "tpd"))
    return Bounds(entry, tokens, bool(entry or tokens))


class Counters(Protocol):
    """Where admissions are counted."""

    def enter(self, admission: "Admission") -> None:
        """Begin to count a request. Raises `RateLimited` as far as it can be known without waiting."""

    async def charge(self, admission: "Admission", tokens: int) -> None:
        """Count the tokens, and whatever `enter` could not.

        Raises `RateLimited`, and then nothing of the request is counted any more.
        """

    def leave(self, admission: "Admission") -> None:
        """The request is over: it is open no more. One that was never charged stays counted as a request."""


class Admission:
    """A request of `caller` that was let in. Leaving gives back the place that it occupied.

    `phase`, `minute` and `counters`, where the request is counted, are for `counters` to keep.
    """

    __slots__ = ("bounds", "caller", "counters", "minute", "phase")

    def __init__(self, caller: Caller, bounds: Bounds, counters: Counters) -> None:
        self.caller = caller
        self.bounds = bounds
        self.counters = counters
        self.phase: Phase = "entered"
        self.minute = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bounds.limited:
            self.counters.leave(self)

    async def charge(self, tokens: int) -> None:
        """Count the tokens that the request may use. Call it once, before anything is run.

        Raises `RateLimited`, and then nothing of the request is counted; `LimitsUnavailable` when nobody can say.
        """
        if self.bounds.limited:
            await self.counters.charge(self, tokens)

    def refusal(self, bound: Bound, current: int) -> RateLimited:
        """`current` is what the count would be with this request."""
        return RateLimited(
            self.caller.organization_id,
            self.caller.key_id,
            scope=bound.scope,
            kind=bound.kind,
            current=current,
            limit=bound.limit,
        )


class Limiter:
    """Admits callers within their limits."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self._bounds: dict[str, tuple[Caller, Bounds]] = {}

    def admit(self, caller: Caller) -> Admission:
        """Count a request and take a place for it; use the admission as a context manager.

        Raises `RateLimited`, and `LimitsUnavailable` when nobody can say.
        """
        admission = Admission(caller, self._of(caller), self.counters)
        if admission.bounds.limited:
            self.counters.enter(admission)
        return admission

    def _of(self, caller: Caller) -> Bounds:
        known = self._bounds.get(caller.key_id)
        if known is not None and known[0] is caller:
            return known[1]
        if len(self._bounds) >= _REMEMBERED:
            self._bounds.clear()
        held = bounds(caller)
        self._bounds[caller.key_id] = caller, held
        return held
