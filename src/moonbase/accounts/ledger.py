"""The ledger as one gateway process keeps it: what requests may cost is held, what they did cost is charged once."""

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from moonbase.accounts import fields
from moonbase.accounts.changes import Changes
from moonbase.accounts.pricing import cost, worst_case
from moonbase.accounts.recorder import Recorder, charge_all
from moonbase.accounts.spool import LeftSpool, Spool, left_spools
from moonbase.accounts.tokens import MOST, Tokens
from moonbase.accounts.wallets import Wallets
from moonbase.catalog.prices import Price
from moonbase.config import Durability
from moonbase.errors import ConfigurationError, DatabaseUnavailable, WriteOffRefused
from moonbase.store.database import Database
from moonbase.store.ledger import change_balance, return_leases
from moonbase.store.records import Caller, Entry, Lease, Outcome, Settlement

log = logging.getLogger(__name__)

_MARK_S = 0.25
_MARKS_AT_ONCE = 8  # more only where it would take more slices than these
_MOST_SLICES = 125
MARK_TOKENS = 64
_TIDY_S = 2.0
_BATCH = 1024
_QUIET_MS = 60_000
_NOTHING = Tokens(prompt=0, cached=0, output=0)


class Progress(Protocol):
    """The tokens that a running answer has used so far."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def cached_tokens(self) -> int: ...

    @property
    def completion_tokens(self) -> int: ...


class Reservation(Struct, kw_only=True, eq=False):
    """What a request may cost, held from its admission until it is settled.

    A context manager: leaving it unsettled settles it as `failed` with nothing billed, so every
    reservation ends in exactly one usage record.
    """

    ledger: "Ledger"
    caller: Caller
    request_id: str
    model: str
    served_by: str
    price: Price
    held_nano: int
    """The most this request can cost; 0 where nothing need be held."""
    started_at: int
    settled: bool = False
    progress: Progress | None = None
    marked: int = 0
    """Output tokens at the last progress mark."""

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.settled:
            self.settle(_NOTHING, outcome="failed")

    def follow(self, progress: Progress) -> None:
        """What the request uses from now on is `progress`'s to tell: it is charged should this process die."""
        self.progress = progress
        self.ledger.start(self)

    def mark(self, output: int) -> None:
        """Leave a progress mark where `output` tokens are so many more than at the last one."""
        if output - self.marked >= MARK_TOKENS:
            self.ledger.mark(self)

    def settle(self, used: Tokens, *, outcome: Outcome, first_token_at: int | None = None) -> None:
        """Record what the request used, whatever its outcome, and bill it. Neither blocks nor awaits.

        Settling twice is a bug and an `AssertionError`.
        """
        assert not self.settled, f"request {self.request_id} is settled already"
        self.settled = True
        cost_nano = self._cost(used)
        leased_nano = self.ledger.release(self, cost_nano)
        self.ledger.recorder.record(self._record(used, cost_nano, leased_nano, outcome, first_token_at))

    def so_far(self, used: Tokens) -> Settlement:
        """What is charged should the process die now."""
        return self._record(used, self._cost(used), self.held_nano, "interrupted", None)

    def _record(
        self, used: Tokens, cost_nano: int, leased_nano: int, outcome: Outcome, first_token_at: int | None
    ) -> Settlement:
        caller, price = self.caller, self.price
        return Settlement(
            request_id=self.request_id,
            organization_id=caller.organization_id,
            project_id=caller.project_id,
            key_id=caller.key_id,
            model=self.model,
            served_by=self.served_by,
            prompt_miss=used.uncached,
            prompt_hit=used.cached,
            prompt_write=0,
            output=used.output,
            price_miss=price.miss,
            price_hit=price.hit,
            price_write=price.write,
            price_output=price.output,
            cost_nano=cost_nano,
            leased_nano=leased_nano,
            currency=caller.currency,
            outcome=outcome,
            started_at=self.started_at,
            first_token_at=first_token_at,
            finished_at=self.ledger.clock(),
        )

    def _cost(self, used: Tokens) -> int:
        """In nano-units. No request costs more than can be added up with others in 64 bits."""
        exact = cost(self.price, miss=used.uncached, hit=used.cached, write=0, output=used.output)
        if exact > MOST:
            log.error("request %s would cost %d nano-units; recorded as %d", self.request_id, exact, MOST)
        return min(exact, MOST)


