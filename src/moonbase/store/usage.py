"""Statements on the usage ledger. Each runs in the transaction of the given connection."""

from collections.abc import Sequence

from msgspec.structs import astuple
from sqlalchemy import bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from moonbase.store.records import UsageRecord
from moonbase.store.tables import organization, usage

_COLUMNS = UsageRecord.__struct_fields__


def _add(marks: list[str]) -> str:
    return f"INSERT INTO usage ({', '.join(_COLUMNS)}) VALUES ({', '.join(marks)}) ON CONFLICT (request_id) DO NOTHING"


# In the drivers' own words: SQLAlchemy's rendering of parameters costs 10 µs a record, as much as the insert itself.
_ADD = {
    "sqlite": _add(["?" for _ in _COLUMNS]),
    "postgresql": _add([f"${number}" for number, _ in enumerate(_COLUMNS, 1)]),
}

_GRANTED = select(organization.c.granted_nano, organization.c.currency).where(
    organization.c.id == bindparam("organization_id")
)

_COST = select(func.coalesce(func.sum(usage.c.cost_nano), 0)).where(
    usage.c.organization_id == bindparam("organization_id"), usage.c.currency == bindparam("currency")
)


async def add_usage(connection: AsyncConnection, records: Sequence[UsageRecord]) -> None:
    """Append records. One whose request id is there already changes nothing, so a batch may be repeated."""
    await connection.exec_driver_sql(_ADD[connection.dialect.name], [astuple(record) for record in records])


async def granted_and_cost(connection: AsyncConnection, organization_id: str) -> tuple[int, int]:
    """The granted credit and the recorded cost of an organization, in nano-units of its currency."""
    granted, currency = (await connection.execute(_GRANTED, {"organization_id": organization_id})).one()
    filters = {"organization_id": organization_id, "currency": currency}
    (cost,) = (await connection.execute(_COST, filters)).one()
    return granted, int(cost)  # PostgreSQL's sum of BIGINT is a NUMERIC
