"""The parent of several gateway processes: it keeps them and their engines running, and answers no request itself."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from moonbase.catalog.catalog import load_catalog
from moonbase.config import Settings
from moonbase.engines.kept_server import KeptServer
from moonbase.engines.process import Keeper, ending, exited
from moonbase.engines.supervisor import Supervisor
from moonbase.errors import ConfigurationError, ModelFileError, WorkerDied
from moonbase.server import channel
from moonbase.server.channel import Channel, Place, ServerPlace, ToGateway, ToParent, WorkerPlace
from moonbase.server.deployments import KeptEngine, keep_engines, start_all
from moonbase.server.serving import Started, stopping_signals
from moonbase.server.world import Summary
from moonbase.telemetry import Counts, Metrics

_PAUSE = 1.0  # seconds between two lives at most: what comes to the port of one that has died waits for the next
_PARTING = 5.0  # seconds for what comes after the open answers


class Gateways:
    """One gateway for each list of sockets; see `listeners.bind_all`."""

    def __init__(self, settings: Settings, home: Path, cache: Path, sockets: list[list[socket.socket]]) -> None:
        self._settings = settings
        self.metrics = Metrics(self._counts)
        """What all gateways have counted, to the second."""
        self._home = home
        self._cache = cache
        self._sockets = sockets
        self._engines: dict[str, KeptEngine] = {}
        self._gateways = [_Gateway(number, self, own) for number, own in enumerate(sockets, 1)]
        self._summary: Summary | None = None
        self._stopping = asyncio.Event()

    async def serve(self, started: Started) -> None:
        """Until SIGTERM or SIGINT. A gateway that ends before is started again, as is an engine.

        Raises `ConfigurationError` or `ModelFileError` for what stops a start.
        """
        async with contextlib.AsyncExitStack() as stack:
            await self._start_engines(stack)
            stack.push_async_callback(self._end_gateways)
            await start_all(gateway.start() for gateway in self._gateways)
            assert self._summary is not None
            with stopping_signals(self._stop):
                await started(self._summary)
                await self._stopping.wait()
                await self._end_gateways(self._settings.server.shutdown_grace + _PARTING)

    def begin(self, sockets: list[socket.socket]) -> channel.Begin:
        """What a new gateway has to know."""
        return channel.Begin(
            self._settings,
            str(self._home),
            str(self._cache),
            [listener.fileno() for listener in sockets],
            {name: _place(engine) for name, engine in self._engines.items()},
        )

    def received(self, gateway: "_Gateway", message: ToParent) -> None:
        """Raises `ConfigurationError` when the gateway cannot start."""
        match message:
            case channel.Serving(summary):
                self._summary = summary
            case channel.Unfit(reason):
                raise ConfigurationError(reason)
            case channel.End(engine, life):
                self._engines[engine].end(life)
            case channel.Testified():
                self._tell(message, but=gateway)
            case channel.Counted(counts):
                gateway.counts = counts
            case channel.Scrape():
                gateway.send(channel.Scraped(self.metrics.exposition()))

    async def _start_engines(self, stack: contextlib.AsyncExitStack) -> None:
        self._engines = keep_engines(self._settings, load_catalog(self._settings.models), self._cache)
        for name, engine in self._engines.items():
            stack.push_async_callback(engine.close)
            if isinstance(engine, KeptServer):
                engine.on_change(self._teller(name, engine))
        await start_all(_start_engine(name, engine) for name, engine in self._engines.items())

    def _teller(self, name: str, engine: KeptServer) -> Callable[[], None]:
        return lambda: self._tell(channel.Moved(name, engine.life))

    def _tell(self, message: ToGateway, but: "_Gateway | None" = None) -> None:
        for gateway in self._gateways:
            if gateway is not but:
                gateway.send(message)

    def _stop(self, number: int) -> None:
        """Nobody is let in any more; another SIGINT cuts what is open."""
        cut = self._stopping.is_set() and number == signal.SIGINT
        self._stopping.set()
        for listener in [listener for own in self._sockets for listener in own]:
            listener.close()
        self._tell(channel.Stop(cut))

    async def _end_gateways(self, patience: float = 0.0) -> None:
        await asyncio.gather(*[gateway.close(patience) for gateway in self._gateways])

    def _counts(self) -> Iterable[Counts]:
        for gateway in self._gateways:
            yield gateway.ended
            yield gateway.counts


class _Gateway:
    """A gateway in all its lives. `counts` are those of this life, `ended` those of the lives before."""

    def __init__(self, number: int, parent: Gateways, sockets: list[socket.socket]) -> None:
        self.counts = Counts()
        self.ended = Counts()
        self._parent = parent
        self._sockets = sockets
        self._channel: Channel[ToParent, ToGateway] | None = None
        self._keeper = Keeper(f"gateway {number}", self._life, longest_pause=_PAUSE)

    async def start(self) -> None:
        """Returns when it answers requests. Raises `ConfigurationError` when it cannot start."""
        try:
            await self._keeper.start()
        except WorkerDied as error:
            raise ConfigurationError(str(error)) from error

    async def close(self, patience: float) -> None:
        """End it, after so many seconds in which it may end by itself; one that only begins is not waited for."""
        await self._keeper.close(patience if self._channel is not None else 0.0)

    def send(self, message: ToGateway) -> None:
        """One that is just being started is told the present state when it begins."""
        if self._channel is not None:
            self._channel.send(message)

    async def _life(self, ready: Callable[[], None]) -> None:
        ours, theirs = socket.socketpair()
        async with await channel.parent_end(ours) as end:
            with theirs:
                process = await self._spawn(theirs.fileno())
            end.send(self._parent.begin(self._sockets))
            self._channel = end
            try:
                async for message in end.messages():
                    self._parent.received(self, message)
                    if isinstance(message, channel.Serving):
                        ready()
                await exited(process)
                raise WorkerDied(ending(process))
            finally:
                self._channel = None
                self._forget_life()
                if process.returncode is None:
                    process.kill()
                await exited(process)

    async def _spawn(self, descriptor: int) -> asyncio.subprocess.Process:
        """In a session of its own, so that a terminal's signals reach the parent only, who tells it."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "moonbase.server.gateway", str(descriptor)),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(descriptor, *[listener.fileno() for listener in self._sockets]),
            start_new_session=True,
        )

    def _forget_life(self) -> None:
        """What it counted stays counted; what it had under way is no more."""
        self.counts.gauges = []
        self.ended.add(self.counts)
        self.counts = Counts()


async def _start_engine(name: str, engine: KeptEngine) -> None:
    try:
        await engine.start()
    except WorkerDied as error:
        raise ModelFileError(f"{name}: it ended before it could work ({error})") from error


def _place(engine: KeptEngine) -> Place:
    match engine:
        case Supervisor():
            return WorkerPlace(str(engine.address))
        case KeptServer():
            return ServerPlace(engine.life)
