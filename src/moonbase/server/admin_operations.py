"""What the admin API can do: each method of each path, from which it is served and described."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from msgspec import Struct

from moonbase.accounts import requests
from moonbase.accounts.administration import Administration
from moonbase.server.query import (
    AdminUsageParameters,
    AuditParameters,
    EntriesParameters,
    KeysParameters,
    PriceParameters,
    ProjectsParameters,
    Query,
)
from moonbase.service import views
from moonbase.store.records import AdminKey, AuditRow, BookedEntry, Key, Project, UsageSums

PREFIX = "/admin/v1"


class Call(Struct, frozen=True):
    """A request to an operation: the id in its path, its decoded body and query, when it came (milliseconds).

    `once` is its key of idempotency.
    """

    id: str
    body: Any
    query: Any
    at: int
    once: str | None


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


def _as_it_is(answer: Struct) -> Struct:
    return answer


class Operation(Struct, frozen=True, kw_only=True):
    """One method of one path.

    `answer` is the type of what is shown, or of each element of a list: what `view` makes of what `run` returns.
    """

    method: str
    path: str
    summary: str
    run: Callable[[Administration, Call], Awaitable[Any]]
    answer: type[Struct]
    view: Callable[[Any], Struct] = _as_it_is
    is_list: bool = False
    body: type[Struct] | None = None
    query: type[Query] = Query
    takes_once: bool = False
    """Whether it has a key of idempotency, in the header `Idempotency-Key`."""


async def _deleted(id: str, deleting: Awaitable[None]) -> Deleted:
    await deleting
    return Deleted(id=id)


async def _list_entries(admin: Administration, call: Call) -> list[BookedEntry]:
    wanted = call.query
    return await admin.credit.entries(call.id, kind=wanted.kind, before=wanted.before, limit=wanted.limit)


async def _list_keys(admin: Administration, call: Call) -> list[Key]:
    return await admin.keys.list(organization_id=call.query.organization_id, project_id=call.query.project_id)


async def _remove_price(admin: Administration, call: Call) -> Deleted:
    wanted = call.query
    return await _deleted(wanted.model, admin.prices.remove(wanted.model, wanted.currency, wanted.since))


async def _sum_usage(admin: Administration, call: Call) -> list[UsageSums]:
    wanted = call.query
    return await admin.usage.sums(
        wanted.groups,
        first=wanted.first,
        last=wanted.last,
        now=call.at,
        organization_id=wanted.organization_id,
        project_id=wanted.project_id,
        key_id=wanted.key_id,
        model=wanted.model,
    )


async def _list_audit(admin: Administration, call: Call) -> list[AuditRow]:
    wanted = call.query
    return await admin.audit_log(target=wanted.target, before=wanted.before, limit=wanted.limit)


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
        run=lambda admin, call: admin.organizations.list(),
        answer=views.OrganizationView,
        view=views.OrganizationView.of,
        is_list=True,
    ),
    Operation(
        method="POST",
        path=_ORGANIZATIONS,
        summary="Create an organization",
        run=lambda admin, call: admin.organizations.create(call.body),
        answer=views.OrganizationView,
        view=views.OrganizationView.of,
        body=requests.NewOrganization,
    ),
    Operation(
        method="GET",
        path=_ORGANIZATION,
        summary="Show an organization",
        run=lambda admin, call: admin.organizations.show(call.id),
        answer=views.OrganizationView,
        view=views.OrganizationView.of,
    ),
    Operation(
        method="PATCH",
        path=_ORGANIZATION,
        summary="Change an organization",
        run=lambda admin, call: admin.organizations.update(call.id, call.body),
        answer=views.OrganizationView,
        view=views.OrganizationView.of,
        body=requests.OrganizationChanges,
    ),
    Operation(
        method="DELETE",
        path=_ORGANIZATION,
        summary="Delete an organization without projects, entries and usage",
        run=lambda admin, call: _deleted(call.id, admin.organizations.delete(call.id)),
        answer=Deleted,
    ),
    Operation(
        method="GET",
        path=f"{_ORGANIZATION}/balance",
        summary="Show the balance of an organization",
        run=lambda admin, call: admin.credit.balance(call.id),
        answer=views.BalanceView,
        view=views.BalanceView.of,
    ),
    Operation(
        method="POST",
        path=f"{_ORGANIZATION}/credits",
        summary="Credit an organization",
        run=lambda admin, call: admin.credit.add(call.id, call.body, once=call.once),
        answer=views.BalanceView,
        view=views.BalanceView.of,
        body=requests.NewCredit,
        takes_once=True,
    ),
    Operation(
        method="POST",
        path=f"{_ORGANIZATION}/corrections",
        summary="Correct the balance of an organization",
        run=lambda admin, call: admin.credit.correct(call.id, call.body, once=call.once),
        answer=views.BalanceView,
        view=views.BalanceView.of,
        body=requests.NewCorrection,
        takes_once=True,
    ),
    Operation(
        method="GET",
        path=f"{_ORGANIZATION}/entries",
        summary="List what changed the balance of an organization",
        run=_list_entries,
        answer=views.EntryView,
        view=views.EntryView.of,
        is_list=True,
        query=EntriesParameters,
    ),
    Operation(
        method="GET",
        path=_PROJECTS,
        summary="List the projects",
        run=lambda admin, call: admin.projects.list(call.query.organization_id),
        answer=Project,
        is_list=True,
        query=ProjectsParameters,
    ),
    Operation(
        method="POST",
        path=_PROJECTS,
        summary="Create a project",
        run=lambda admin, call: admin.projects.create(call.body),
        answer=Project,
        body=requests.NewProject,
    ),
    Operation(
        method="GET",
        path=_PROJECT,
        summary="Show a project",
        run=lambda admin, call: admin.projects.show(call.id),
        answer=Project,
    ),
    Operation(
        method="PATCH",
        path=_PROJECT,
        summary="Change a project",
        run=lambda admin, call: admin.projects.update(call.id, call.body),
        answer=Project,
        body=requests.ProjectChanges,
    ),
    Operation(
        method="DELETE",
        path=_PROJECT,
        summary="Delete a project that never had a key",
        run=lambda admin, call: _deleted(call.id, admin.projects.delete(call.id)),
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
        run=lambda admin, call: admin.keys.create(call.body),
        answer=NewSecret,
        view=lambda made: NewSecret(key=made[0], secret=made[1]),
        body=requests.NewKey,
    ),
    Operation(
        method="GET", path=_KEY, summary="Show a key", run=lambda admin, call: admin.keys.show(call.id), answer=Key
    ),
    Operation(
        method="PATCH",
        path=_KEY,
        summary="Change a key",
        run=lambda admin, call: admin.keys.update(call.id, call.body),
        answer=Key,
        body=requests.KeyChanges,
    ),
    Operation(
        method="DELETE",
        path=_KEY,
        summary="Revoke a key for good",
        run=lambda admin, call: admin.keys.revoke(call.id),
        answer=Key,
    ),
    Operation(
        method="GET",
        path=_PRICES,
        summary="List the prices: the catalog's, and those that were set",
        run=lambda admin, call: admin.prices.list(),
        answer=views.PriceView,
        view=views.PriceView.of,
        is_list=True,
    ),
    Operation(
        method="PUT",
        path=_PRICES,
        summary="Set the prices of a model from a day on",
        run=lambda admin, call: admin.prices.set(call.body),
        answer=views.PriceView,
        view=views.PriceView.of,
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
        view=views.UsageView.of,
        is_list=True,
        query=AdminUsageParameters,
    ),
    Operation(
        method="GET",
        path=_REQUEST,
        summary="Show what one request used",
        run=lambda admin, call: admin.usage.request(call.id),
        answer=views.RequestUsageView,
        view=views.RequestUsageView.of,
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
        run=lambda admin, call: admin.admins.list(),
        answer=AdminKey,
        is_list=True,
    ),
    Operation(
        method="POST",
        path=_ADMIN_KEYS,
        summary="Create an admin key",
        run=lambda admin, call: admin.admins.create(call.body),
        answer=NewAdminSecret,
        view=lambda made: NewAdminSecret(key=made[0], secret=made[1]),
        body=requests.NewAdminKey,
    ),
    Operation(
        method="DELETE",
        path=_ADMIN_KEY,
        summary="Revoke an admin key for good",
        run=lambda admin, call: admin.admins.revoke(call.id),
        answer=AdminKey,
    ),
)
