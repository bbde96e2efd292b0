"""Balances, entries, leases and usage records: what one transaction does to them."""

import pytest
from msgspec.structs import replace
from sqlalchemy import text
from tests.accounts import money
from tests.accounts.money import add_rich, credit

from moonbase.errors import BalanceTooLow
from moonbase.store.database import Database
from moonbase.store.ledger import (
    Imbalance,
    change_balance,
    charge,
    find_imbalances,
    list_leases,
    read_balance,
    return_lease,
    return_leases,
    take_lease,
)
from moonbase.store.records import Balance, Settlement

pytestmark = pytest.mark.anyio

RECORD = replace(
    money.RECORD,
    model="kimi-k2-0905-preview",
    prompt_miss=1,
    prompt_hit=2,
    prompt_write=3,
    output=4,
    price_miss=600_000_000,
    price_hit=150_000_000,
    price_output=2_500_000_000,
    cost_nano=10**15,
    outcome="stop",
    started_at=1_795_000_000_000,
    finished_at=1_795_000_000_500,
)


async def _charge(database: Database, *records: Settlement, process_id: str = "p") -> list[str]:
    async with database.write() as connection:
        return [record.request_id for record in await charge(connection, process_id, records, 7)]


async def _lease(database: Database, *needs: int, process_id: str = "p", have: int = 0) -> tuple[int, bool]:
    async with database.write() as connection:
        return await take_lease(connection, "org-a", process_id, needs, have=have, now=7)


async def _balance(database: Database) -> Balance:
    async with database.read() as connection:
        assert await find_imbalances(connection) == []
        return await read_balance(connection, "org-a")


async def test_a_repeated_request_id_changes_nothing(database: Database) -> None:
    await add_rich(database, "org-a", cash=3 * 10**15)
    assert await _charge(database, RECORD, replace(RECORD, cost_nano=7)) == ["r"]
    assert await _charge(database, replace(RECORD, cost_nano=7), replace(RECORD, request_id="s")) == ["s"]
    assert await _balance(database) == Balance(10**15, 0)


async def test_vouchers_pay_before_cash_and_what_neither_pays_is_a_debt(database: Database) -> None:
    await add_rich(database, "org-a", cash=5, voucher=7)
    for number, expected in enumerate([Balance(5, 3), Balance(4, 0), Balance(0, 0), Balance(-4, 0)]):
        cost = [4, 4, 4, 4][number]
        await _charge(database, replace(RECORD, request_id=str(number), cost_nano=cost))
        assert await _balance(database) == expected


async def test_a_charge_of_an_organization_without_a_balance_is_not_lost(database: Database) -> None:
    await _charge(database, replace(RECORD, organization_id="org-a", cost_nano=4))
    assert await _balance(database) == Balance(-4, 0)


async def test_what_costs_nothing_makes_no_entry(database: Database) -> None:
    await add_rich(database, "org-a", cash=5)
    await _charge(database, replace(RECORD, cost_nano=0))
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM entry WHERE kind = 'usage'"))).scalar_one() == 0
    assert await _balance(database) == Balance(5, 0)


@pytest.mark.parametrize(
    ("money", "have", "needs", "expected"),
    [
        (100, 0, [60, 60, 40], (100, False)),  # the second has to wait, the third need not
        (100, 0, [101], (0, False)),
        (100, 0, [10] * 11, (100, False)),
        (90, 10, [50, 50], (90, False)),  # what is left of an earlier lease counts
        (100, 60, [50, 50, 50], (90, False)),
        (100, -10, [10], (20, False)),
        (100, 50, [10], (0, False)),
        (1_000, 0, [10], (50, True)),  # plenty: a twentieth
        (999, 0, [10], (10, False)),
        (1_000, 0, [10] * 30, (300, True)),
        (0, 0, [1], (0, False)),
    ],
)
async def test_a_lease_is_what_is_needed_and_some_ahead_while_there_is_plenty(
    database: Database, money: int, have: int, needs: list[int], expected: tuple[int, bool]
) -> None:
    await add_rich(database, "org-a", voucher=money)
    assert await _lease(database, *needs, have=have) == expected
    assert await _balance(database) == Balance(0, money)


async def test_leases_together_are_never_more_than_there_is(database: Database) -> None:
    await add_rich(database, "org-a", cash=50, voucher=50)
    assert [(await _lease(database, 40, process_id=name))[0] for name in "pqr"] == [40, 40, 0]
    async with database.read() as connection:
        assert [(each.process_id, each.amount_nano) for each in await list_leases(connection)] == [("p", 40), ("q", 40)]


async def test_a_debt_cannot_be_leased(database: Database) -> None:
    await add_rich(database, "org-a", voucher=10)
    await _charge(database, replace(RECORD, cost_nano=40))
    assert await _lease(database, 1) == (0, False)


