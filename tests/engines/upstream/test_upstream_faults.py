"""Servers that misbehave: what was delivered, then a clear error, and the connection is not used again."""

import asyncio
from dataclasses import dataclass, field

import pytest
from tests.engines.upstream.server import OK, Peer, Recorder, Script, answering, nothing_left, serving

from moonbase.engines.upstream.client import UpstreamClient
from moonbase.engines.upstream.limits import UpstreamLimits

pytestmark = pytest.mark.anyio

CHUNKS = b"Transfer-Encoding: chunked\r\n"
CHUNKED = OK + CHUNKS + b"\r\n"
SIZED = OK + b"Content-Length: 10\r\n\r\n"
SHORT = UpstreamLimits(first_byte_timeout=0.1, idle_timeout=0.1)


@dataclass(frozen=True)
class Sends:
    """Bytes, then a pause long enough that the client reads them alone."""

    data: bytes


@dataclass(frozen=True)
class Repeats:
    """The same bytes until the client leaves."""

    data: bytes


HOLDS = "holds the connection open"
RESETS = "resets the connection"
Step = Sends | Repeats | str


@dataclass(frozen=True)
class Fault:
    """What a server does after it read a request, and what the client makes of it.

    `error` is in the reason of the failure; None means that the response counts as complete.
    """

    name: str
    steps: tuple[Step, ...]
    error: str | None
    status: int | None = 200
    body: bytes = b""
    began: bool = True
    limits: UpstreamLimits = field(default_factory=UpstreamLimits)


def sends(*data: bytes) -> tuple[Step, ...]:
    return tuple(Sends(each) for each in data)


