"""Where does the CPU time of a streamed token go, inside the gateway?

`python -m benchmarks.hot_path [--streams 128] [--rounds 300]`

Steps of the way of a chunk from an upstream's socket to a client's, each with all the steps before it, in this process
and without sockets: one chunk for each of so many streams in turn, as when an engine has made a step. What the system
takes for sockets, and uvloop to call us, comes on top; `python -m benchmarks.relay` has the whole.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import uvloop

from moonbase.accounts.ledger import MARK_TOKENS
from moonbase.catalog.catalog import load_catalog
from moonbase.chat.events import ChatEvent
from moonbase.config import ServerSettings
from moonbase.dialects.base import Head
from moonbase.dialects.openai.client.answer import AnswerReader, Bounds
from moonbase.dialects.openai.encode import ChunkEncoder
from moonbase.engines.upstream.connection import Connection
from moonbase.engines.upstream.events import EventReader
from moonbase.engines.upstream.exchange import Exchange, Headers
from moonbase.engines.upstream.limits import UpstreamLimits
from moonbase.engines.upstream.outbox import Outbox
from moonbase.engines.upstream.parser import ResponseParser
from moonbase.errors import UpstreamFailed
from moonbase.router.chat_deployment import CallIds
from moonbase.router.chat_stream import ChatStream
from moonbase.server.http import HttpConnection
from moonbase.server.http_request import HttpRequest
from moonbase.service.chat import Answer, Arrival
from moonbase.telemetry import ModelMetrics

_EVENT = (
    b'{"id":"chatcmpl-a1b2c3d4e5f60718","object":"chat.completion.chunk","created":1795398550,"model":"served",'
    b'"choices":[{"index":0,"delta":{"content":" of the moon"},"finish_reason":null}]}'
)
_FRAME = b"data: %b\n\n" % _EVENT
_CHUNK = b"%x\r\n%b\r\n" % (len(_FRAME), _FRAME)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_MODEL = "kimi-k2-0905-preview"

Step = Callable[[], None]


class _Transport(asyncio.Transport):
    """Takes what is written, and drops it."""

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        pass


class _Owner:
    def released(self, connection: Connection) -> None:
        pass

    def lost(self, connection: Connection, retry: Exchange | None) -> None:
        pass


class _Sink:
    """Takes a response and does nothing with it."""

    def head(self, status: int, headers: Headers) -> None:
        pass

    def data(self, data: bytes) -> None:
        pass

    def end(self) -> None:
        pass

    def failed(self, error: UpstreamFailed) -> None:
        pass


class _Stage:
    """What the streams of one step share."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.outbox = Outbox()
        self.state: Any = SimpleNamespace(connections=set(), tasks=set(), default_headers=[], total_requests=0)

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(coroutine))


class _Reservation:
    """Counts up to a progress mark, which is a line in the spool."""

    settled = False
    marked = 0

    def mark(self, output: int) -> None:
        if output - self.marked >= MARK_TOKENS:
            self.marked = output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    uvloop.run(_measure(options.streams, options.rounds))


async def _measure(streams: int, rounds: int) -> None:
    before = 0.0
    print(f"{'step':52} {'with all before, µs':>20} {'itself, µs':>11}")
    for name, build in _STEPS.items():
        stage = _Stage()
        steps = [build(stage) for _ in range(streams)]
        for _ in range(4):
            await asyncio.sleep(0)
        best = min([await _round(steps) for _ in range(rounds)]) / streams * 1e6
        print(f"{name:52} {best:20.2f} {best - before:11.2f}")
        before = best
        for task in stage.tasks:
            task.cancel()


async def _round(steps: list[Step]) -> float:
    began = time.perf_counter()
    for step in steps:
        step()
    await asyncio.sleep(0)  # what was written goes out
    return time.perf_counter() - began


def _parsed(_: _Stage) -> Step:
    parser = ResponseParser(UpstreamLimits())
    parser.feed(_HEAD + _CHUNK)

    def step() -> None:
        parser.chunks.clear()
        parser.feed(_CHUNK)

    return step


def _received(_: _Stage) -> Step:
    return _receiving(_Sink())


