"""Money that this process may spend without asking: leases, and what is held of them for requests that run."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress

from msgspec import Struct, field

from moonbase.errors import DatabaseUnavailable, InsufficientBalance
from moonbase.store.database import Database
from moonbase.store.ledger import return_lease, return_leases, take_lease
from moonbase.store.records import Caller


class _Waiting(Struct, eq=False):
    """A request that needs money held before it may run."""

    caller: Caller
    need: int
    held: asyncio.Future[None]


class _Wallet(Struct, eq=False):
    """One organization's money here. `leased` is what was leased and not yet spent, `held` the part of it that running
    requests may cost; under `low` free more is leased in time. `unsure` tells that more may be leased, where the
    database went away without saying.
    """

    leased: int = 0
    held: int = 0
    low: int = 0
    used: bool = True
    unsure: bool = False
    waiting: deque[_Waiting] = field(default_factory=deque)
    work: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a task is changing what is leased; it serves those who wait before it ends."""
        return self.work is not None and not self.work.done()

    @property
    def free(self) -> int:
        return self.leased - self.held


class Wallets:
    """Holds money for requests inside leases of this process, so that the database is asked once for many requests.

    While an organization has money for a hundred requests and more, a wallet holds some ahead; after that, only what
    requests have asked for, so that processes do not keep fragments from each other.
    """

    def __init__(
        self,
        database: Database,
        process_id: str,
        *,
        clock: Callable[[], int],
        flush: Callable[[], Awaitable[None]],
    ) -> None:
        """`flush` returns when all that was settled is charged in the database, and may raise `DatabaseUnavailable`."""
        self._database = database
        self._process_id = process_id
        self._clock = clock
        self._flush = flush
        self._wallets: dict[str, _Wallet] = {}

    async def hold(self, caller: Caller, need: int) -> None:
        """Hold `need` nano-units of the caller's organization. Suspends only when the lease must grow.

        Raises `InsufficientBalance`, or `DatabaseUnavailable` when the lease is spent and nobody can say.
        """
        wallet = self._wallet(caller.organization_id)
        wallet.used = True
        if wallet.free >= need and not wallet.waiting:
            wallet.held += need
            if wallet.free < wallet.low and not wallet.busy:
                self._start(wallet, self._fund_ahead(caller.organization_id, wallet, need))
            return
        waiting = _Waiting(caller, need, asyncio.get_running_loop().create_future())
        wallet.waiting.append(waiting)
        if not wallet.busy:
            self._start(wallet, self._fund(caller.organization_id, wallet))
        try:
            await waiting.held
        except asyncio.CancelledError:
            if waiting.held.done() and not waiting.held.cancelled() and waiting.held.exception() is None:
                wallet.held -= need
            raise

    def settle(self, organization_id: str, held: int, cost: int) -> int:
        """What was held for a request is not any more. Returns how much of its cost is spent of the lease: all of it,
        as far as others hold nothing of that.
        """
        wallet = self._wallets.get(organization_id)
        if wallet is None:  # post-paid
            return 0
        wallet.held -= held
        spent = min(cost, wallet.free)
        wallet.leased -= spent
        return spent

    async def tidy(self) -> None:
        """Give back the money of organizations that nobody has used since the last call.

        Raises `DatabaseUnavailable`, and then keeps it.
        """
        for organization_id, wallet in list(self._wallets.items()):
            if wallet.used or wallet.held or wallet.busy:
                wallet.used = False
            elif wallet.leased <= 0 and not wallet.unsure:
                del self._wallets[organization_id]
            else:
                await self._start(wallet, self._give_back(organization_id, wallet))

    async def close(self) -> None:
        """Give back all that this process has leased. For when every charge is in the database.

        Raises `DatabaseUnavailable`.
        """
        for wallet in self._wallets.values():
            if wallet.work is not None:
                await asyncio.wait([wallet.work])
        async with self._database.write() as connection:
            await return_leases(connection, self._process_id, self._clock())

    def _wallet(self, organization_id: str) -> _Wallet:
        wallet = self._wallets.get(organization_id)
        if wallet is None:
            wallet = self._wallets[organization_id] = _Wallet()
        return wallet

    def _start(self, wallet: _Wallet, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """One piece of work at a time changes what a wallet has leased."""
        wallet.work = asyncio.create_task(work, name="wallet")
        return wallet.work

    async def _fund(self, organization_id: str, wallet: _Wallet) -> None:
        """Lease what those who wait need, once for all who wait by then, until nobody does."""
        while wallet.waiting:
            asking = list(wallet.waiting)
            try:
                await self._lease(organization_id, wallet, [each.need for each in asking])
            except BaseException as error:
                unavailable = error if isinstance(error, DatabaseUnavailable) else DatabaseUnavailable()
                self._answer(wallet, len(wallet.waiting), unavailable)
                if error is unavailable:
                    return
                raise
            self._answer(wallet, len(asking))

    def _answer(self, wallet: _Wallet, count: int, unavailable: DatabaseUnavailable | None = None) -> None:
        """Hold what the first `count` of those who wait need, as far as it is leased, and refuse the others."""
        for _ in range(count):
            each = wallet.waiting.popleft()
            if each.held.done():
                continue
            if each.need <= wallet.free:
                wallet.held += each.need
                each.held.set_result(None)
            else:
                poor = InsufficientBalance(each.caller.organization_id, each.caller.key_id)
                each.held.set_exception(unavailable or poor)

    async def _fund_ahead(self, organization_id: str, wallet: _Wallet, need: int) -> None:
        with suppress(DatabaseUnavailable):  # those who will need it are told
            await self._lease(organization_id, wallet, [need])
        await self._fund(organization_id, wallet)

    async def _lease(self, organization_id: str, wallet: _Wallet, needs: list[int]) -> None:
        try:
            async with self._database.write() as connection:
                amount, ahead = await take_lease(
                    connection, organization_id, self._process_id, needs, have=wallet.free, now=self._clock()
                )
        except DatabaseUnavailable:
            wallet.unsure = True
            raise
        wallet.leased += amount
        wallet.low = amount // 4 if ahead else 0

    async def _give_back(self, organization_id: str, wallet: _Wallet) -> None:
        """What may have gone back is not spent. In doubt all that the process has goes back, once it is charged."""
        amount, wallet.leased = wallet.leased, 0
        given = False
        try:
            if wallet.unsure:
                await self._flush()
            async with self._database.write() as connection:
                returned = None if wallet.unsure else amount
                await return_lease(connection, organization_id, self._process_id, returned, self._clock())
                given = True
            wallet.unsure = False
        except DatabaseUnavailable:
            wallet.unsure = True
            if not given:
                wallet.leased += amount
            raise
        finally:
            await self._fund(organization_id, wallet)  # of those who came meanwhile