FAULTS = [
    Fault("stalls before the head", (HOLDS,), "did not answer within 0.1 s", None, began=False, limits=SHORT),
    Fault("stalls in the head", (*sends(OK + b"Con"), HOLDS), "did not answer within 0.1 s", None, limits=SHORT),
    Fault("stalls after the head", (*sends(CHUNKED), HOLDS), "was silent for 0.1 s", limits=SHORT),
    Fault("stalls in the body", (*sends(SIZED + b"abc"), HOLDS), "was silent for 0.1 s", body=b"abc", limits=SHORT),
    Fault("stalls after 100", (*sends(b"HTTP/1.1 100 Go\r\n\r\n"), HOLDS), "did not answer", None, limits=SHORT),
    Fault("closes instead of an answer", (), "closed the connection before it answered", None, began=False),
    Fault("resets instead of an answer", (RESETS,), "broke the connection before it answered", None, began=False),
    Fault("cut in the status line", sends(b"HTTP/1.1 2"), "closed the connection inside", None),
    Fault("cut in the head", sends(OK + b"Content-Le"), "closed the connection inside", None),
    Fault("cut after the head", sends(CHUNKED), "closed the connection inside"),
    Fault("cut in a chunk header", sends(CHUNKED + b"5\r\nhello\r\n5"), "closed the connection inside", body=b"hello"),
    Fault("cut in a chunk", sends(CHUNKED + b"5\r\nhel"), "closed the connection inside", body=b"hel"),
    Fault("cut between chunks", sends(CHUNKED + b"5\r\nhello\r\n"), "closed the connection inside", body=b"hello"),
    Fault("cut in the last chunk", sends(CHUNKED + b"5\r\nhello\r\n0\r\n"), "closed the", body=b"hello"),
    Fault("cut in an event", sends(CHUNKED + b"6\r\ndata: "), "closed the connection inside", body=b"data: "),
    Fault("less than the length", sends(SIZED + b"abc"), "closed the connection inside", body=b"abc"),
    Fault("more than the length", sends(SIZED + b"0123456789abc"), None, body=b"0123456789"),
    Fault("reset in a sized body", (*sends(SIZED + b"abc"), RESETS), "broke the connection inside", body=b"abc"),
    Fault("reset in a body until the end", (*sends(OK + b"\r\nabc"), RESETS), "broke the", body=b"abc"),
    Fault("two responses in one packet", sends((SIZED + b"0123456789") * 2), None, body=b"0123456789"),
    Fault("a response and garbage", sends(SIZED + b"0123456789\0\1\2"), None, body=b"0123456789"),
    Fault("a body after 204", sends(b"HTTP/1.1 204 No Content\r\n\r\nabc"), None, status=204),
    Fault("a length and chunks", sends(OK + b"Content-Length: 3\r\n" + CHUNKS + b"\r\n"), "no HTTP", None),
    Fault("chunks and a length", sends(OK + CHUNKS + b"Content-Length: 3\r\n\r\n"), "no HTTP", None),
    Fault("two lengths", sends(OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n"), "no HTTP", None),
    Fault("a negative length", sends(OK + b"Content-Length: -1\r\n\r\n"), "no HTTP", None),
    Fault("an endless length", sends(OK + b"Content-Length: 99999999999999999999\r\n\r\n"), "no HTTP", None),
    Fault("an endless chunk", sends(CHUNKED + b"5\r\nhello\r\nFFFFFFFFFFFFFFFFFF\r\n"), "no HTTP", body=b"hello"),
    Fault("a length after chunks", sends(CHUNKED + b"0\r\nContent-Length: 9\r\n\r\n"), "no HTTP"),
    Fault("no chunk", sends(CHUNKED + b"5\r\nhello\r\nxyz\r\n"), "no HTTP", body=b"hello"),
    Fault("an overlong chunk", sends(CHUNKED + b"5\r\nhello there\r\n"), "no HTTP", body=b"hello"),
    Fault("endless headers", (*sends(OK), Repeats(b"a: b\r\n")), "bytes besides", None),
    Fault("an endless header", (*sends(OK + b"a: "), Repeats(b"b" * 1024)), "bytes besides", None),
    Fault("an endless status", (*sends(b"HTTP/1.1 200 "), Repeats(b"b" * 1024)), "bytes besides", None),
    Fault("an endless interim", (Repeats(b"HTTP/1.1 100 Continue\r\n\r\n"),), "bytes besides", None),
    Fault("an endless chunk extension", (*sends(CHUNKED + b"5;"), Repeats(b"b" * 1024)), "bytes besides"),
    Fault("endless trailers", (*sends(CHUNKED + b"0\r\n"), Repeats(b"a: b\r\n")), "bytes besides"),
    Fault("blank lines without end", (Repeats(b"\r\n"),), "bytes besides", None),
    Fault("a large head at once", sends(OK + b"a: " + b"b" * 70_000 + b"\r\n\r\n"), "65536 bytes", None),
    Fault("many headers", sends(OK + b"a: b\r\n" * 300 + b"\r\n"), "more than 256 headers", None),
    Fault("a compressed body", sends(OK + b"Content-Encoding: gzip\r\n\r\n\x1f\x8b"), "encoded as 'gzip'", None),
    Fault("a strange encoding", sends(OK + b"Content-Encoding: " + b"x" * 999 + b"\r\n\r\n"), f"'{'x' * 40}'", None),
    Fault("a compressed transfer", sends(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n"), "transfer coding", None),
    Fault("an unknown transfer", sends(OK + b"Transfer-Encoding: xchunked\r\n\r\n"), "transfer coding", None),
    Fault("chunks twice", sends(OK + CHUNKS * 2 + b"\r\n"), "transfer coding", None),
    Fault("garbage", sends(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), "no HTTP", None),
    Fault("a page without a head", sends(b"<html>Bad Gateway</html>"), "no HTTP", None),
    Fault("another protocol", sends(b"SSH-2.0-OpenSSH_9.2\r\n"), "no HTTP", None),
    Fault("HTTP/2", sends(b"HTTP/2.0 200 OK\r\n\r\n"), "HTTP 2.0", None),
    Fault("no status", sends(b"HTTP/1.1 000 \r\n\r\n"), "status 0", None),
    Fault("a large status", sends(b"HTTP/1.1 2000 OK\r\n\r\n"), "no HTTP", None),
    Fault("bare line feeds", sends(b"HTTP/1.1 200 OK\nContent-Length: 0\n\n"), "no HTTP", None),
    Fault("a folded header", sends(OK + b"a: b\r\n c\r\n\r\n"), "no HTTP", None),
    Fault("a header without a name", sends(OK + b": b\r\n\r\n"), "no HTTP", None),
    Fault("a null in a header", sends(OK + b"a: \0\r\n\r\n"), "no HTTP", None),
    Fault("switches protocols", sends(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"), "status 101", None),
    Fault(
        "switches protocols at once",
        sends(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n\0\1"),
        "status 101",
        None,
    ),
    Fault("says that it closes", sends(SIZED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n0123456789")), None,
          body=b"0123456789"),
    Fault("an old server", sends(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc"), None, body=b"abc"),
    Fault("an old server without a length", sends(b"HTTP/1.0 200 OK\r\n\r\nab", b"c"), None, body=b"abc"),
    Fault("a body until the end", sends(OK + b"\r\nab", b"c"), None, body=b"abc"),
    Fault("a head until the end", sends(OK + b"\r\n"), None),
]  # fmt: skip


def plays(steps: tuple[Step, ...]) -> Script:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        for step in steps:
            match step:
                case Sends(data):
                    await peer.send(data)
                    await asyncio.sleep(0.01)
                case Repeats(data):
                    while True:
                        await peer.send(data)
                        await asyncio.sleep(0)
                case "holds the connection open":
                    await peer.gone()
                case _:
                    peer.reset()

    return script


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_a_misbehaving_server(fault: Fault) -> None:
    with nothing_left():
        async with (
            serving(plays(fault.steps), answering) as server,
            UpstreamClient(server.url, limits=fault.limits) as client,
        ):
            sink = Recorder()
            client.stream("POST", "/", {}, b"{}", sink)
            await sink.finished()
            assert (sink.status, sink.body) == (fault.status, fault.body)
            if fault.error is None:
                assert sink.error is None
            else:
                assert sink.error is not None
                assert fault.error in sink.error.reason
                assert sink.error.began is fault.began
            async with client.request("GET", "/") as response:
                assert await response.body(100) == b"fine"
            assert server.connections == 2


GOOD = {
    "sized": (OK + b"Content-Length: 3\r\n\r\nabc", b"abc"),
    "chunked": (CHUNKED + b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc"),
    "chunked in capitals": (OK + b"TRANSFER-ENCODING: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc"),
    "extensions and trailers": (CHUNKED + b"3;a=b\r\nabc\r\n0;c\r\nx: y\r\n\r\n", b"abc"),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\nabc", b"abc"),
    "hints": (b"HTTP/1.1 103 Hints\r\nLink: a\r\nContent-Length: 8\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\na", b"a"),
    "empty": (OK + b"Content-Length: 0\r\n\r\n", b""),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b""),
    "identity": (OK + b"Content-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
    "old but kept": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
    "a blank line before": (b"\r\n" + OK + b"Content-Length: 3\r\n\r\nabc", b"abc"),
}


@pytest.mark.parametrize("dribbled", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("name", GOOD)
async def test_a_good_response_is_taken_and_the_connection_used_again(name: str, dribbled: bool) -> None:
    response, body = GOOD[name]

    async def script(peer: Peer) -> None:
        await peer.read_request()
        for piece in [response[i : i + 1] for i in range(len(response))] if dribbled else [response]:
            await peer.send(piece)
            await asyncio.sleep(0.0002)
        await answering(peer)

    with nothing_left():
        async with serving(script) as server, UpstreamClient(server.url) as client:
            sink = Recorder()
            client.stream("POST", "/", {}, b"{}", sink)
            await sink.finished()
            assert sink.error is None
            assert sink.body == body
            async with client.request("GET", "/") as again:
                assert await again.body(100) == b"fine"
            assert server.connections == 1
