"""The connections to one server: which are free, which are used, who waits for one."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from moonbase.engines.upstream.connection import Connection
from moonbase.engines.upstream.exchange import Exchange
from moonbase.engines.upstream.limits import UpstreamLimits
from moonbase.engines.upstream.outbox import Outbox
from moonbase.errors import UpstreamFailed

_CLOSED = "was given up: its client was closed"


class Pool:
    """Gives each exchange a connection: the free one used last, else a new one, else the next to become free."""

    def __init__(self, connect: Callable[[Connection], Awaitable[None]], peer: str, limits: UpstreamLimits) -> None:
        """`connect` gives a connection its transport; when it cannot, or is cancelled, it leaves nothing open.

        It raises `OSError`.
        """
        self._connect = connect
        self._peer = peer
        self._limits = limits
        self._open: set[Connection] = set()
        self._free: dict[Connection, None] = {}  # in the order of their release
        self._connecting: dict[Exchange, asyncio.Task[Connection]] = {}
        self._withdrawn: set[asyncio.Task[Connection]] = set()  # connecting for nobody, and cancelled
        self._waiting: dict[Exchange, asyncio.TimerHandle] = {}
        self._outbox = Outbox()
        self._closed = False
        self._all_closed = asyncio.Event()

    def submit(self, exchange: Exchange) -> None:
        """Run it as soon as there is a connection for it. Calls its sink only later."""
        assert not self._closed
        while self._free:
            connection, _ = self._free.popitem()
            if connection.usable:
                connection.start(exchange, reused=True)
                return
        if self._has_room:
            self._open_for(exchange)
        else:
            loop = asyncio.get_running_loop()
            self._waiting[exchange] = loop.call_later(self._limits.connect_timeout, self._waited_enough, exchange)

    def withdraw(self, exchange: Exchange) -> None:
        """It is not wanted any more, and has no connection yet or any more."""
        if exchange in self._waiting:
            self._waiting.pop(exchange).cancel()
        elif exchange in self._connecting:
            task = self._connecting.pop(exchange)
            self._withdrawn.add(task)
            task.cancel()

    def released(self, connection: Connection) -> None:
        if self._closed:
            connection.abort()
        elif self._waiting:
            connection.start(self._next_waiting(), reused=True)
        else:
            self._free[connection] = None

    def lost(self, connection: Connection, retry: Exchange | None) -> None:
        self._open.discard(connection)
        self._free.pop(connection, None)
        if self._closed:
            if retry is not None:
                retry.fail(self._failure(_CLOSED))
            if not self._open:
                self._all_closed.set()
        elif retry is not None:
            self._open_for(retry)
        else:
            self._use_room()

    async def close(self) -> None:
        """Fail what runs, close every connection, and wait until all are closed."""
        self._closed = True
        unconnected = [*self._waiting, *self._connecting]
        for exchange in unconnected:
            self.withdraw(exchange)
            exchange.fail(self._failure(_CLOSED))
        for connection in list(self._open):
            connection.fail(_CLOSED)
        await asyncio.gather(*self._withdrawn, return_exceptions=True)
        if self._open:
            await self._all_closed.wait()

    @property
    def _has_room(self) -> bool:
        used = len(self._open) + len(self._connecting) + len(self._withdrawn)
        return used < self._limits.max_connections

    def _open_for(self, exchange: Exchange) -> None:
        task = asyncio.get_running_loop().create_task(self._new_connection())
        self._connecting[exchange] = task
        task.add_done_callback(partial(self._opened, exchange))

    async def _new_connection(self) -> Connection:
        """Raises `OSError`."""
        connection = Connection(self, self._peer, self._limits, self._outbox)
        async with asyncio.timeout(self._limits.connect_timeout):
            await self._connect(connection)
        return connection

    def _opened(self, exchange: Exchange, task: asyncio.Task[Connection]) -> None:
        """A connection was made, failed, or is not wanted any more."""
        withdrawn = task in self._withdrawn
        self._withdrawn.discard(task)
        if not withdrawn:
            del self._connecting[exchange]
        error = None if task.cancelled() else task.exception()
        if not task.cancelled() and error is None:
            connection = task.result()
            if connection.usable:
                self._open.add(connection)
                if withdrawn:
                    connection.abort()
                else:
                    connection.start(exchange, reused=False)
                return
        self._use_room()
        if not withdrawn:
            exchange.fail(self._no_connection(error))

    def _no_connection(self, error: BaseException | None) -> UpstreamFailed:
        match error:
            case None:
                return self._failure("closed the connection before it answered")
            case TimeoutError():
                return self._failure(f"took no connection within {self._limits.connect_timeout:g} s", error)
            case OSError():
                return self._failure(f"cannot be reached ({error.strerror or error})", error)
            case _:
                return self._failure(f"cannot be reached ({type(error).__name__})", error)

    def _use_room(self) -> None:
        while self._waiting and not self._closed and self._has_room:
            self._open_for(self._next_waiting())

    def _next_waiting(self) -> Exchange:
        exchange = next(iter(self._waiting))
        self._waiting.pop(exchange).cancel()
        return exchange

    def _waited_enough(self, exchange: Exchange) -> None:
        del self._waiting[exchange]
        limits = self._limits
        reason = f"has all {limits.max_connections} connections in use, none came free in {limits.connect_timeout:g} s"
        exchange.fail(self._failure(reason))

    def _failure(self, reason: str, cause: BaseException | None = None) -> UpstreamFailed:
        error = UpstreamFailed(f"{self._peer} {reason}", began=False)
        error.__cause__ = cause
        return error
