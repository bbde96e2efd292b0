"""The client of one upstream."""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Self

from moonbase.engines.upstream.address import parse_address
from moonbase.engines.upstream.connect import Connector
from moonbase.engines.upstream.exchange import Exchange, Headers, Sink
from moonbase.engines.upstream.limits import UpstreamLimits
from moonbase.engines.upstream.pool import Pool
from moonbase.engines.upstream.proxy import proxy_for
from moonbase.engines.upstream.request import HeadWriter, Method
from moonbase.errors import ConfigurationError, UpstreamFailed

_MAX_BUFFERED = 256 * 1024  # bytes that wait for a reader before the socket is left alone


class UpstreamClient:
    """Sends requests to one base URL. An async context manager; on leaving, every connection is closed.

    Redirects are not followed, nothing is retried but a kept connection that had died unnoticed, and
    responses are never compressed.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        limits: UpstreamLimits | None = None,
        ca_file: str | None = None,
    ) -> None:
        """`headers` go with every request; they may hold secrets. `ca_file` (PEM) replaces the system's roots.

        Raises `ConfigurationError` for a URL, a header, a proxy variable or a CA file that cannot be used.
        """
        address = parse_address(base_url)
        proxy = proxy_for(address)
        try:
            self._head = HeadWriter(address, headers or {}, proxy)
        except ValueError as error:
            raise ConfigurationError(f"upstream {address.authority}: {error}") from None
        self._peer = address.name_and_port
        self._limits = limits or UpstreamLimits()
        self._connector = Connector(address, proxy, _tls(ca_file) if address.scheme == "https" else None)
        self._pool: Pool | None = None

    async def __aenter__(self) -> Self:
        self._pool = Pool(self._connector.connect, self._peer, self._limits)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._pool is not None
        pool, self._pool = self._pool, None
        await pool.close()

    def stream(self, method: Method, path: str, headers: Mapping[str, str], body: bytes | None, sink: Sink) -> Exchange:
        """Start a request; `sink` is called as the response comes, never before this returns.

        `path` begins with a slash and goes on from the base URL's. The caller either sees the response to
        its end or cancels. Raises `ValueError` for a path or header that cannot be sent.
        """
        assert self._pool is not None, "the client is not open"
        head = self._head.write(method, path, headers, body)
        exchange = Exchange(head, body, sink, self._pool.withdraw)
        self._pool.submit(exchange)
        return exchange

    def request(
        self, method: Method, path: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> "Request":
        """`async with client.request(...) as response` sends it and waits for the head.

        Entering raises `UpstreamFailed`, and `ValueError` as `stream` does; leaving before the end cancels, and so
        does leaving with an error: the connection is not used again.
        """
        return Request(partial(self.stream, method, path, headers or {}, body))


class Response:
    """A response, read as it comes. What nobody reads is left in the socket beyond a buffer."""

    status: int
    headers: Headers

    def __init__(self) -> None:
        self._done = False
        self._exchange: Exchange | None = None
        self._headed = False
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._error: UpstreamFailed | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """All that has come since the last call, waiting for at least one byte; empty at the end.

        Raises `UpstreamFailed`, after what came before it was read.
        """
        while not self._chunks and not self._done:
            await self._wait()
        if not self._chunks:
            if self._error is not None:
                raise self._error
            return b""
        data = b"".join(self._chunks)
        self._chunks.clear()
        if self._buffered > _MAX_BUFFERED and self._exchange is not None:
            self._exchange.resume()
        self._buffered = 0
        return data

    async def body(self, limit: int) -> bytes:
        """The whole rest. Raises `UpstreamFailed`, also when it is longer than `limit` bytes."""
        pieces, size = [], 0
        while data := await self.read():
            size += len(data)
            if size > limit:
                self._cancel()
                raise UpstreamFailed(f"the response body is larger than {limit} bytes", began=True)
            pieces.append(data)
        return b"".join(pieces)

    async def opened(self, exchange: Exchange) -> None:
        """Wait for the head. Raises `UpstreamFailed`."""
        self._exchange = exchange
        while not self._headed:
            if self._error is not None:
                raise self._error
            await self._wait()

    def leave(self, *, content: bool) -> None:
        """Nothing more will come; whoever still reads is told.

        The connection is closed unless the response has come to its end and who leaves is `content` with it.
        """
        if self._done and content and self._exchange is not None:
            self._exchange.release()
        else:
            self._cancel()
        if not self._done:
            self.failed(UpstreamFailed("the response was left before its end", began=True))

    def head(self, status: int, headers: Headers) -> None:
        self.status = status
        self.headers = headers
        self._headed = True
        self._wake()

    def data(self, data: bytes) -> None:
        self._chunks.append(data)
        self._buffered += len(data)
        if self._buffered > _MAX_BUFFERED and self._exchange is not None:
            self._exchange.pause()
        self._wake()

    def end(self) -> None:
        self._done = True
        if self._exchange is not None:
            self._exchange.hold()
        self._wake()

    def failed(self, error: UpstreamFailed) -> None:
        self._done = True
        self._error = error
        self._wake()

    def _cancel(self) -> None:
        if self._exchange is not None:
            self._exchange.cancel()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Request:
    """A request that is sent on entering and given up on leaving."""

    def __init__(self, start: Callable[[Sink], Exchange]) -> None:
        self._start = start

    async def __aenter__(self) -> Response:
        self._response = Response()
        exchange = self._start(self._response)
        try:
            await self._response.opened(exchange)
        except BaseException:
            exchange.cancel()
            raise
        return self._response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._response.leave(content=error is None)


def _tls(ca_file: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the CA file {ca_file!r} cannot be used ({error})") from error
    context.set_alpn_protocols(["http/1.1"])
    return context
