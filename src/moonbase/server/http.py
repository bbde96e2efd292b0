"""HTTP/1.1 connections of clients: one request after the other goes to an ASGI application, within limits.

It stands in for uvicorn's own protocol, whose server runs it: httptools caps nothing, and uvicorn times only idle
connections, forgets a request whose client leaves when another is pipelined behind it, and takes no piece of a response
but from a task's turn (decision 0015).
"""

import asyncio
import logging
import re
import urllib.parse
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, Literal, cast

import httptools
from starlette.types import ASGIApp, Scope
from uvicorn.config import Config
from uvicorn.server import ServerState

from moonbase.config import ServerSettings
from moonbase.dialects.errors import encode_error
from moonbase.engines.upstream.outbox import Outbox
from moonbase.errors import InvalidRequest
from moonbase.server.http_request import STATUS_LINES, HttpRequest

log = logging.getLogger(__name__)

_CHUNK_FRAMING = 32  # bytes a chunk may take besides its content; what is more counts as headers, as trailers do
_MOST_HELD = 64 * 1024  # bytes that wait for the application, or for their turn, before the socket is left alone
_SLICE = 16 * 1024  # bytes that are parsed at once, and all requests that begin in them
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)

_VERSIONS = ("1.0", "1.1")

_Phase = Literal["head", "body", "answer", "idle", "closing"]
ProtocolFactory = Callable[..., asyncio.Protocol]


def protocol_factory(settings: ServerSettings) -> ProtocolFactory:
    """For `uvicorn.Config`'s `http`: makes connections with the limits of `settings`."""
    return partial(HttpConnection, settings, Outbox())


