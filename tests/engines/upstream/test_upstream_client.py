"""The upstream client against servers that behave, are slow, restart, or get more than they can take."""

import asyncio
import contextlib
import socket
import time

import pytest
from tests.engines.upstream.server import ANSWER, OK, Asked, Peer, Recorder, answering, nothing_left, serving

from moonbase.engines.upstream.client import UpstreamClient
from moonbase.engines.upstream.connection import Connection
from moonbase.engines.upstream.exchange import Exchange, Headers
from moonbase.engines.upstream.limits import UpstreamLimits
from moonbase.engines.upstream.pool import Pool
from moonbase.errors import ConfigurationError, UpstreamFailed

pytestmark = pytest.mark.anyio

CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LARGE = b"0123456789abcdef" * 512 * 1024  # 8 MiB: more than all buffers on the way hold


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def silent(peer: Peer) -> None:
    """Reads a request and says nothing."""
    await peer.read_request()
    await peer.gone()


async def unread(peer: Peer) -> None:
    """Reads the head and leaves the body."""
    await peer.read_head()
    await asyncio.sleep(60)


async def test_a_request_is_what_was_asked_for() -> None:
    asked: list[Asked] = []

    async def script(peer: Peer) -> None:
        while True:
            asked.append(await peer.read_request())
            await peer.send(ANSWER)

    async with serving(script) as server:
        client = UpstreamClient(f"{server.url}/v1/", headers={"Authorization": "Bearer s3cret"})
        async with client:
            async with client.request("GET", "/models?limit=3") as response:
                assert response.status == 200
                assert response.headers.get("content-LENGTH") == "4"
                assert response.headers.get("x") is None
                assert dict(response.headers) == {"content-length": "4"}
                assert await response.body(4) == b"fine"
                assert await response.read() == b""
            async with client.request("POST", "/chat", headers={"Content-Type": "text/x"}, body=b"hello"):
                pass
            async with client.request("DELETE", "/chat/1"):
                pass
    common = {
        "host": f"127.0.0.1:{server.port}",
        "accept-encoding": "identity",
        "authorization": "Bearer s3cret",
        "user-agent": "moonbase",
    }
    assert asked == [
        Asked("GET /v1/models?limit=3 HTTP/1.1", common),
        Asked("POST /v1/chat HTTP/1.1", {**common, "content-type": "text/x", "content-length": "5"}, b"hello"),
        Asked("DELETE /v1/chat/1 HTTP/1.1", {**common, "content-length": "0"}),
    ]


async def test_a_redirect_is_a_response_like_any_other() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")

    async with serving(script) as server, UpstreamClient(server.url) as client:
        async with client.request("POST", "/", body=b"{}") as response:
            assert response.status == 307
            assert response.headers.get("location") == "http://127.0.0.1:1/"
            assert await response.read() == b""
        assert server.connections == 1


async def test_all_that_one_packet_brings_is_one_piece() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(CHUNKED)
        await asyncio.sleep(0.02)
        await peer.send(b"".join(chunk(b"data: %d\n\n" % i) for i in range(100)))
        await asyncio.sleep(0.02)
        await peer.send(b"0\r\n\r\n")

    async with serving(script) as server, UpstreamClient(server.url) as client:
        sink = Recorder()
        client.stream("POST", "/", {}, b"{}", sink)
        await sink.finished()
        assert sink.pieces == [b"".join(b"data: %d\n\n" % i for i in range(100))]


async def test_no_call_to_the_sink_is_made_before_stream_returns() -> None:
    async with serving(answering) as server, UpstreamClient(server.url) as client:
        for _ in range(3):
            sink = Recorder()
            client.stream("GET", "/", {}, None, sink)
            assert (sink.status, sink.done) == (None, False)
            await sink.finished()


async def test_a_body_of_100_megabytes_arrives_whole() -> None:
    size = 0

    async def script(peer: Peer) -> None:
        nonlocal size
        asked = await peer.read_head()
        while size < int(asked.headers["content-length"]):
            size += len(await peer.reader.read(1 << 20))
        await peer.send(ANSWER)

    async with serving(script) as server, UpstreamClient(server.url) as client:
        async with client.request("POST", "/", body=bytes(100_000_000)) as response:
            assert response.status == 200
        assert size == 100_000_000


