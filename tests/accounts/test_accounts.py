import datetime
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from tests.accounts.money import credit

from moonbase.accounts.accounts import Accounts, bearer
from moonbase.accounts.changes import Changes
from moonbase.accounts.keys import Keys
from moonbase.accounts.ledger import Reservation
from moonbase.accounts.requests import NewKey
from moonbase.accounts.tokens import MOST, Tokens
from moonbase.catalog.prices import Price
from moonbase.errors import IncorrectApiKey, InvalidAuthentication
from moonbase.store.database import Database
from moonbase.store.ledger import change_balance
from moonbase.store.records import Balance, Caller

pytestmark = pytest.mark.anyio

PRICE = Price(since=datetime.date(2025, 9, 5), miss=600_000_000, hit=150_000_000, write=0, output=2_500_000_000)
ONE = Tokens(prompt=1, cached=0, output=1)
THOUSAND = Tokens(prompt=1000, cached=0, output=0)
CALLER = Caller("org-a", "proj-a", "ak-a", "u", 5, "USD")


RATES = st.integers(0, 10**18)
COUNTS = st.integers() | st.integers(0, 10**7) | st.integers(-(2**80), 2**80)


class Clock:
    """Milliseconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1_795_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def accounts(database: Database, tmp_path: Path, clock: Clock) -> AsyncIterator[Accounts]:
    async with Accounts(database, tmp_path / "spool", clock=clock) as accounts:
        yield accounts


@pytest.fixture
def keys(accounts: Accounts, database: Database, clock: Clock) -> Keys:
    """Those of the same process."""
    return Keys(Changes(database, "test", clock), currency="USD", models=(), on_changed=accounts.forget)


async def _reserve(
    accounts: Accounts, caller: Caller, request_id: str = "r", max_tokens: int = 100, price: Price = PRICE
) -> Reservation:
    return await accounts.ledger.reserve(
        caller,
        request_id=request_id,
        model="kimi-k2-0905-preview",
        served_by="echo",
        price=price,
        prompt_tokens=10,
        max_tokens=max_tokens,
        started_at=5,
    )


async def _usage(accounts: Accounts, database: Database) -> list[dict[str, object]]:
    await accounts.ledger.recorder.flush()
    async with database.read() as connection:
        rows = await connection.execute(text("SELECT * FROM usage ORDER BY request_id"))
        return [dict(row) for row in rows.mappings()]


@pytest.mark.parametrize("header", ["Bearer sk-x", "bearer sk-x", "BEARER  sk-x ", " Bearer sk-x"])
def test_a_bearer_header_gives_its_secret(header: str) -> None:
    assert bearer(header) == "sk-x"


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "sk-x", "Basic sk-x", "Bearer sk-x sk-y", "Bearersk-x"]
)
def test_any_other_header_is_an_incorrect_key(header: str | None) -> None:
    with pytest.raises(IncorrectApiKey):
        bearer(header)


async def test_a_key_stands_for_its_project_and_organization(accounts: Accounts, keys: Keys) -> None:
    key, secret = await keys.create(NewKey(name="mine"))
    caller = await accounts.authenticate(secret)
    assert (caller.key_id, caller.project_id) == (key.id, key.project_id)
    assert caller.organization_id.startswith("org-")
    assert (len(caller.uid), caller.tier, caller.currency) == (20, 5, "USD")


@pytest.mark.parametrize("secret", ["", "sk-", "sk-" + "x" * 48, "sk-" + "x" * 10**6, "\udcff", "sk-" + "\0" * 48])
async def test_an_unknown_key_is_refused_every_time(accounts: Accounts, secret: str) -> None:
    for _ in range(2):
        with pytest.raises(InvalidAuthentication):
            await accounts.authenticate(secret)


async def test_a_key_revoked_in_this_process_is_refused_at_once(accounts: Accounts, keys: Keys) -> None:
    key, secret = await keys.create(NewKey(name="mine"))
    await accounts.authenticate(secret)
    await keys.revoke(key.id)
    with pytest.raises(InvalidAuthentication):
        await accounts.authenticate(secret)


async def test_a_settled_request_is_one_complete_usage_record(
    accounts: Accounts, database: Database, clock: Clock
) -> None:
    with await _reserve(accounts, CALLER) as reservation:
        reservation.settle(Tokens(prompt=10, cached=3, output=20), outcome="length", first_token_at=6)
    assert await _usage(accounts, database) == [
        {
            "request_id": "r",
            "organization_id": "org-a",
            "project_id": "proj-a",
            "key_id": "ak-a",
            "model": "kimi-k2-0905-preview",
            "served_by": "echo",
            "prompt_miss": 7,
            "prompt_hit": 3,
            "prompt_write": 0,
            "output": 20,
            "price_miss": 600_000_000,
            "price_hit": 150_000_000,
            "price_write": 0,
            "price_output": 2_500_000_000,
            "cost_nano": 7 * 600 + 3 * 150 + 20 * 2500,
            "currency": "USD",
            "outcome": "length",
            "started_at": 5,
            "first_token_at": 6,
            "finished_at": clock.now,
            "entry_id": 1,
        }
    ]


async def test_a_request_left_unsettled_failed_and_costs_nothing(accounts: Accounts, database: Database) -> None:
    async def serve() -> None:
        with await _reserve(accounts, CALLER):
            raise KeyError

    with pytest.raises(KeyError):
        await serve()
    (record,) = await _usage(accounts, database)
    assert (record["outcome"], record["cost_nano"], record["first_token_at"]) == ("failed", 0, None)


async def test_settling_twice_is_a_bug_and_bills_once(accounts: Accounts, database: Database) -> None:
    with await _reserve(accounts, CALLER) as reservation:
        reservation.settle(ONE, outcome="stop")
        with pytest.raises(AssertionError):
            reservation.settle(ONE, outcome="stop")
    assert len(await _usage(accounts, database)) == 1


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    price=st.builds(Price, since=st.just(datetime.date(2025, 9, 5)), miss=RATES, hit=RATES, write=RATES, output=RATES),
    prompt=COUNTS,
    cached=COUNTS,
    output=COUNTS,
)
@example(price=PRICE, prompt=10, cached=2**64, output=-1)
@example(price=PRICE, prompt=2**63, cached=-(2**63), output=2**63)
async def test_whatever_was_counted_the_record_can_be_true(
    database: Database, tmp_path: Path, price: Price, prompt: int, cached: int, output: int
) -> None:
    request_id = uuid.uuid4().hex
    async with Accounts(database, tmp_path / "spool") as accounts:
        with await _reserve(accounts, CALLER, request_id, price=price) as reservation:
            used = Tokens.counted(request_id, prompt=prompt, cached=cached, output=output)
            reservation.settle(used, outcome="stop")
    async with database.read() as connection:
        rows = await connection.execute(text("SELECT * FROM usage WHERE request_id = :id"), {"id": request_id})
        (record,) = rows.mappings()
    believed = min(max(prompt, 0), MOST)
    assert record["prompt_hit"] + record["prompt_miss"] == believed
    assert record["prompt_hit"] == min(max(cached, 0), believed)
    assert record["output"] == min(max(output, 0), MOST)
    assert min(record["prompt_hit"], record["prompt_miss"]) >= 0
    assert 0 <= record["cost_nano"] <= MOST


def test_counts_that_cannot_be_are_an_error_in_the_log_and_others_are_not(caplog: pytest.LogCaptureFixture) -> None:
    assert Tokens.counted("r", prompt=MOST, cached=MOST, output=MOST) == Tokens(prompt=MOST, cached=MOST, output=MOST)
    assert Tokens.counted("r", prompt=0, cached=0, output=0) == Tokens(prompt=0, cached=0, output=0)
    assert caplog.records == []
    assert Tokens.counted("r", prompt=5, cached=6, output=10**5000) == Tokens(prompt=5, cached=5, output=MOST)
    assert [(entry.levelname, entry.getMessage()) for entry in caplog.records] == [
        ("ERROR", f"request r: impossible token counts, recorded as Tokens(prompt=5, cached=5, output={MOST})")
    ]


@pytest.mark.parametrize(("prompt", "cached", "output"), [(-1, 0, 0), (1, 2, 0), (1, -1, 0), (1, 1, -1), (2**54, 0, 0)])
def test_there_are_no_tokens_that_cannot_be(prompt: int, cached: int, output: int) -> None:
    with pytest.raises(ValueError, match="impossible token counts"):
        Tokens(prompt=prompt, cached=cached, output=output)


async def test_the_balance_is_the_credit_less_the_cost_pending_records_included(
    accounts: Accounts, keys: Keys, database: Database
) -> None:
    _, secret = await keys.create(NewKey(name="mine"))
    caller = await accounts.authenticate(secret)
    async with database.write() as connection:
        await change_balance(connection, credit(caller.organization_id, voucher=1_000_000))
    (await _reserve(accounts, caller)).settle(THOUSAND, outcome="stop")
    balance = await accounts.balance(caller.organization_id)
    assert balance == Balance(cash_nano=0, voucher_nano=400_000)
    assert balance.available_nano == 400_000
    (await _reserve(accounts, caller, "s")).settle(THOUSAND, outcome="stop")
    assert await accounts.balance(caller.organization_id) == Balance(cash_nano=-200_000, voucher_nano=0)


@pytest.mark.parametrize(("cash", "voucher", "available"), [(3, 4, 7), (-3, 4, 4), (-3, 0, 0), (0, 0, 0)])
def test_a_debt_does_not_reduce_what_vouchers_pay(cash: int, voucher: int, available: int) -> None:
    assert Balance(cash_nano=cash, voucher_nano=voucher).available_nano == available
