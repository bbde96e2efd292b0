"""Statements on administrators' keys. Each runs in the transaction of the given connection."""

from msgspec.structs import asdict
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from moonbase.store.records import AdminKey
from moonbase.store.tables import admin_key

_COLUMNS = [admin_key.c[name] for name in AdminKey.__struct_fields__]


async def add_admin_key(connection: AsyncConnection, row: AdminKey, secret_hash: str) -> None:
    await connection.execute(insert(admin_key), {**asdict(row), "secret_hash": secret_hash})


async def list_admin_keys(connection: AsyncConnection) -> list[AdminKey]:
    """The oldest first, the revoked ones too."""
    query = select(*_COLUMNS).order_by(admin_key.c.created_at, admin_key.c.id)
    return [AdminKey(**row) for row in (await connection.execute(query)).mappings()]


async def valid_admin_keys(connection: AsyncConnection) -> dict[str, str]:
    """The ids of those that are not revoked, by the hashes of their secrets."""
    query = select(admin_key.c.secret_hash, admin_key.c.id).where(admin_key.c.revoked_at.is_(None))
    return {row.secret_hash: row.id for row in await connection.execute(query)}


async def revoke_admin_key(connection: AsyncConnection, key_id: str, now: int) -> None:
    await connection.execute(update(admin_key).where(admin_key.c.id == key_id).values(revoked_at=now))
