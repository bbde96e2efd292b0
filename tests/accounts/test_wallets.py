"""Leases as a process uses them: who gets money when there is little, and who asks the database how often."""

import asyncio
from collections.abc import Awaitable

import pytest
from msgspec.structs import replace
from sqlalchemy import Connection, event
from tests.accounts.money import add_rich

from moonbase.accounts.wallets import Wallets
from moonbase.errors import DatabaseUnavailable, InsufficientBalance
from moonbase.store.database import Database
from moonbase.store.ledger import find_imbalances, list_leases
from moonbase.store.records import Caller

pytestmark = pytest.mark.anyio

CALLER = Caller("org-a", "proj-a", "ak-a", "u", 1, "USD", postpaid=False)


def _wallets(database: Database, process_id: str = "p") -> Wallets:
    """Of a process that has nothing settled."""

    async def flush() -> None:
        pass

    return Wallets(database, process_id, clock=lambda: 7, flush=flush)


async def _leased(database: Database) -> dict[str, int]:
    async with database.read() as connection:
        assert await find_imbalances(connection) == []
        return {each.process_id: each.amount_nano for each in await list_leases(connection)}


async def _outcomes(*holds: Awaitable[None]) -> list[bool]:
    """Whether each got its money; nothing but a refusal may be in the way."""
    results = await asyncio.gather(*holds, return_exceptions=True)
    assert all(result is None or isinstance(result, InsufficientBalance) for result in results), results
    return [result is None for result in results]


async def test_of_many_at_once_exactly_those_that_there_is_money_for_get_it(database: Database) -> None:
    await add_rich(database, "org-a", cash=100)
    wallets = [_wallets(database, f"p{number}") for number in range(3)]
    granted = await _outcomes(*(wallets[number % 3].hold(CALLER, 10) for number in range(300)))
    assert sum(granted) == 10


async def test_without_money_the_service_says_so_in_its_words(database: Database) -> None:
    await add_rich(database, "org-a")
    with pytest.raises(InsufficientBalance) as refused:
        await _wallets(database).hold(CALLER, 1)
    assert refused.value.sentence == (
        "Your account org-a <ak-a> is suspended due to insufficient balance, "
        "please recharge your account or check your plan and billing details"
    )


async def test_what_is_free_of_charge_needs_no_money(database: Database) -> None:
    await add_rich(database, "org-a")
    await _wallets(database).hold(CALLER, 0)


async def test_money_that_a_request_did_not_cost_serves_the_next_without_asking(database: Database) -> None:
    await add_rich(database, "org-a", cash=10)
    wallets = _wallets(database)
    for _ in range(3):
        await wallets.hold(CALLER, 10)
        wallets.settle("org-a", 10, 0)
    await wallets.hold(CALLER, 10)
    assert await _outcomes(wallets.hold(CALLER, 1)) == [False]


async def test_a_small_request_is_served_though_a_large_one_before_it_cannot_be(database: Database) -> None:
    await add_rich(database, "org-a", cash=100)
    wallets = _wallets(database)
    assert await _outcomes(wallets.hold(CALLER, 80), wallets.hold(CALLER, 80), wallets.hold(CALLER, 20)) == [
        True,
        False,
        True,
    ]


async def test_with_plenty_of_money_most_requests_do_not_ask_the_database(database: Database) -> None:
    await add_rich(database, "org-a", cash=10**9)
    wallets = _wallets(database)
    statements = 0

    def count(*_: object) -> None:
        nonlocal statements
        statements += 1

    assert database._engine is not None
    event.listen(database._engine.sync_engine, "before_cursor_execute", count)
    for _ in range(1_000):
        await wallets.hold(CALLER, 100)
        wallets.settle("org-a", 100, 90)
        await asyncio.sleep(0)
    assert 0 < statements < 100


async def test_in_a_steady_state_nobody_waits_for_a_lease(database: Database) -> None:
    await add_rich(database, "org-a", cash=10**9)
    wallets = _wallets(database)
    await wallets.hold(CALLER, 100)
    for _ in range(500):
        hold = wallets.hold(CALLER, 100)
        with pytest.raises(StopIteration):  # it ran to its end without suspending
            hold.send(None)
        wallets.settle("org-a", 100, 100)
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "wallet"))


