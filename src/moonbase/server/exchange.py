"""One request and its response: what the endpoints work with instead of raw ASGI."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.types import Receive, Scope, Send

from moonbase.config import Currency, ServerSettings
from moonbase.dialects.base import Dialect
from moonbase.errors import EngineOverloaded, RequestTimeout, RequestTooLarge
from moonbase.server.http_request import HttpRequest
from moonbase.service.chat import Arrival
from moonbase.store.records import Caller

JSON = b"application/json; charset=utf-8"
EVENT_STREAM = b"text/event-stream"

Header = tuple[bytes, bytes]


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


class BodyBudget:
    """Bytes of request bodies that a server holds at once."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def take(self, size: int) -> None:
        """Raises `EngineOverloaded` when there is not so much left."""
        if size > self._left:
            raise EngineOverloaded
        self._left -= size

    def give(self, size: int) -> None:
        self._left += size


class Exchange:
    """A request with its ids. Every response carries them (moonshot-api.md 9.2)."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        dialect: Dialect,
        limits: ServerSettings,
        bodies: "BodyBudget",
        request_id: str,
        trace_id: str,
        currency: Currency,
    ) -> None:
        """`currency` is that of the region that was called."""
        self.scope = scope
        self.http: HttpRequest = scope["moonbase.request"]
        self.dialect = dialect
        self.arrival = Arrival(request_id, time.time_ns() // 1_000_000, time.monotonic())
        self.trace_id = trace_id
        self.currency = currency
        self.caller: Caller | None = None
        self.model: str | None = None
        self.refusal: str | None = None
        """Why it was refused, as `ApiError.reason`."""
        self.status: int | None = None
        self.finished = False
        self.on_leave: Callable[[], None] | None = None
        self._receive = receive
        self._send = send
        self._limits = limits
        self._bodies = bodies
        self._held = 0

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    @property
    def path(self) -> str:
        return str(self.scope["path"])

    @property
    def response_started(self) -> bool:
        return self.status is not None

    def header(self, name: bytes) -> str | None:
        """The first header of that (lower-case) name, None when absent."""
        for key, value in self.scope["headers"]:
            if key == name:
                return str(value, "latin-1")
        return None

    async def body(self) -> bytes:
        """The whole body. Raises `RequestTooLarge`, `RequestTimeout`, `EngineOverloaded` or `ClientGone`."""
        limit = self._limits.max_body_bytes
        announced = self.header(b"content-length")
        if announced is not None and announced.isdecimal() and int(announced) > limit:
            raise RequestTooLarge(limit)
        body = self.http.whole_body()
        if body is not None:
            if len(body) > limit:
                raise RequestTooLarge(limit)
            self._hold(len(body))
            return body
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.body_timeout):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > limit:
                        raise RequestTooLarge(limit)
                    self._hold(len(chunk))
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        except TimeoutError as error:
            raise RequestTimeout(self._limits.body_timeout) from error

    def _hold(self, size: int) -> None:
        self._bodies.take(size)
        self._held += size

    def release(self) -> None:
        """Give back what the body took of the server's budget."""
        self._bodies.give(self._held)
        self._held = 0

    async def respond(
        self, body: bytes, *, status: int = 200, content_type: bytes = JSON, headers: list[Header]
    ) -> None:
        """Send a whole response."""
        await self.start([(b"content-length", b"%d" % len(body)), *headers], status=status, content_type=content_type)
        await self.send(body, more=False)

    async def start(self, headers: list[Header], *, status: int = 200, content_type: bytes = EVENT_STREAM) -> None:
        """Send the head of a response; the body follows through `send`."""
        self.status = status
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", content_type), *self._own_headers(), *headers],
            }
        )

    async def send(self, body: bytes, *, more: bool) -> None:
        self.finished = not more
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    @contextmanager
    def while_connected(self) -> Iterator[None]:
        """Run the body of the `with` until it ends or the client leaves, which cancels it after `on_leave`.

        Raises `ClientGone` when the client has left already.
        """
        if self.http.disconnected:
            raise ClientGone
        left = False
        task = asyncio.current_task()
        assert task is not None

        def leave() -> None:
            nonlocal left
            left = True
            if self.on_leave is not None:
                self.on_leave()
            task.cancel()

        self.http.on_disconnect = leave
        try:
            yield
        except asyncio.CancelledError:
            if not left or task.uncancel() > 0:
                raise
        finally:
            self.http.on_disconnect = None

    def _own_headers(self) -> list[Header]:
        headers = [
            (b"msh-request-id", self.arrival.request_id.encode()),
            (b"x-msh-trace-id", self.trace_id.encode()),
            (b"msh-trace-mode", b"on"),
            (b"vary", b"Origin"),
        ]
        if self.caller is not None:
            headers += [
                (b"msh-org-id", self.caller.organization_id.encode()),
                (b"msh-project-id", self.caller.project_id.encode()),
                (b"msh-uid", self.caller.uid.encode()),
                (b"msh-gid", b"enterprise-tier-%d" % self.caller.tier),
            ]
        return headers
