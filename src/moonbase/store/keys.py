"""Statements on organizations, projects and keys. Each runs in the transaction of the given connection."""

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Column, RowMapping, Table, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from moonbase.store.records import Caller, Key, Limits, Organization, Project
from moonbase.store.tables import balance, entry, key, organization, project, usage_day

R = TypeVar("R", Organization, Project, Key)

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

_BLOCKING = {
    "projects": select(func.count()).select_from(project).where(project.c.organization_id == bindparam("id")),
    "entries": select(func.count()).select_from(entry).where(entry.c.organization_id == bindparam("id")),
    "days of usage": select(func.count()).select_from(usage_day).where(usage_day.c.organization_id == bindparam("id")),
}


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


async def list_organizations(connection: AsyncConnection) -> list[Organization]:
    """The oldest first."""
    query = select(organization).order_by(organization.c.created_at, organization.c.id)
    return [_read(Organization, row, organization) for row in (await connection.execute(query)).mappings()]


async def find_organization(connection: AsyncConnection, organization_id: str) -> Organization | None:
    query = select(organization).where(organization.c.id == organization_id)
    row = (await connection.execute(query)).mappings().one_or_none()
    return None if row is None else _read(Organization, row, organization)


async def is_organization_named(connection: AsyncConnection, name: str) -> bool:
    query = select(organization.c.id).where(organization.c.name == name)
    return (await connection.execute(query)).first() is not None


async def update_organization(connection: AsyncConnection, row: Organization) -> None:
    await connection.execute(update(organization).where(organization.c.id == row.id).values(_columns(row)))


async def blocks_organization(connection: AsyncConnection, organization_id: str) -> dict[str, int]:
    """How many of what belong to the organization, without what there is none of."""
    counts = {
        what: (await connection.execute(query, {"id": organization_id})).scalar_one()
        for what, query in _BLOCKING.items()
    }
    return {what: count for what, count in counts.items() if count}


async def delete_organization(connection: AsyncConnection, organization_id: str) -> None:
    """For one that `blocks_organization` finds nothing of."""
    await connection.execute(delete(balance).where(balance.c.organization_id == organization_id))
    await connection.execute(delete(organization).where(organization.c.id == organization_id))


async def list_projects(connection: AsyncConnection, organization_id: str | None = None) -> list[Project]:
    """The oldest first."""
    query = select(project).order_by(project.c.created_at, project.c.id)
    if organization_id is not None:
        query = query.where(project.c.organization_id == organization_id)
    return [_read(Project, row, project) for row in (await connection.execute(query)).mappings()]


async def read_project(connection: AsyncConnection, project_id: str) -> Project | None:
    row = (await connection.execute(select(project).where(project.c.id == project_id))).mappings().one_or_none()
    return None if row is None else _read(Project, row, project)


async def is_project_named(connection: AsyncConnection, organization_id: str, name: str) -> bool:
    query = select(project.c.id).where(project.c.organization_id == organization_id, project.c.name == name)
    return (await connection.execute(query)).first() is not None


async def update_project(connection: AsyncConnection, row: Project) -> None:
    await connection.execute(update(project).where(project.c.id == row.id).values(_columns(row)))


async def is_any_key(connection: AsyncConnection) -> bool:
    """Whether there is a key, revoked ones included."""
    return (await connection.execute(select(key.c.id).limit(1))).first() is not None


async def count_keys(connection: AsyncConnection, project_id: str) -> int:
    """The revoked ones too."""
    query = select(func.count()).select_from(key).where(key.c.project_id == project_id)
    return int((await connection.execute(query)).scalar_one())


async def delete_project(connection: AsyncConnection, project_id: str) -> None:
    """For one without keys."""
    await connection.execute(delete(project).where(project.c.id == project_id))


async def list_keys(
    connection: AsyncConnection, *, organization_id: str | None = None, project_id: str | None = None
) -> list[Key]:
    """The oldest first, the revoked ones too."""
    query = select(key).order_by(key.c.created_at, key.c.id)
    if organization_id is not None:
        query = query.join(project).where(project.c.organization_id == organization_id)
    if project_id is not None:
        query = query.where(key.c.project_id == project_id)
    return [_read(Key, row, key) for row in (await connection.execute(query)).mappings()]


async def read_key(connection: AsyncConnection, key_id: str) -> Key | None:
    row = (await connection.execute(select(key).where(key.c.id == key_id))).mappings().one_or_none()
    return None if row is None else _read(Key, row, key)


async def update_key(connection: AsyncConnection, row: Key) -> None:
    await connection.execute(update(key).where(key.c.id == row.id).values(_columns(row)))


def _read(kind: type[R], row: RowMapping, table: Table) -> R:
    """The reverse of `_columns`."""
    values = {name: row[name] for name in kind.__struct_fields__ if name != "limits"}
    for name in ("models", "endpoints"):
        if values.get(name) is not None:
            values[name] = _names(values[name])
    return kind(**values, limits=Limits(*[row[column] for column in _limit_columns(table)]))


def _columns(row: Organization | Project | Key) -> dict[str, Any]:
    columns = msgspec.structs.asdict(row)
    limits = columns.pop("limits")
    for name in ("models", "endpoints"):
        if columns.get(name) is not None:
            columns[name] = msgspec.json.encode(columns[name]).decode()
    return columns | {f"max_{name}": value for name, value in msgspec.structs.asdict(limits).items()}


def _names(stored: str | None) -> tuple[str, ...] | None:
    """A list of names as it is stored: JSON."""
    return None if stored is None else msgspec.json.decode(stored, type=tuple[str, ...])