class HttpConnection(asyncio.Protocol):
    """One connection of a client. Requests are answered in the order in which they came."""

    __slots__ = (  # a server has thousands
        *("_answering", "_app", "_asked", "_began", "_body_bytes", "_deadline", "_drained", "_expects_continue"),
        *("_framing", "_head_bytes", "_headers", "_held", "_held_size", "_in_head", "_keepalive", "_last", "_limits"),
        *("_local", "_loop", "_outbox", "_parser", "_peer", "_phase", "_reading_paused", "_receiving", "_refusal"),
        *("_refused", "_scheme", "_state", "_stuck", "_tick", "_timer", "_unsent", "_url", "_waiting"),
        *("paused", "transport"),
    )

    def __init__(
        self,
        limits: ServerSettings,
        outbox: Outbox,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """`limits` and `outbox` are ours, the others what uvicorn gives a protocol."""
        self.transport: asyncio.Transport
        self._loop = _loop or asyncio.get_running_loop()
        self.paused = False
        """Whether the client reads too slowly."""
        self._limits = limits
        self._state = server_state
        self._app = cast("ASGIApp", config.loaded_app)
        self._keepalive = config.timeout_keep_alive
        self._outbox = outbox
        self._unsent: list[bytes] = []
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._drained: asyncio.Future[None] | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self._reading_paused = False
        self._local: tuple[str, int] | None = None
        self._peer: tuple[str, int] | None = None
        self._scheme = "http"
        # One timer for all limits but that on writing. None is shorter than a tick, so none that begins after it was
        # set ends before.
        self._tick = min(limits.header_timeout, limits.body_timeout, limits.write_timeout, self._keepalive)
        self._timer: asyncio.TimerHandle | None = None
        self._phase: _Phase = "head"
        self._deadline = 0.0
        # What is read
        self._asked = False  # a request has begun and is not all there
        self._in_head = True
        self._began = False  # in the bytes that came last
        self._head_bytes = 0
        self._framing = 0
        self._body_bytes = 0
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._expects_continue = False
        self._refusal = (400, "the HTTP request is malformed")
        self._receiving: HttpRequest | None = None
        self._held: list[bytes] = []  # what came behind a request that is being answered
        self._held_size = 0
        # What is answered
        self._answering: HttpRequest | None = None
        self._waiting: list[HttpRequest] = []  # few: what is read at once is bounded
        self._last = False  # whether no request is taken after the one that is answered
        self._refused = False  # what came behind it is none

    # Called by the server

    def shutdown(self) -> None:
        """Close the connection once what is under way is answered."""
        self._last = True
        if self._answering is None:
            self.close()
        else:
            self._answering.keep_alive = False

    # Called by requests

    def date_lines(self) -> list[bytes]:
        """The headers that uvicorn adds to every response."""
        return [b"%b: %b\r\n" % header for header in self._state.default_headers]

    def write(self, data: bytes) -> None:
        """Send it at the end of the event loop's turn; the connection has not been lost."""
        if not self._unsent:
            self._outbox.add(self)
        self._unsent.append(data)

    def flush(self) -> None:
        """Send what was written."""
        unsent = self._unsent
        if unsent and not self.transport.is_closing():
            self.transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))
        unsent.clear()

    def close(self) -> None:
        """Close the connection when all that was written is sent, or was left unread for too long.

        A client that is still sending may take as long as for a head to end it: a reset would cross what it was told
        (RFC 9112 9.6).
        """
        self.flush()
        if self.transport.is_closing():
            return
        unread = self.transport.get_write_buffer_size() > 0
        sending = self._asked or self._parser is None
        if sending and self._phase != "closing" and self.transport.can_write_eof():
            self._half_close()
        else:
            self.transport.close()
        self._enter("closing", self._limits.write_timeout if unread else self._limits.header_timeout)

    def _half_close(self) -> None:
        """Nothing more is sent, and what comes is dropped."""
        self._parser = None
        self._held.clear()
        self._held_size = 0
        self.resume_reading()
        self.transport.write_eof()

    async def drain(self) -> None:
        """Wait until the client has read enough, or has left."""
        if self.paused:
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    def resume_reading(self) -> None:
        if self._reading_paused and self._held_size <= _MOST_HELD:
            self._reading_paused = False
            self.transport.resume_reading()

    def answered(self, request: HttpRequest) -> None:
        """The response is complete."""
        self._state.total_requests += 1
        self._answering = None
        if self.transport.is_closing():
            return
        if not request.keep_alive:
            self.close()
        elif self._waiting:
            self._answer(self._waiting.pop(0))
        elif self._refused:
            self._send_refusal()
        elif self._last:
            self.close()
        else:
            self._go_on()

    def _go_on(self) -> None:
        """All requests that were read are answered: read what has come behind them."""
        if not self._asked:
            self._enter("idle", self._keepalive)
        elif self._in_head:
            self._enter("head", self._limits.header_timeout)
        held = b"".join(self._held)
        self._held.clear()
        self._held_size = 0
        self.resume_reading()
        self._read(held)

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._state.connections.add(cast("Any", self))
        self._local = transport.get_extra_info("sockname")
        self._peer = transport.get_extra_info("peername")
        self._scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self._enter("head", self._limits.header_timeout)
        self._timer = self._loop.call_later(self._tick, self._check_time)

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(cast("Any", self))
        if self._timer is not None:
            self._timer.cancel()
        self._parser = None
        self.resume_writing()
        self._waiting.clear()
        self._held.clear()
        answering, self._answering, self._receiving = self._answering, None, None  # they lead back to here
        if answering is not None:
            answering.disconnect()

    def pause_writing(self) -> None:
        self.paused = True
        self._stuck = self._loop.call_later(self._limits.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        self.paused = False
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    def data_received(self, data: bytes) -> None:
        if self._held:
            self._hold(data)
        else:
            self._read(data)

    def _hold(self, data: bytes) -> None:
        """Keep it for its turn. A client that has left is noticed as long as its socket is read."""
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size > _MOST_HELD:
            self._pause_reading()

    def _read(self, data: bytes) -> None:
        """Parse it as far as there is nothing to be answered first."""
        at = 0
        while at < len(data) and self._parser is not None:
            if self._answering is not None and self._receiving is None:
                self._phase = "answer"
                self._hold(data[at:])
                return
            piece = data if len(data) <= _SLICE else data[at : at + _SLICE]
            at += len(piece)
            self._parse(self._parser, piece)

    def _parse(self, parser: httptools.HttpRequestParser, data: bytes) -> None:
        if (self._in_head or not self._asked) and (b"pgrade:" in data or b"PGRADE:" in data):
            data = _without_upgrade(data)
        self._began = False
        idle = self._phase == "idle"
        if not self._in_head:
            self._framing += len(data)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(*self._refusal)
            return
        # A head that began inside this chunk is counted from the next one on: complete heads are measured exactly.
        if self._in_head and not self._began:
            self._head_bytes += len(data)
            self._check_size(self._head_bytes)
        elif not self._in_head:
            self._check_size(self._framing)
        if idle and self._phase == "idle":
            self._enter("head", self._limits.header_timeout)  # stray bytes may not come for ever

    # Called by the parser

    def on_message_begin(self) -> None:
        self._asked = self._in_head = self._began = True
        self._head_bytes = 0
        self._url = b""
        self._headers = []
        self._expects_continue = False
        if self._phase != "head":
            self._enter("head", self._limits.header_timeout)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: nobody may take it for a header (RFC 9110 6.5.1)
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects_continue = True
        elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise ValueError("another coding than chunks")
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        if self._parser.should_upgrade():  # the parser would drop the body
            raise ValueError("another protocol")
        self._in_head = False
        size = len(self._url)
        for name, value in self._headers:
            size += len(name) + len(value) + 4
        if size > self._limits.max_header_bytes:
            self._too_large()
            raise ValueError("request head too large")
        self._framing = self._body_bytes = 0
        self._enter("body", self._limits.body_timeout)
        version = self._parser.get_http_version()
        if version not in _VERSIONS:
            self._refusal = (505, "the HTTP version is not supported")
            raise ValueError("another version")
        self._receiving = request = HttpRequest(
            self,
            self._scope(version),
            keep_alive=version == "1.1" and self._parser.should_keep_alive(),
            expects_continue=self._expects_continue and version == "1.1",  # RFC 9110 10.1.1
        )
        if self._answering is None:
            self._answer(request)
        else:
            self._waiting.append(request)

    def on_chunk_header(self) -> None:
        self._framing = max(0, self._framing - _CHUNK_FRAMING)

    def on_body(self, body: bytes) -> None:
        self._framing = max(0, self._framing - len(body))
        self._body_bytes += len(body)
        request = self._receiving
        if request is None or request.complete:
            if self._body_bytes > self._limits.max_body_bytes:
                self.transport.abort()  # refused, and still sending
            return
        request.feed(body)
        if request.held > _MOST_HELD:
            self._pause_reading()

    def on_message_complete(self) -> None:
        self._asked = False
        self._framing = 0
        request, self._receiving = self._receiving, None
        if request is not None:
            request.feed_end()
        if self._answering is None:
            self._enter("idle", self._keepalive)
        else:
            self._phase = "answer"

    def _scope(self, version: str) -> Scope:
        """Raises for a target that is neither a path nor a URL."""
        assert self._parser is not None
        url = self._url
        if not url.startswith(b"/"):
            url = self._path_of(url)
        raw_path, _, query = url.partition(b"#")[0].partition(b"?")
        path = raw_path.decode("ascii")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "server": self._local,
            "client": self._peer,
            "scheme": self._scheme,
            "method": self._parser.get_method().decode("ascii"),
            "root_path": "",
            "path": urllib.parse.unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self._headers,
        }

    def _path_of(self, url: bytes) -> bytes:
        """Path and query of a whole URL, whose host is the one that counts then (RFC 9112 3.2.2)."""
        if not url.startswith((b"http://", b"https://")):
            raise ValueError("neither a path nor a URL")
        _, _, rest = url.partition(b"://")
        end = min([at for at in (rest.find(b"/"), rest.find(b"?"), len(rest)) if at >= 0])
        others = [header for header in self._headers if header[0] != b"host"]
        self._headers = [*others, (b"host", rest[:end])]
        return rest[end:] if rest[end : end + 1] == b"/" else b"/" + rest[end:]

    # The answers

    def _answer(self, request: HttpRequest) -> None:
        self._answering = request
        request.scope["moonbase.request"] = request
        task = self._loop.create_task(self._run(request))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    async def _run(self, request: HttpRequest) -> None:
        try:
            await self._app(request.scope, request.receive, request.send)
        except Exception:
            log.exception("the connection is cut")
        finally:
            request.scope.clear()  # it leads back to the request: without it nothing is left to the collector
            if not (request.complete or request.disconnected):
                self.close()

    def _refuse(self, status: int, detail: str) -> None:
        """What came is no request that could be answered: say so after what is under way, and close."""
        self._parser = None
        if self._receiving is not None and self._receiving.complete:
            self.close()  # a request is answered once
            return
        self._refused = True
        self._refusal = (status, detail)
        if self._receiving is not None:
            self._cut_receiving(self._receiving)
        if self._answering is None:
            self._send_refusal()
        else:
            self._phase = "answer"

    def _cut_receiving(self, request: HttpRequest) -> None:
        """The rest of its body cannot be read: it is dropped, or answered no more."""
        self._receiving = None
        if request is self._answering:
            self._answering = None
            request.disconnect()
        elif request in self._waiting:
            self._waiting.remove(request)

    def _send_refusal(self) -> None:
        """In the shape that errors have in OpenAI's dialect: what was asked, and in which, nobody knows."""
        status, detail = self._refusal
        body = encode_error(InvalidRequest(detail))
        headers = b"content-type: application/json; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n"
        head = b"".join([STATUS_LINES[status], *self.date_lines(), headers % len(body)])
        self.write(head + b"\r\n" + body)
        peer = self._peer[0] if self._peer else None  # no more than that: it may hold secrets, and was not understood
        log.info("no request: %d, %s", status, detail, extra={"fields": {"client": peer}})
        self.close()

    # The limits

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_header_bytes and not self.transport.is_closing():
            self._too_large()
            self._refuse(*self._refusal)

    def _too_large(self) -> None:
        self._refusal = (431, f"the request head is larger than {self._limits.max_header_bytes} bytes")

    def _enter(self, phase: _Phase, seconds: float) -> None:
        self._phase = phase
        self._deadline = monotonic() + seconds

    def _check_time(self) -> None:
        """Look whether something is late, and come again when something may be."""
        left = self._tick if self._phase == "answer" else self._deadline - monotonic()
        if left <= 0:
            left = self._tick
            self._late()
        if self._phase == "closing" or not self.transport.is_closing():
            self._timer = self._loop.call_later(min(left, self._tick), self._check_time)

    def _late(self) -> None:
        if self._phase == "body":
            # While the application still reads, it answers 408 itself; here is the body nobody waits for.
            if self._answering is None:
                self.close()
            else:
                self._enter("body", self._limits.body_timeout)
        elif self._phase == "head" and self._asked:
            detail = f"the request head did not arrive within {self._limits.header_timeout:g} seconds"
            self._refuse(408, detail)
        elif self._phase == "closing":
            self.transport.abort()
        else:
            self.close()  # nothing was asked, so nothing is answered


def _without_upgrade(data: bytes) -> bytes:
    """The offer of another protocol is ignored, as it may be (RFC 9110 7.8): the parser would drop the body.

    One that comes in two pieces is refused instead. Where heads and bodies end nobody knows here, so no byte may come
    or go: a body would get another length than its head says. In JSON no line begins like this.
    """
    return _UPGRADE.sub(b"\r\nxpgrade:", data)
