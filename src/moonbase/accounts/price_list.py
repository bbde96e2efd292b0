"""Prices that administrators set, in addition to the catalog's."""

import datetime
from collections.abc import Iterable, Mapping, Sequence

from msgspec import structs

from moonbase.accounts import fields
from moonbase.accounts.changes import Changes
from moonbase.accounts.requests import NewPrice
from moonbase.catalog.model import Model
from moonbase.catalog.prices import Price
from moonbase.config import Currency
from moonbase.errors import InvalidField, NotFound
from moonbase.store import prices as store
from moonbase.store.records import PriceRow


def billed_models(models: Iterable[Model]) -> dict[str, Model]:
    """All that requests for `models` are billed as, by id: those with prices of their own."""
    found: dict[str, Model] = {}
    for model in models:
        if model.tiers:
            found |= billed_models([tier.model for tier in model.tiers])
        else:
            found[model.id] = model
    return found


class PriceList:
    """Methods raise `DatabaseUnavailable`."""

    def __init__(self, changes: Changes, models: Mapping[str, Model]) -> None:
        """`models` are those that have prices, as `billed_models` gives them."""
        self._changes = changes
        self._models = models

    async def list(self) -> list[PriceRow]:
        """The catalog's and what administrators have set, in the order of the catalog, the older first."""
        rows = await self._rows()
        return [
            PriceRow(model=model.id, currency=currency, created_at=0, **structs.asdict(price))
            for model in self._models.values()
            for currency, history in repriced(model, rows).prices.items()
            for price in history
        ]

    async def set(self, request: NewPrice) -> PriceRow:
        """Set a price from a day on; one of the same day gives way. Running servers use it within two seconds.

        What is billed already keeps the price it was billed at. Raises `InvalidField`.
        """
        fields.day("since", request.since)
        if request.model not in self._models:
            raise InvalidField("model", f"names {request.model!r}, which is no model with a price of its own")
        miss = fields.price("miss", request.miss)
        async with self._changes.begin() as change:
            row = PriceRow(
                model=request.model,
                currency=request.currency,
                since=request.since,
                miss=miss,
                hit=miss if request.hit is None else fields.price("hit", request.hit),
                write=miss if request.write is None else fields.price("write", request.write),
                output=fields.price("output", request.output),
                created_at=change.now,
            )
            await store.put_price(change.connection, row)
            await change.audit("price.set", request.model, request)
        return row

    async def remove(self, model: str, currency: Currency, since: datetime.date) -> None:
        """The price before it holds again, or the catalog's. Raises `NotFound`."""
        fields.printable("model", model)
        async with self._changes.begin() as change:
            if not await store.remove_price(change.connection, model, currency, since):
                raise NotFound("price", f"{model} in {currency} since {since}")
            await change.audit("price.remove", model, {"currency": currency, "since": since})

    async def _rows(self) -> Sequence[PriceRow]:
        async with self._changes.database.read() as connection:
            return await store.list_prices(connection)


def repriced(model: Model, rows: Iterable[PriceRow]) -> Model:
    """The model with those of `rows` that are about it among its prices; of one day they win over the catalog's."""
    prices = {currency: {price.since: price for price in history} for currency, history in model.prices.items()}
    for row in rows:
        if row.model == model.id:
            price = Price(since=row.since, miss=row.miss, hit=row.hit, write=row.write, output=row.output)
            prices.setdefault(row.currency, {})[row.since] = price
    histories = {currency: tuple([days[day] for day in sorted(days)]) for currency, days in prices.items()}
    return structs.replace(model, prices=histories)
