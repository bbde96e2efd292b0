"""What a model costs, for requests that cannot wait for the database."""

import asyncio
import datetime
import logging
from collections.abc import Sequence

from moonbase.accounts.price_list import repriced
from moonbase.catalog.model import Model
from moonbase.catalog.prices import Price
from moonbase.config import Currency
from moonbase.errors import DatabaseUnavailable
from moonbase.store.database import Database
from moonbase.store.prices import list_prices
from moonbase.store.records import PriceRow

log = logging.getLogger(__name__)

_REFRESH_S = 2.0


class Prices:
    """The catalog's prices and those that administrators set, which are read every other second.

    An async context manager that owns the reading task. While the database is away, what was read last holds.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._rows: Sequence[PriceRow] = ()
        self._models: dict[str, Model] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Prices":
        """Raises `ConfigurationError` when the database cannot be used."""
        with self._database.at_start():
            await self.refresh()
        self._task = asyncio.create_task(self._run(), name="price reader")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    def price(self, model: Model, day: datetime.date, currency: Currency) -> Price:
        """The price in force on `day`, as `Model.price_on` says. Raises `LookupError` for a model with tiers."""
        if not self._rows:
            return model.price_on(day, currency)
        known = self._models.get(model.id)
        if known is None:
            known = self._models[model.id] = repriced(model, self._rows)
        return known.price_on(day, currency)

    async def refresh(self) -> None:
        """Read the prices now. Raises `DatabaseUnavailable`."""
        async with self._database.read() as connection:
            rows = await list_prices(connection)
        if rows != self._rows:
            self._rows, self._models = rows, {}

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_S)
            try:
                await self.refresh()
            except DatabaseUnavailable:
                continue  # those who keep the books say so
            except Exception:  # a bug; without the task prices would stay what they are
                log.exception("prices cannot be read")
