"""The hot path of accounts: who calls, what a request may cost, what it did cost."""

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

from msgspec import Struct

from moonbase.accounts.authentication import Authenticator
from moonbase.accounts.keys import Keys, milliseconds
from moonbase.accounts.pricing import cost, worst_case
from moonbase.accounts.recorder import Recorder
from moonbase.accounts.tokens import MOST, Tokens
from moonbase.catalog.prices import Price
from moonbase.config import Currency
from moonbase.errors import DatabaseUnavailable, IncorrectApiKey
from moonbase.store.database import Database
from moonbase.store.records import Caller, Outcome, UsageRecord
from moonbase.store.usage import granted_and_cost

log = logging.getLogger(__name__)
_NOTHING = Tokens(prompt=0, cached=0, output=0)


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


class Balance(Struct, frozen=True):
    """Money of an organization in nano-units of its currency. A debt is negative cash."""

    cash_nano: int
    voucher_nano: int

    @property
    def available_nano(self) -> int:
        """The service's rule: a debt does not reduce what vouchers pay (moonshot-api.md 5.2)."""
        return self.voucher_nano + max(self.cash_nano, 0)


class Admission:
    """A caller who was let in: `with admission as caller`. Leaving gives back what the request occupied."""

    __slots__ = ("_caller",)

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def __enter__(self) -> Caller:
        return self._caller

    def __exit__(self, *_: object) -> None:
        pass


class Reservation(Struct, kw_only=True):
    """What a request may cost, held from its admission until it is settled.

    A context manager: leaving it unsettled settles it as `failed` with nothing billed, so every
    reservation ends in exactly one usage record.
    """

    caller: Caller
    recorder: Recorder
    clock: Callable[[], int]
    request_id: str
    model: str
    served_by: str
    price: Price
    prompt_tokens: int
    max_tokens: int
    started_at: int
    settled: bool = False

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.settled:
            self.settle(_NOTHING, outcome="failed")

    @property
    def held_nano(self) -> int:
        """The most this request can cost, in nano-units."""
        return worst_case(self.price, prompt_tokens=self.prompt_tokens, max_tokens=self.max_tokens)

    def settle(self, used: Tokens, *, outcome: Outcome, first_token_at: int | None = None) -> None:
        """Record what the request used, whatever its outcome, and bill it. Neither blocks nor awaits.

        Settling twice is a bug and an `AssertionError`.
        """
        assert not self.settled, f"request {self.request_id} is settled already"
        self.settled = True
        caller, price = self.caller, self.price
        self.recorder.record(
            UsageRecord(
                request_id=self.request_id,
                organization_id=caller.organization_id,
                project_id=caller.project_id,
                key_id=caller.key_id,
                model=self.model,
                served_by=self.served_by,
                prompt_miss=used.uncached,
                prompt_hit=used.cached,
                prompt_write=0,
                output=used.output,
                price_miss=price.miss,
                price_hit=price.hit,
                price_write=price.write,
                price_output=price.output,
                cost_nano=self._cost(used),
                currency=caller.currency,
                outcome=outcome,
                started_at=self.started_at,
                first_token_at=first_token_at,
                finished_at=self.clock(),
            )
        )

    def _cost(self, used: Tokens) -> int:
        """In nano-units. No request costs more than can be added up with others in 64 bits."""
        exact = cost(self.price, miss=used.uncached, hit=used.cached, write=0, output=used.output)
        if exact > MOST:
            log.error("request %s would cost %d nano-units; recorded as %d", self.request_id, exact, MOST)
        return min(exact, MOST)


class Accounts:
    """Authentication, reservations and balances over one database.

    An async context manager: it owns the recorder of usage, and leaving it writes what is pending.
    """

    def __init__(
        self,
        database: Database,
        *,
        currency: Currency = "USD",
        clock: Callable[[], int] = milliseconds,
        recorder: Recorder | None = None,
    ) -> None:
        """`clock` gives milliseconds since the epoch, UTC. `database` is open and stays its owner's."""
        self._authenticator = Authenticator(database, clock=clock)
        self.keys = Keys(database, currency=currency, clock=clock, on_revoked=self._authenticator.forget)
        self.recorder = recorder or Recorder(database)
        self._stack = AsyncExitStack()
        self._database = database
        self._clock = clock

    async def __aenter__(self) -> "Accounts":
        await self._stack.enter_async_context(self.recorder)
        await self._stack.enter_async_context(self._authenticator)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def enter(self, secret: str) -> Admission:
        """Let the owner of a key in; use the admission as a context manager. A key in use costs no suspension.

        Raises `InvalidAuthentication` for an unknown or revoked key, `DatabaseUnavailable` when nobody can say.
        """
        return Admission(await self._authenticator.find(secret))

    def reserve(
        self,
        caller: Caller,
        *,
        request_id: str,
        model: str,
        served_by: str,
        price: Price,
        prompt_tokens: int,
        max_tokens: int,
        started_at: int,
    ) -> Reservation:
        """Hold what a request may cost; use it as a context manager.

        `model` is the public id, `served_by` what answers in its name, `max_tokens` the limit of all
        choices together, `started_at` the arrival in milliseconds. Raises `DatabaseUnavailable` while
        so many records wait for the database that this one might be lost.
        """
        if self.recorder.full:
            raise DatabaseUnavailable
        return Reservation(
            caller=caller,
            recorder=self.recorder,
            clock=self._clock,
            request_id=request_id,
            model=model,
            served_by=served_by,
            price=price,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            started_at=started_at,
        )

    async def balance(self, organization_id: str) -> Balance:
        """Granted credit minus recorded cost, this process's settlements included.

        The credit is a voucher; what was spent beyond it is a debt. Raises `DatabaseUnavailable`.
        """
        await self.recorder.flush()
        async with self._database.read() as connection:
            granted, spent = await granted_and_cost(connection, organization_id)
        return Balance(cash_nano=min(granted - spent, 0), voucher_nano=max(granted - spent, 0))
