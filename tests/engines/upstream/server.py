"""Real servers that behave as a test says, and what a test needs to watch the client with."""

import asyncio
import os
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from moonbase.engines.upstream.exchange import Headers
from moonbase.errors import UpstreamFailed

OK = b"HTTP/1.1 200 OK\r\n"
ANSWER = OK + b"Content-Length: 4\r\n\r\nfine"


@dataclass
class Asked:
    """A request as the server read it; `headers` has its names in lower case."""

    line: str
    headers: dict[str, str]
    body: bytes = b""


class Peer:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def read_head(self) -> Asked:
        """Raises `asyncio.IncompleteReadError` when the client has left."""
        line, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        return Asked(line, {name.lower(): text for name, text in (each.split(": ", 1) for each in lines)})

    async def read_request(self) -> Asked:
        asked = await self.read_head()
        asked.body = await self.reader.readexactly(int(asked.headers.get("content-length", 0)))
        return asked

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> float:
        """Wait until the client closes; when that was, in `time.monotonic()`."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass
        return time.monotonic()

    def reset(self) -> None:
        """Close with a TCP reset."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


@dataclass
class Server:
    port: int
    scheme: Literal["http", "https"] = "http"
    connections: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"


@asynccontextmanager
async def serving(*scripts: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Each connection runs the next script, the last one again and again. A script's end closes it."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        server.tasks.add(task)
        script = scripts[min(server.connections, len(scripts) - 1)]
        server.connections += 1
        try:
            await script(Peer(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has left, or the test is over
        finally:
            server.tasks.discard(task)
            writer.close()

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    server = Server(listener.sockets[0].getsockname()[1], "https" if tls else "http")
    try:
        yield server
    finally:
        listener.close()
        for task in (running := list(server.tasks)):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await asyncio.sleep(0.01)


async def answering(peer: Peer) -> None:
    """Answers every request well."""
    while True:
        await peer.read_request()
        await peer.send(ANSWER)


class Recorder:
    """A sink that keeps what it is given and finds calls out of order."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: Headers | None = None
        self.pieces: list[bytes] = []
        self.ended = False
        self.error: UpstreamFailed | None = None
        self.changed = asyncio.Event()

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def done(self) -> bool:
        return self.ended or self.error is not None

    async def finished(self) -> None:
        """Wait for the end or the failure."""
        while not self.done:
            await self.progress()

    async def progress(self) -> None:
        self.changed.clear()
        await asyncio.wait_for(self.changed.wait(), 10)

    def head(self, status: int, headers: Headers) -> None:
        assert self.status is None
        assert not self.done
        self.status, self.headers = status, headers
        self.changed.set()

    def data(self, data: bytes) -> None:
        assert self.status is not None
        assert not self.done
        assert data
        self.pieces.append(data)
        self.changed.set()

    def end(self) -> None:
        assert self.status is not None
        assert not self.done
        self.ended = True
        self.changed.set()

    def failed(self, error: UpstreamFailed) -> None:
        assert not self.done
        self.error = error
        self.changed.set()


@contextmanager
def nothing_left() -> Iterator[None]:
    """The code inside must leave no socket and no task behind."""
    sockets, tasks = _sockets(), asyncio.all_tasks()
    yield
    assert _sockets() == sockets
    assert asyncio.all_tasks() == tasks


def _sockets() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found
