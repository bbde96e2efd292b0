import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import text
from tests.accounts.money import RECORD

from moonbase.accounts.changes import milliseconds
from moonbase.accounts.recorder import Recorder
from moonbase.accounts.spool import Spool, left_spools
from moonbase.errors import DatabaseUnavailable
from moonbase.store.database import Database, database_url
from moonbase.store.migrate import migrate
from moonbase.store.records import Settlement

pytestmark = pytest.mark.anyio


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool") as spool:
        spool.keep = False
        yield spool


def _recorder(database: Database, spool: Spool, **options: Any) -> Recorder:
    return Recorder(database, spool, clock=milliseconds, **options)


def _records(count: int, prefix: str = "r") -> list[Settlement]:
    return [replace(RECORD, request_id=f"{prefix}{i}") for i in range(count)]


async def _stored(database: Database) -> int:
    async with database.read() as connection:
        count: int = (await connection.execute(text("SELECT count(*) FROM usage"))).scalar_one()
        return count


async def _until_stored(database: Database, count: int) -> None:
    async with asyncio.timeout(5):
        while await _stored(database) < count:  # noqa: ASYNC110 - a database gives no signal
            await asyncio.sleep(0.01)


@asynccontextmanager
async def _impatient(tmp_path: Path) -> AsyncIterator[tuple[Database, sqlite3.Connection]]:
    """A SQLite database that gives up waiting at once, and another connection that can lock it."""
    url = database_url(None, tmp_path)
    await migrate(url)
    other = sqlite3.connect(tmp_path / "moonbase.db", isolation_level=None)
    try:
        async with Database(url.update_query_dict({"timeout": "0.01"})) as database:
            yield database, other
    finally:
        other.close()


async def test_flush_returns_when_all_records_are_stored(database: Database, spool: Spool) -> None:
    async with _recorder(database, spool, interval=60, batch=10) as recorder:
        for record in _records(25):
            recorder.record(record)
        await recorder.flush()
        assert await _stored(database) == 25
        await recorder.flush()


async def test_a_full_batch_is_written_before_its_time(database: Database, spool: Spool) -> None:
    async with _recorder(database, spool, interval=60, batch=10) as recorder:
        for record in _records(10):
            recorder.record(record)
        await _until_stored(database, 10)


async def test_a_lonely_record_is_written_after_the_interval(database: Database, spool: Spool) -> None:
    async with _recorder(database, spool, interval=0.05) as recorder:
        recorder.record(RECORD)
        await _until_stored(database, 1)


async def test_leaving_writes_what_is_pending(database: Database, spool: Spool) -> None:
    async with _recorder(database, spool, interval=60, batch=10) as recorder:
        for record in _records(33):
            recorder.record(record)
    assert await _stored(database) == 33


async def test_records_outlive_a_locked_database(
    tmp_path: Path, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        _impatient(tmp_path) as (database, other),
        _recorder(database, spool, interval=0.01, batch=4) as recorder,
    ):
        other.execute("BEGIN IMMEDIATE")
        for record in _records(10):
            recorder.record(record)
        with pytest.raises(DatabaseUnavailable):
            await recorder.flush()
        for record in _records(10, "later"):
            recorder.record(record)
        other.execute("ROLLBACK")
        await recorder.flush()
        assert await _stored(database) == 20
    assert [entry.levelname for entry in caplog.records] == ["WARNING"]
    assert "database is locked" in caplog.text


async def test_at_the_limit_it_is_full_and_still_takes_what_was_admitted(tmp_path: Path, spool: Spool) -> None:
    async with _impatient(tmp_path) as (database, other):
        async with _recorder(database, spool, limit=3) as recorder:
            other.execute("BEGIN IMMEDIATE")
            for record in _records(2):
                recorder.record(record)
            assert not recorder.full
            recorder.record(replace(RECORD, request_id="third"))
            assert recorder.full
            recorder.record(replace(RECORD, request_id="fourth"))
            other.execute("ROLLBACK")
            await recorder.flush()
            assert not recorder.full
        assert await _stored(database) == 4