async def test_a_charge_is_taken_from_the_lease_of_its_process(database: Database) -> None:
    await add_rich(database, "org-a", cash=100)
    await _lease(database, 40)
    await _lease(database, 30, process_id="q")
    await _charge(database, replace(RECORD, cost_nano=25, leased_nano=25))
    async with database.read() as connection:
        assert [(each.process_id, each.amount_nano) for each in await list_leases(connection)] == [("p", 15), ("q", 30)]
    assert await _lease(database, 31, process_id="q") == (0, False)
    assert await _lease(database, 30, process_id="q") == (30, False)
    assert await _balance(database) == Balance(75, 0)


@pytest.mark.parametrize(("cost", "leased", "left"), [(25, 0, 40), (25, 10, 30), (25, 60, 15), (60, 60, 0)])
async def test_only_what_is_said_to_be_in_the_lease_comes_out_of_it(
    database: Database, cost: int, leased: int, left: int
) -> None:
    await add_rich(database, "org-a", cash=100)
    await _lease(database, 40)
    await _charge(database, replace(RECORD, cost_nano=cost, leased_nano=leased))
    async with database.read() as connection:
        assert sum(each.amount_nano for each in await list_leases(connection)) == left
    assert await _balance(database) == Balance(100 - cost, 0)


async def test_what_is_spent_beyond_leases_leaves_nothing_to_lease_until_it_is_paid(database: Database) -> None:
    await add_rich(database, "org-a", cash=100)
    await _lease(database, 90)
    await _charge(database, replace(RECORD, cost_nano=70))
    assert await _balance(database) == Balance(30, 0)
    assert await _excess(database) == 60
    assert await _lease(database, 1, process_id="q") == (0, False)
    await _charge(database, replace(RECORD, request_id="s", cost_nano=50, leased_nano=50))
    assert await _balance(database) == Balance(-20, 0)
    assert await _excess(database) == 40
    async with database.write() as connection:
        await change_balance(connection, credit("org-a", cash=50))
    assert await _excess(database) == 10
    async with database.write() as connection:
        await return_leases(connection, "p", 8)
    assert await _excess(database) == 0
    assert await _balance(database) == Balance(30, 0)
    assert await _lease(database, 30, process_id="q") == (30, False)


async def _excess(database: Database) -> int:
    async with database.read() as connection:
        return int((await connection.execute(text("SELECT excess_nano FROM balance"))).scalar_one())


async def test_money_given_back_can_be_leased_by_another(database: Database) -> None:
    await add_rich(database, "org-a", cash=100)
    await _lease(database, 100)
    async with database.write() as connection:
        await return_lease(connection, "org-a", "p", 30, 8)
    assert await _lease(database, 30, process_id="q") == (30, False)
    async with database.write() as connection:
        assert [each.amount_nano for each in await return_leases(connection, "p", 8)] == [70]
        assert await return_leases(connection, "p", 8) == []
        assert [each.process_id for each in await list_leases(connection)] == ["q"]
    assert await _balance(database) == Balance(100, 0)


async def test_nothing_can_be_taken_away_that_running_requests_may_cost(database: Database) -> None:
    await add_rich(database, "org-a", cash=100)
    await _lease(database, 60)
    with pytest.raises(BalanceTooLow) as refused:
        async with database.write() as connection:
            await change_balance(connection, replace(credit("org-a", cash=-41), kind="correction"))
    assert refused.value.free_nano == 40
    assert await _balance(database) == Balance(100, 0)
    async with database.write() as connection:
        await change_balance(connection, replace(credit("org-a", cash=-40), kind="correction"))
    assert await _balance(database) == Balance(60, 0)


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE balance SET cash_nano = cash_nano + 1", "cash of the balance against its entries"),
        ("UPDATE balance SET voucher_nano = voucher_nano - 1", "vouchers of the balance against its entries"),
        ("UPDATE balance SET leased_nano = leased_nano + 1", "leased money against the leases"),
        ("UPDATE lease SET amount_nano = amount_nano - 1", "leased money against the leases"),
        ("UPDATE balance SET leased_nano = leased_nano + 46", "leased money against what is available"),
        ("UPDATE usage SET cost_nano = cost_nano + 1", "an entry of usage against its records"),
        ("DELETE FROM usage", "an entry of usage against its records"),
        ("UPDATE usage SET entry_id = NULL", "usage that no entry charges"),
        ("DELETE FROM balance", "entries of an organization without a balance"),
        ("UPDATE usage_hour SET requests = requests + 1", "requests of an hour against the usage records"),
        ("UPDATE usage_hour SET model = 'another'", "cost_nano of an hour against the usage records"),
        ("DELETE FROM usage_hour", "output of an hour against the usage records"),
        ("UPDATE usage_day SET failed = failed + 1", "failed of a day against its hours"),
        ("DELETE FROM usage_day", "prompt_hit of a day against its hours"),
    ],
)
async def test_whatever_was_tampered_with_is_found(database: Database, statement: str, what: str) -> None:
    await add_rich(database, "org-a", cash=100, voucher=10)
    await _lease(database, 40)
    await _charge(database, replace(RECORD, cost_nano=25))
    async with database.write() as connection:
        assert await find_imbalances(connection) == []
        await connection.execute(text(statement))
        found = await find_imbalances(connection)
    assert what in [each.what for each in found]
    assert all(isinstance(each, Imbalance) and each.stored != each.computed for each in found)
