"""Usage summed by the hour and by the day, in the transaction that adds the records."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import text
from tests.accounts.money import add_rich
from tests.store.test_ledger import RECORD

from moonbase.store.database import Database
from moonbase.store.ledger import charge, find_imbalances
from moonbase.store.records import Settlement

pytestmark = pytest.mark.anyio

DAY = 1_795_000_000_000 - 1_795_000_000_000 % 86_400_000
HOUR = 3_600_000


def record(request_id: str, started_at: int, **fields: Any) -> Settlement:
    return replace(RECORD, request_id=request_id, started_at=started_at, cost_nano=10, **fields)


async def rows(database: Database, table: str, columns: str) -> list[tuple[Any, ...]]:
    async with database.read() as connection:
        assert await find_imbalances(connection) == []
        query = text(f"SELECT {columns} FROM {table} ORDER BY {columns}")
        return [tuple(row) for row in await connection.execute(query)]


async def test_records_are_counted_in_the_hour_and_the_day_they_began_in(database: Database) -> None:
    batches = [
        [record("a", DAY), record("b", DAY + HOUR - 1, outcome="failed"), record("c", DAY + HOUR)],
        [record("d", DAY + 1), record("e", DAY + 24 * HOUR - 1), record("f", DAY + 24 * HOUR), record("a", DAY)],
    ]
    for batch in batches:
        async with database.write() as connection:
            await charge(connection, "p", batch, 7)
    columns = "requests, failed, prompt_miss, prompt_hit, prompt_write, output, cost_nano"
    assert await rows(database, "usage_hour", f"hour, {columns}") == [
        (DAY, 3, 1, 3, 6, 9, 12, 30),
        (DAY + HOUR, 1, 0, 1, 2, 3, 4, 10),
        (DAY + 23 * HOUR, 1, 0, 1, 2, 3, 4, 10),
        (DAY + 24 * HOUR, 1, 0, 1, 2, 3, 4, 10),
    ]
    assert await rows(database, "usage_day", f"day, {columns}") == [
        (DAY, 5, 1, 5, 10, 15, 20, 50),
        (DAY + 24 * HOUR, 1, 0, 1, 2, 3, 4, 10),
    ]


@pytest.mark.parametrize("field", ["organization_id", "project_id", "key_id", "model"])
async def test_everything_that_can_be_asked_for_is_kept_apart(database: Database, field: str) -> None:
    async with database.write() as connection:
        batch = [record(name, DAY, **{field: name}) for name in ("one", "two")]
        await charge(connection, "p", batch, 7)
    assert await rows(database, "usage_hour", f"{field}, requests") == [("one", 1), ("two", 1)]
    assert await rows(database, "usage_day", f"{field}, requests") == [("one", 1), ("two", 1)]


async def test_many_writers_of_the_same_hours_neither_wait_for_ever_nor_lose_a_count(database: Database) -> None:
    await add_rich(database, "org-a", cash=10_000)

    async def write(writer: int) -> None:
        for number in range(5):
            batch = [
                record(f"{writer}-{number}-{key}", DAY + number * HOUR, key_id=f"ak-{(key * (writer + 1)) % 7}")
                for key in range(20)
            ]
            async with database.write() as connection:
                await charge(connection, f"p-{writer}", batch, 7)

    await asyncio.gather(*(write(number) for number in range(4)))
    assert sum(row[0] for row in await rows(database, "usage_day", "requests, key_id")) == 400
