"""The admin API: what `moonbase orgs`, `keys`, `credit` and the others do, over HTTP with JSON."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from starlette.exceptions import HTTPException

from moonbase.accounts import requests
from moonbase.accounts.accounts import Accounts, bearer
from moonbase.accounts.administration import Administration
from moonbase.accounts.admins import AdminAuthenticator
from moonbase.accounts.changes import milliseconds
from moonbase.catalog.catalog import Catalog
from moonbase.config import Currency
from moonbase.dialects.body import decode_body
from moonbase.server.exchange import Exchange
from moonbase.server.query import (
    AdminUsageParameters,
    AuditParameters,
    EntriesParameters,
    KeysParameters,
    PriceParameters,
    ProjectsParameters,
    Query,
    decode_query,
)
from moonbase.service import views
from moonbase.store.database import Database
from moonbase.store.records import AdminKey, AuditRow, Key, Project

PREFIX = "/admin/v1"


class Call(Struct, frozen=True):
    """A request to an operation: the id in its path, its decoded body and query, when it came (milliseconds)."""

    id: str
    body: Any
    query: Any
    at: int


class Deleted(Struct, frozen=True, kw_only=True):
    id: str
    deleted: bool = True


class NewSecret(Struct, frozen=True, kw_only=True):
    """A new key of the API with its secret, which is shown this once."""

    key: Key
    secret: str


class NewAdminSecret(Struct, frozen=True, kw_only=True):
    """A new admin key with its secret, which is shown this once."""

    key: AdminKey
    secret: str


class Operation(Struct, frozen=True, kw_only=True):
    """One method of one path. `answer` is the type of what `run` returns, or of each element of a list of those."""

    method: str
    path: str
    summary: str
    run: Callable[[Administration, Call], Awaitable[object]]
    answer: type[Struct]
    is_list: bool = False
    body: type[Struct] | None = None
    query: type[Query] = Query


class AdminEndpoint:
    """An operation behind the administrators' authentication.

    While there is no admin key, the path does not exist.
    """

    def __init__(self, operation: Operation, admins: AdminAuthenticator, make: Callable[[str], Administration]) -> None:
        self._operation = operation
        self._admins = admins
        self._make = make
        self._decoder = None if operation.body is None else msgspec.json.Decoder(operation.body)

    async def __call__(self, exchange: Exchange) -> None:
        if not await self._admins.enabled():
            raise HTTPException(404)
        administration = self._make(await self._admins.find(bearer(exchange.header(b"authorization"))))
        call = Call(
            exchange.scope["path_params"].get("id", ""),
            None if self._decoder is None else decode_body(self._decoder, await exchange.body()),
            decode_query(self._operation.query, exchange),
            exchange.arrival.at,
        )
        answer = await self._operation.run(administration, call)
        await exchange.respond(encode_list(answer) if self._operation.is_list else _encode(answer), headers=[])


def admin_endpoints(
    accounts: Accounts, database: Database, catalog: Catalog, currency: Currency
) -> list[tuple[Operation, AdminEndpoint]]:
    """All operations, with what serves them."""
    admins = AdminAuthenticator(database, milliseconds)

    def make(actor: str) -> Administration:
        return Administration(database, actor, catalog, currency=currency, on_key_changed=accounts.forget)

    return [(operation, AdminEndpoint(operation, admins, make)) for operation in OPERATIONS]


def encode_list(rows: object) -> bytes:
    """A list as the service writes lists."""
    return _encode({"object": "list", "data": rows})


_encode = msgspec.json.Encoder().encode


async def _create_organization(administration: Administration, call: Call) -> object:
    return views.OrganizationView.of(await administration.organizations.create(call.body))


async def _list_organizations(administration: Administration, call: Call) -> object:
    return [views.OrganizationView.of(row) for row in await administration.organizations.list()]


async def _show_organization(administration: Administration, call: Call) -> object:
    return views.OrganizationView.of(await administration.organizations.show(call.id))


async def _update_organization(administration: Administration, call: Call) -> object:
    return views.OrganizationView.of(await administration.organizations.update(call.id, call.body))


async def _delete_organization(administration: Administration, call: Call) -> object:
    await administration.organizations.delete(call.id)
    return Deleted(id=call.id)


async def _show_balance(administration: Administration, call: Call) -> object:
    return views.BalanceView.of(await administration.credit.balance(call.id))


async def _add_credit(administration: Administration, call: Call) -> object:
    return views.BalanceView.of(await administration.credit.add(call.id, call.body))


async def _correct(administration: Administration, call: Call) -> object:
    return views.BalanceView.of(await administration.credit.correct(call.id, call.body))


async def _list_entries(administration: Administration, call: Call) -> object:
    wanted = call.query
    found = await administration.credit.entries(call.id, kind=wanted.kind, before=wanted.before, limit=wanted.limit)
    return [views.EntryView.of(entry) for entry in found]


async def _create_project(administration: Administration, call: Call) -> object:
    return await administration.projects.create(call.body)


async def _list_projects(administration: Administration, call: Call) -> object:
    return await administration.projects.list(call.query.organization_id)


async def _show_project(administration: Administration, call: Call) -> object:
    return await administration.projects.show(call.id)


async def _update_project(administration: Administration, call: Call) -> object:
    return await administration.projects.update(call.id, call.body)


async def _delete_project(administration: Administration, call: Call) -> object:
    await administration.projects.delete(call.id)
    return Deleted(id=call.id)


async def _create_key(administration: Administration, call: Call) -> object:
    key, secret = await administration.keys.create(call.body)
    return NewSecret(key=key, secret=secret)


async def _list_keys(administration: Administration, call: Call) -> object:
    wanted = call.query
    return await administration.keys.list(organization_id=wanted.organization_id, project_id=wanted.project_id)


async def _show_key(administration: Administration, call: Call) -> object:
    return await administration.keys.show(call.id)


async def _update_key(administration: Administration, call: Call) -> object:
    return await administration.keys.update(call.id, call.body)


async def _revoke_key(administration: Administration, call: Call) -> object:
    return await administration.keys.revoke(call.id)


async def _set_price(administration: Administration, call: Call) -> object:
    return views.PriceView.of(await administration.prices.set(call.body))


async def _list_prices(administration: Administration, call: Call) -> object:
    return [views.PriceView.of(row) for row in await administration.prices.list()]


async def _remove_price(administration: Administration, call: Call) -> object:
    wanted = call.query
    await administration.prices.remove(wanted.model, wanted.currency, wanted.since)
    return Deleted(id=wanted.model)


async def _sum_usage(administration: Administration, call: Call) -> object:
    wanted = call.query
    found = await administration.usage.sums(
        wanted.groups,
        first=wanted.first,
        last=wanted.last,
        now=call.at,
        organization_id=wanted.organization_id,
        project_id=wanted.project_id,
        key_id=wanted.key_id,
        model=wanted.model,
    )
    return [views.UsageView.of(sums) for sums in found]


async def _show_usage(administration: Administration, call: Call) -> object:
    return views.RequestUsageView.of(await administration.usage.request(call.id))


async def _list_audit(administration: Administration, call: Call) -> object:
    wanted = call.query
    return await administration.audit_log(target=wanted.target, before=wanted.before, limit=wanted.limit)


async def _create_admin_key(administration: Administration, call: Call) -> object:
    key, secret = await administration.admins.create(call.body)
    return NewAdminSecret(key=key, secret=secret)


async def _list_admin_keys(administration: Administration, call: Call) -> object:
    return await administration.admins.list()


async def _revoke_admin_key(administration: Administration, call: Call) -> object:
    return await administration.admins.revoke(call.id)


_ORGANIZATIONS, _ORGANIZATION = f"{PREFIX}/organizations", f"{PREFIX}/organizations/{{id}}"
_PROJECTS, _PROJECT = f"{PREFIX}/projects", f"{PREFIX}/projects/{{id}}"
_KEYS, _KEY = f"{PREFIX}/keys", f"{PREFIX}/keys/{{id}}"
_PRICES = f"{PREFIX}/prices"
_USAGE, _REQUEST = f"{PREFIX}/usage", f"{PREFIX}/usage/{{id}}"
_ADMIN_KEYS, _ADMIN_KEY = f"{PREFIX}/admin_keys", f"{PREFIX}/admin_keys/{{id}}"

OPERATIONS: Sequence[Operation] = (
    Operation(
        method="GET",
        path=_ORGANIZATIONS,
        summary="List the organizations",
        run=_list_organizations,
        answer=views.OrganizationView,
        is_list=True,
    ),
    Operation(
        method="POST",
        path=_ORGANIZATIONS,
        summary="Create an organization",
        run=_create_organization,
        answer=views.OrganizationView,
        body=requests.NewOrganization,
    ),
    Operation(
        method="GET",
        path=_ORGANIZATION,
        summary="Show an organization",
        run=_show_organization,
        answer=views.OrganizationView,
    ),
    Operation(
        method="PATCH",
        path=_ORGANIZATION,
        summary="Change an organization",
        run=_update_organization,
        answer=views.OrganizationView,
        body=requests.OrganizationChanges,
    ),
    Operation(
        method="DELETE",
        path=_ORGANIZATION,
        summary="Delete an organization without projects, entries and usage",
        run=_delete_organization,
        answer=Deleted,
    ),
    Operation(
        method="GET",
        path=f"{_ORGANIZATION}/balance",
        summary="Show the balance of an organization",
        run=_show_balance,
        answer=views.BalanceView,
    ),
    Operation(
        method="POST",
        path=f"{_ORGANIZATION}/credits",
        summary="Credit an organization",
        run=_add_credit,
        answer=views.BalanceView,
        body=requests.NewCredit,
    ),
    Operation(
        method="POST",
        path=f"{_ORGANIZATION}/corrections",
        summary="Correct the balance of an organization",
        run=_correct,
        answer=views.BalanceView,
        body=requests.NewCorrection,
    ),
    Operation(
        method="GET",
        path=f"{_ORGANIZATION}/entries",
        summary="List what changed the balance of an organization",
        run=_list_entries,
        answer=views.EntryView,
        is_list=True,
        query=EntriesParameters,
    ),
    Operation(
        method="GET",
        path=_PROJECTS,
        summary="List the projects",
        run=_list_projects,
        answer=Project,
        is_list=True,
        query=ProjectsParameters,
    ),
    Operation(
        method="POST",
        path=_PROJECTS,
        summary="Create a project",
        run=_create_project,
        answer=Project,
        body=requests.NewProject,
    ),
    Operation(method="GET", path=_PROJECT, summary="Show a project", run=_show_project, answer=Project),
    Operation(
        method="PATCH",
        path=_PROJECT,
        summary="Change a project",
        run=_update_project,
        answer=Project,
        body=requests.ProjectChanges,
    ),
    Operation(
        method="DELETE",
        path=_PROJECT,
        summary="Delete a project that never had a key",
        run=_delete_project,
        answer=Deleted,
    ),
    Operation(
        method="GET",
        path=_KEYS,
        summary="List the keys, the revoked ones too",
        run=_list_keys,
        answer=Key,
        is_list=True,
        query=KeysParameters,
    ),
    Operation(
        method="POST",
        path=_KEYS,
        summary="Create a key",
        run=_create_key,
        answer=NewSecret,
        body=requests.NewKey,
    ),
    Operation(method="GET", path=_KEY, summary="Show a key", run=_show_key, answer=Key),
    Operation(
        method="PATCH",
        path=_KEY,
        summary="Change a key",
        run=_update_key,
        answer=Key,
        body=requests.KeyChanges,
    ),
    Operation(method="DELETE", path=_KEY, summary="Revoke a key for good", run=_revoke_key, answer=Key),
    Operation(
        method="GET",
        path=_PRICES,
        summary="List the prices: the catalog's, and those that were set",
        run=_list_prices,
        answer=views.PriceView,
        is_list=True,
    ),
    Operation(
        method="PUT",
        path=_PRICES,
        summary="Set the prices of a model from a day on",
        run=_set_price,
        answer=views.PriceView,
        body=requests.NewPrice,
    ),
    Operation(
        method="DELETE",
        path=_PRICES,
        summary="Remove a price that was set",
        run=_remove_price,
        answer=Deleted,
        query=PriceParameters,
    ),
    Operation(
        method="GET",
        path=_USAGE,
        summary="Sum the usage of all organizations",
        run=_sum_usage,
        answer=views.UsageView,
        is_list=True,
        query=AdminUsageParameters,
    ),
    Operation(
        method="GET",
        path=_REQUEST,
        summary="Show what one request used",
        run=_show_usage,
        answer=views.RequestUsageView,
    ),
    Operation(
        method="GET",
        path=f"{PREFIX}/audit",
        summary="Show who changed what",
        run=_list_audit,
        answer=AuditRow,
        is_list=True,
        query=AuditParameters,
    ),
    Operation(
        method="GET",
        path=_ADMIN_KEYS,
        summary="List the admin keys, the revoked ones too",
        run=_list_admin_keys,
        answer=AdminKey,
        is_list=True,
    ),
    Operation(
        method="POST",
        path=_ADMIN_KEYS,
        summary="Create an admin key",
        run=_create_admin_key,
        answer=NewAdminSecret,
        body=requests.NewAdminKey,
    ),
    Operation(
        method="DELETE",
        path=_ADMIN_KEY,
        summary="Revoke an admin key for good",
        run=_revoke_admin_key,
        answer=AdminKey,
    ),
)
