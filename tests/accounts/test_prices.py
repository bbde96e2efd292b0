"""Prices that are set while servers run."""

import datetime
from collections.abc import AsyncIterator

import anyio
import pytest
from sqlalchemy import text

from moonbase.accounts.administration import Administration
from moonbase.accounts.prices import Prices
from moonbase.accounts.requests import NewPrice
from moonbase.catalog.catalog import load_catalog
from moonbase.store.database import Database

pytestmark = pytest.mark.anyio

CATALOG = load_catalog({})
K2 = CATALOG.resolve("kimi-k2-0905-preview")
TODAY = datetime.date(2026, 11, 18)


@pytest.fixture
async def prices(database: Database) -> AsyncIterator[Prices]:
    async with Prices(database) as prices:
        yield prices


@pytest.fixture
def administration(database: Database) -> Administration:
    return Administration(database, "test", CATALOG, currency="USD")


def since(day: datetime.date, miss: str) -> NewPrice:
    return NewPrice(model=K2.id, currency="USD", since=day, miss=miss, output="9")


async def test_a_price_holds_from_its_day_on_and_in_its_currency(
    prices: Prices, administration: Administration
) -> None:
    assert prices.price(K2, TODAY, "USD") == K2.price_on(TODAY, "USD")
    await administration.prices.set(since(TODAY, "7"))
    await administration.prices.set(since(datetime.date(2020, 1, 1), "5"))
    await prices.refresh()
    days = [TODAY, TODAY - datetime.timedelta(days=1), datetime.date(2020, 2, 1), datetime.date(2000, 1, 1)]
    assert [prices.price(K2, day, "USD").miss for day in days] == [7 * 10**9, 600_000_000, 5 * 10**9, 5 * 10**9]
    assert prices.price(K2, TODAY, "CNY") == K2.price_on(TODAY, "CNY")
    other = CATALOG.resolve("kimi-k2.6")
    assert prices.price(other, TODAY, "USD") == other.price_on(TODAY, "USD")


async def test_a_price_of_a_day_that_the_catalog_has_wins_and_can_go_again(
    prices: Prices, administration: Administration
) -> None:
    day = K2.prices["USD"][-1].since
    await administration.prices.set(since(day, "7"))
    await prices.refresh()
    assert prices.price(K2, TODAY, "USD").miss == 7 * 10**9
    await administration.prices.remove(K2.id, "USD", day)
    await prices.refresh()
    assert prices.price(K2, TODAY, "USD") == K2.price_on(TODAY, "USD")


async def test_a_model_with_tiers_has_no_price_of_its_own(prices: Prices, administration: Administration) -> None:
    await administration.prices.set(since(TODAY, "7"))
    await prices.refresh()
    with pytest.raises(LookupError, match="moonshot-v1-auto has no USD price of its own"):
        prices.price(CATALOG.resolve("moonshot-v1-auto"), TODAY, "USD")


async def test_prices_are_read_without_being_asked_for(database: Database, prices: Prices) -> None:
    statement = f"INSERT INTO price VALUES ('{K2.id}', 'USD', '2026-11-01', 7, 7, 7, 7, 0)"
    async with database.write() as connection:
        await connection.execute(text(statement))
    with anyio.fail_after(3):
        while prices.price(K2, TODAY, "USD").miss != 7:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.05)