async def test_one_who_leaves_while_waiting_holds_nothing(database: Database) -> None:
    await add_rich(database, "org-a", cash=10)
    wallets = _wallets(database)
    for turns in range(12):
        waiting = asyncio.create_task(wallets.hold(CALLER, 10))
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        if not waiting.cancelled():
            wallets.settle("org-a", 10, 0)
    await wallets.hold(CALLER, 10)


async def test_money_nobody_uses_goes_back_and_can_be_leased_elsewhere(database: Database) -> None:
    await add_rich(database, "org-a", cash=1_000)
    wallets = _wallets(database)
    await wallets.hold(CALLER, 10)
    await wallets.tidy()
    await wallets.tidy()
    assert (await _leased(database))["p"] > 0  # a request runs
    wallets.settle("org-a", 10, 0)
    await wallets.tidy()
    assert await _leased(database) == {}
    await _wallets(database, "q").hold(CALLER, 1_000)
    with pytest.raises(InsufficientBalance):
        await wallets.hold(CALLER, 10)


async def test_closing_gives_back_everything(database: Database) -> None:
    await add_rich(database, "org-a", cash=1_000)
    await add_rich(database, "org-b", cash=1_000)
    wallets = _wallets(database)
    await wallets.hold(CALLER, 10)
    await wallets.hold(replace(CALLER, organization_id="org-b"), 1_000)
    await wallets.close()
    assert await _leased(database) == {}


async def test_one_who_comes_while_money_is_given_back_is_answered(database: Database) -> None:
    await add_rich(database, "org-a", cash=1_000)
    wallets = _wallets(database)
    await wallets.hold(CALLER, 10)  # leases 50
    wallets.settle("org-a", 10, 0)
    await wallets.tidy()

    def refuse(*_: object) -> None:
        raise ConnectionError

    assert database._engine is not None
    event.listen(database._engine.sync_engine, "before_cursor_execute", refuse)
    giving = asyncio.create_task(wallets.tidy())
    for _ in range(2):
        await asyncio.sleep(0)
    small, large = (asyncio.create_task(wallets.hold(CALLER, need)) for need in (50, 51))
    with pytest.raises(DatabaseUnavailable):
        await giving
    await asyncio.wait_for(small, 5)  # what could not be given back is still here
    with pytest.raises(DatabaseUnavailable):
        await asyncio.wait_for(large, 5)


async def test_money_of_which_nobody_said_whether_it_was_leased_goes_back(database: Database) -> None:
    await add_rich(database, "org-a", cash=1_000)
    wallets = _wallets(database)

    def lose(connection: Connection) -> None:
        connection.connection.commit()
        raise ConnectionError

    assert database._engine is not None
    event.listen(database._engine.sync_engine, "commit", lose)
    with pytest.raises(DatabaseUnavailable):
        await wallets.hold(CALLER, 1_000)
    event.remove(database._engine.sync_engine, "commit", lose)
    assert await _leased(database) == {"p": 1_000}
    await wallets.tidy()
    await wallets.tidy()
    assert await _leased(database) == {}
    await wallets.hold(CALLER, 1_000)


async def test_inside_a_lease_requests_go_on_while_the_database_is_away(database: Database) -> None:
    await add_rich(database, "org-a", cash=1_000)
    wallets = _wallets(database)
    await wallets.hold(CALLER, 10)  # leases 50

    def refuse(*_: object) -> None:
        raise ConnectionError

    assert database._engine is not None
    event.listen(database._engine.sync_engine, "before_cursor_execute", refuse)
    for _ in range(4):
        await wallets.hold(CALLER, 10)
    with pytest.raises(DatabaseUnavailable):
        await wallets.hold(CALLER, 10)
    for _ in range(5):
        wallets.settle("org-a", 10, 0)
    await wallets.tidy()
    with pytest.raises(DatabaseUnavailable):
        await wallets.tidy()
    for _ in range(5):
        await wallets.hold(CALLER, 10)  # what could not be given back is still here
    event.remove(database._engine.sync_engine, "before_cursor_execute", refuse)
    await wallets.hold(CALLER, 10)
