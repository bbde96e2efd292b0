"""One request on a client's connection, and the response to it, as an ASGI application has them."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.types import Message, Scope

if TYPE_CHECKING:
    from moonbase.server.http import HttpConnection

STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_BODILESS = (204, 304)


class HttpRequest:
    """A request and the response to it: `receive` and `send` of ASGI, and `write` for what need not wait its turn.

    An application finds it in its scope as `moonbase.request`. `on_disconnect` is called when the client leaves before
    the response is complete.
    """

    __slots__ = (
        *("_arrival", "_bodiless", "_body", "_connection", "_expects_continue", "_framed", "_head", "_started"),
        *("_told", "_whole"),
        *("complete", "disconnected", "held", "keep_alive", "on_disconnect", "scope"),
    )

    def __init__(self, connection: "HttpConnection", scope: Scope, *, keep_alive: bool, expects_continue: bool) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        """Whether the connection may serve another request afterwards."""
        self.complete = False
        """Whether all of the response was written."""
        self.disconnected = False
        self.held = 0
        """Bytes of the body that wait for the application."""
        self.on_disconnect: Callable[[], None] | None = None
        self._connection = connection
        self._expects_continue = expects_continue
        self._body: list[bytes] = []
        self._whole = False  # all of the body came
        self._told = False  # and the application has it
        self._arrival: asyncio.Future[None] | None = None
        self._started = False
        self._bodiless = False  # whether the response has none, whatever is written
        self._framed = False  # whether it goes in chunks
        self._head = b""  # of the response, which goes out with the first of its body

    # For the application

    async def receive(self) -> Message:
        """As ASGI has it."""
        if self._expects_continue and not self.disconnected:
            self._expects_continue = False
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.disconnected or self.complete):
            if not self._told and (self._body or self._whole):
                return {"type": "http.request", "body": self._take_body(), "more_body": not self._whole}
            self._connection.resume_reading()
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
            self._arrival = None
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """As ASGI has it; waits while the client reads too slowly. What goes to a client that has left is dropped."""
        if self._connection.paused:
            await self._connection.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            self._start(message["status"], message["headers"])
            return
        if body := message.get("body"):
            self.write(body)
        if not message.get("more_body"):
            self._end()

    def whole_body(self) -> bytes | None:
        """The body, to be taken once, if all of it has come, unasked for, and none was received yet."""
        if self._told or not self._whole or self._expects_continue or self.disconnected:
            return None
        return self._take_body()

    @property
    def paused(self) -> bool:
        """Whether the client reads too slowly: what is written now is held in memory."""
        return self._connection.paused

    def write(self, body: bytes) -> None:
        """Send a piece of the response's body, never empty, now; the response has been started."""
        if self.disconnected or self._bodiless:
            return
        if self._framed:
            body = b"%b%x\r\n%b\r\n" % (self._head, len(body), body)
        elif self._head:
            body = self._head + body
        self._head = b""
        self._connection.write(body)

    def _take_body(self) -> bytes:
        """What has come of the body since the last time."""
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self.held = 0
        self._told = self._whole
        self._connection.resume_reading()  # else nobody would notice that the client leaves
        return body

    def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        assert not self._started, "a response is started once"
        self._started = True
        lines = [STATUS_LINES[status], *self._connection.date_lines()]
        sized = closes = False
        for name, value in headers:
            lines.append(b"%b: %b\r\n" % (name, value))
            if name == b"content-length":
                sized = True
            elif name == b"connection":
                closes = b"close" in value.lower()
        self.keep_alive = self.keep_alive and not closes
        self._bodiless = status in _BODILESS or self.scope["method"] == "HEAD"
        if not (sized or self._bodiless):
            self._framed = self.scope["http_version"] == "1.1"
            self.keep_alive = self.keep_alive and self._framed  # else the end of the connection ends the body
            if self._framed:
                lines.append(b"transfer-encoding: chunked\r\n")
        if not (self.keep_alive or closes):
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        assert head.count(b"\r") == head.count(b"\n") == len(lines), "a header holds a line break"
        self._head = head + b"\r\n"

    def _end(self) -> None:
        last = self._head + b"0\r\n\r\n" if self._framed else self._head
        if last:
            self._connection.write(last)
        self._head = b""
        self.complete = True
        self._wake()
        self._connection.answered(self)

    # For the connection

    def feed(self, body: bytes) -> None:
        """More of the request's body."""
        self._body.append(body)
        self.held += len(body)
        self._wake()

    def feed_end(self) -> None:
        self._whole = True
        self._wake()

    def disconnect(self) -> None:
        """The client has left."""
        self.disconnected = True
        self._body.clear()
        self._wake()
        if self.on_disconnect is not None and not self.complete:
            self.on_disconnect()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
