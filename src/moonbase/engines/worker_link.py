"""Connections to a worker process, whoever keeps it running."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

from moonbase.engines.suspects import Suspects
from moonbase.errors import WorkerDied

_log = logging.getLogger(__name__)

_RECONNECT = 0.1  # seconds between two tries to reach a worker that another process keeps
_PATIENCE = 2.0


class WorkerClient(Protocol):
    """The side of the gateway. Every method returns at once and is called in the event loop's thread."""

    @property
    def busy(self) -> bool:
        """Whether the worker owes an answer, so that its silence counts."""
        ...

    @property
    def ready(self) -> bool:
        """Whether the worker has said that it can work."""
        ...

    @property
    def worker(self) -> int:
        """The process id that the worker told of itself when it was ready last."""
        ...

    def connected(self, transport: asyncio.WriteTransport) -> None: ...

    def received(self, data: bytes) -> None:
        """Raises `WorkerDied` for what no sane worker says."""
        ...

    def lost(self) -> None:
        """The worker has died; `connected` follows when there is a new one."""
        ...


class WorkerKeeper(Protocol):
    """Who keeps a worker running for a client: this process, or one that keeps it for several."""

    suspects: Suspects
    """What the worker may have died of."""

    @property
    def pid(self) -> int | None:
        """The worker's process id, None while there is none, and where another process keeps it."""
        ...

    async def start(self) -> None:
        """Wait until the client is ready. Raises `WorkerDied` when a worker kept here ends before."""
        ...

    async def close(self) -> None:
        """End the worker if it is kept here, and the connection to it. Idempotent."""
        ...


class Silence:
    """How long nothing has been heard of a worker that owes its client an answer."""

    def __init__(self, client: WorkerClient, longest: float) -> None:
        self._client = client
        self._longest = longest
        self._heard = time.monotonic()
        self.reason = f"it was silent for {longest:g} s while it had work"
        self.look = min(longest / 4, 0.5)
        """Seconds after which to ask again."""

    def broken(self) -> None:
        self._heard = time.monotonic()

    def too_long(self) -> bool:
        if not self._client.busy:
            self._heard = time.monotonic()
        return time.monotonic() - self._heard > self._longest


class Listener(Protocol):
    """Who wants to know of a connection that the worker lives, or that it is of no use."""

    def heard(self) -> None: ...

    def hang_up(self, error: WorkerDied) -> None: ...


class Connection(asyncio.Protocol):
    """Hands a client what a worker says. `lost` is done when there will be no more."""

    def __init__(self, listener: Listener, client: WorkerClient) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._listener = listener
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client.connected(cast("asyncio.WriteTransport", transport))  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        try:
            self._client.received(data)
        except WorkerDied as error:
            self._listener.hang_up(error)
        self._listener.heard()

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.lost()
        self.lost.set_result(None)


class WorkerLink:
    """The connection to a worker that another process keeps, made again whenever it is lost. Implements
    `WorkerKeeper`.
    """

    pid = None

    def __init__(
        self,
        address: Path,
        client: WorkerClient,
        suspects: Suspects,
        *,
        hang_timeout: float,
        end: Callable[[int], None],
    ) -> None:
        """`address` is that of the `Supervisor`, and `end` asks it to end the worker of a process id: it has been
        silent for `hang_timeout` seconds while it owed the client an answer, or does not talk sense.
        """
        self.suspects = suspects
        self._address = address
        self._client = client
        self._silence = Silence(client, hang_timeout)
        self._end = end
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Also returns when the worker, which may be about to live again, is not ready within seconds."""
        self._task = asyncio.create_task(self._keep())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._ready.wait()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def heard(self) -> None:
        self._silence.broken()
        if self._client.ready:
            self._ready.set()

    def hang_up(self, error: WorkerDied) -> None:
        _log.error("the worker at %s is of no use: %s", self._address, error)
        self._end(self._client.worker)

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                await self._life()
            await asyncio.sleep(_RECONNECT)

    async def _life(self) -> None:
        """One connection, until it is lost."""
        transport, connection = await asyncio.get_running_loop().create_unix_connection(
            lambda: Connection(self, self._client), str(self._address)
        )
        self._silence.broken()
        try:
            while not (await asyncio.wait([connection.lost], timeout=self._silence.look))[0]:
                if self._client.ready and self._silence.too_long():
                    self._end(self._client.worker)
        finally:
            transport.abort()
            self._client.lost()