async def test_a_large_body_does_not_hold_up_the_event_loop() -> None:
    async with serving(unread) as server, UpstreamClient(server.url) as client:
        client.stream("POST", "/", {}, bytes(100_000_000), Recorder())
        longest, before = 0.0, time.monotonic()
        for _ in range(200):
            await asyncio.sleep(0)
            longest, before = max(longest, time.monotonic() - before), time.monotonic()
        assert longest < 0.5


async def test_a_server_that_does_not_read_the_body_is_given_up() -> None:
    limits = UpstreamLimits(idle_timeout=0.1)
    async with serving(unread) as server, UpstreamClient(server.url, limits=limits) as client:
        with pytest.raises(UpstreamFailed, match="read nothing of the request"):
            async with client.request("POST", "/", body=LARGE * 4):
                pass


@pytest.mark.parametrize("reads_on", [False, True], ids=["leaves the body", "reads on"])
async def test_an_answer_before_the_body_was_sent_is_delivered_and_the_rest_kept_back(reads_on: bool) -> None:
    received = 0

    async def script(peer: Peer) -> None:
        nonlocal received
        await peer.read_head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\n")
        await asyncio.sleep(0.05)
        await peer.send(b"too large")
        while reads_on and (data := await peer.reader.read(1 << 20)):
            received += len(data)
        await asyncio.sleep(1)

    with nothing_left():
        async with serving(script, answering) as server, UpstreamClient(server.url) as client:
            async with client.request("POST", "/", body=LARGE * 4) as response:
                assert response.status == 413
                assert await response.body(100) == b"too large"
            async with client.request("GET", "/") as response:
                assert await response.body(100) == b"fine"
            assert server.connections == 2
    assert received < len(LARGE) * 4


