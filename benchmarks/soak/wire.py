"""Requests as bytes, and answers read as they come, so that a client can stop anywhere in either."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"
_CLOSE_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: a reset in the place of an orderly end


class Gone(Exception):
    """The server ended the connection before an answer was complete."""


@dataclass(frozen=True)
class Answer:
    """One whole answer; header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The type of the error that it is, in either dialect."""
        return str(self.json["error"]["type"])


def request(
    path: str, key: str | None, body: bytes = b"", *, method: str = "POST", headers: tuple[str, ...] = ()
) -> bytes:
    """A request as bytes. `headers` are whole lines; `key` None sends none."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if body:
        lines.append("Content-Type: application/json")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection:
    """A client's end of a connection, as slow as it wants to be."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Raises `Gone` when the server has closed it."""
        self.writer.write(data)
        with _gone():
            await self.writer.drain()

    async def answer(self) -> Answer:
        """The next whole answer. Raises `Gone`."""
        with _gone():
            status, headers = await self._head()
            if headers.get("transfer-encoding") == "chunked":
                return Answer(status, headers, b"".join([chunk async for chunk in self._chunks()]))
            return Answer(status, headers, await self.reader.readexactly(int(headers["content-length"])))

    async def ask(self, data: bytes) -> Answer:
        """Send a request and return its answer, which may come before the request is sent."""
        with suppress(Gone):
            await self.send(data)
        return await self.answer()

    async def until_closed(self) -> bytes:
        """All that comes until the server ends the connection, in whichever way."""
        received = bytearray()
        with suppress(ConnectionError):
            while data := await self.reader.read(65_536):
                received += data
        return bytes(received)

    def reset(self) -> None:
        """Leave without an orderly end."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLOSE_AT_ONCE)
        self.writer.transport.abort()

    async def _head(self) -> tuple[int, dict[str, str]]:
        status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        pairs = [line.partition(": ") for line in lines]
        return int(status.split(" ", 2)[1]), {name.lower(): value for name, _, value in pairs}

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)


@asynccontextmanager
async def connected(port: int, *, buffer: int | None = None) -> AsyncIterator[Connection]:
    """A connection that is closed on leaving. `buffer` bounds the bytes that are taken before they are read."""
    end = socket.socket()
    if buffer is not None:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    end.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(end, (HOST, port))
        reader, writer = await asyncio.open_connection(sock=end, limit=buffer or 65_536)
    except BaseException:
        end.close()
        raise
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        if buffer is not None:
            writer.transport.abort()  # what it has not read would keep it open
        with suppress(ConnectionError):
            await writer.wait_closed()


@contextmanager
def _gone() -> Iterator[None]:
    """Turns the ends of a connection into `Gone`."""
    try:
        yield
    except (ConnectionError, asyncio.IncompleteReadError) as error:
        raise Gone(str(error)) from error
