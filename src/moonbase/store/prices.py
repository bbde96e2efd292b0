"""Statements on prices. Each runs in the transaction of the given connection."""

import datetime

from msgspec.structs import asdict
from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from moonbase.config import Currency
from moonbase.store.records import PriceRow
from moonbase.store.tables import price


async def list_prices(connection: AsyncConnection) -> list[PriceRow]:
    """By model, currency and day."""
    query = select(price).order_by(price.c.model, price.c.currency, price.c.since)
    return [PriceRow(**row) for row in (await connection.execute(query)).mappings()]


async def put_price(connection: AsyncConnection, row: PriceRow) -> None:
    """Add a price; one of the same model, currency and day gives way."""
    await remove_price(connection, row.model, row.currency, row.since)
    await connection.execute(insert(price), asdict(row))


async def remove_price(connection: AsyncConnection, model: str, currency: Currency, since: datetime.date) -> bool:
    """False when there is none."""
    mine = (price.c.model == model, price.c.currency == currency, price.c.since == since)
    return (await connection.execute(delete(price).where(*mine))).rowcount == 1