class Ledger:
    """Reservations, settlements and leases of one process over one database.

    An async context manager. Entering it charges what processes that died have left in their spools; leaving it
    writes what is pending and gives back what is leased. What the database does not take then stays in the spool.
    """

    def __init__(
        self,
        database: Database,
        spools: Path,
        *,
        clock: Callable[[], int],
        durability: Durability = "process",
        pending: int = 32_768,
    ) -> None:
        """No request is admitted while `pending` records wait for the database.

        `spools` is the folder of the spools of all processes of this host that share the database.
        With the durability `disk` a settlement survives the machine's death too, else that of the process.
        """
        self.clock = clock
        self.spool = Spool(spools)
        self.recorder = Recorder(database, self.spool, clock=clock, limit=pending)
        self._spools = spools
        self._database = database
        self._durability = durability
        self._wallets = Wallets(database, self.spool.process_id, clock=clock, flush=self.recorder.flush)
        self._running: OrderedDict[Reservation, None] = OrderedDict()  # in the order of their next marks
        self._sync = _GroupSync(self.spool)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Ledger":
        """Raises `ConfigurationError` when the spool or the database cannot be used."""
        async with AsyncExitStack() as stack:
            try:
                stack.enter_context(self.spool)
                with self._database.at_start():
                    await self.recover()
            except OSError as error:
                raise ConfigurationError(
                    f"{self._spools} cannot be used ({error.strerror}); make it writable or set MOONBASE_HOME"
                ) from error
            stack.push_async_callback(self._return_leases)
            await stack.enter_async_context(self.recorder)
            stack.push_async_callback(self._stop, asyncio.create_task(self._keep(), name="ledger keeper"))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def reserve(
        self,
        caller: Caller,
        *,
        request_id: str,
        model: str,
        served_by: str,
        price: Price,
        prompt_tokens: int,
        max_tokens: int,
        started_at: int,
    ) -> Reservation:
        """Hold what a request may cost; use it as a context manager. Suspends only when a lease must grow.

        `model` is the public id, `served_by` what answers in its name, `max_tokens` the limit of all
        choices together, `started_at` the arrival in milliseconds. Raises `InsufficientBalance`, and
        `DatabaseUnavailable` when nobody can say, or while this record might be lost.
        """
        if self.recorder.full:
            raise DatabaseUnavailable
        need = 0
        if not caller.postpaid:
            need = worst_case(price, prompt_tokens=prompt_tokens, max_tokens=max_tokens)
            await self._wallets.hold(caller, need)
        return Reservation(
            ledger=self,
            caller=caller,
            request_id=request_id,
            model=model,
            served_by=served_by,
            price=price,
            held_nano=need,
            started_at=started_at,
        )

    async def durable(self) -> None:
        """Return when all that was settled until now survives what it should."""
        if self._durability == "disk":
            await self._sync.wait()

    async def recover(self) -> None:
        """Charge what processes that live no more have left, and give back what they had leased.

        Raises `DatabaseUnavailable`, and `OSError` when a spool cannot be read or removed.
        """
        with closing(left_spools(self._spools)) as spools:
            while (spool := await asyncio.to_thread(next, spools, None)) is not None:
                await self._take_over(spool)

    def start(self, reservation: Reservation) -> None:
        """From now on the request leaves progress marks."""
        self._running[reservation] = None

    def mark(self, reservation: Reservation) -> None:
        """Leave a progress mark of a request that has begun to produce."""
        assert reservation.progress is not None
        used = counted(reservation.request_id, reservation.progress)
        if reservation.marked:
            self.spool.go_on(reservation.request_id, miss=used.uncached, hit=used.cached, output=used.output)
        else:
            self.spool.begin(reservation.so_far(used))
        reservation.marked = used.output

    def release(self, reservation: Reservation, cost_nano: int) -> int:
        """The request is over: what was held for it is free again. Returns how much of its cost the lease pays."""
        self._running.pop(reservation, None)
        return self._wallets.settle(reservation.caller.organization_id, reservation.held_nano, cost_nano)

    async def _keep(self) -> None:
        """Progress marks, and every other second what else is to be done."""
        loop = asyncio.get_running_loop()
        tidied = loop.time()
        while True:
            await asyncio.sleep(_MARK_S / self._slices())
            try:
                self._mark_some()
                if loop.time() - tidied >= _TIDY_S:
                    await self._tidy()
                    tidied = loop.time()
            except Exception:  # a bug; without the task long answers would be lost with the process
                log.exception("the ledger's keeper failed")

    def _slices(self) -> int:
        """In how many parts all marks are made, a quarter of a second for all: no token is passed on meanwhile."""
        return max(1, min(math.ceil(len(self._running) / _MARKS_AT_ONCE), _MOST_SLICES))

    def _mark_some(self) -> None:
        """Mark those whose turn it is. New answers queue behind the others, and so wait as long as they."""
        some = list(islice(self._running, math.ceil(len(self._running) / self._slices())))
        with self.spool.together():
            for reservation in some:
                self._running.move_to_end(reservation)
                if _has_gone_on(reservation):
                    self.mark(reservation)

    async def _tidy(self) -> None:
        if self.spool.failing:
            self.spool.rewrite(self.recorder.pending)
        try:
            await self._wallets.tidy()
            await self.recover()
        except DatabaseUnavailable:
            return  # the recorder says so; next time
        except OSError as error:
            log.error("the spools of other processes cannot be taken over: %s", error)

    async def _take_over(self, spool: LeftSpool) -> None:
        for first in range(0, len(spool.records), _BATCH):
            batch = spool.records[first : first + _BATCH]
            async for _ in charge_all(self._database, spool.process_id, batch, self.clock):
                pass
        if spool.damaged:
            log.error(
                "a part of the spool of %s cannot be read; it is kept as %s, and what it had leased stays leased "
                "until `moonbase ledger write-off`",
                spool.process_id,
                spool.set_aside(),
            )
            return
        async with self._database.write() as connection:
            leases = await return_leases(connection, spool.process_id, self.clock())
        spool.remove()
        log.warning(
            "took over from %s: %d records, %d leases returned", spool.process_id, len(spool.records), len(leases)
        )

    async def _stop(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.wait([task])

    async def _return_leases(self) -> None:
        if self.recorder.pending:
            return
        try:
            await self._wallets.close()
        except DatabaseUnavailable:
            log.warning("the database does not take back what is leased; the next start gives it back")
        else:
            self.spool.keep = False


class _GroupSync:
    """Brings a spool to the disk, once for all who ask while it is being done."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._current: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def wait(self) -> None:
        """Return when all that was appended before is on the disk."""
        if self._next is None:
            self._next = asyncio.create_task(self._run(self._current))
        await asyncio.shield(self._next)

    async def _run(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._current, self._next = self._next, None
        try:
            await asyncio.to_thread(self._spool.syncer())
        except OSError as error:
            self._spool.failing = True
            log.error("the spool cannot be brought to the disk: %s", error)


async def write_off(changes: Changes, spools: Path, process_id: str, note: str) -> list[Lease]:
    """Give back the leases of a process whose spool is lost with its machine, and return them.

    What the process had served and not yet recorded is charged to nobody; an entry of each organization says so, with
    `note`, and the audit log. Raises `WriteOffRefused`, `InvalidField` and `DatabaseUnavailable`.
    """
    fields.reason(note)
    if (spools / process_id).exists():
        raise WriteOffRefused(
            f"the spool of {process_id} is in {spools}: the process runs, or a server on this host takes over from it"
        )
    async with changes.begin() as change:
        leases = await return_leases(change.connection, process_id, change.now)
        if not leases:
            raise WriteOffRefused(f"no money is leased to {process_id!r}; `moonbase ledger leases` shows who has some")
        quiet_ms = change.now - max(lease.updated_at for lease in leases)
        if quiet_ms < _QUIET_MS:
            raise WriteOffRefused(
                f"{process_id} changed its leases {max(0, quiet_ms) // 1000} seconds ago: it seems to run; "
                f"they can be written off after {_QUIET_MS // 1000} seconds without a change"
            )
        for lease in sorted(leases, key=lambda lease: lease.organization_id):
            entry = Entry(
                organization_id=lease.organization_id,
                kind="correction",
                cash_nano=0,
                voucher_nano=0,
                note=f"write-off of {lease.amount_nano} leased to {process_id}: {note}",
                created_at=change.now,
            )
            await change_balance(change.connection, entry)
        await change.audit("ledger.write_off", process_id, {"note": note, "leases": leases})
    return leases


def counted(request_id: str, progress: Progress) -> Tokens:
    """What a request has used, in numbers that can be true."""
    return Tokens.counted(
        request_id,
        prompt=progress.prompt_tokens,
        cached=progress.cached_tokens,
        output=progress.completion_tokens,
    )


def _has_gone_on(reservation: Reservation) -> bool:
    """Since its last progress mark; it may have ended meanwhile."""
    progress = reservation.progress
    return not reservation.settled and progress is not None and progress.completion_tokens > reservation.marked
