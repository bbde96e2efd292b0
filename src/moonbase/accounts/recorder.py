"""The way of usage records into the database: in memory and in the spool first, then in batches by one task."""

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from itertools import islice

from msgspec.structs import asdict

from moonbase.accounts.spool import Spool
from moonbase.errors import DatabaseUnavailable
from moonbase.store.database import Database
from moonbase.store.ledger import charge
from moonbase.store.records import Settlement

log = logging.getLogger(__name__)
_LONGEST_NUMBER = 1024  # bits; Python refuses to write those of some thousand digits


class Recorder:
    """Takes usage records from settlements and charges them in the database.

    An async context manager that owns the writing task; leaving it writes what is pending. Between
    `record` and the batch that holds it a record exists in memory and in the spool: for `interval` seconds,
    and at most until there are `batch` records or `spacing` seconds have passed since the batch before.
    While the database is away, batches are retried with growing pauses and records pile up; from `limit`
    pending records on, and while the spool cannot be written, `full` is true and no new request may be
    admitted, so nothing is ever served that cannot be recorded.

    Methods are called from the event loop's thread only.
    """

    def __init__(
        self,
        database: Database,
        spool: Spool,
        *,
        clock: Callable[[], int],
        interval: float = 0.1,
        spacing: float = 0.5,
        batch: int = 1024,
        limit: int = 32_768,
        longest_pause: float = 5.0,
        closing_timeout: float = 10.0,
    ) -> None:
        """`clock` gives milliseconds; the other times are seconds.

        `closing_timeout` is how long leaving waits for a database that is away.
        """
        self._database = database
        self._spool = spool
        self._clock = clock
        self._interval = interval
        self._spacing = spacing
        self._batch = batch
        self._limit = limit
        self._longest_pause = longest_pause
        self._closing_timeout = closing_timeout
        self._pending: deque[Settlement] = deque()
        self._written = 0
        self._some = asyncio.Event()
        self._now = asyncio.Event()
        self._flushes: list[tuple[int, asyncio.Future[None]]] = []
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Recorder":
        self._task = asyncio.create_task(self._run(), name="usage recorder")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Write what is pending. What the database does not take in time stays in the spool for the next start.

        Only where that fails too it goes, whole, to the log.
        """
        assert self._task is not None
        self._closing = True
        self._some.set()
        self._now.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._task, self._closing_timeout)
        if self._spool.failing:
            for record in self._pending:
                _log_lost(record, "neither the database nor the spool is available")
        elif self._pending:
            log.warning("%d usage records stay in the spool until the next start", len(self._pending))

    @property
    def full(self) -> bool:
        return len(self._pending) >= self._limit or self._spool.failing

    @property
    def pending(self) -> Sequence[Settlement]:
        """What the database lacks, the oldest first."""
        return self._pending

    def record(self, record: Settlement) -> None:
        """Take over a record; never refuses, never waits."""
        try:
            self._spool.settle(record)
        except ValueError as error:
            _log_lost(record, _first_line(error))
            return
        pending = self._pending
        pending.append(record)
        if len(pending) == 1:
            self._some.set()
        elif len(pending) == self._batch:
            self._now.set()

    async def flush(self) -> None:
        """Return when all records taken so far are in the database.

        Raises `DatabaseUnavailable` when it does not take them now; they stay pending.
        """
        if self._pending:
            done = asyncio.get_running_loop().create_future()
            self._flushes.append((self._written + len(self._pending), done))
            self._now.set()
            await done

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pause = self._interval
        written_at = -self._spacing
        while self._pending or not self._closing:
            await self._some.wait()
            if pause > self._interval:
                await self._wait(pause)
            elif not self._urgent:
                await self._wait(max(pause, written_at + self._spacing - loop.time()))
            self._now.clear()
            try:
                await self._write()
            except DatabaseUnavailable as error:
                if pause == self._interval:
                    log.warning("usage records wait for the database: %s", _first_line(error.__cause__))
                pause = min(pause * 2, self._longest_pause)
                self._answer_flushes(error)
            except Exception:  # a bug; the task must live on, or records pile up unseen and flushes wait for ever
                log.exception("usage records cannot be written")
                pause = min(pause * 2, self._longest_pause)
                self._answer_flushes(DatabaseUnavailable())
            else:
                written_at = loop.time()
                pause = self._interval
                self._answer_flushes(None)
            if not self._pending:
                self._some.clear()

    @property
    def _urgent(self) -> bool:
        return len(self._pending) >= self._batch or bool(self._flushes) or self._closing

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._now.wait()

    async def _write(self) -> None:
        records = list(islice(self._pending, self._batch))
        if records:
            await self._take_in(records)

    async def _take_in(self, records: list[Settlement]) -> None:
        """Write the first pending records. What is done is pending no more when `DatabaseUnavailable` is raised."""
        async for done in charge_all(self._database, self._spool.process_id, records, self._clock):
            for _ in range(done):
                self._pending.popleft()
            self._written += done
            self._spool.drop(done)

    def _answer_flushes(self, error: DatabaseUnavailable | None) -> None:
        waiting: list[tuple[int, asyncio.Future[None]]] = []
        for target, done in self._flushes:
            if done.done():
                continue
            if self._written >= target:
                done.set_result(None)
            elif error is not None:
                done.set_exception(error)
            else:
                waiting.append((target, done))
        self._flushes = waiting


async def charge_all(
    database: Database, process_id: str, records: list[Settlement], clock: Callable[[], int]
) -> AsyncIterator[int]:
    """Charge records, in order, and yield how many more are done. Those that can never be written, go to the log.

    Halves are tried to find them: they must not hold up the others. Raises `DatabaseUnavailable`.
    """
    try:
        async with database.write() as connection:
            await charge(connection, process_id, records, clock())
    except DatabaseUnavailable:
        raise
    except Exception as error:  # noqa: BLE001 - drivers raise Python's errors too for values they cannot hold
        if len(records) > 1:
            middle = len(records) // 2
            for half in (records[:middle], records[middle:]):
                async for done in charge_all(database, process_id, half, clock):
                    yield done
            return
        _log_lost(records[0], _first_line(error))
    yield len(records)


def _log_lost(record: Settlement, reason: str) -> None:
    log.error("usage record not written (%s): %s", reason, _content(record))


def _content(record: Settlement) -> str:
    """The record as JSON, whatever its fields hold; a number that is too long even for that, in hexadecimal."""
    fields = {name: _writable(value) for name, value in asdict(record).items()}
    return json.dumps(fields, separators=(",", ":"), default=repr)


def _writable(value: object) -> object:
    return hex(value) if isinstance(value, int) and value.bit_length() > _LONGEST_NUMBER else value


def _first_line(error: BaseException | None) -> str:
    return str(error).partition("\n")[0]
