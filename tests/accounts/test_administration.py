"""What administrators do: as a whole or not at all, each change with its row in the audit log."""

import datetime
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from msgspec import UNSET
from sqlalchemy import text
from tests.store.test_ledger import RECORD

from moonbase.accounts.administration import Administration
from moonbase.accounts.credit import tier_of
from moonbase.accounts.requests import (
    KeyChanges,
    LimitChanges,
    NewAdminKey,
    NewCorrection,
    NewCredit,
    NewKey,
    NewOrganization,
    NewPrice,
    NewProject,
    OrganizationChanges,
    ProjectChanges,
)
from moonbase.catalog.catalog import load_catalog
from moonbase.errors import BalanceTooLow, Conflict, InvalidField, NotFound
from moonbase.store.database import Database
from moonbase.store.ledger import charge, find_imbalances, take_lease
from moonbase.store.records import Balance, Limits, Organization, Settlement, UsageRecord

pytestmark = pytest.mark.anyio

NOW = 1_795_000_000_000
TODAY = datetime.date(2026, 11, 18)
K2 = "kimi-k2-0905-preview"
NOBODY = ["org-none", "", "x" * 65, "a b", "\0", "é", "'; DROP TABLE usage --"]


@pytest.fixture
def administration(database: Database) -> Administration:
    return Administration(database, "test", load_catalog({}), currency="USD", clock=lambda: NOW)


