"""What CPU time does the upstream client cost per streamed chunk and per plain request?

`python -m benchmarks.upstream_client [--streams 128] [--chunks 300] [--requests 5000] [--rounds 5]`

The server is a process of its own. Each round runs everything once, so that the machine's moods meet all alike.
`bare protocol` is the floor: httptools in an asyncio protocol that only counts what it gets.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import cast

import httptools
import uvloop

from moonbase.engines.upstream.client import UpstreamClient
from moonbase.engines.upstream.events import EventReader
from moonbase.engines.upstream.exchange import Headers
from moonbase.errors import UpstreamFailed

_TICK = 0.01
_EVENT = b'data: {"id":"chatcmpl-0123456789","object":"chat.completion.chunk","choices":[{"index":0,"text":"%b"}]}\n\n'
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT) + 76, _EVENT % (b"x" * 78))  # 180 bytes of event
_PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 700\r\n\r\n" + b" " * 700
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_BODY = b'{"prompt":"%b"}' % (b"x" * 700)
_CONCURRENT = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--chunks", type=int, default=300)
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(_serve(options.chunks))
        return
    command = [sys.executable, "-m", "benchmarks.upstream_client", "--serve", "--chunks", str(options.chunks)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        uvloop.run(_measure(port, options.streams, options.chunks, options.requests, options.rounds))
    finally:
        server.terminate()
        server.wait()


async def _measure(port: int, streams: int, chunks: int, requests: int, rounds: int) -> None:
    async with UpstreamClient(f"http://127.0.0.1:{port}") as client:
        streaming: dict[str, Callable[[], Awaitable[None]]] = {
            "bare protocol": lambda: _bare(port, "/stream", streams, streams),
            "stream to a sink": lambda: _sinks(client, "/stream", streams, streams, events=False),
            "stream, events read": lambda: _sinks(client, "/stream", streams, streams, events=True),
            "request, events read": lambda: _responses(client, "/stream", streams, streams, events=True),
        }
        plain: dict[str, Callable[[], Awaitable[None]]] = {
            "bare protocol": lambda: _bare(port, "/plain", requests, _CONCURRENT),
            "stream to a sink": lambda: _sinks(client, "/plain", requests, _CONCURRENT, events=False),
            "request, body read": lambda: _responses(client, "/plain", requests, _CONCURRENT, events=False),
        }
        await _compare(
            f"µs per streamed chunk ({streams} streams, 180 B every 10 ms)", streaming, streams * chunks, rounds
        )
        await _compare(f"µs per plain request (0.7 KB each way, {_CONCURRENT} at once)", plain, requests, rounds)


async def _compare(title: str, ways: dict[str, Callable[[], Awaitable[None]]], count: int, rounds: int) -> None:
    """CPU time of this process, median and range over the rounds."""
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(rounds + 1):
        for name, run in ways.items():
            before = time.process_time()
            await run()
            if round_number:  # the first one warms up
                figures[name].append((time.process_time() - before) / count * 1e6)
    print(title)
    floor = statistics.median(figures["bare protocol"])
    for name, each in figures.items():
        middle = statistics.median(each)
        print(f"  {name:<22} {middle:7.2f}   ({min(each):.2f} to {max(each):.2f})   {middle / floor:.2f} x bare")


async def _in_turn(count: int, at_once: int, run: Callable[[], Awaitable[None]]) -> None:
    async def some() -> None:
        for _ in range(count // at_once):
            await run()

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(some())


class _Bare(asyncio.Protocol):
    """Asks the same `count` times over one connection."""

    def __init__(self, request: bytes, count: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._left = count
        self._bytes = 0
        self._feed = httptools.HttpResponseParser(self).feed_data

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._feed(data)

    def on_body(self, body: bytes) -> None:
        self._bytes += len(body)

    def on_message_complete(self) -> None:
        self._left -= 1
        if self._left:
            self._transport.write(self._request)
        else:
            self._transport.close()
            self.done.set_result(None)


async def _bare(port: int, path: str, count: int, at_once: int) -> None:
    request = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b" % (
        path.encode(),
        len(_BODY),
        _BODY,
    )
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: _Bare(request, count // at_once), "127.0.0.1", port)
        for _ in range(at_once)
    ]
    for _, protocol in made:
        await protocol.done


class _Sink:
    """Counts what it gets, reads events if it is to, and asks again until it has asked `left` times."""

    def __init__(self, client: UpstreamClient, path: str, left: int, events: bool) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._client = client
        self._path = path
        self._left = left
        self._events = events
        self._count = 0
        self.ask()

    def ask(self) -> None:
        self._feed = EventReader().feed if self._events else None
        self._left -= 1
        self._client.stream("POST", self._path, {"Content-Type": "application/json"}, _BODY, self)

    def head(self, status: int, headers: Headers) -> None:
        assert status == 200

    def data(self, data: bytes) -> None:
        self._count += len(data) if self._feed is None else len(self._feed(data))

    def end(self) -> None:
        if self._left:
            self.ask()
        else:
            self.done.set_result(None)

    def failed(self, error: UpstreamFailed) -> None:
        self.done.set_exception(error)


async def _sinks(client: UpstreamClient, path: str, count: int, at_once: int, *, events: bool) -> None:
    for sink in [_Sink(client, path, count // at_once, events) for _ in range(at_once)]:
        await sink.done


async def _responses(client: UpstreamClient, path: str, count: int, at_once: int, *, events: bool) -> None:
    async def one() -> None:
        feed = EventReader().feed
        async with client.request("POST", path, headers={"Content-Type": "application/json"}, body=_BODY) as response:
            while data := await response.read():
                if events:
                    feed(data)

    await _in_turn(count, at_once, one)


class _Server(asyncio.Protocol):
    """Answers at once, or with a chunk to all streams at each tick."""

    def __init__(self, streams: dict["_Server", int], chunks: int) -> None:
        self._streams = streams
        self._chunks = chunks
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.pop(self, None)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path = url

    def on_message_complete(self) -> None:
        if self._path == b"/stream":
            self.transport.write(_HEAD)
            self._streams[self] = self._chunks
        else:
            self.transport.write(_PLAIN)


async def _serve(chunks: int) -> None:
    streams: dict[_Server, int] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Server(streams, chunks), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    while True:
        await asyncio.sleep(_TICK)
        for stream, left in list(streams.items()):
            if left:
                stream.transport.write(_CHUNK)
                streams[stream] = left - 1
            else:
                stream.transport.write(b"0\r\n\r\n")
                del streams[stream]


if __name__ == "__main__":
    main()
