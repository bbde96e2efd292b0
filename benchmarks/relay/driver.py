"""Clients that cost little and notice much.

`python -m benchmarks.relay.driver FILE` reads a `Load` as JSON from standard input, runs it and writes a `Result` as
JSON into FILE: it may be long, and long output through a pipe was cut at times.
"""

import asyncio
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import cast

import httptools
import msgspec
import uvloop
from msgspec import Struct

_HOST = "127.0.0.1"
_PATIENCE = 30.0  # seconds for one more stream to begin
_SENT_AT = re.compile(rb'"content":"(\d{10,19})"')


class Load(Struct, kw_only=True):
    """`clients` connections, each of which asks with `body`, one request after the other, until `seconds` are over.

    They begin spread over `spread` seconds. With `hold` the driver prints how many of them have their first event, once
    all have or no more get one, and stays until standard input ends. Answers of errors have none.
    """

    port: int
    path: str
    headers: dict[str, str] = {}
    body: str
    clients: int
    seconds: float = 0.0
    spread: float = 0.0
    hold: bool = False


class Result(Struct, kw_only=True):
    """What the clients saw. `frames` are events with data, but for `[DONE]`; times are in seconds.

    `first` are the times from a request to its first event, `late` those between the moment in which an event's text
    says it was sent and its arrival.
    """

    seconds: float = 0.0
    requests: int = 0
    frames: int = 0
    first: list[float] = []
    late: list[float] = []
    problem: str = ""


class _Client(asyncio.Protocol):
    def __init__(self, load: Load, result: Result, begun: asyncio.Semaphore) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._result = result
        self._until = time.monotonic() + load.seconds
        self._parser = httptools.HttpResponseParser(self)
        self._begun = begun
        self._waits = True
        self._asked = 0
        head = "".join(f"{name}: {value}\r\n" for name, value in load.headers.items())
        body = load.body.encode()
        self._request = (
            f"POST {load.path} HTTP/1.1\r\nHost: {_HOST}:{load.port}\r\n{head}Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self._result.problem = f"a connection ended early: {exc}"
            self.done.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        result = self._result
        now = time.monotonic_ns()
        if self._waits and self._parser.get_status_code() == 200:
            self._waits = False
            result.first.append((now - self._asked) / 1e9)
            self._begun.release()
        result.frames += body.count(b"data: {")
        for sent in _SENT_AT.findall(body):
            result.late.append((now - int(sent)) / 1e9)

    def on_message_complete(self) -> None:
        self._result.requests += 1
        if (status := self._parser.get_status_code()) != 200:
            self._result.problem = f"an answer had the status {status}"
        if time.monotonic() < self._until:
            self._ask()
        else:
            self.done.set_result(None)
            self._transport.close()

    def _ask(self) -> None:
        self._waits = True
        self._asked = time.monotonic_ns()
        self._transport.write(self._request)


async def _run(load: Load) -> Result:
    loop = asyncio.get_running_loop()
    result = Result()
    begun = asyncio.Semaphore(0)
    start = time.monotonic()
    clients: list[_Client] = []
    for number in range(load.clients):
        await asyncio.sleep(max(0.0, start + load.spread * number / load.clients - time.monotonic()))
        _, client = await loop.create_connection(lambda: _Client(load, result, begun), _HOST, load.port)
        clients.append(client)
    if load.hold:
        with suppress(TimeoutError):
            for _ in clients:
                await asyncio.wait_for(begun.acquire(), _PATIENCE)
        print(len(result.first), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        result.first, result.late = [], []  # nobody asks for the times of so many
    else:
        await asyncio.gather(*[client.done for client in clients])
    result.seconds = time.monotonic() - start
    return result


def main() -> None:
    load = msgspec.json.decode(sys.stdin.readline(), type=Load)
    Path(sys.argv[1]).write_bytes(msgspec.json.encode(uvloop.run(_run(load))))


if __name__ == "__main__":
    main()
