"""Random responses under random cuts, played into a connection over a transport in memory."""

import asyncio
import itertools
from typing import Any, cast

from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from tests.engines.upstream.server import Recorder

from moonbase.engines.upstream.connection import Connection
from moonbase.engines.upstream.exchange import Exchange
from moonbase.engines.upstream.limits import UpstreamLimits
from moonbase.engines.upstream.pool import Pool


class Line(asyncio.Transport):
    """A transport whose other end is the test."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Connection | None = None
        self.asked = asyncio.Event()
        self.closed = False
        self.reading = True

    def attach(self, connection: Connection) -> None:
        self.protocol = connection
        connection.connection_made(self)

    def play(self, data: bytes) -> None:
        assert self.protocol is not None
        if not self.closed and data:
            self.protocol.data_received(data)

    def hang_up(self, error: Exception | None) -> None:
        assert self.protocol is not None
        if not self.closed:
            self.closed = True
            self.protocol.connection_lost(error)

    def write(self, data: Any) -> None:
        self.asked.set()

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(cast("Connection", self.protocol).connection_lost, None)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Outcome(Struct, frozen=True):
    """`kept` tells whether the connection may be used again. An error counts by its words."""

    status: int | None
    body: bytes
    ended: bool
    error: str | None
    kept: bool


def outcome(pieces: list[bytes], *, then: Exception | None = None, cancel_after: int | None = None) -> Outcome:
    """What a sink gets when the server sends `pieces` and hangs up.

    The sink itself finds calls out of order. Whatever else is raised goes through to the test.
    """

    async def run() -> Outcome:
        line = Line()

        async def connect(connection: Connection) -> None:
            line.attach(connection)

        pool = Pool(connect, "server", UpstreamLimits(max_head_bytes=4096))
        sink = Recorder()
        exchange = Exchange(b"GET / HTTP/1.1\r\n\r\n", None, sink, pool.withdraw)
        pool.submit(exchange)
        await line.asked.wait()
        for piece in pieces[:cancel_after]:
            line.play(piece)
        if cancel_after is not None:
            exchange.cancel()
            before = (sink.status, sink.body, sink.done)
            for piece in pieces[cancel_after:]:
                line.play(piece)
            assert (sink.status, sink.body, sink.done) == before
        kept = sink.ended and not line.closed
        line.hang_up(then)
        assert sink.done or cancel_after is not None
        error = sink.error.reason if sink.error is not None else None
        result = Outcome(sink.status, sink.body, sink.ended, error, kept)
        await pool.close()
        await asyncio.sleep(0)
        return result

    return asyncio.run(run())


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


places = st.lists(st.integers(0, 1 << 16), max_size=12)
bodies = st.lists(st.binary(min_size=1, max_size=60), max_size=6)
names = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12).map(lambda name: f"x-{name}".encode())
values = st.text("abc XYZ0123;,=\"'", max_size=30).map(lambda text: text.strip().encode())
headers = st.lists(st.tuples(names, values), max_size=5)
interims = st.lists(st.sampled_from([b"100 Continue", b"103 Early Hints"]), max_size=2)


class Valid(Struct, frozen=True):
    stream: bytes
    status: int
    body: bytes
    reusable: bool


@st.composite
def valid_responses(draw: st.DrawFn) -> Valid:
    status = draw(st.sampled_from([200, 206, 301, 400, 413, 429, 500, 503]))
    chunks = draw(bodies)
    body = b"".join(chunks)
    framing = draw(st.sampled_from(["length", "chunks", "end", "old"]))
    closes = draw(st.booleans())
    head = [b"HTTP/1.1 %b\r\n\r\n" % interim for interim in draw(interims)]
    head.append(b"HTTP/1.%d %d Some Words\r\n" % (framing != "old", status))
    head += [b"%b: %b\r\n" % pair for pair in draw(headers)]
    if closes:
        head.append(b"Connection: close\r\n")
    match framing:
        case "length":
            rest = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        case "chunks":
            extension = draw(st.sampled_from([b"", b";a=b", b";a"]))
            trailers = draw(st.sampled_from([b"", b"x: y\r\n"]))
            framed = b"".join([b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks])
            rest = b"Transfer-Encoding: chunked\r\n\r\n%b0\r\n%b\r\n" % (framed, trailers)
        case _:
            rest = b"\r\n" + body
    return Valid(b"".join(head) + rest, status, body, framing in ("length", "chunks") and not closes)


@settings(deadline=None)
@given(valid_responses(), places)
def test_a_valid_response_is_the_same_under_every_cut(valid: Valid, places: list[int]) -> None:
    expected = Outcome(valid.status, valid.body, True, None, valid.reusable)
    assert outcome([valid.stream]) == expected
    assert outcome(cut(valid.stream, places)) == expected


@settings(deadline=None)
@given(valid_responses(), st.integers(0, 1 << 16), places)
def test_a_response_that_is_cut_off_is_a_failure_or_ends_with_the_connection(
    valid: Valid, size: int, places: list[int]
) -> None:
    stream = valid.stream[: size % len(valid.stream)]
    got = outcome(cut(stream, places))
    assert valid.body.startswith(got.body)
    assert got.status in (None, valid.status)
    if got.ended:
        until_the_end = b"Content-Length" not in stream and b"Transfer-Encoding" not in stream
        assert until_the_end or got.body == valid.body
    else:
        assert got.error is not None
        assert "server closed the connection" in got.error
    reset = outcome(cut(stream, places), then=ConnectionResetError(104, "Connection reset by peer"))
    assert reset.error is not None or got.kept or (got.ended and valid.body == got.body)


edits = st.lists(
    st.tuples(
        st.integers(0, 1 << 16), st.integers(0, 3), st.binary(max_size=4) | st.sampled_from([b"\r\n", b"\n", b"0"])
    ),
    min_size=1,
    max_size=4,
)


def edited(stream: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """Replace `size` bytes at `place` by others, one edit after the other."""
    for place, size, new in edits:
        place %= len(stream) + 1
        stream = stream[:place] + new + stream[place + size :]
    return stream


@settings(deadline=None)
@given(valid_responses(), edits, places)
def test_a_damaged_response_is_the_same_under_every_cut(
    valid: Valid, edits: list[tuple[int, int, bytes]], places: list[int]
) -> None:
    stream = edited(valid.stream, edits)
    whole, parts = outcome([stream]), outcome(cut(stream, places))
    assert (whole.status, whole.body, whole.ended) == (parts.status, parts.body, parts.ended)


@settings(deadline=None)
@given(st.binary(max_size=400) | st.binary(max_size=200).map(lambda data: b"HTTP/1.1 200 OK\r\n" + data), places)
@example(b"HTTP/1.1 200 OK\r\n\r\n", [])
def test_random_bytes_end_in_a_response_or_a_failure(stream: bytes, places: list[int]) -> None:
    got = outcome(cut(stream, places))
    assert got.ended != (got.error is not None)


@settings(deadline=None)
@given(valid_responses(), places, st.integers(0, 12))
def test_nothing_comes_after_a_cancellation(valid: Valid, places: list[int], after: int) -> None:
    pieces = cut(valid.stream, places)
    outcome(pieces, cancel_after=min(after, len(pieces) - 1))


@settings(deadline=None)
@given(st.lists(valid_responses(), min_size=2, max_size=3), places)
def test_what_comes_after_a_response_reaches_nobody(responses: list[Valid], places: list[int]) -> None:
    first = responses[0]
    if not first.reusable:
        return  # everything up to the end is its body, or nothing may follow
    got = outcome(cut(b"".join([each.stream for each in responses]), places))
    assert (got.status, got.body, got.ended) == (first.status, first.body, True)
    assert not got.kept
