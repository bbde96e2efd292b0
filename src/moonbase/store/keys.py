"""Statements on organizations, projects and keys. Each runs in the transaction of the given connection."""

from collections.abc import Sequence

from msgspec.structs import asdict
from sqlalchemy import BigInteger, bindparam, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from moonbase.store.records import Caller, Key, Organization, Project
from moonbase.store.tables import key, organization, project

_AT_ONCE = 500  # a statement's parameters are limited

_CALLERS = (
    select(
        key.c.secret_hash,
        organization.c.id,
        project.c.id,
        key.c.id,
        organization.c.uid,
        organization.c.tier,
        organization.c.currency,
    )
    .select_from(key.join(project).join(organization))
    .where(key.c.secret_hash.in_(bindparam("secret_hashes", expanding=True)), key.c.revoked_at.is_(None))
)

_PROJECT_NAMED = (
    select(project.c.id)
    .select_from(project.join(organization))
    .where(organization.c.name == bindparam("organization_name"), project.c.name == bindparam("project_name"))
    .order_by(organization.c.created_at, project.c.created_at)
    .limit(1)
)

_KEYS = select(key.c.id, key.c.project_id, key.c.name, key.c.hint, key.c.created_at, key.c.revoked_at).order_by(
    key.c.created_at, key.c.id
)

_REVOKE = (
    update(key)
    .where(key.c.id == bindparam("key_id"))
    .values(revoked_at=func.coalesce(key.c.revoked_at, bindparam("now", type_=BigInteger)))
)


async def add_organization(connection: AsyncConnection, row: Organization) -> None:
    await connection.execute(insert(organization), asdict(row))


async def add_project(connection: AsyncConnection, row: Project) -> None:
    await connection.execute(insert(project), asdict(row))


async def add_key(connection: AsyncConnection, row: Key, secret_hash: str) -> None:
    await connection.execute(insert(key), {**asdict(row), "secret_hash": secret_hash})


async def find_callers(connection: AsyncConnection, secret_hashes: Sequence[str]) -> dict[str, Caller]:
    """Whom the keys with these hashes stand for; without those that do not exist or are revoked."""
    callers: dict[str, Caller] = {}
    for start in range(0, len(secret_hashes), _AT_ONCE):
        hashes = secret_hashes[start : start + _AT_ONCE]
        for row in await connection.execute(_CALLERS, {"secret_hashes": hashes}):
            callers[row[0]] = Caller(*row[1:])
    return callers


async def find_project(connection: AsyncConnection, *, organization_name: str, project_name: str) -> str | None:
    """The id of the oldest project of that name."""
    names = {"organization_name": organization_name, "project_name": project_name}
    row = (await connection.execute(_PROJECT_NAMED, names)).one_or_none()
    return None if row is None else row[0]


async def list_keys(connection: AsyncConnection) -> list[Key]:
    """All keys, the oldest first, the revoked ones too."""
    return [Key(**row) for row in (await connection.execute(_KEYS)).mappings()]


async def revoke_key(connection: AsyncConnection, key_id: str, now: int) -> bool:
    """Revoke a key; one that is revoked already keeps its time. False when there is none."""
    return (await connection.execute(_REVOKE, {"key_id": key_id, "now": now})).rowcount == 1
