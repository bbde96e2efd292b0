"""Statements on usage records. Each runs in the transaction of the given connection."""

from collections.abc import Sequence

from msgspec.structs import astuple
from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from moonbase.store.records import Settlement, UsageRecord
from moonbase.store.tables import usage

_FIELDS = UsageRecord.__struct_fields__
_COLUMNS = (*_FIELDS, "entry_id")


def _add(marks: list[str]) -> str:
    return f"INSERT INTO usage ({', '.join(_COLUMNS)}) VALUES ({', '.join(marks)})"


# In the drivers' own words: SQLAlchemy's rendering of parameters costs 10 µs a record, as much as the insert itself.
_ADD = {
    "sqlite": _add(["?" for _ in _COLUMNS]),
    "postgresql": _add([f"${number}" for number, _ in enumerate(_COLUMNS, 1)]),
}

_KNOWN = select(usage.c.request_id).where(usage.c.request_id.in_(bindparam("request_ids", expanding=True)))


async def read_usage(
    connection: AsyncConnection, request_id: str, organization_id: str | None = None
) -> UsageRecord | None:
    """The record of a request, if it is one of that organization's (None: of whosever)."""
    query = select(*[usage.c[name] for name in _FIELDS]).where(usage.c.request_id == request_id)
    if organization_id is not None:
        query = query.where(usage.c.organization_id == organization_id)
    row = (await connection.execute(query)).mappings().one_or_none()
    return None if row is None else UsageRecord(**row)


async def recorded(connection: AsyncConnection, request_ids: Sequence[str]) -> set[str]:
    """Those of the requests that have a record already. At most some hundreds may be asked for at once."""
    return set((await connection.execute(_KNOWN, {"request_ids": request_ids})).scalars())


async def add_usage(connection: AsyncConnection, rows: Sequence[tuple[Settlement, int | None]]) -> None:
    """Append records, each with the ledger's entry that charged it (None: it cost nothing)."""
    values = [(*astuple(record)[: len(_FIELDS)], entry_id) for record, entry_id in rows]
    await connection.exec_driver_sql(_ADD[connection.dialect.name], values)
