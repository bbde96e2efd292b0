"""The hot path of accounts: who calls, what a request may cost, what it did cost."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from moonbase.accounts.authentication import Authenticator
from moonbase.accounts.changes import milliseconds
from moonbase.accounts.ledger import Ledger
from moonbase.accounts.limits import Admission, Counters, Limiter
from moonbase.accounts.local_counters import LocalCounters
from moonbase.accounts.prices import Prices
from moonbase.accounts.usage import UsageReports
from moonbase.config import Currency, Durability
from moonbase.errors import IncorrectApiKey, InvalidAuthentication
from moonbase.store.database import Database
from moonbase.store.ledger import read_balance
from moonbase.store.records import Balance, Caller


def bearer(header: str | None) -> str:
    """The secret in the value of an `Authorization` header. Raises `IncorrectApiKey` for any other shape."""
    if header is not None:
        scheme, _, secret = header.strip().partition(" ")
        secret = secret.lstrip()
        if scheme.lower() == "bearer" and secret and " " not in secret:
            return secret
    raise IncorrectApiKey


def credential(authorization: str | None, api_key: str | None) -> str:
    """The secret of a request that may carry it in `x-api-key` too (moonshot-api.md 8.1); `Authorization` goes first.

    Raises `IncorrectApiKey` for any other shape.
    """
    if authorization is not None or api_key is None:
        return bearer(authorization)
    return bearer(f"Bearer {api_key}")


class Accounts:
    """Authentication, the ledger and balances over one database.

    An async context manager: it owns the ledger, and leaving it writes what is pending.
    """

    def __init__(
        self,
        database: Database,
        spools: Path,
        *,
        clock: Callable[[], int] = milliseconds,
        durability: Durability = "process",
        grace: float = 60.0,
        counters: Counters | None = None,
    ) -> None:
        """`clock` gives milliseconds since the epoch, UTC. `database` is open and stays its owner's.

        Limits are counted in `counters`, by default in memory.
        """
        self._authenticator = Authenticator(database, clock=clock, grace=grace)
        self._limiter = Limiter(counters or LocalCounters(clock=clock))
        self.prices = Prices(database)
        self.ledger = Ledger(database, spools, clock=clock, durability=durability)
        self._stack = AsyncExitStack()
        self._database = database

    async def __aenter__(self) -> "Accounts":
        await self._stack.enter_async_context(self.ledger)
        await self._stack.enter_async_context(self._authenticator)
        await self._stack.enter_async_context(self.prices)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def authenticate(self, secret: str, currency: Currency | None = None) -> Caller:
        """The owner of a key. A key in use costs no suspension.

        `currency` is that of the region that was called; None is any. Raises `InvalidAuthentication` for an unknown,
        revoked or expired key and one of another region, `DatabaseUnavailable` when nobody knows.
        """
        caller = await self._authenticator.find(secret)
        if currency not in (None, caller.currency):
            raise InvalidAuthentication
        return caller

    def admit(self, caller: Caller) -> Admission:
        """Count a request and take a place for it; use the admission as a context manager.

        Raises `RateLimited`, and `LimitsUnavailable` when nobody can say.
        """
        return self._limiter.admit(caller)

    def forget(self, key_id: str) -> None:
        """What is known of a key has changed: ask the database before it is let in again."""
        self._authenticator.forget(key_id)

    async def balance(self, organization_id: str) -> Balance:
        """What the organization has, this process's settlements included. Raises `DatabaseUnavailable`."""
        await self.ledger.recorder.flush()
        async with self._database.read() as connection:
            return await read_balance(connection, organization_id)

    async def usage(self, organization_id: str) -> UsageReports:
        """What the organization used, this process's settlements included. Raises `DatabaseUnavailable`."""
        await self.ledger.recorder.flush()
        return UsageReports(self._database, organization_id)
