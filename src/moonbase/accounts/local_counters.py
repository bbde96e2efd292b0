"""Counts of one process, in memory."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from moonbase.accounts.limits import Admission, Bound
from moonbase.errors import LimitKind, RateLimited

if TYPE_CHECKING:
    from moonbase.accounts.limits import Counters

MINUTE_MS = 60_000
DAY_MS = 86_400_000


class Tally:
    """Counts by the owner and kind of a limit, in the present minute and day.

    It forgets a window when the next one begins, so it holds no more than those who asked in this minute and day.
    """

    def __init__(self) -> None:
        self.minute = self.day = 0
        self.counts: dict[LimitKind, dict[str, int]] = {"concurrency": {}, "RPM": {}, "TPM": {}, "TPD": {}}

    def turn(self, now: int) -> None:
        """It is `now`, in milliseconds. A clock set back does not bring a window back."""
        if now // MINUTE_MS > self.minute:
            self.minute = now // MINUTE_MS
            self.counts["RPM"] = {}
            self.counts["TPM"] = {}
        if now // DAY_MS > self.day:
            self.day = now // DAY_MS
            self.counts["TPD"] = {}

    def over(self, wanted: tuple[Bound, ...], amount: int) -> tuple[Bound, int] | None:
        """The first limit that `amount` more would exceed, and what its count would be."""
        counts = self.counts
        for bound in wanted:
            count = counts[bound.kind].get(bound.id, 0) + amount
            if count > bound.limit:
                return bound, count
        return None

    def add(self, wanted: Iterable[Bound], amount: int) -> None:
        """Count `amount` more for all of `wanted`. An owner with a count of nothing is forgotten."""
        counts = self.counts
        for bound in wanted:
            of_kind = counts[bound.kind]
            if count := of_kind.get(bound.id, 0) + amount:
                of_kind[bound.id] = count
            else:
                of_kind.pop(bound.id, None)

    def learn(self, bound: Bound, count: int) -> None:
        """It is known to be `count` at least."""
        counts = self.counts[bound.kind]
        if count > counts.get(bound.id, 0):
            counts[bound.id] = count


class LocalCounters:
    """Counts a request and its place when it enters, its tokens when it is charged."""

    def __init__(self, *, clock: Callable[[], int]) -> None:
        """`clock` gives milliseconds since the epoch, UTC."""
        self._clock = clock
        self.tally = Tally()

    def enter(self, admission: Admission) -> None:
        self._take(admission, admission.bounds.entry, 1)
        admission.minute = self.tally.minute
        admission.phase = "entered"

    async def charge(self, admission: Admission, tokens: int) -> None:
        try:
            self._take(admission, admission.bounds.tokens, tokens)
        except RateLimited:
            self._close(admission)
            if admission.minute == self.tally.minute:
                self.tally.add([bound for bound in admission.bounds.entry if bound.kind == "RPM"], -1)
            raise
        admission.phase = "charged"

    def leave(self, admission: Admission) -> None:
        if admission.phase != "left":
            self._close(admission)

    def _take(self, admission: Admission, wanted: tuple[Bound, ...], amount: int) -> None:
        """All that is wanted, or nothing."""
        self.tally.turn(self._clock())
        over = self.tally.over(wanted, amount)
        if over is not None:
            raise admission.refusal(*over)
        self.tally.add(wanted, amount)

    def _close(self, admission: Admission) -> None:
        admission.phase = "left"
        self.tally.add([bound for bound in admission.bounds.entry if bound.kind == "concurrency"], -1)


if TYPE_CHECKING:

    def _conforms(counters: LocalCounters) -> Counters:
        return counters
