"""Organizations: who pays."""

from msgspec import structs
from sqlalchemy.ext.asyncio import AsyncConnection

from moonbase.accounts import fields, ids
from moonbase.accounts.changes import Changes, changed_limits, differences, given
from moonbase.accounts.requests import NewOrganization, OrganizationChanges, Region
from moonbase.config import Currency
from moonbase.errors import Conflict, NotFound
from moonbase.store import keys as store
from moonbase.store.records import NO_LIMITS, Organization

CURRENCIES: dict[Region, Currency] = {"global": "USD", "china": "CNY"}


def region(currency: Currency) -> Region:
    """Where an organization that pays in `currency` belongs."""
    return "global" if currency == "USD" else "china"


class Organizations:
    """Methods raise `NotFound` for an id that there is not, and `DatabaseUnavailable`."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    async def create(self, request: NewOrganization) -> Organization:
        """Raises `Conflict` for a name that is taken, and `InvalidField`."""
        async with self._changes.begin() as change:
            organization = Organization(
                id=ids.organization_id(),
                uid=ids.uid(),
                name=await _free_name(change.connection, request.name),
                tier=request.tier,
                currency=CURRENCIES[request.region],
                postpaid=request.postpaid,
                created_at=change.now,
                limits=changed_limits(NO_LIMITS, request.limits),
            )
            await store.add_organization(change.connection, organization)
            await change.audit("organization.create", organization.id, request)
        return organization

    async def list(self) -> list[Organization]:
        """The oldest first."""
        async with self._changes.database.read() as connection:
            return await store.list_organizations(connection)

    async def show(self, organization_id: str) -> Organization:
        async with self._changes.database.read() as connection:
            return await existing_organization(connection, organization_id)

    async def update(self, organization_id: str, request: OrganizationChanges) -> Organization:
        """Raises `Conflict` for a name that is taken, and `InvalidField`."""
        async with self._changes.begin() as change:
            before = await existing_organization(change.connection, organization_id)
            values = given(request) | {"limits": changed_limits(before.limits, request.limits)}
            after = structs.replace(before, **values)
            if after.name != before.name:
                await _free_name(change.connection, after.name)
            if difference := differences(before, after):
                await store.update_organization(change.connection, after)
                await change.audit("organization.update", organization_id, difference)
        return after

    async def delete(self, organization_id: str) -> None:
        """Raises `Conflict` while it has projects, entries or usage."""
        async with self._changes.begin() as change:
            organization = await existing_organization(change.connection, organization_id)
            if blocking := await store.blocks_organization(change.connection, organization_id):
                found = ", ".join([f"{count} {what}" for what, count in blocking.items()])
                raise Conflict(f"the organization {organization_id} is in use: it has {found}")
            await store.delete_organization(change.connection, organization_id)
            await change.audit("organization.delete", organization_id, {"name": organization.name})


async def existing_organization(connection: AsyncConnection, organization_id: str) -> Organization:
    """Raises `NotFound`."""
    found = await store.find_organization(connection, organization_id) if ids.is_id(organization_id) else None
    if found is None:
        raise NotFound("organization", organization_id)
    return found


async def _free_name(connection: AsyncConnection, name: str) -> str:
    if await store.is_organization_named(connection, fields.name(name)):
        raise Conflict(f"`name` is taken: there is an organization {name!r}")
    return name
