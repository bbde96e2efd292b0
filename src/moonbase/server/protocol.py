"""HTTP/1.1 connections: uvicorn's protocol with limits on size and time of a request's head."""

import asyncio
import re
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from moonbase.config import ServerSettings
from moonbase.dialects.errors import encode_error
from moonbase.errors import InvalidRequest

_CHUNK_FRAMING = 32  # bytes a chunk may take besides its content; what is more counts as headers, as trailers do
_REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


def protocol_class(settings: ServerSettings) -> type[HttpToolsProtocol]:
    """The protocol with the limits of `settings`; uvicorn makes one object of it per connection."""

    class LimitedProtocol(_LimitedProtocol):
        limits = settings

    return LimitedProtocol


_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


def _without_upgrade(data: bytes) -> bytes:
    """The offer of another protocol is ignored, as it may be (RFC 9110 7.8): the parser would drop the body."""
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(rb"\r\nx-upgrade:", head) + end + rest


class _LimitedProtocol(HttpToolsProtocol):
    """httptools caps nothing and uvicorn times only idle connections (issues in both ask for it)."""

    limits: ServerSettings

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._timer: asyncio.TimerHandle | None = None
        self._asked = False
        self._in_head = True
        self._began = False
        self._head_bytes = 0
        self._framing = 0
        self._body_bytes = 0
        self._stuck: asyncio.TimerHandle | None = None
        self._refusal = (400, "the HTTP request is malformed")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm(self.limits.header_timeout, self._head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._writes_again()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(self.limits.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        self._writes_again()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if (self._in_head or not self._asked) and (b"pgrade:" in data or b"PGRADE:" in data):
            data = _without_upgrade(data)
        self._began = False
        if not self._in_head:
            self._framing += len(data)
        super().data_received(data)
        # A head that began inside this chunk is counted from the next one on: complete heads are measured exactly.
        if self._in_head and not self._began:
            self._head_bytes += len(data)
            self._check_size(self._head_bytes)
        elif not self._in_head:
            self._check_size(self._framing)
        if self._idle and not self.transport.is_closing():
            self._arm(self.limits.header_timeout, self._head_late)  # stray bytes have stopped uvicorn's own timer

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._asked = self._in_head = self._began = True
        self._head_bytes = 0
        if self._timer is None:
            self._arm(self.limits.header_timeout, self._head_late)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self.url.startswith((b"http://", b"https://")):  # then this is the host that counts (RFC 9112 3.2.2)
            authority = self.url.split(b"/", 3)[2]
            self.headers[:] = [
                *((name, value) for name, value in self.headers if name != b"host"),
                (b"host", authority),
            ]
        elif not self.url.startswith(b"/"):
            raise ValueError("neither a path nor a URL")
        size = len(self.url) + sum([len(name) + len(value) + 4 for name, value in self.headers])
        if size > self.limits.max_header_bytes:
            self._too_large()
            raise ValueError("request head too large")
        self._framing = self._body_bytes = 0
        super().on_headers_complete()
        self._arm(self.limits.body_timeout, self._body_late)

    def on_chunk_header(self) -> None:
        self._framing = max(0, self._framing - _CHUNK_FRAMING)

    def on_body(self, body: bytes) -> None:
        self._framing = max(0, self._framing - len(body))
        self._body_bytes += len(body)
        if self._body_bytes > self.limits.max_body_bytes and self.cycle.response_complete:
            self.transport.abort()  # refused, and still sending
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._asked = False
        self._disarm()
        self._framing = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse in the shape of every other error. uvicorn calls this when a request cannot be parsed."""
        status, detail = self._refusal
        body = encode_error(InvalidRequest(detail))
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json; charset=utf-8\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    @property
    def _idle(self) -> bool:
        """Nothing is asked or answered, and no timer would notice."""
        timed = self._timer is not None or self.timeout_keep_alive_task is not None
        return not timed and not self._asked and (self.cycle is None or self.cycle.response_complete)

    def _writes_again(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _check_size(self, size: int) -> None:
        if size > self.limits.max_header_bytes and not self.transport.is_closing():
            self._too_large()
            self.send_400_response("")

    def _too_large(self) -> None:
        self._refusal = (431, f"the request head is larger than {self.limits.max_header_bytes} bytes")

    def _arm(self, seconds: float, late: Any) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_late(self) -> None:
        if not self._asked:
            self.transport.close()  # so nothing is answered
        else:
            self._refusal = (408, f"the request head did not arrive within {self.limits.header_timeout:g} seconds")
            self.send_400_response("")

    def _body_late(self) -> None:
        # While the application still reads, it answers 408 itself; here is the body nobody waits for.
        if self.cycle is not None and self.cycle.response_complete:
            self.transport.close()
        else:
            self._arm(self.limits.body_timeout, self._body_late)