@pytest.mark.parametrize("how", ["closes", "resets"])
async def test_a_kept_connection_that_died_unnoticed_is_replaced_once(how: str) -> None:
    async def once(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(ANSWER)
        await peer.read_request()
        if how == "resets":
            peer.reset()

    async with serving(once, answering) as server, UpstreamClient(server.url) as client:
        for _ in range(2):
            async with client.request("POST", "/", body=b"x" * 100_000) as response:
                assert await response.body(100) == b"fine"
        assert server.connections == 2


async def test_the_replacement_of_a_dead_connection_is_not_replaced() -> None:
    async def once(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(ANSWER)
        await peer.read_request()

    async def never(peer: Peer) -> None:
        await peer.read_request()

    async with serving(once, never) as server, UpstreamClient(server.url) as client:
        async with client.request("POST", "/", body=b"{}") as response:
            await response.body(100)
        with pytest.raises(UpstreamFailed, match="closed the connection before it answered") as failure:
            async with client.request("POST", "/", body=b"{}"):
                pass
        assert not failure.value.began
        assert server.connections == 2


@pytest.mark.parametrize("begun", [b"H", b"\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", CHUNKED])
async def test_nothing_is_sent_again_once_a_byte_came(begun: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(ANSWER)
        await peer.read_request()
        await peer.send(begun)

    async with serving(script) as server, UpstreamClient(server.url) as client:
        async with client.request("POST", "/", body=b"{}") as response:
            await response.body(100)
        with pytest.raises(UpstreamFailed, match="closed the connection inside") as failure:
            async with client.request("POST", "/", body=b"{}") as response:
                await response.body(100)
        assert failure.value.began
        assert server.connections == 1


async def test_a_time_limit_is_no_reason_to_ask_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(ANSWER)
        await silent(peer)

    limits = UpstreamLimits(first_byte_timeout=0.1)
    async with serving(script) as server, UpstreamClient(server.url, limits=limits) as client:
        async with client.request("POST", "/", body=b"{}") as response:
            await response.body(100)
        with pytest.raises(UpstreamFailed, match="did not answer"):
            async with client.request("POST", "/", body=b"{}"):
                pass
        assert server.connections == 1


async def test_time_limits_hold_to_the_moment() -> None:
    """The timer is set for the shortest limit; none comes early or late by that."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await asyncio.sleep(0.25)
        await peer.send(CHUNKED)
        for _ in range(4):
            await asyncio.sleep(0.15)
            await peer.send(chunk(b"x"))
        await peer.gone()

    limits = UpstreamLimits(first_byte_timeout=0.35, idle_timeout=0.25, keepalive=0.07)
    async with serving(script) as server, UpstreamClient(server.url, limits=limits) as client:
        sink = Recorder()
        client.stream("POST", "/", {}, b"{}", sink)
        last = time.monotonic()
        while not sink.done:
            pieces = len(sink.pieces)
            await sink.progress()
            if len(sink.pieces) > pieces:
                last = time.monotonic()
        assert sink.body == b"xxxx"
        assert sink.error is not None
        assert "was silent for 0.25 s" in sink.error.reason
        assert 0.24 < time.monotonic() - last < 0.5


async def test_a_connection_that_is_not_used_is_closed_after_its_time() -> None:
    left: list[float] = []

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await asyncio.sleep(0.15)  # so that the timer has met a longer limit before
        await peer.send(ANSWER)
        left.append(await peer.gone())

    limits = UpstreamLimits(keepalive=0.1)
    async with serving(script) as server, UpstreamClient(server.url, limits=limits) as client:
        async with client.request("GET", "/") as response:
            await response.body(100)
        free = time.monotonic()
        await asyncio.sleep(0.25)
        assert 0.09 < left[0] - free < 0.2
        async with client.request("GET", "/") as response:
            await response.body(100)
        assert server.connections == 2


async def test_any_byte_is_a_sign_of_life() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        for piece in (CHUNKED, b"3\r\n", b"abc\r\n", b"0\r\n", b"\r\n"):
            await peer.send(piece)
            await asyncio.sleep(0.15)

    limits = UpstreamLimits(idle_timeout=0.25)
    async with (
        serving(script) as server,
        UpstreamClient(server.url, limits=limits) as client,
        client.request("GET", "/") as response,
    ):
        assert await response.body(100) == b"abc"


async def test_trailers_are_no_headers() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(CHUNKED + b"0\r\nX-Late: yes\r\n\r\n")

    async with (
        serving(script) as server,
        UpstreamClient(server.url) as client,
        client.request("GET", "/") as response,
    ):
        await response.body(100)
        assert list(response.headers) == [("transfer-encoding", "chunked")]
        assert "x-late" not in response.headers


async def test_a_free_connection_that_says_something_is_dropped() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(ANSWER)
        await asyncio.sleep(0.02)
        await peer.send(ANSWER)
        await peer.gone()

    async with serving(script, answering) as server, UpstreamClient(server.url) as client:
        async with client.request("GET", "/") as response:
            assert await response.body(100) == b"fine"
        await asyncio.sleep(0.05)
        sink = Recorder()
        client.stream("GET", "/", {}, None, sink)
        await sink.finished()
        assert sink.body == b"fine"
        assert server.connections == 2


async def test_the_connection_used_last_is_used_first() -> None:
    used: list[int] = []

    async def script(peer: Peer) -> None:
        number = server.connections
        while True:
            await peer.read_request()
            used.append(number)
            await asyncio.sleep(0.02 * number)
            await peer.send(ANSWER)

    async with serving(script) as server, UpstreamClient(server.url) as client:
        sinks = [Recorder() for _ in range(3)]
        for sink in sinks:
            client.stream("GET", "/", {}, None, sink)
        for sink in sinks:
            await sink.finished()
        assert sorted(used) == [1, 2, 3]
        for _ in range(3):
            async with client.request("GET", "/") as response:
                await response.body(100)
        assert used[3:] == [3, 3, 3]


async def test_a_request_over_the_bound_waits_for_a_free_connection() -> None:
    running = most = 0

    async def script(peer: Peer) -> None:
        nonlocal running, most
        while True:
            await peer.read_request()
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            running -= 1
            await peer.send(ANSWER)

    limits = UpstreamLimits(max_connections=2)
    async with serving(script) as server, UpstreamClient(server.url, limits=limits) as client:
        sinks = [Recorder() for _ in range(10)]
        order: list[int] = []
        for sink in sinks:
            client.stream("GET", "/", {}, None, sink)
        for number, sink in enumerate(sinks):
            await sink.finished()
            order.append(number)
        assert [sink.body for sink in sinks] == [b"fine"] * 10
        assert most == server.connections == 2


async def test_those_who_wait_get_new_connections_for_broken_ones() -> None:
    async def breaking(peer: Peer) -> None:
        await peer.read_request()

    limits = UpstreamLimits(max_connections=1)
    async with serving(breaking, answering) as server, UpstreamClient(server.url, limits=limits) as client:
        sinks = [Recorder() for _ in range(3)]
        for sink in sinks:
            client.stream("GET", "/", {}, None, sink)
        for sink in sinks:
            await sink.finished()
        assert [sink.body for sink in sinks] == [b"", b"fine", b"fine"]
        assert server.connections == 2


async def test_waiting_for_a_connection_has_an_end_and_can_be_given_up() -> None:
    limits = UpstreamLimits(max_connections=1, connect_timeout=0.1)
    with nothing_left():
        async with serving(silent) as server, UpstreamClient(server.url, limits=limits) as client:
            client.stream("GET", "/", {}, None, Recorder())
            late, withdrawn = Recorder(), Recorder()
            client.stream("GET", "/", {}, None, late)
            client.stream("GET", "/", {}, None, withdrawn).cancel()
            await late.finished()
            assert late.error is not None
            assert "all 1 connections in use" in late.error.reason
            assert not late.error.began
            assert not withdrawn.done


async def test_a_server_that_is_not_there() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with nothing_left():
            async with UpstreamClient(url, limits=UpstreamLimits(max_connections=2)) as client:
                sinks = [Recorder() for _ in range(5)]
                for sink in sinks:
                    client.stream("GET", "/", {}, None, sink)
                for sink in sinks:
                    await sink.finished()
                    assert sink.error is not None
                    assert "cannot be reached" in sink.error.reason
                    assert not sink.error.began
                    assert isinstance(sink.error.__cause__, OSError)


async def test_a_name_that_does_not_exist() -> None:
    async with UpstreamClient("http://name.invalid") as client:
        with pytest.raises(UpstreamFailed, match=r"name.invalid:80 (cannot be reached|took no connection)"):
            async with client.request("GET", "/"):
                pass


@pytest.mark.parametrize("moment", ["waiting for the answer", "streaming", "sending", "not reading", "at the end"])
async def test_the_server_sees_a_cancellation_at_once(moment: str) -> None:
    left: list[float] = []
    body = b"{}" if moment != "sending" else LARGE * 4

    async def script(peer: Peer) -> None:
        await peer.read_head()
        if moment == "sending":
            await asyncio.sleep(0.1)
        elif moment != "waiting for the answer":
            await peer.send(CHUNKED + chunk(b"x" * 1000))
        left.append(await peer.gone())

    with nothing_left():
        async with serving(script) as server, UpstreamClient(server.url) as client:
            sink = Recorder()
            exchange = client.stream("POST", "/", {}, body, sink)
            await asyncio.sleep(0.05)
            if moment == "not reading":
                exchange.pause()
            cancelled = time.monotonic()
            exchange.cancel()
            exchange.cancel()
            exchange.resume()
            for _ in range(50):
                await asyncio.sleep(0.01)
                if left:
                    break
            assert left[0] - cancelled < 0.25
            assert not sink.done


@pytest.mark.parametrize("call", ["head", "data"])
async def test_a_sink_may_cancel_from_inside_a_call(call: str) -> None:
    class Impatient(Recorder):
        def data(self, data: bytes) -> None:
            super().data(data)
            if call == "data":
                exchange.cancel()

        def head(self, status: int, headers: object) -> None:
            super().head(status, headers)  # type: ignore[arg-type]
            if call == "head":
                exchange.cancel()

    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(CHUNKED + chunk(b"one"))
        await asyncio.sleep(0.01)
        await peer.send(chunk(b"two") + b"0\r\n\r\n")
        await peer.gone()
        gone.set()

    async with serving(script) as server, UpstreamClient(server.url) as client:
        sink = Impatient()
        exchange = client.stream("POST", "/", {}, b"{}", sink)
        await asyncio.wait_for(gone.wait(), 5)
        assert sink.body == (b"one" if call == "data" else b"")
        assert not sink.done


async def test_a_sink_may_ask_again_from_its_last_call() -> None:
    class Chain(Recorder):
        def __init__(self, left: int) -> None:
            super().__init__()
            self.left = left

        def end(self) -> None:
            super().end()
            if self.left:
                self.next = Chain(self.left - 1)
                client.stream("GET", "/", {}, None, self.next)

    async with serving(answering) as server, UpstreamClient(server.url) as client:
        chain = Chain(20)
        client.stream("GET", "/", {}, None, chain)
        while True:
            await chain.finished()
            assert chain.body == b"fine"
            if not chain.left:
                break
            chain = chain.next
        assert server.connections == 2  # the one that it asks from is not free before it has returned


class Judge(Recorder):
    """Cancels in one of its calls."""

    exchange: Exchange

    def __init__(self, call: str) -> None:
        super().__init__()
        self.call = call

    def head(self, status: int, headers: Headers) -> None:
        super().head(status, headers)
        self.judge("head")

    def data(self, data: bytes) -> None:
        super().data(data)
        self.judge("data")

    def end(self) -> None:
        super().end()
        self.judge("end")

    def judge(self, call: str) -> None:
        if call == self.call:
            self.exchange.cancel()


@pytest.mark.parametrize("awaited", [False, True], ids=["nobody waits", "somebody waits for it"])
@pytest.mark.parametrize("call", ["head", "data", "end"])
async def test_a_connection_whose_sink_cancels_up_to_the_end_is_not_used_again(call: str, awaited: bool) -> None:
    """The whole response comes in one read."""
    limits = UpstreamLimits(max_connections=1)
    with nothing_left():
        async with serving(answering) as server, UpstreamClient(server.url, limits=limits) as client:
            judge, other = Judge(call), Recorder()
            judge.exchange = client.stream("GET", "/", {}, None, judge)
            if not awaited:
                await judge.progress()
            client.stream("GET", "/", {}, None, other)
            await other.finished()
            assert other.body == b"fine"
            assert judge.ended is (call == "end")
            assert server.connections == 2


@pytest.mark.parametrize("how", ["released", "cancelled", "forgotten"])
async def test_a_connection_that_is_held_serves_nobody_else(how: str) -> None:
    class Holding(Recorder):
        def end(self) -> None:
            super().end()
            exchange.hold()

    limits = UpstreamLimits(max_connections=1, keepalive=0.2)
    with nothing_left():
        async with serving(answering) as server, UpstreamClient(server.url, limits=limits) as client:
            sink, other = Holding(), Recorder()
            exchange = client.stream("GET", "/", {}, None, sink)
            await sink.finished()
            client.stream("GET", "/", {}, None, other)
            await asyncio.sleep(0.1)
            assert not other.done
            if how == "released":
                exchange.release()
                exchange.release()
                exchange.cancel()
            elif how == "cancelled":
                exchange.cancel()
                exchange.release()
            await other.finished()
            assert other.body == b"fine"
            assert server.connections == (1 if how == "released" else 2)
            exchange.release()


async def test_closing_the_client_closes_a_connection_that_is_held() -> None:
    class Holding(Recorder):
        def end(self) -> None:
            super().end()
            exchange.hold()

    with nothing_left():
        async with serving(answering) as server:
            async with UpstreamClient(server.url) as client:
                sink = Holding()
                exchange = client.stream("GET", "/", {}, None, sink)
                await sink.finished()
            exchange.release()


@pytest.mark.parametrize("how", ["read", "left unread", "too long", "an error"])
async def test_a_request_that_is_left_with_an_error_closes_its_connection(how: str) -> None:
    async with serving(answering) as server, UpstreamClient(server.url) as client:
        with contextlib.suppress(UpstreamFailed, ZeroDivisionError):
            async with client.request("GET", "/") as response:
                await asyncio.sleep(0.05)
                match how:
                    case "read":
                        assert await response.body(4) == b"fine"
                    case "too long":
                        with pytest.raises(UpstreamFailed, match="larger than 3 bytes"):
                            await response.body(3)
                    case "an error":
                        raise ZeroDivisionError
        async with client.request("GET", "/") as response:
            assert await response.body(4) == b"fine"
        assert server.connections == (1 if how in ("read", "left unread") else 2)


async def test_what_is_not_read_stays_with_the_server() -> None:
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.read_request()
        await peer.send(OK + b"Content-Length: %d\r\n\r\n" % (len(LARGE) * 4))
        for i in range(0, len(LARGE) * 4, 65536):
            await peer.send(LARGE[i % len(LARGE) :][:65536])
            sent += 65536
        await peer.gone()

    limits = UpstreamLimits(idle_timeout=0.2)
    async with (
        serving(script) as server,
        UpstreamClient(server.url, limits=limits) as client,
        client.request("GET", "/") as response,
    ):
        await asyncio.sleep(0.5)  # longer than the idle limit, which does not count a reader's own pause
        assert sent < len(LARGE) * 2
        assert await response.body(len(LARGE) * 4) == LARGE * 4


async def test_a_pause_before_the_answer_holds_from_its_beginning() -> None:
    async with serving(answering) as server, UpstreamClient(server.url) as client:
        for _ in range(2):  # on a new connection, then on a kept one
            sink = Recorder()
            exchange = client.stream("GET", "/", {}, None, sink)
            exchange.pause()
            await asyncio.sleep(0.05)
            assert sink.status is None
            exchange.resume()
            await sink.finished()
            assert sink.body == b"fine"
        assert server.connections == 1


async def test_a_connection_that_was_paused_to_the_end_is_read_again() -> None:
    class Pausing(Recorder):
        def data(self, data: bytes) -> None:
            super().data(data)
            exchange.pause()

    async with serving(answering) as server, UpstreamClient(server.url) as client:
        for _ in range(3):
            sink = Pausing()
            exchange = client.stream("GET", "/", {}, None, sink)
            await sink.finished()
        assert server.connections == 1


async def test_leaving_a_response_early_cancels_it() -> None:
    left: list[float] = []

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(CHUNKED + chunk(b"first"))
        left.append(await peer.gone())

    async with serving(script) as server, UpstreamClient(server.url) as client:
        async with client.request("GET", "/") as response:
            assert await response.read() == b"first"
        await asyncio.sleep(0.05)
        assert left
        with pytest.raises(UpstreamFailed, match="left before its end"):
            await response.read()


async def test_cancelling_the_reader_cancels_the_request() -> None:
    left: list[float] = []

    async def script(peer: Peer) -> None:
        await peer.read_request()
        left.append(await peer.gone())

    with nothing_left():
        async with serving(script) as server, UpstreamClient(server.url) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), client.request("GET", "/"):
                    pass
            await asyncio.sleep(0.05)
            assert left


async def test_what_came_before_a_failure_is_read_first() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(CHUNKED + chunk(b"one") + chunk(b"two"))

    async with (
        serving(script) as server,
        UpstreamClient(server.url) as client,
        client.request("GET", "/") as response,
    ):
        await asyncio.sleep(0.05)
        assert await response.read() == b"onetwo"
        with pytest.raises(UpstreamFailed, match="closed the connection inside the response"):
            await response.read()


async def test_a_body_over_the_limit_fails() -> None:
    async with (
        serving(answering) as server,
        UpstreamClient(server.url) as client,
        client.request("GET", "/") as response,
    ):
        with pytest.raises(UpstreamFailed, match="larger than 3 bytes"):
            await response.body(3)


async def test_closing_the_client_fails_what_runs() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(CHUNKED)
        await peer.gone()

    with nothing_left():
        async with serving(script) as server:
            sinks = [Recorder() for _ in range(4)]
            async with UpstreamClient(server.url, limits=UpstreamLimits(max_connections=2)) as client:
                for sink in sinks[:3]:
                    client.stream("GET", "/", {}, None, sink)
                await asyncio.sleep(0.05)
                client.stream("GET", "/", {}, None, sinks[3])
            assert [sink.error.reason.partition(" ")[2] for sink in sinks if sink.error] == [
                "was given up: its client was closed"
            ] * 4
            assert [sink.status for sink in sinks] == [200, 200, None, None]


async def test_closing_the_client_ends_what_is_connecting() -> None:
    with nothing_left():
        async with serving(answering) as server:
            sink, withdrawn = Recorder(), Recorder()
            async with UpstreamClient(server.url) as client:
                client.stream("GET", "/", {}, None, sink)
                client.stream("GET", "/", {}, None, withdrawn).cancel()
            assert sink.error is not None
            assert not withdrawn.done


@pytest.mark.parametrize("turns", range(8))
async def test_a_cancellation_while_connecting_leaves_nothing(turns: int) -> None:
    limits = UpstreamLimits(max_connections=1)
    with nothing_left():
        async with serving(answering) as server, UpstreamClient(server.url, limits=limits) as client:
            sink = Recorder()
            exchange = client.stream("GET", "/", {}, None, sink)
            for _ in range(turns):
                await asyncio.sleep(0)
            exchange.cancel()
            cancelled_late = sink.done
            async with client.request("GET", "/") as response:
                assert await response.body(100) == b"fine"
            assert sink.done == cancelled_late


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"X-A": "b\r\nX-B: c"}, "the header X-A holds control characters"),
        ({"X-A": "b\nX-B: c"}, "control characters"),
        ({"X-A": "b\0"}, "control characters"),
        ({"X-A": "\u2028"}, "not latin-1"),
        ({"X-A\r\nX-B": "c"}, "is not a header name"),
        ({"X A": "c"}, "is not a header name"),
        ({"": "c"}, "is not a header name"),
        ({"X-A:": "c"}, "is not a header name"),
        ({"Content-Length": "3"}, "the header Content-Length is set already"),
        ({"transfer-ENCODING": "chunked"}, "set already"),
        ({"Host": "example.com"}, "set already"),
        ({"Accept-Encoding": "gzip"}, "set already"),
        ({"authorization": "Bearer other"}, "set already"),
        ({"X-A": "b", "x-a": "c"}, "given twice"),
    ],
)
async def test_headers_cannot_break_out_of_their_line(headers: dict[str, str], message: str) -> None:
    async with UpstreamClient("http://127.0.0.1:1", headers={"Authorization": "Bearer s3cret"}) as client:
        with pytest.raises(ValueError, match=message) as refusal:
            client.stream("GET", "/", headers, None, Recorder())
        assert "s3cret" not in str(refusal.value)


@pytest.mark.parametrize("path", ["", "x", "/a b", "/a\r\nX: y", "/a#b", "/ä", "http://other/", "/\0"])
async def test_a_path_cannot_break_out_of_its_line(path: str) -> None:
    async with UpstreamClient("http://127.0.0.1:1") as client:
        with pytest.raises(ValueError, match="is not a path"):
            client.stream("GET", path, {}, None, Recorder())


async def test_secrets_are_in_no_representation() -> None:
    with pytest.raises(ConfigurationError) as refusal:
        UpstreamClient("http://127.0.0.1:1", headers={"Authorization": "Bearer s3cret\n"})
    assert "s3cret" not in str(refusal.value)
    async with serving(silent) as server:
        sink = Recorder()
        async with UpstreamClient(server.url, headers={"Authorization": "Bearer s3cret"}) as client:
            exchange = client.stream("POST", "/", {"X-Key": "s3cret"}, b"s3cret", sink)
            await asyncio.sleep(0.02)
            assert "s3cret" not in f"{client!r} {exchange!r} {asyncio.all_tasks()!r}"
        assert "s3cret" not in repr(sink.error)


async def test_a_new_connection_does_not_age_before_it_is_used() -> None:
    """When the process stands still between the two, for longer than a connection may be unused."""
    async with serving(answering) as server:

        async def connect(connection: Connection) -> None:
            await asyncio.get_running_loop().create_connection(lambda: connection, "127.0.0.1", server.port)
            await asyncio.sleep(0.2)

        pool = Pool(connect, "upstream", UpstreamLimits(keepalive=0.1))
        sink = Recorder()
        pool.submit(Exchange(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", None, sink, pool.withdraw))
        await sink.finished()
        assert sink.status == 200
        await pool.close()