async def dump(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """All that is in the database."""
    tables = ["organization", "project", "key", "balance", "entry", "lease", "usage", "usage_hour", "usage_day"]
    async with database.read() as connection:
        assert await find_imbalances(connection) == []
        return {
            table: sorted([tuple(row) for row in await connection.execute(text(f"SELECT * FROM {table}"))], key=repr)
            for table in [*tables, "price", "admin_key", "audit"]
        }


async def acme(administration: Administration, **fields: Any) -> Organization:
    return await administration.organizations.create(NewOrganization(**({"name": "acme", "region": "global"} | fields)))


async def project_of(administration: Administration, organization: Organization, name: str = "web") -> str:
    return (await administration.projects.create(NewProject(organization_id=organization.id, name=name))).id


async def used(database: Database, request_id: str, **fields: Any) -> Settlement:
    values = {"request_id": request_id, "started_at": NOW, "cost_nano": 10} | fields
    record = msgspec.structs.replace(RECORD, **values)
    async with database.write() as connection:
        await charge(connection, "p", [record], NOW)
    return record


async def test_an_organization_is_made_shown_changed_and_deleted(administration: Administration) -> None:
    made = await acme(administration, region="china", tier=2, limits=LimitChanges(rpm=5, tpd=7))
    assert (made.currency, made.tier, made.postpaid, made.limits) == ("CNY", 2, False, Limits(rpm=5, tpd=7))
    assert await administration.organizations.list() == [made]
    changes = OrganizationChanges(name="apex", postpaid=True, limits=LimitChanges(rpm=None, tpm=9))
    changed = await administration.organizations.update(made.id, changes)
    expected = msgspec.structs.replace(made, name="apex", postpaid=True, limits=Limits(tpm=9, tpd=7))
    assert changed == expected == await administration.organizations.show(made.id)
    await administration.organizations.delete(made.id)
    assert await administration.organizations.list() == []
    with pytest.raises(NotFound, match=f"there is no organization '{made.id}'"):
        await administration.organizations.show(made.id)


async def test_a_project_is_made_shown_changed_and_deleted(administration: Administration) -> None:
    organization, other = await acme(administration), await acme(administration, name="other")
    project_id = await project_of(administration, organization)
    await project_of(administration, other)
    assert [each.id for each in await administration.projects.list(organization.id)] == [project_id]
    assert len(await administration.projects.list()) == 2
    changes = ProjectChanges(name="shop", limits=LimitChanges(concurrency=1))
    changed = await administration.projects.update(project_id, changes)
    assert (changed.name, changed.limits) == ("shop", Limits(concurrency=1))
    assert changed == await administration.projects.show(project_id)
    await administration.projects.delete(project_id)
    assert await administration.projects.list(organization.id) == []


async def test_a_key_is_made_shown_changed_and_revoked(administration: Administration) -> None:
    project_id = await project_of(administration, await acme(administration))
    new = NewKey(
        name="k", project_id=project_id, models=(K2, K2), endpoints=("chat",), expires="30d", limits=LimitChanges(rpm=3)
    )
    key, secret = await administration.keys.create(new)
    assert (key.models, key.endpoints, key.limits) == ((K2,), ("chat",), Limits(rpm=3))
    assert key.expires_at == NOW + 30 * 86_400_000
    assert secret.startswith("sk-")
    changed = await administration.keys.update(key.id, KeyChanges(name="l", models=None, expires="2027-01-01"))
    assert (changed.name, changed.models, changed.endpoints) == ("l", None, ("chat",))
    assert changed.expires_at == 1_798_761_600_000
    assert await administration.keys.list(project_id=project_id) == [changed]
    assert await administration.keys.show(key.id) == changed
    revoked = await administration.keys.revoke(key.id)
    assert revoked.revoked_at == NOW
    with pytest.raises(Conflict, match="is revoked"):
        await administration.keys.update(key.id, KeyChanges(name="m"))


@pytest.mark.parametrize(
    ("expires", "expected"),
    [
        ("90m", NOW + 90 * 60_000),
        ("12h", NOW + 12 * 3_600_000),
        ("2026-11-19", 1_795_046_400_000),
        ("2026-11-19T01:00:00+01:00", 1_795_046_400_000),
        ("2026-11-19T00:00:00.5Z", 1_795_046_400_500),
    ],
)
async def test_a_key_expires_when_it_was_said_to(administration: Administration, expires: str, expected: int) -> None:
    key, _ = await administration.keys.create(NewKey(name="k", expires=expires))
    assert key.expires_at == expected


async def test_credit_and_corrections_are_entries_and_sum_to_the_balance(
    administration: Administration, database: Database
) -> None:
    organization = await acme(administration)
    credit = administration.credit
    await credit.add(organization.id, NewCredit(amount="12.000000001", note="invoice 7"))
    await credit.add(organization.id, NewCredit(amount="5", kind="voucher", currency="USD"))
    standing = await credit.correct(organization.id, NewCorrection(amount="-2.5", kind="voucher", note="mistake"))
    assert standing == await credit.balance(organization.id)
    assert standing.balance == Balance(12_000_000_001, 2_500_000_000)
    entries = await credit.entries(organization.id)
    assert [(each.kind, each.cash_nano, each.voucher_nano, each.note) for each in entries] == [
        ("correction", 0, -2_500_000_000, "mistake"),
        ("credit", 0, 5_000_000_000, ""),
        ("credit", 12_000_000_001, 0, "invoice 7"),
    ]
    assert await credit.entries(organization.id, kind="credit", before=entries[1].id) == entries[2:]
    assert await credit.entries(organization.id, limit=1) == entries[:1]
    await dump(database)


async def test_what_running_requests_may_cost_cannot_be_taken(
    administration: Administration, database: Database
) -> None:
    organization = await acme(administration)
    await administration.credit.add(organization.id, NewCredit(amount="10"))
    async with database.write() as connection:
        await take_lease(connection, organization.id, "p", [4 * 10**9], have=0, now=NOW)
    before = await dump(database)
    with pytest.raises(BalanceTooLow) as refused:
        await administration.credit.correct(organization.id, NewCorrection(amount="-7", note="x"))
    assert (refused.value.free_nano, refused.value.status) == (6 * 10**9, 409)
    assert await dump(database) == before


@pytest.mark.parametrize(
    ("currency", "units", "tier"),
    [
        *[("USD", units, tier) for units, tier in [(0, 0), (1, 0), (9, 0), (10, 1), (20, 2), (99, 2), (100, 3)]],
        *[("USD", units, tier) for units, tier in [(1_000, 4), (2_999, 4), (3_000, 5), (10**8, 5)]],
        *[("CNY", units, tier) for units, tier in [(0, 0), (49, 0), (50, 1), (100, 2), (500, 3), (5_000, 4)]],
        ("CNY", 20_000, 5),
    ],
)
def test_the_tier_follows_from_all_cash_there_ever_was(currency: Any, units: int, tier: int) -> None:
    assert tier_of(units * 10**9, currency) == tier


async def test_cash_raises_the_tier_and_nothing_else_does_and_nothing_lowers_it(administration: Administration) -> None:
    organization = await acme(administration)

    async def tier() -> int:
        return (await administration.organizations.show(organization.id)).tier

    await administration.credit.add(organization.id, NewCredit(amount="5000", kind="voucher"))
    assert await tier() == 0
    await administration.credit.add(organization.id, NewCredit(amount="9"))
    assert await tier() == 0
    await administration.credit.add(organization.id, NewCredit(amount="1"))
    assert await tier() == 1
    await administration.credit.correct(organization.id, NewCorrection(amount="-10", note="back"))
    assert await tier() == 1
    await administration.organizations.update(organization.id, OrganizationChanges(tier=5))
    await administration.credit.add(organization.id, NewCredit(amount="100"))
    assert await tier() == 5


async def test_prices_are_set_listed_and_removed(administration: Administration) -> None:
    new = NewPrice(model=K2, currency="USD", since=TODAY, miss="1", output="2.5")
    row = await administration.prices.set(new)
    assert (row.miss, row.hit, row.write, row.output) == (10**9, 10**9, 10**9, 2_500_000_000)
    again = msgspec.structs.replace(new, hit="0.1", write="0")
    row = await administration.prices.set(again)
    assert (row.hit, row.write) == (10**8, 0)
    mine = [each for each in await administration.prices.list() if (each.model, each.currency) == (K2, "USD")]
    assert [(each.since, each.hit) for each in mine] == [(datetime.date(2025, 7, 11), 150_000_000), (TODAY, 10**8)]
    await administration.prices.remove(K2, "USD", TODAY)
    with pytest.raises(NotFound, match=f"there is no price '{K2} in USD since 2026-11-18'"):
        await administration.prices.remove(K2, "USD", TODAY)


async def test_an_admin_key_is_made_once_and_revoked_for_good(administration: Administration) -> None:
    key, secret = await administration.admins.create(NewAdminKey(name="ops"))
    assert (secret[:4], key.hint, key.id[:6]) == ("adm-", secret[-4:], "admin-")
    await administration.admins.revoke(key.id)
    await administration.admins.revoke(key.id)
    (listed,) = await administration.admins.list()
    assert listed.revoked_at == NOW
    await administration.admins.create(NewAdminKey(name="ops"))


Refused = Callable[[Administration, Organization], Awaitable[Any]]

REFUSED: dict[str, tuple[Refused, type[Exception], str]] = {
    "an organization of no name": (lambda a, o: acme(a, name=" "), InvalidField, "`name` must not be empty"),
    "a name that breaks lines": (lambda a, o: acme(a, name="a\nb"), InvalidField, "`name` must be printable text"),
    "a duplicate organization": (lambda a, o: acme(a, name=o.name), Conflict, "`name` is taken"),
    "an organization that takes a name": (
        lambda a, o: a.organizations.update(o.id, OrganizationChanges(name="default")),
        Conflict,
        "`name` is taken",
    ),
    "a duplicate project": (lambda a, o: project_of(a, o), Conflict, "`name` is taken"),
    "a project of nobody": (
        lambda a, o: a.projects.create(NewProject(organization_id="org-none", name="p")),
        NotFound,
        "there is no organization 'org-none'",
    ),
    "deleting an organization in use": (
        lambda a, o: a.organizations.delete(o.id),
        Conflict,
        r"is in use: it has 1 projects, 2 entries, 1 days of usage",
    ),
    "deleting a project in use": (
        lambda a, o: _delete_projects(a, o),
        Conflict,
        "is in use: it has 1 keys, the revoked ones counted",
    ),
    "a key of no project": (
        lambda a, o: a.keys.create(NewKey(name="k", project_id="proj-none")),
        NotFound,
        "there is no project 'proj-none'",
    ),
    "a key for an unknown model": (
        lambda a, o: a.keys.create(NewKey(name="k", models=("gpt-5",))),
        InvalidField,
        "`models` names the model 'gpt-5'",
    ),
    **{
        f"a key that expires {when!r}": (
            lambda a, o, when=when: a.keys.create(NewKey(name="k", expires=when)),
            InvalidField,
            "`expires` must",
        )
        for when in [
            "",
            "yesterday",
            "2026-13-01",
            "2026-02-30",
            "0m",
            "2026-11-01",
            "2026-12-01T00:00:00",
            "9999-01-01",
        ]
    },
    **{
        f"a credit of {amount!r}": (
            lambda a, o, amount=amount: a.credit.add(o.id, NewCredit(amount=amount)),
            InvalidField,
            "`amount` (is illegal|must)",
        )
        for amount in [
            "0",
            "-1",
            "-0",
            "1e9",
            "1000000000",
            "0.0000000001",
            "NaN",
            "Infinity",
            "",
            "1,5",
            "x",
            "1_0",
            "1e3",
            "٣",
        ]
    },
    "a credit in another currency": (
        lambda a, o: a.credit.add(o.id, NewCredit(amount="1", currency="CNY")),
        InvalidField,
        "`currency` must be USD",
    ),
    "a credit over what can be held": (
        lambda a, o: a.credit.add(o.id, NewCredit(amount="999999999.9")),
        InvalidField,
        "`amount` would bring the balance over 1000000000",
    ),
    "a note that breaks lines": (
        lambda a, o: a.credit.add(o.id, NewCredit(amount="1", note="a\0")),
        InvalidField,
        "`note` must be printable text",
    ),
    "a correction without a reason": (
        lambda a, o: a.credit.correct(o.id, NewCorrection(amount="-1", note=" ")),
        InvalidField,
        "`note` must say why",
    ),
    "a correction of nothing": (
        lambda a, o: a.credit.correct(o.id, NewCorrection(amount="-0.0", note="x")),
        InvalidField,
        "`amount` must not be 0",
    ),
    "a price of an unknown model": (
        lambda a, o: a.prices.set(NewPrice(model="gpt-5", currency="USD", since=TODAY, miss="1", output="1")),
        InvalidField,
        "`model` names 'gpt-5'",
    ),
    "a price of a model that is billed as others": (
        lambda a, o: a.prices.set(
            NewPrice(model="moonshot-v1-auto", currency="USD", since=TODAY, miss="1", output="1")
        ),
        InvalidField,
        "`model` names 'moonshot-v1-auto'",
    ),
    "a negative price": (
        lambda a, o: a.prices.set(NewPrice(model=K2, currency="USD", since=TODAY, miss="1", output="-1")),
        InvalidField,
        "`output` is illegal",
    ),
    "a price in nano-units by mistake": (
        lambda a, o: a.prices.set(NewPrice(model=K2, currency="USD", since=TODAY, miss="1", output="2500000000")),
        InvalidField,
        "`output` is illegal: '2500000000' is not an amount from 0 to 1000000000",
    ),
    "a price over all sense": (
        lambda a, o: a.prices.set(NewPrice(model=K2, currency="USD", since=TODAY, miss="100000.01", output="1")),
        InvalidField,
        "`miss` must be at most 100000, in whole units of the currency per 1M tokens",
    ),
    "a price from long ago": (
        lambda a, o: a.prices.set(
            NewPrice(model=K2, currency="USD", since=datetime.date(1, 1, 1), miss="1", output="1")
        ),
        InvalidField,
        "`since` must be a day of the years 2000 to 2199",
    ),
    "a duplicate admin key": (
        lambda a, o: a.admins.create(NewAdminKey(name="ops")),
        Conflict,
        "`name` is taken",
    ),
    "revoking an admin key that there is not": (lambda a, o: a.admins.revoke("admin-x"), NotFound, "no admin key"),
}


async def _delete_projects(administration: Administration, organization: Organization) -> None:
    for project in await administration.projects.list(organization.id):
        await administration.projects.delete(project.id)


async def test_what_cannot_be_done_is_said_and_changes_nothing(
    administration: Administration, database: Database
) -> None:
    await administration.keys.first_start()
    organization = await acme(administration)
    project_id = await project_of(administration, organization)
    await administration.keys.create(NewKey(name="k", project_id=project_id))
    await administration.credit.add(organization.id, NewCredit(amount="1"))
    await administration.admins.create(NewAdminKey(name="ops"))
    await used(database, "r", organization_id=organization.id, project_id=project_id)
    before = await dump(database)
    for case, (refused, kind, sentence) in REFUSED.items():
        with pytest.raises(kind, match=sentence):
            await refused(administration, organization)
        assert await dump(database) == before, case


async def test_ids_that_cannot_be_are_not_found(administration: Administration, database: Database) -> None:
    before = await dump(database)
    for wrong in NOBODY:
        for call in (
            administration.organizations.show(wrong),
            administration.organizations.update(wrong, OrganizationChanges(tier=1)),
            administration.organizations.delete(wrong),
            administration.projects.list(wrong),
            administration.projects.show(wrong),
            administration.projects.update(wrong, ProjectChanges(name="x")),
            administration.projects.delete(wrong),
            administration.keys.list(organization_id=wrong),
            administration.keys.list(project_id=wrong),
            administration.keys.show(wrong),
            administration.keys.update(wrong, KeyChanges(name="x")),
            administration.keys.revoke(wrong),
            administration.credit.add(wrong, NewCredit(amount="1")),
            administration.credit.correct(wrong, NewCorrection(amount="1", note="x")),
            administration.credit.balance(wrong),
            administration.credit.entries(wrong),
            administration.admins.revoke(wrong),
            administration.usage.request(wrong),
        ):
            with pytest.raises(NotFound):
                await call
    assert await dump(database) == before


async def test_every_change_is_in_the_audit_log_and_no_secret_is(administration: Administration) -> None:
    organization = await acme(administration, tier=0, limits=LimitChanges(rpm=3))
    project_id = await project_of(administration, organization)
    key, secret = await administration.keys.create(NewKey(name="k", project_id=project_id, models=(K2,)))
    await administration.keys.update(key.id, KeyChanges(limits=LimitChanges(tpm=5)))
    await administration.keys.update(key.id, KeyChanges(name="k", expires=UNSET))
    await administration.keys.revoke(key.id)
    await administration.keys.revoke(key.id)
    await administration.credit.add(organization.id, NewCredit(amount="10", note="hi"))
    await administration.prices.set(NewPrice(model=K2, currency="USD", since=TODAY, miss="1", output="2"))
    admin, admin_secret = await administration.admins.create(NewAdminKey(name="ops"))
    log = await administration.audit_log()
    assert all((row.actor, row.at) == ("test", NOW) for row in log)
    assert [(row.action, row.target, json.loads(bytes(row.detail))) for row in reversed(log)] == [
        (
            "organization.create",
            organization.id,
            {"name": "acme", "region": "global", "tier": 0, "postpaid": False, "limits": {"rpm": 3}},
        ),
        ("project.create", project_id, {"organization_id": organization.id, "name": "web", "limits": {}}),
        (
            "key.create",
            key.id,
            {"name": "k", "project_id": project_id, "models": [K2], "endpoints": None, "expires": None, "limits": {}},
        ),
        (
            "key.update",
            key.id,
            {
                "limits": [
                    {"concurrency": None, "rpm": None, "tpm": None, "tpd": None},
                    {"concurrency": None, "rpm": None, "tpm": 5, "tpd": None},
                ]
            },
        ),
        ("key.revoke", key.id, {"name": "k"}),
        ("credit.add", organization.id, {"amount": "10", "kind": "cash", "currency": None, "note": "hi"}),
        ("organization.update", organization.id, {"tier": [0, 1]}),
        (
            "price.set",
            K2,
            {
                "model": K2,
                "currency": "USD",
                "since": "2026-11-18",
                "miss": "1",
                "output": "2",
                "hit": None,
                "write": None,
            },
        ),
        ("admin_key.create", admin.id, {"name": "ops"}),
    ]
    assert [row.action for row in await administration.audit_log(target=key.id)] == [
        "key.revoke",
        "key.update",
        "key.create",
    ]
    assert await administration.audit_log(before=log[1].id, limit=2) == log[2:4]
    told = b"".join([bytes(row.detail) for row in log]).decode()
    assert secret not in told
    assert admin_secret not in told


async def test_a_changed_or_revoked_key_is_told_of(database: Database) -> None:
    told: list[str] = []
    catalog = load_catalog({})
    administration = Administration(database, "test", catalog, currency="USD", on_key_changed=told.append)
    key, _ = await administration.keys.create(NewKey(name="k"))
    await administration.keys.update(key.id, KeyChanges(name="l"))
    await administration.keys.revoke(key.id)
    assert told == [key.id, key.id]


async def test_usage_is_summed_by_whatever_is_asked_for(administration: Administration, database: Database) -> None:
    organization, other = await acme(administration), await acme(administration, name="other")
    web, shop = await project_of(administration, organization), await project_of(administration, organization, "shop")
    mine = {"organization_id": organization.id, "project_id": web}
    await used(database, "a", **mine)
    await used(database, "b", **mine, started_at=NOW - 86_400_000, outcome="failed")
    await used(database, "c", **mine | {"project_id": shop}, model="kimi-k2.6")
    await used(database, "d", organization_id=other.id, project_id=await project_of(administration, other))
    await used(database, "old", **mine, started_at=NOW - 40 * 86_400_000)

    async def sums(*groups: Any, **filters: Any) -> list[tuple[Any, ...]]:
        found = await administration.usage.sums(groups, now=NOW, **filters)
        names = {"organization": "organization_id", "project": "project_id", "key": "key_id"}
        return sorted(
            [(*[getattr(row, names.get(g, g)) for g in groups], row.requests, row.cost_nano) for row in found]
        )

    day = NOW - NOW % 86_400_000
    assert await sums("day") == [(day - 86_400_000, 1, 10), (day, 3, 30)]
    assert await sums("day", first=datetime.date(2026, 10, 1), last=datetime.date(2026, 10, 31)) == [
        (day - 40 * 86_400_000, 1, 10)
    ]
    assert await sums("organization") == sorted([(organization.id, 3, 30), (other.id, 1, 10)])
    assert await sums("project", organization_id=organization.id) == sorted([(web, 2, 20), (shop, 1, 10)])
    assert await sums("model", project_id=shop) == [("kimi-k2.6", 1, 10)]
    assert await sums("model", model="nothing") == []
    assert await sums("key", "model", organization_id=other.id) == [("ak-a", K2, 1, 10)]
    assert await sums("hour", first=TODAY) == [(NOW - NOW % 3_600_000, 3, 30)]
    assert await sums() == [(4, 40)]
    assert (await administration.usage.sums(["day"], now=NOW))[0].failed == 1


@pytest.mark.parametrize(
    ("groups", "days", "sentence"),
    [
        (["day", "day"], {}, "`group_by` must name each of its parts once"),
        (["day", "hour"], {}, "`group_by` must not have both"),
        (["hour"], {}, "`group_by` can have `hour` for at most 7 days"),
        (["day"], {"first": TODAY, "last": datetime.date(2026, 11, 17)}, "`from` must not be after `to`"),
        (["day"], {"first": datetime.date(1999, 1, 1)}, "`from` must be a day of the years"),
        (["day"], {"last": datetime.date(9999, 12, 31)}, "`to` must be a day of the years"),
        (["day"], {"model": "\0"}, "`model` must be printable"),
    ],
)
async def test_what_no_usage_can_be_asked_for_is_said(
    administration: Administration, groups: list[Any], days: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidField, match=sentence):
        await administration.usage.sums(groups, now=NOW, **days)


async def test_of_somebody_elses_usage_nothing_is_shown(administration: Administration, database: Database) -> None:
    from moonbase.accounts.usage import UsageReports

    mine, other = await acme(administration), await acme(administration, name="other")
    project_id = await project_of(administration, other)
    key, _ = await administration.keys.create(NewKey(name="k", project_id=project_id))
    record = await used(database, "r", organization_id=other.id, project_id=project_id, key_id=key.id)
    reports = UsageReports(database, mine.id)
    shown = await administration.usage.request("r")
    assert shown == UsageRecord(**{name: getattr(record, name) for name in UsageRecord.__struct_fields__})
    assert await reports.sums(["day"], now=NOW) == []
    for call in (
        reports.request("r"),
        reports.sums(["day"], now=NOW, project_id=project_id),
        reports.sums(["day"], now=NOW, key_id=key.id),
    ):
        with pytest.raises(NotFound):
            await call
    assert await UsageReports(database, other.id).request("r") == shown
