"""Statements on organizations, projects and keys. Each runs in the transaction of the given connection."""

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Column, RowMapping, Table, bindparam, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from moonbase.store.records import Caller, Key, Limits, Organization, Project
from moonbase.store.tables import balance, key, organization, project

_AT_ONCE = 500  # a statement's parameters are limited


def _limit_columns(table: Table) -> tuple[Column[int], ...]:
    """In the order of the fields of `Limits`."""
    return tuple([table.c[f"max_{name}"] for name in Limits.__struct_fields__])


_CALLERS = (
    select(
        key.c.secret_hash,
        organization.c.id,
        project.c.id,
        key.c.id,
        organization.c.uid,
        organization.c.tier,
        organization.c.currency,
        organization.c.postpaid,
        key.c.expires_at,
        key.c.models,
        key.c.endpoints,
        *_limit_columns(organization),
        *_limit_columns(project),
        *_limit_columns(key),
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

_KEYS = select(key).order_by(key.c.created_at, key.c.id)

_REVOKE = (
    update(key)
    .where(key.c.id == bindparam("key_id"))
    .values(revoked_at=func.coalesce(key.c.revoked_at, bindparam("now", type_=BigInteger)))
)


async def add_organization(connection: AsyncConnection, row: Organization) -> None:
    """Add an organization, with a balance of nothing."""
    await connection.execute(insert(organization), _columns(row))
    await connection.execute(
        insert(balance), {"organization_id": row.id, "cash_nano": 0, "voucher_nano": 0, "leased_nano": 0}
    )


async def add_project(connection: AsyncConnection, row: Project) -> None:
    await connection.execute(insert(project), _columns(row))


async def add_key(connection: AsyncConnection, row: Key, secret_hash: str) -> None:
    await connection.execute(insert(key), {**_columns(row), "secret_hash": secret_hash})


async def find_callers(connection: AsyncConnection, secret_hashes: Sequence[str]) -> dict[str, Caller]:
    """Whom the keys with these hashes stand for; without those that do not exist or are revoked."""
    callers: dict[str, Caller] = {}
    for start in range(0, len(secret_hashes), _AT_ONCE):
        hashes = secret_hashes[start : start + _AT_ONCE]
        for row in await connection.execute(_CALLERS, {"secret_hashes": hashes}):
            callers[row[0]] = Caller(
                *row[1:9],
                _names(row[9]),
                _names(row[10]),
                Limits(*row[11:15]),
                Limits(*row[15:19]),
                Limits(*row[19:23]),
            )
    return callers


async def find_project(connection: AsyncConnection, *, organization_name: str, project_name: str) -> str | None:
    """The id of the oldest project of that name."""
    names = {"organization_name": organization_name, "project_name": project_name}
    row = (await connection.execute(_PROJECT_NAMED, names)).one_or_none()
    return None if row is None else row[0]


async def list_keys(connection: AsyncConnection) -> list[Key]:
    """All keys, the oldest first, the revoked ones too."""
    return [_key(row) for row in (await connection.execute(_KEYS)).mappings()]


async def revoke_key(connection: AsyncConnection, key_id: str, now: int) -> bool:
    """Revoke a key; one that is revoked already keeps its time. False when there is none."""
    return (await connection.execute(_REVOKE, {"key_id": key_id, "now": now})).rowcount == 1


def _columns(row: Organization | Project | Key) -> dict[str, Any]:
    columns = msgspec.structs.asdict(row)
    limits = columns.pop("limits")
    for name in ("models", "endpoints"):
        if columns.get(name) is not None:
            columns[name] = msgspec.json.encode(columns[name]).decode()
    return columns | {f"max_{name}": value for name, value in msgspec.structs.asdict(limits).items()}


def _key(row: RowMapping) -> Key:
    return Key(
        id=row["id"],
        project_id=row["project_id"],
        name=row["name"],
        hint=row["hint"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        models=_names(row["models"]),
        endpoints=_names(row["endpoints"]),
        limits=Limits(*[row[column] for column in _limit_columns(key)]),
    )


def _names(stored: str | None) -> tuple[str, ...] | None:
    """A list of names as it is stored: JSON."""
    return None if stored is None else msgspec.json.decode(stored, type=tuple[str, ...])
