"""TLS to upstreams, with a CA of the test's own."""

import asyncio
import shutil
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engines.upstream import certificates
from tests.engines.upstream.certificates import Certificates
from tests.engines.upstream.server import OK, Peer, Recorder, answering, nothing_left, serving

from moonbase.engines.upstream.client import UpstreamClient
from moonbase.engines.upstream.limits import UpstreamLimits
from moonbase.errors import ConfigurationError, UpstreamFailed

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="TLS left out: the openssl command is missing"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certificates]:
    return certificates.make(tmp_path_factory.mktemp("tls"))


def trusting(made: Certificates, url: str, limits: UpstreamLimits | None = None) -> UpstreamClient:
    return UpstreamClient(url, ca_file=str(made.ca), limits=limits)


async def test_requests_over_tls_share_a_connection(made: Certificates) -> None:
    with nothing_left():
        async with serving(answering, tls=made.server) as server, trusting(made, server.url) as client:
            for body in (b"{}", b"x" * 3_000_000, None):
                async with client.request("POST", "/", body=body) as response:
                    assert await response.body(100) == b"fine"
            assert server.connections == 1


async def test_a_certificate_of_an_unknown_ca_is_refused(made: Certificates) -> None:
    with nothing_left():
        async with serving(answering, tls=made.server) as server, UpstreamClient(server.url) as client:
            with pytest.raises(UpstreamFailed, match=r"cannot be reached \(.*certificate verify failed") as failure:
                async with client.request("GET", "/"):
                    pass
            assert not failure.value.began
            assert isinstance(failure.value.__cause__, ssl.SSLCertVerificationError)


async def test_a_certificate_for_another_name_is_refused(made: Certificates) -> None:
    async with (
        serving(answering, tls=made.server) as server,
        trusting(made, f"https://localhost:{server.port}") as client,
    ):
        with pytest.raises(UpstreamFailed, match="Hostname mismatch"):
            async with client.request("GET", "/"):
                pass


async def test_a_server_that_does_not_speak_tls(made: Certificates) -> None:
    async def plain(peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(plain) as server, trusting(made, f"https://127.0.0.1:{server.port}") as client:
        with pytest.raises(UpstreamFailed, match="cannot be reached"):
            async with client.request("GET", "/"):
                pass


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_handshake_that_does_not_come(made: Certificates, cancelled: bool) -> None:
    left: list[float] = []

    async def silent(peer: Peer) -> None:
        left.append(await peer.gone())

    with nothing_left():
        async with serving(silent) as server:
            limits = UpstreamLimits(connect_timeout=5 if cancelled else 0.1)
            async with trusting(made, f"https://127.0.0.1:{server.port}", limits) as client:
                sink = Recorder()
                exchange = client.stream("GET", "/", {}, None, sink)
                if cancelled:
                    await asyncio.sleep(0.05)
                    at = time.monotonic()
                    exchange.cancel()
                    await asyncio.sleep(0.2)
                    assert left[0] - at < 0.25
                else:
                    await sink.finished()
                    assert sink.error is not None
                    assert "took no connection within 0.1 s" in sink.error.reason


async def test_a_cancellation_over_tls_is_seen_at_once(made: Certificates) -> None:
    left: list[float] = []

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        left.append(await peer.gone())

    with nothing_left():
        async with serving(script, tls=made.server) as server, trusting(made, server.url) as client:
            sink = Recorder()
            exchange = client.stream("GET", "/", {}, None, sink)
            await asyncio.sleep(0.1)
            assert sink.body == b"abc"
            at = time.monotonic()
            exchange.cancel()
            await asyncio.sleep(0.1)
            assert left[0] - at < 0.25


async def test_what_is_not_read_stays_with_the_server_over_tls(made: Certificates) -> None:
    body = bytes(range(256)) * 64 * 1024

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(OK + b"Content-Length: %d\r\n\r\n" % len(body))
        await peer.send(body)
        await peer.gone()

    async with (
        serving(script, tls=made.server) as server,
        trusting(made, server.url) as client,
        client.request("GET", "/") as response,
    ):
        await asyncio.sleep(0.2)
        assert len(await response.read()) < len(body)
        while await response.read():
            pass


async def test_a_body_until_the_end_over_tls(made: Certificates) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(OK + b"\r\nabc")

    async with (
        serving(script, tls=made.server) as server,
        trusting(made, server.url) as client,
        client.request("GET", "/") as response,
    ):
        assert await response.body(100) == b"abc"


async def test_a_ca_file_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(ConfigurationError, match="the CA file"):
            UpstreamClient("https://127.0.0.1", ca_file=str(tmp_path / name))
