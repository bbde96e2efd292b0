"""How long does each usage query of the admin API take over ten million requests?

`python -m benchmarks.usage_queries [--requests 10000000] [--organizations 100] [--database URL]`

The rollups are written as ten million requests of ninety days would leave them: some organizations are large, keys are
used in some hours of most days, with one or two models. A query is timed from its parameters to the bytes of its
answer, without HTTP; each is run several times, the first time on a database that has just been opened.
"""

import argparse
import asyncio
import datetime
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from moonbase.accounts import ids
from moonbase.accounts.usage import UsageReports
from moonbase.server.admin import encode_list
from moonbase.service.views import UsageView
from moonbase.store.database import Database, database_url
from moonbase.store.keys import add_key, add_organization, add_project
from moonbase.store.migrate import migrate
from moonbase.store.records import Key, Organization, Project

_DAYS = 90
_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000
_LAST = datetime.date(2026, 11, 18)
_END = int(datetime.datetime.combine(_LAST, datetime.time(), datetime.UTC).timestamp() * 1000) + _DAY_MS
_MODELS = ("kimi-k2-0905-preview", "kimi-k2-turbo-preview", "kimi-k2-thinking", "kimi-k2.6")
_ROUNDS = 7
_ROWS = 5_000  # of one insert


class _Used(Struct, frozen=True):
    """A key, and how often it is used in an hour."""

    organization_id: str
    project_id: str
    key_id: str
    models: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000_000)
    parser.add_argument("--organizations", type=int, default=100)
    parser.add_argument("--database", help="URL of an empty database; by default a SQLite file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(Path(folder), options.database, options.requests, options.organizations))


async def _measure(folder: Path, url: str | None, requests: int, organizations: int) -> None:
    address = database_url(url, folder)
    await migrate(address)
    chance = random.Random(1)
    async with Database(address) as database:
        async with database.write() as connection:
            keys = [key for number in range(organizations) for key in await _make(connection, number, chance)]
            hours = list(_hours(keys, requests, chance))
            days = _days(hours)
            await _insert(connection, "usage_hour", "hour", hours)
            await _insert(connection, "usage_day", "day", days)
        if database.path is None:
            async with database.write() as connection:
                await connection.execute(text("ANALYZE"))
        total = sum(row["requests"] for row in days)
        print(f"{total} requests of {len(keys)} keys: {len(hours)} rows of hours, {len(days)} of days")
    async with Database(address) as database:
        for name, query in _queries(keys).items():
            await _time(database, name, query)


async def _make(connection: AsyncConnection, number: int, chance: random.Random) -> list[_Used]:
    """An organization; one in ten has forty keys, the others two."""
    organization = Organization(
        id=ids.organization_id(),
        uid=ids.uid(),
        name=f"organization {number}",
        tier=5,
        currency="USD",
        postpaid=True,
        created_at=0,
    )
    await add_organization(connection, organization)
    made: list[_Used] = []
    for each in range(40 if number % 10 == 0 else 2):
        project = Project(id=ids.project_id(), organization_id=organization.id, name=str(each), created_at=0)
        key = Key(id=ids.key_id(), project_id=project.id, name="k", hint="", created_at=0)
        await add_project(connection, project)
        await add_key(connection, key, ids.secret_hash(ids.secret()))
        models = tuple(chance.sample(_MODELS, chance.choice([1, 1, 2])))
        made.append(_Used(organization.id, project.id, key.id, models))
    return made


def _hours(keys: list[_Used], requests: int, chance: random.Random) -> Iterator[dict[str, Any]]:
    """Rows of hours that have about as many requests."""
    cells = [
        (key, model, _END - (day + 1) * _DAY_MS + hour * _HOUR_MS)
        for key in keys
        for day in range(_DAYS)
        if chance.random() < 0.8
        for hour in chance.sample(range(24), chance.choice([4, 10, 24]))
        for model in key.models
    ]
    each = max(1, requests // len(cells))
    for key, model, hour in cells:
        count = chance.randint(1, 2 * each)
        yield {
            "organization_id": key.organization_id,
            "start": hour,
            "project_id": key.project_id,
            "key_id": key.key_id,
            "model": model,
            "currency": "USD",
            "requests": count,
            "failed": count // 100,
            "prompt_miss": count * 500,
            "prompt_hit": count * 1500,
            "prompt_write": 0,
            "output": count * 300,
            "cost_nano": count * 1_275_000,
        }


def _days(hours: list[dict[str, Any]]) -> list[dict[str, Any]]:
    days: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in hours:
        start = row["start"] - row["start"] % _DAY_MS
        cell = (row["organization_id"], start, row["key_id"], row["model"])
        if cell not in days:
            days[cell] = row | {"start": start}
            continue
        for name in ("requests", "failed", "prompt_miss", "prompt_hit", "output", "cost_nano"):
            days[cell][name] += row[name]
    return list(days.values())


async def _insert(connection: AsyncConnection, table: str, span: str, rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    columns = ", ".join([span if name == "start" else name for name in names])
    statement = text(f"INSERT INTO {table} ({columns}) VALUES ({', '.join([f':{name}' for name in names])})")
    for first in range(0, len(rows), _ROWS):
        await connection.execute(statement, rows[first : first + _ROWS])


def _queries(keys: list[_Used]) -> dict[str, dict[str, Any]]:
    everything = {"first": _LAST - datetime.timedelta(days=_DAYS - 1), "last": _LAST}
    month = {"first": _LAST - datetime.timedelta(days=29), "last": _LAST}
    week = {"first": _LAST - datetime.timedelta(days=6), "last": _LAST}
    large = {"organization_id": keys[0].organization_id}
    queries: dict[str, dict[str, Any]] = {}
    for group in ("day", "organization", "project", "key", "model"):
        queries[f"by {group}, 90 days, all"] = {"group_by": [group], **everything}
        queries[f"by {group}, 30 days, all"] = {"group_by": [group], **month}
        queries[f"by {group}, 90 days, an organization"] = {"group_by": [group], **everything, **large}
    queries["by day and model, 90 days, all"] = {"group_by": ["day", "model"], **everything}
    queries["by day and organization, 30 days, all"] = {"group_by": ["day", "organization"], **month}
    queries["by day and key, 90 days, an organization"] = {"group_by": ["day", "key"], **everything, **large}
    queries["by day and key, 7 days, all"] = {"group_by": ["day", "key"], **week}
    queries["by day, 90 days, a key"] = {"group_by": ["day"], **everything, "key_id": keys[0].key_id}
    queries["by day, 90 days, a model"] = {"group_by": ["day"], **everything, "model": _MODELS[0]}
    queries["by hour, 7 days, all"] = {"group_by": ["hour"], **week}
    queries["by hour, 7 days, an organization"] = {"group_by": ["hour"], **week, **large}
    return queries


async def _time(database: Database, name: str, query: dict[str, Any]) -> None:
    reports = UsageReports(database)
    spent: list[float] = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        sums = await reports.sums(**query, now=_END)
        encode_list([UsageView.of(each) for each in sums])
        spent.append((time.perf_counter() - began) * 1000)
    print(f"{name}: {statistics.median(spent):.0f} ms, at most {max(spent):.0f} ms, {len(sums)} rows")


if __name__ == "__main__":
    main()
