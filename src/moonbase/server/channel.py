"""What a server's parent process and its gateways say to each other: msgpack, each message after its length in four
bytes, over a pair of sockets whose end tells either that the other is gone.

The parent keeps the processes of engines, the gateways answer requests.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Generic, Self, TypeVar

import msgspec
from msgspec import Struct

from moonbase.config import Settings
from moonbase.engines.kept_server import ServerLife
from moonbase.engines.suspects import Testimony
from moonbase.server.world import Summary
from moonbase.telemetry import Counts

In = TypeVar("In")
Out = TypeVar("Out")


class WorkerPlace(Struct, frozen=True, tag=True):
    """The socket at which a worker listens in all its lives."""

    address: str


class ServerPlace(Struct, frozen=True, tag=True):
    """Where a server is in this life; None while it has none."""

    life: ServerLife | None


Place = WorkerPlace | ServerPlace


class Begin(Struct, frozen=True, tag=True):
    """The first message to a gateway. `sockets` are the descriptors it listens at, `engines` the places of the engines
    that the parent keeps, by the table of the settings that describes them.
    """

    settings: Settings
    home: str
    cache: str
    sockets: list[int]
    engines: dict[str, Place]


class Moved(Struct, frozen=True, tag=True):
    """The server of an engine has begun or ended a life."""

    engine: str
    life: ServerLife | None


class Testified(Struct, frozen=True, tag=True):
    """What a gateway has seen of a death of an engine, for the others."""

    engine: str
    testimony: Testimony


class Scraped(Struct, frozen=True, tag=True):
    """The metrics of all gateways, for one that has sent `Scrape`."""

    exposition: bytes


class Stop(Struct, frozen=True, tag=True):
    """Finish what is open and end; `cut`, once that is under way, does not wait for it."""

    cut: bool


class Serving(Struct, frozen=True, tag=True):
    """The gateway answers requests."""

    summary: Summary


class Unfit(Struct, frozen=True, tag=True):
    """The gateway cannot start with these settings."""

    reason: str


class End(Struct, frozen=True, tag=True):
    """This life of an engine is of no use to the gateway: it does not answer."""

    engine: str
    life: int


class Counted(Struct, frozen=True, tag=True):
    """What the gateway has counted since its start."""

    counts: Counts


class Scrape(Struct, frozen=True, tag=True):
    """Somebody asks the gateway for the metrics of all; answered with `Scraped`, in order."""


ToGateway = Begin | Moved | Testified | Scraped | Stop
ToParent = Serving | Unfit | End | Testified | Counted | Scrape

_LENGTH = 4


class Channel(Generic[In, Out]):
    """One end. An async context manager; leaving it sends what is left and closes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: object) -> None:
        """`kind` is the type `In`."""
        self._reader = reader
        self._writer = writer
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[In] = msgspec.msgpack.Decoder(kind)

    def send(self, message: Out) -> None:
        """Nothing happens when the other end is gone: `messages` ends then."""
        body = self._encoder.encode(message)
        self._writer.write(len(body).to_bytes(_LENGTH, "big") + body)

    async def messages(self) -> AsyncIterator[In]:
        """Each that comes, until the other end is gone."""
        try:
            while True:
                length = int.from_bytes(await self._reader.readexactly(_LENGTH), "big")
                yield self._decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


async def parent_end(end: socket.socket) -> Channel[ToParent, ToGateway]:
    """The channel takes `end` over."""
    return Channel(*await asyncio.open_unix_connection(sock=end), ToParent)


async def gateway_end(end: socket.socket) -> Channel[ToGateway, ToParent]:
    """The channel takes `end` over."""
    return Channel(*await asyncio.open_unix_connection(sock=end), ToGateway)
