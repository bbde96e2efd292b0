"""Reads one response after another out of the bytes of a connection."""

import httptools

from moonbase.engines.upstream.exchange import Headers
from moonbase.engines.upstream.limits import UpstreamLimits

_SHOWN = 40  # characters of a foreign header value that a log needs
_SWITCHED = 101
_BODILESS = (204, 304)

ParseError = httptools.HttpParserError | httptools.HttpParserUpgrade
PARSE_ERRORS = (httptools.HttpParserError, httptools.HttpParserUpgrade)


class ResponseParser:
    """httptools' parser with its state in plain attributes, to be looked at after each `feed`.

    `feed(data)` is httptools' own method; it raises one of `PARSE_ERRORS`, and what it read before stays readable.
    `chunks` holds the pieces of body that have come since `take`. Interim responses (1xx) are skipped.
    """

    __slots__ = (
        *("_interim", "_limits", "_own_chunks", "_parser", "_raw_headers", "chunks", "complete", "feed"),
        *("head_complete", "headers", "on_body", "reusable", "status", "until_close"),
    )

    def __init__(self, limits: UpstreamLimits) -> None:
        self._limits = limits
        self.chunks: list[bytes] = []
        self.on_body = self.chunks.append  # called by httptools, without a Python function between
        self.begin()
        self._parser = httptools.HttpResponseParser(self)
        self.feed = self._parser.feed_data

    def begin(self) -> None:
        """Expect a new response. The last one must have been `reusable` at its end."""
        self.chunks.clear()
        self.complete = False
        self.head_complete = False
        self.reusable = True  # whether another response can follow on this connection
        self.until_close = False  # whether the end of the connection ends the body
        self.status = 0
        self.headers = Headers([])
        self._interim = False
        self._raw_headers: list[tuple[bytes, bytes]] = []
        self._own_chunks = 0

    def take(self) -> bytes:
        """The body that has come since the last call."""
        chunks = self.chunks
        body = chunks[0] if len(chunks) == 1 and not self.complete else b"".join(self._of_this_response())
        chunks.clear()
        return body

    def objection(self, received: int) -> str | None:
        """Why the response with this head is not taken, to go on from the server's name.

        `received` bytes have come up to the end of the read that ended the head.
        """
        limits = self._limits
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0") or self.status < 200:
            return f"sent a response of HTTP {version} with status {self.status}"
        if len(self._raw_headers) > limits.max_headers:
            return f"sent more than {limits.max_headers} headers"
        too_large = received > limits.max_head_bytes
        if too_large and sum([len(name) + len(value) + 4 for name, value in self._raw_headers]) > limits.max_head_bytes:
            return f"sent a response head of more than {limits.max_head_bytes} bytes"
        coding = self.headers.get("content-encoding")
        if coding is not None and coding.strip().lower() not in ("", "identity"):
            return f"sent a response encoded as {coding[:_SHOWN]!r}, which was not asked for"
        transfer = self.headers.get("transfer-encoding")
        if transfer is not None and transfer.strip().lower() != "chunked":
            return f"sent a response with the transfer coding {transfer[:_SHOWN]!r}, which was not asked for"
        return None

    def _of_this_response(self) -> list[bytes]:
        return self.chunks[: self._own_chunks] if self.complete else self.chunks

    def on_message_begin(self) -> None:
        if self.complete:
            self.reusable = False  # a second response that belongs to no request

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_complete:  # else a trailer
            self._raw_headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != _SWITCHED:
            self._interim = True
            self._raw_headers = []
            return
        self.status = status
        self.headers = headers = Headers(self._raw_headers)
        self.head_complete = True
        sized = "content-length" in headers or "transfer-encoding" in headers
        self.until_close = not sized and status not in _BODILESS

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        elif not self.complete:
            self.complete = True
            self._own_chunks = len(self.chunks)
            self.reusable = self._parser.should_keep_alive()
