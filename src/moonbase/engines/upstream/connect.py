"""Opens connections: directly, or through a proxy."""

import asyncio
import ssl
from typing import cast

from moonbase.engines.upstream.address import Address
from moonbase.engines.upstream.connection import Connection
from moonbase.engines.upstream.proxy import Proxy

_MAX_REPLY = 16 * 1024  # bytes of a proxy's answer to CONNECT


class ProxyRefused(OSError):
    """A proxy did not open a tunnel."""


class Connector:
    """Knows the way to an address. `tls` is None for plain HTTP."""

    def __init__(self, address: Address, proxy: Proxy | None, tls: ssl.SSLContext | None) -> None:
        self._address = address
        self._proxy = proxy
        self._tls = tls

    async def connect(self, connection: Connection) -> None:
        """Give `connection` its transport. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        address, proxy, tls = self._address, self._proxy, self._tls
        if proxy is None:
            await loop.create_connection(lambda: connection, address.host, address.port, ssl=tls)
        elif tls is None:
            await loop.create_connection(lambda: connection, proxy.host, proxy.port)
        else:
            transport, tunnel = await loop.create_connection(_Tunnel, proxy.host, proxy.port)
            try:
                await tunnel.open(address, proxy)
                secured = await loop.start_tls(transport, connection, tls, server_hostname=address.host)
            except BaseException:
                transport.abort()
                raise
            connection.connection_made(cast("asyncio.Transport", secured))  # start_tls does not call it


class _Tunnel(asyncio.Protocol):
    """Asks a proxy for a tunnel. Whatever is not a plain yes is a refusal."""

    def __init__(self) -> None:
        self._reply = b""
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    async def open(self, address: Address, proxy: Proxy) -> None:
        """Raises `ProxyRefused`."""
        assert self._transport is not None
        target = address.name_and_port
        secret = f"Proxy-Authorization: {proxy.authorization}\r\n" if proxy.authorization is not None else ""
        self._transport.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{secret}\r\n".encode())
        await self._answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._answered.done():
            return
        self._reply += data
        head, end, rest = self._reply.partition(b"\r\n\r\n")
        if end:
            version, _, status = head.partition(b" ")
            if not version.startswith(b"HTTP/1.") or not status[:3].isdigit():
                self._refuse("sent what is no HTTP response")
            elif status[:1] != b"2":
                self._refuse(f"refused the tunnel with status {status[:3].decode()}")
            elif rest:
                self._refuse("sent data before it was asked")
            else:
                self._answered.set_result(None)
        elif len(self._reply) > _MAX_REPLY:
            self._refuse("sent an endless answer")

    def connection_lost(self, exc: Exception | None) -> None:
        self._refuse("closed the connection")

    def _refuse(self, how: str) -> None:
        if not self._answered.done():
            self._answered.set_exception(ProxyRefused(f"the proxy {how}"))
            self._answered.exception()  # asyncio need not report it where nobody waits any more
