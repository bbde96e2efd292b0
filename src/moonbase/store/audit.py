"""Statements on the audit log. Each runs in the transaction of the given connection."""

from msgspec import Raw
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from moonbase.store.records import AuditRow
from moonbase.store.tables import audit


async def add_audit(
    connection: AsyncConnection, *, at: int, actor: str, action: str, target: str, detail: bytes
) -> None:
    """`detail` is a JSON object."""
    values = {"at": at, "actor": actor, "action": action, "target": target, "detail": detail.decode()}
    await connection.execute(insert(audit), values)


async def list_audit(
    connection: AsyncConnection, *, target: str | None, before: int | None, limit: int
) -> list[AuditRow]:
    """At most `limit` rows, the newest first: those with ids under `before`, all for None."""
    query = select(audit).order_by(audit.c.id.desc()).limit(limit)
    if target is not None:
        query = query.where(audit.c.target == target)
    if before is not None:
        query = query.where(audit.c.id < before)
    rows = (await connection.execute(query)).mappings()
    return [AuditRow(**{**row, "detail": Raw(row["detail"].encode())}) for row in rows]
