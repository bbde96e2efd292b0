"""The least that a relay in Python costs: bytes are passed on as they come, and nobody looks at them.

`python -m benchmarks.relay.floor PORT UPSTREAM`
"""

import asyncio
import sys
from typing import cast

import uvloop


class _End(asyncio.Protocol):
    """One end of a pair of connections."""

    def __init__(self, upstream: int, peer: "_End | None" = None) -> None:
        self._upstream = upstream
        self._held: list[bytes] = []
        self.transport: asyncio.Transport | None = None
        self.peer = peer
        self._opening: asyncio.Task[object] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self.peer is not None:
            for data in self.peer._held:
                self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        peer = self.peer
        if peer is None:
            self._held.append(data)
            self.peer = peer = _End(self._upstream, self)
            loop = asyncio.get_running_loop()
            self._opening = loop.create_task(loop.create_connection(lambda: peer, "127.0.0.1", self._upstream))
        elif peer.transport is None:
            self._held.append(data)
        else:
            peer.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.close()


async def _serve(port: int, upstream: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _End(upstream), "127.0.0.1", port, backlog=16_384)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