def _events(_: _Stage) -> Step:
    return _receiving(_Events())


def _chunks(_: _Stage) -> Step:
    return _receiving(_Chunks())


def _receiving(sink: Any) -> Step:
    """A connection whose response goes to `sink`."""
    connection = Connection(_Owner(), "upstream", UpstreamLimits(), Outbox())
    connection.connection_made(_Transport())
    exchange = Exchange(b"", None, sink, lambda exchange: None)
    if isinstance(sink, ChatStream):
        sink.exchange = exchange
    connection.start(exchange, reused=False)
    connection.data_received(_HEAD + _CHUNK)
    return lambda: connection.data_received(_CHUNK)


class _Events(_Sink):
    def __init__(self) -> None:
        self._events = EventReader()

    def data(self, data: bytes) -> None:
        self._events.feed(data)


class _Chunks(_Sink):
    def __init__(self) -> None:
        self._events = EventReader()
        self._reader = _reader()

    def data(self, data: bytes) -> None:
        events: list[ChatEvent] = []
        for event in self._events.feed(data):
            self._reader.feed(event, events)


def _reader() -> AnswerReader:
    return AnswerReader(1, 100, CallIds(0), Bounds(prompt=1_000, output=10**9))


def _stream() -> ChatStream:
    return ChatStream(_reader(), 1, 10**9, None, lambda error: error, lambda stream: None)


def _piped(stage: _Stage) -> Step:
    stream = _stream()
    step = _receiving(stream)
    stage.run(_read(stream, lambda events: True))
    return step


async def _read(stream: ChatStream | Answer, deliver: Callable[[list[ChatEvent]], bool]) -> None:
    while await stream.read(deliver):
        pass


def _timed(stage: _Stage) -> Step:
    return _answered(stage, lambda events: True)


def _answered(stage: _Stage, deliver: Callable[[list[ChatEvent]], bool]) -> Step:
    stream = _stream()
    step = _receiving(stream)
    demand: Any = SimpleNamespace(adapted=[], warnings=[], checks=lambda: None)
    deployment: Any = SimpleNamespace(name="upstream", enforces=False)
    held: Any = _Reservation()
    arrival = Arrival("", 0, 0.0)
    model = load_catalog({}).resolve(_MODEL)
    answer = Answer(model, deployment, ModelMetrics(), arrival, demand, held, stream)
    stage.run(_read(answer, deliver))
    return step


def _encoder() -> ChunkEncoder:
    head = Head(
        id="chatcmpl-a1b2c3d4e5f60718",
        created=0,
        model=_MODEL,
        served_by="upstream",
        prompt_tokens=100,
        cached_tokens=0,
    )
    return ChunkEncoder(head)


def _encoded(stage: _Stage) -> Step:
    encoder = _encoder()

    def deliver(events: list[ChatEvent]) -> bool:
        encoder.encode(events)
        return True

    return _answered(stage, deliver)


def _written(stage: _Stage) -> Step:
    encoder = _encoder()
    config: Any = SimpleNamespace(loaded_app=None, timeout_keep_alive=75)
    connection = HttpConnection(ServerSettings(), stage.outbox, config, stage.state, {})
    connection.connection_made(_Transport())
    request = HttpRequest(
        connection, {"method": "POST", "http_version": "1.1"}, keep_alive=True, expects_continue=False
    )
    stage.run(_start(request))

    def deliver(events: list[ChatEvent]) -> bool:
        if request.paused:
            return False
        request.write(encoder.encode(events))
        return True

    return _answered(stage, deliver)


async def _start(request: HttpRequest) -> None:
    await request.send({"type": "http.response.start", "status": 200, "headers": []})


_STEPS: dict[str, Callable[[_Stage], Step]] = {
    "HTTP parsed (httptools)": _parsed,
    "connection: who it is for, when it came": _received,
    "server-sent events": _events,
    "chunk decoded (msgspec), events, estimate": _chunks,
    "handed on, bounds of the answer": _piped,
    "time between tokens, progress, checks": _timed,
    "encoded for the client": _encoded,
    "framed, put together with the turn's other writes": _written,
}


if __name__ == "__main__":
    main()
