"""A gateway process of several: `python -m moonbase.server.gateway FD`, FD being its end of a channel to its parent."""

import asyncio
import logging
import socket
import sys
from collections import deque
from pathlib import Path

import uvloop

from moonbase import telemetry
from moonbase.errors import MoonbaseError
from moonbase.server import channel
from moonbase.server.channel import Begin, Channel, ToGateway, ToParent
from moonbase.server.serving import HttpServer
from moonbase.server.shared import Shared
from moonbase.server.world import World, build_world

log = logging.getLogger("moonbase.server")

_COUNTING = 1.0  # seconds between two reports of what was counted


class Gateway:
    """Serves what the parent says in `Begin`, until it says `Stop` or is gone."""

    def __init__(self, begin: Begin, parent: Channel[ToGateway, ToParent]) -> None:
        self._begin = begin
        self._parent = parent
        self._metrics = telemetry.Metrics()
        self._shared = Shared(begin, parent.send)
        self._scrapes: deque[asyncio.Future[bytes]] = deque()
        self._server: HttpServer | None = None

    async def run(self) -> None:
        """Raises `ConfigurationError` or `ModelFileError` for what stops a start."""
        begin, settings = self._begin, self._begin.settings
        listeners = [socket.socket(fileno=number) for number in begin.sockets]
        tasks = [asyncio.create_task(self._obey()), asyncio.create_task(self._report())]
        try:
            async with build_world(
                *(settings, Path(begin.home), Path(begin.cache)),
                *(self._metrics, self._exposition, self._shared.engines),
            ) as world:
                self._server = HttpServer(settings.server, world.app, lambda: self._listening(world))
                await self._server.serve(listeners)
        finally:
            for task in tasks:
                task.cancel()
            self._count()

    async def _listening(self, world: World) -> None:
        self._parent.send(channel.Serving(world.summary()))

    async def _obey(self) -> None:
        try:
            async for message in self._parent.messages():
                self._received(message)
        except Exception:  # a bug; a gateway that obeys no more would be in the way for ever
            log.exception("the gateway failed its parent and ends")
        self._stop(cut=False)  # else the parent is gone, and the engines with it

    def _received(self, message: ToGateway) -> None:
        match message:
            case channel.Moved() | channel.Testified():
                self._shared.hear(message)
            case channel.Scraped(exposition):
                answer = self._scrapes.popleft()
                if not answer.done():  # who asked may have been cut off
                    answer.set_result(exposition)
            case channel.Stop(cut):
                self._stop(cut=cut)

    def _stop(self, *, cut: bool) -> None:
        if self._server is None:
            sys.exit(1)
        self._server.stop(cut=cut)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_COUNTING)
            self._count()

    def _count(self) -> None:
        self._parent.send(channel.Counted(self._metrics.counts()))

    async def _exposition(self) -> bytes:
        """The metrics of all gateways, this one's as they are now."""
        self._count()
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._scrapes.append(answer)
        self._parent.send(channel.Scrape())
        return await answer


async def serve(descriptor: int) -> None:
    """Serve for the parent at the other end of this socket. Exits with 1 when the start fails."""
    async with await channel.gateway_end(socket.socket(fileno=descriptor)) as parent:
        begin = await anext(parent.messages())
        assert isinstance(begin, Begin), "the parent speaks first"
        telemetry.configure_logging(begin.settings.log.level, begin.settings.log.format)
        try:
            await Gateway(begin, parent).run()
        except MoonbaseError as error:
            parent.send(channel.Unfit(str(error)))
            sys.exit(1)


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
