import pytest
from msgspec.structs import replace

from moonbase.store.database import Database
from moonbase.store.keys import add_organization
from moonbase.store.records import Organization, UsageRecord
from moonbase.store.usage import add_usage, granted_and_cost

pytestmark = pytest.mark.anyio

RECORD = UsageRecord(
    request_id="r",
    organization_id="org-a",
    project_id="proj-a",
    key_id="ak-a",
    model="kimi-k2-0905-preview",
    served_by="echo",
    prompt_miss=1,
    prompt_hit=2,
    prompt_write=3,
    output=4,
    price_miss=600_000_000,
    price_hit=150_000_000,
    price_write=0,
    price_output=2_500_000_000,
    cost_nano=10**15,
    currency="USD",
    outcome="stop",
    started_at=1_795_000_000_000,
    first_token_at=None,
    finished_at=1_795_000_000_500,
)


async def test_a_repeated_request_id_changes_nothing(database: Database) -> None:
    organization = Organization(
        id="org-a", uid="u", name="a", tier=1, currency="USD", granted_nano=5, postpaid=False, created_at=0
    )
    async with database.write() as connection:
        await add_organization(connection, organization)
        await add_usage(connection, [RECORD])
    async with database.write() as connection:
        await add_usage(connection, [replace(RECORD, cost_nano=7), replace(RECORD, request_id="s")])
        assert await granted_and_cost(connection, "org-a") == (5, 2 * 10**15)


async def test_only_the_organizations_own_cost_in_its_own_currency_counts(database: Database) -> None:
    organization = Organization(
        id="org-a", uid="u", name="a", tier=1, currency="CNY", granted_nano=5, postpaid=False, created_at=0
    )
    records = [replace(RECORD, request_id="s", organization_id="org-b", currency="CNY"), RECORD]
    async with database.write() as connection:
        await add_organization(connection, organization)
        await add_usage(connection, records)
        assert await granted_and_cost(connection, "org-a") == (5, 0)
