"""Counts of several processes, in Redis."""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

from moonbase.accounts.limits import Admission, Bound
from moonbase.accounts.local_counters import DAY_MS, MINUTE_MS, LocalCounters, Tally
from moonbase.config import WithoutRedis
from moonbase.errors import CountersAway, LimitsUnavailable
from moonbase.store.shared_counters import Batch, Counter, SharedStore, Take, Taken
from moonbase.telemetry import Metrics

if TYPE_CHECKING:
    from moonbase.accounts.limits import Counters

log = logging.getLogger(__name__)

_LINGER_S = 0.001  # what is given back waits so long for company; a client's next request must not overtake it
_TICK_S = 1.0
_MOST_AT_ONCE = 256  # requests in a batch: a script keeps everybody else waiting
_LENGTHS = {"concurrency": 0, "RPM": MINUTE_MS, "TPM": MINUTE_MS, "TPD": DAY_MS}


class _Ask(Struct, eq=False):
    """What a request takes. `decided` tells whether Redis decided; None where nobody waits for it."""

    admission: Admission
    wanted: list[tuple[Bound, int]]
    take: Take
    at: int
    decided: asyncio.Future[bool] | None = None
    over: tuple[Bound, int] | None = None


class SharedCounters:
    """Takes everything that a request needs when it is charged, in at most one round trip that it waits for.

    At its entry a request is refused by what this process knows already: windows only fill, so one that Redis said
    is full stays so. A task sends what has gathered while the batch before it was under way; it also counts requests
    that end before they are charged, gives places back, and renews those of open requests, which Redis else drops.
    While Redis is away this process counts alone, or refuses.

    An async context manager that owns the task and closes `store`. `away` tells whether Redis is.
    """

    def __init__(
        self,
        store: SharedStore,
        *,
        clock: Callable[[], int],
        metrics: Metrics,
        without_redis: WithoutRedis = "local",
        tick: float = _TICK_S,
    ) -> None:
        """`clock` gives milliseconds since the epoch, UTC, and must agree with that of the other processes.

        Every `tick` seconds a lost Redis is looked for. Places are renewed three times in their lease.
        """
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._without_redis = without_redis
        self._tick_s = tick
        self._local = LocalCounters(clock=clock)
        self._known = Tally()
        self._process = secrets.token_hex(6)
        self._number = 0
        self._asks: list[_Ask] = []
        self._frees: dict[str, list[str]] = {}
        self._held: dict[Admission, tuple[str, tuple[str, ...]]] = {}
        self._wake = asyncio.Event()
        self._flushed: list[asyncio.Future[None]] = []
        self._lingering: asyncio.TimerHandle | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._ticked = False
        self._renewed_at = time.monotonic()
        self.away = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "SharedCounters":
        """A Redis that is away does not stop a start."""
        await self._probe()
        self._task = asyncio.create_task(self._run(), name="shared counters")
        self._ticker = asyncio.get_running_loop().call_later(self._tick_s, self._tick)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        await self.flush()
        for timer in (self._ticker, self._lingering):
            if timer is not None:
                timer.cancel()
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._store.close()

    def enter(self, admission: Admission) -> None:
        if self.away:
            self._alone(admission)
            return
        self._known.turn(self._clock())
        if (over := self._known.over(admission.bounds.entry, 1)) is not None:
            raise admission.refusal(*over)

    async def charge(self, admission: Admission, tokens: int) -> None:
        if not self.away:
            now = self._clock()
            self._known.turn(now)
            bounds = admission.bounds
            over = self._known.over(bounds.entry, 1) or self._known.over(bounds.tokens, tokens)
            if over is not None:
                admission.phase = "left"
                raise admission.refusal(*over)
            wanted = [*[(bound, 1) for bound in bounds.entry], *[(bound, tokens) for bound in bounds.tokens]]
            ask = self._ask(admission, wanted, now)
            ask.decided = asyncio.get_running_loop().create_future()
            admission.phase = "asked"
            self._asks.append(ask)
            self._wake.set()
            if await ask.decided:
                if ask.over is not None:
                    raise admission.refusal(*ask.over)
                return
        self._alone(admission)
        await self._local.charge(admission, tokens)

    def leave(self, admission: Admission) -> None:
        if admission.phase == "charged":
            self._free(admission)
        elif admission.phase == "entered" and not self.away:
            self._asks.append(self._uncharged(admission, self._clock()))
            self._linger()

    async def flush(self) -> None:
        """Wait until all that there is to tell Redis has been told, or it is away."""
        done = asyncio.get_running_loop().create_future()
        self._flushed.append(done)
        self._wake.set()
        await done

    def _alone(self, admission: Admission) -> None:
        """Redis is away: count the request here, or refuse it."""
        self._metrics.without_redis += 1
        admission.phase = "left"
        if self._without_redis == "refuse":
            raise LimitsUnavailable
        admission.counters = self._local
        self._local.enter(admission)

    def _ask(self, admission: Admission, wanted: list[tuple[Bound, int]], at: int, *, forced: bool = False) -> _Ask:
        self._number += 1
        counters = tuple([self._counter(admission, bound, amount, at) for bound, amount in wanted])
        return _Ask(admission, wanted, Take(f"{self._process}-{self._number}", counters, forced), at)

    def _counter(self, admission: Admission, bound: Bound, amount: int, at: int) -> Counter:
        length = _LENGTHS[bound.kind]
        window = [at // length] if length else []
        key = self._store.key(admission.caller.organization_id, bound.scope, bound.id, bound.kind, *window)
        return Counter(key, amount, bound.limit, 2 * length)  # longer than any clock is behind another

    def _uncharged(self, admission: Admission, at: int) -> _Ask:
        """What counts of a request that ended before it was charged: that it was one."""
        rpm = [(bound, 1) for bound in admission.bounds.entry if bound.kind == "RPM"]
        return self._ask(admission, rpm, at, forced=True)

    def _free(self, admission: Admission) -> None:
        admission.phase = "left"
        held = self._held.pop(admission, None)
        if held is not None:
            member, keys = held
            for key in keys:
                self._frees.setdefault(key, []).append(member)
            self._linger()

    def _linger(self) -> None:
        if self._lingering is None:
            self._lingering = asyncio.get_running_loop().call_later(_LINGER_S, self._wake.set)

    def _tick(self) -> None:
        self._ticked = True
        self._wake.set()
        self._ticker = asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._lingering is not None:
                self._lingering.cancel()
                self._lingering = None
            ticked, self._ticked = self._ticked, False
            if self.away and ticked:
                await self._probe()
            if not self.away:
                await self._send()
            if self._asks and not self.away:
                self._wake.set()
                continue
            for done in self._flushed:
                if not done.done():
                    done.set_result(None)
            self._flushed.clear()

    async def _send(self) -> None:
        asks = self._next()
        renews = self._renewals()
        if not (asks or renews or self._frees):
            return
        frees, self._frees = self._frees, {}
        together: dict[str, list[_Ask]] = {}
        for ask in asks:
            together.setdefault(ask.admission.caller.organization_id, []).append(ask)
        takes = {organization: [ask.take for ask in those] for organization, those in together.items()}
        try:
            taken = await self._store.send(Batch(takes, frees, renews), self._clock())
            for organization, those in together.items():
                for ask, answer in zip(those, taken[organization], strict=True):
                    self._decide(ask, answer)
        except Exception as error:  # noqa: BLE001 - whatever it is, requests wait for an end
            self._lost(error)
            for key, members in frees.items():  # of requests that Redis let in, so there is an end to them
                self._frees.setdefault(key, []).extend(members)
            for ask in [*asks, *self._asks]:
                if ask.decided is not None and not ask.decided.done():
                    ask.decided.set_result(False)
            self._asks.clear()

    def _next(self) -> list[_Ask]:
        """The requests of the next batch. One whose client has left meanwhile is only counted."""
        asks = self._asks[:_MOST_AT_ONCE]
        del self._asks[:_MOST_AT_ONCE]
        gone = [ask.decided is not None and ask.decided.cancelled() for ask in asks]
        asks = [self._uncharged(ask.admission, ask.at) if left else ask for ask, left in zip(asks, gone, strict=True)]
        return [ask for ask in asks if ask.wanted]

    def _renewals(self) -> dict[str, list[str]]:
        renews: dict[str, list[str]] = {}
        now = time.monotonic()
        if now - self._renewed_at >= self._store.lease_ms / 3000:
            self._renewed_at = now
            for member, keys in self._held.values():
                for key in keys:
                    renews.setdefault(key, []).append(member)
        return renews

    def _decide(self, ask: _Ask, taken: Taken) -> None:
        for (bound, _), count in zip(ask.wanted, taken.counts, strict=True):
            if bound.kind != "concurrency" and self._is_present(bound, ask.at):
                self._known.learn(bound, count)
        if ask.decided is None:
            return
        admission = ask.admission
        if taken.exceeded:
            admission.phase = "left"
            bound, amount = ask.wanted[taken.exceeded - 1]
            ask.over = bound, taken.counts[taken.exceeded - 1] + amount
        else:
            admission.phase = "charged"
            places = tuple([each.key for each in ask.take.counters if not each.ttl_ms])
            if places:
                self._held[admission] = ask.take.member, places
        if ask.decided.done():  # cancelled: the client has left
            self._free(admission)
        else:
            ask.decided.set_result(True)

    def _is_present(self, bound: Bound, at: int) -> bool:
        if bound.kind == "TPD":
            return at // DAY_MS == self._known.day
        return at // MINUTE_MS == self._known.minute

    async def _probe(self) -> None:
        try:
            await self._store.probe()
        except Exception as error:  # noqa: BLE001 - the task that requests wait for must not end
            self._lost(error)
            return
        if self.away:
            log.info("Redis counts again")
        self.away = False
        self._renewed_at = -math.inf  # what it may have forgotten meanwhile

    def _lost(self, error: Exception) -> None:
        """Once for an outage it is in the log."""
        if self.away:
            return
        self.away = True
        if isinstance(error, CountersAway):
            alone = "each process counts alone" if self._without_redis == "local" else "requests are refused"
            log.warning("Redis is away (%s); until it is back %s", type(error.__cause__).__name__, alone)
        else:
            log.error("counting in Redis failed", exc_info=error)


if TYPE_CHECKING:

    def _conforms(counters: SharedCounters) -> Counters:
        return counters
