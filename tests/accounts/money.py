"""Organizations, money and usage records for tests."""

from moonbase.store.database import Database
from moonbase.store.keys import add_organization
from moonbase.store.ledger import change_balance
from moonbase.store.records import NO_LIMITS, Entry, Limits, Organization, Settlement

RECORD = Settlement(
    request_id="r",
    organization_id="org-a",
    project_id="proj-a",
    key_id="ak-a",
    model="m",
    served_by="echo",
    prompt_miss=10,
    prompt_hit=0,
    prompt_write=0,
    output=64,
    price_miss=1_000_000,
    price_hit=500_000,
    price_write=0,
    price_output=3_000_000,
    cost_nano=202,
    currency="USD",
    outcome="interrupted",
    started_at=0,
    first_token_at=None,
    finished_at=0,
)


def credit(organization_id: str, *, cash: int = 0, voucher: int = 0) -> Entry:
    return Entry(
        organization_id=organization_id,
        kind="credit",
        cash_nano=cash,
        voucher_nano=voucher,
        note="test",
        created_at=0,
    )


async def add_rich(
    database: Database, organization_id: str, *, cash: int = 0, voucher: int = 0, limits: Limits = NO_LIMITS
) -> None:
    """A prepaid organization of the highest tier with some money."""
    row = Organization(
        id=organization_id,
        uid=f"uid-{organization_id}",
        name=organization_id,
        tier=5,
        currency="USD",
        postpaid=False,
        created_at=0,
        limits=limits,
    )
    async with database.write() as connection:
        await add_organization(connection, row)
        await change_balance(connection, credit(organization_id, cash=cash, voucher=voucher))