async def test_what_cannot_be_written_at_the_end_stays_in_the_spool(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with _impatient(tmp_path) as (database, other):
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        with Spool(tmp_path / "spool") as spool:
            async with _recorder(database, spool, closing_timeout=0.2) as recorder:
                recorder.record(replace(RECORD, request_id="late"))
        assert time.monotonic() - started < 5
        other.execute("ROLLBACK")
    (left,) = left_spools(tmp_path / "spool")
    assert [record.request_id for record in left.records] == ["late"]
    assert "1 usage records stay in the spool until the next start" in caplog.text


async def test_only_where_the_spool_fails_too_a_record_goes_to_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with _impatient(tmp_path) as (database, other):
        other.execute("BEGIN IMMEDIATE")
        with Spool(tmp_path / "spool") as spool:
            async with _recorder(database, spool, closing_timeout=0.2) as recorder:
                recorder.record(replace(RECORD, request_id="lost-one"))
                spool.failing = True
                assert recorder.full
        other.execute("ROLLBACK")
    (lost,) = [entry for entry in caplog.records if entry.levelno == logging.ERROR]
    assert '"request_id":"lost-one"' in lost.getMessage()


async def test_a_record_the_database_refuses_does_not_hold_up_the_others(
    database: Database, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    async with _recorder(database, spool) as recorder:
        recorder.record(replace(RECORD, request_id="bad", outcome=None))
        recorder.record(replace(RECORD, request_id="good"))
        await recorder.flush()
        assert await _stored(database) == 1
    (lost,) = [entry for entry in caplog.records if entry.levelno == logging.ERROR]
    assert '"request_id":"bad"' in lost.getMessage()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("output", 2**63),
        ("cost_nano", 2**80),
        ("prompt_hit", -(2**70)),
        ("prompt_miss", 10**5000),  # no text either: more digits than Python writes
        ("model", "\ud800"),
        ("model", {}),
    ],
    ids=["65 bits", "81 bits", "far below 0", "5001 digits", "half a character", "an object"],
)
async def test_a_record_that_no_database_can_hold_is_logged_once_and_the_others_are_written(
    database: Database, spool: Spool, caplog: pytest.LogCaptureFixture, field: str, value: object
) -> None:
    async with _recorder(database, spool, interval=0.01, batch=16) as recorder:
        for record in _records(40, "before"):
            recorder.record(record)
        recorder.record(replace(RECORD, request_id="bad", **{field: value}))
        for record in _records(40, "after"):
            recorder.record(record)
        async with asyncio.timeout(10):
            await recorder.flush()
        for record in _records(40, "later"):
            recorder.record(record)
    assert await _stored(database) == 120
    (lost,) = [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert lost.levelno == logging.ERROR
    assert '"request_id":"bad"' in lost.getMessage()


async def test_a_database_that_goes_away_between_a_bad_record_and_a_good_one_loses_nothing(
    tmp_path: Path, spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    """The bad record is dropped while the database takes writes; the good ones wait when it does not."""
    async with (
        _impatient(tmp_path) as (database, other),
        _recorder(database, spool, interval=0.01, batch=8) as recorder,
    ):
        recorder.record(replace(RECORD, request_id="bad", output=2**80))
        with suppress(DatabaseUnavailable):
            await recorder.flush()
        other.execute("BEGIN IMMEDIATE")
        recorder.record(replace(RECORD, request_id="worse", output=2**80))
        for record in _records(10):
            recorder.record(record)
        with pytest.raises(DatabaseUnavailable):
            await recorder.flush()
        other.execute("ROLLBACK")
        await recorder.flush()
        assert await _stored(database) == 10
    lost = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.ERROR]
    assert [name for text in lost for name in ("bad", "worse") if f'"request_id":"{name}"' in text] == ["bad", "worse"]


async def test_a_cancelled_flush_leaves_the_recorder_working(database: Database, spool: Spool) -> None:
    async with _recorder(database, spool, interval=60) as recorder:
        recorder.record(RECORD)
        flush = asyncio.create_task(recorder.flush())
        await asyncio.sleep(0)
        flush.cancel()
        await recorder.flush()
    assert await _stored(database) == 1
