"""Usage summed by the hour and by the day. Each statement runs in the transaction of the given connection."""

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct
from sqlalchemy import BigInteger, Table, cast, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from moonbase.store.records import UsageRecord, UsageSums
from moonbase.store.tables import usage_day, usage_hour

HOUR_MS = 3_600_000
DAY_MS = 86_400_000

_COUNTS = ("requests", "failed", "prompt_miss", "prompt_hit", "prompt_write", "output", "cost_nano")
_COLUMNS = {"organization": "organization_id", "project": "project_id", "key": "key_id"}
_DIMENSIONS = ("project_id", "key_id", "model", "currency")

Group = Literal["day", "hour", "organization", "project", "key", "model"]

_Cell = tuple[str, int, str, str, str, str]


def _add(table: Table, span: str) -> str:
    names = ("organization_id", span, *_DIMENSIONS)
    columns = ", ".join((*names, *_COUNTS))
    values = ", ".join([f":{name}" for name in ("organization_id", "start", *_DIMENSIONS, *_COUNTS)])
    sums = ", ".join([f"{name} = {table.name}.{name} + excluded.{name}" for name in _COUNTS])
    return (
        f"INSERT INTO {table.name} ({columns}) VALUES ({values}) ON CONFLICT ({', '.join(names)}) DO UPDATE SET {sums}"
    )


_ADD_HOUR = text(_add(usage_hour, "hour"))
_ADD_DAY = text(_add(usage_day, "day"))


def _check(count: str, table: Table, span: str, parts: str) -> str:
    """Cells whose `count` is not the sum of the rows that `parts` selects."""
    cell = ", ".join(("organization_id", span, *_DIMENSIONS))
    return f"""
        SELECT organization_id, SUM(stored), SUM(computed) FROM (
            SELECT {cell}, {count} AS stored, 0 AS computed FROM {table.name} UNION ALL {parts}
        ) AS both_sides GROUP BY {cell} HAVING SUM(stored) <> SUM(computed)
    """


def _of_records(count: str) -> str:
    value = {"requests": "1", "failed": "CASE WHEN outcome = 'failed' THEN 1 ELSE 0 END"}.get(count, count)
    hour = f"started_at - started_at % {HOUR_MS}"
    return f"SELECT organization_id, {hour}, {', '.join(_DIMENSIONS)}, 0, {value} FROM usage"


def _of_hours(count: str) -> str:
    return f"SELECT organization_id, hour - hour % {DAY_MS}, {', '.join(_DIMENSIONS)}, 0, {count} FROM usage_hour"


ROLLUP_CHECKS = {
    **{
        f"{count} of an hour against the usage records": _check(count, usage_hour, "hour", _of_records(count))
        for count in _COUNTS
    },
    **{f"{count} of a day against its hours": _check(count, usage_day, "day", _of_hours(count)) for count in _COUNTS},
}


class UsageQuery(Struct, frozen=True, kw_only=True):
    """What to sum: usage that began from `start` to before `end` (milliseconds), of those given only.

    Both are the beginning of a day. By `hour` and by `day` at once makes no sense and is not asked for.
    """

    group_by: tuple[Group, ...]
    start: int
    end: int
    organization_id: str | None = None
    project_id: str | None = None
    key_id: str | None = None
    model: str | None = None


async def sum_usage(connection: AsyncConnection, query: UsageQuery, *, limit: int) -> list[UsageSums]:
    """The sums, in the order of what they are grouped by and the currency; at most `limit`."""
    table = usage_hour if "hour" in query.group_by else usage_day
    span = table.c["hour" if "hour" in query.group_by else "day"]
    names = [*[_COLUMNS.get(group, group) for group in query.group_by], "currency"]
    columns = [table.c[name] for name in names]
    statement = (
        select(*columns, *[cast(func.sum(table.c[count]), BigInteger) for count in _COUNTS])
        .where(span >= query.start, span < query.end)
        .group_by(*columns)
        .order_by(*columns)
        .limit(limit)
    )
    for name in ("organization_id", "project_id", "key_id", "model"):
        value = getattr(query, name)
        if value is not None:
            statement = statement.where(table.c[name] == value)
    fields = [*names, *_COUNTS]
    return [UsageSums(**dict(zip(fields, row, strict=True))) for row in await connection.execute(statement)]


async def add_to_rollups(connection: AsyncConnection, records: Sequence[UsageRecord]) -> None:
    """Count records that have just been added in the hour and the day they began in."""
    hours = _hours(records)
    for statement, cells in ((_ADD_HOUR, hours), (_ADD_DAY, _days(hours))):
        # One order for all transactions, so that no two wait for each other.
        await connection.execute(statement, [_row(cell, cells[cell]) for cell in sorted(cells)])


def _hours(records: Sequence[UsageRecord]) -> dict[_Cell, list[int]]:
    cells: dict[_Cell, list[int]] = {}
    for each in records:
        hour = each.started_at - each.started_at % HOUR_MS
        cell = (each.organization_id, hour, each.project_id, each.key_id, each.model, each.currency)
        sums = cells.get(cell)
        if sums is None:
            sums = cells[cell] = [0] * len(_COUNTS)
        sums[0] += 1
        sums[1] += each.outcome == "failed"
        sums[2] += each.prompt_miss
        sums[3] += each.prompt_hit
        sums[4] += each.prompt_write
        sums[5] += each.output
        sums[6] += each.cost_nano
    return cells


def _days(hours: dict[_Cell, list[int]]) -> dict[_Cell, list[int]]:
    cells: dict[_Cell, list[int]] = {}
    for (organization_id, hour, project_id, key_id, model, currency), sums in hours.items():
        cell = (organization_id, hour - hour % DAY_MS, project_id, key_id, model, currency)
        cells[cell] = [one + other for one, other in zip(cells.get(cell, [0] * len(_COUNTS)), sums, strict=True)]
    return cells


def _row(cell: _Cell, sums: list[int]) -> dict[str, Any]:
    names = ("organization_id", "start", *_DIMENSIONS)
    return dict(zip((*names, *_COUNTS), (*cell, *sums), strict=True))
