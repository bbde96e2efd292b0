"""Proxies from the environment: a small real one, asked for tunnels and for absolute URLs."""

import asyncio
import base64
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from tests.engines.upstream import certificates
from tests.engines.upstream.certificates import Certificates
from tests.engines.upstream.server import ANSWER, Asked, Peer, Recorder, Server, answering, nothing_left, serving

from moonbase.engines.upstream.client import UpstreamClient
from moonbase.engines.upstream.limits import UpstreamLimits
from moonbase.errors import ConfigurationError, UpstreamFailed

pytestmark = pytest.mark.anyio

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl command is missing")
VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certificates]:
    return certificates.make(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def proxying(target: int | None = None) -> AsyncIterator[tuple[Server, list[Asked]]]:
    """A proxy that knows one server, on port `target` of this machine, under every name."""
    asked: list[Asked] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.read_head()
            asked.append(request)
            if not request.line.startswith("CONNECT "):
                await peer.send(ANSWER)
                continue
            reader, writer = await asyncio.open_connection("127.0.0.1", target)
            await peer.send(b"HTTP/1.1 200 Connection Established\r\nX: y\r\n\r\n")
            try:
                await asyncio.gather(pump(peer.reader, writer), pump(reader, peer.writer))
            finally:
                writer.close()
            return

    async with serving(script) as proxy:
        yield proxy, asked


async def test_http_goes_to_the_proxy_with_the_whole_url(monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxying() as (proxy, asked):
        monkeypatch.setenv("HTTP_PROXY", f"http://user:p%40ss@127.0.0.1:{proxy.port}/")
        async with UpstreamClient("http://engine.test:8000/v1", headers={"Authorization": "Bearer x"}) as client:
            for _ in range(2):
                async with client.request("GET", "/models") as response:
                    assert await response.body(100) == b"fine"
        assert proxy.connections == 1
    assert [request.line for request in asked] == ["GET http://engine.test:8000/v1/models HTTP/1.1"] * 2
    assert asked[0].headers["host"] == "engine.test:8000"
    assert asked[0].headers["proxy-authorization"] == f"Basic {base64.b64encode(b'user:p@ss').decode()}"


@needs_openssl
async def test_https_goes_through_a_tunnel(monkeypatch: pytest.MonkeyPatch, made: Certificates) -> None:
    with nothing_left():
        async with serving(answering, tls=made.server) as server, proxying(server.port) as (proxy, asked):
            monkeypatch.setenv("https_proxy", f"http://user:pass@127.0.0.1:{proxy.port}")
            headers = {"Authorization": "Bearer s3cret"}
            async with UpstreamClient("https://engine.test/v1", headers=headers, ca_file=str(made.ca)) as client:
                for body in (b"{}", b"x" * 1_000_000):
                    async with client.request("POST", "/chat", body=body) as response:
                        assert await response.body(100) == b"fine"
            assert (proxy.connections, server.connections) == (1, 1)
    assert asked == [
        Asked(
            "CONNECT engine.test:443 HTTP/1.1",
            {
                "host": "engine.test:443",
                "proxy-authorization": f"Basic {base64.b64encode(b'user:pass').decode()}",
            },
        )
    ]


@needs_openssl
async def test_a_tunnel_does_not_weaken_the_check_of_names(monkeypatch: pytest.MonkeyPatch, made: Certificates) -> None:
    async with serving(answering, tls=made.server) as server, proxying(server.port) as (proxy, _):
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        async with UpstreamClient("https://other.test", ca_file=str(made.ca)) as client:
            with pytest.raises(UpstreamFailed, match="Hostname mismatch"):
                async with client.request("GET", "/"):
                    pass


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (
            b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
            "refused the tunnel with status 407",
        ),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", "refused the tunnel with status 302"),
        (b"HTTP/1.1 200 Fine\r\n\r\nSurprise", "sent data before it was asked"),
        (b"SSH-2.0\r\n\r\n", "sent what is no HTTP response"),
        (b"HTTP/1.1 \r\n\r\n", "sent what is no HTTP response"),
        (b"HTTP/1.1 200 Fine\r\n" + b"a: b\r\n" * 5000, "sent an endless answer"),
        (b"HTTP/1.1 200", "closed the connection"),
        (b"", "closed the connection"),
    ],
)
async def test_a_proxy_that_opens_no_tunnel(monkeypatch: pytest.MonkeyPatch, reply: bytes, reason: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(reply)

    with nothing_left():
        async with serving(script) as proxy:
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
            async with UpstreamClient("https://engine.test") as client:
                with pytest.raises(UpstreamFailed, match=f"engine.test:443 cannot be reached .the proxy {reason}"):
                    async with client.request("GET", "/"):
                        pass


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_proxy_that_is_silent(monkeypatch: pytest.MonkeyPatch, cancelled: bool) -> None:
    left: list[float] = []

    async def script(peer: Peer) -> None:
        left.append(await peer.gone())

    with nothing_left():
        async with serving(script) as proxy:
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
            limits = UpstreamLimits(connect_timeout=5 if cancelled else 0.1)
            async with UpstreamClient("https://engine.test", limits=limits) as client:
                sink = Recorder()
                exchange = client.stream("GET", "/", {}, None, sink)
                await asyncio.sleep(0.05)
                if cancelled:
                    exchange.cancel()
                else:
                    await sink.finished()
                    assert sink.error is not None
                    assert "took no connection within 0.1 s" in sink.error.reason
                await asyncio.sleep(0.05)
                assert left


@pytest.mark.parametrize(
    ("url", "no_proxy"),
    [
        ("http://127.0.0.1:{port}", None),
        ("http://localhost:{port}", None),
        ("http://127.0.0.1:{port}", ""),
    ],
)
async def test_loopback_is_never_proxied(monkeypatch: pytest.MonkeyPatch, url: str, no_proxy: str | None) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    if no_proxy is not None:
        monkeypatch.setenv("no_proxy", no_proxy)
    async with (
        serving(answering) as server,
        UpstreamClient(url.format(port=server.port)) as client,
        client.request("GET", "/") as response,
    ):
        assert await response.body(100) == b"fine"


@pytest.mark.parametrize(
    ("no_proxy", "proxied"),
    [
        ("engine.test", False),
        (".test", False),
        ("test", False),
        ("engine.test:8000", False),
        ("*", False),
        ("engine.test:9000", True),
        ("other.test,gine.test", True),
        ("", True),
    ],
)
async def test_no_proxy_is_read_as_urllib_reads_it(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str, proxied: bool
) -> None:
    async with proxying() as (proxy, asked):
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", no_proxy)
        async with UpstreamClient("http://engine.test:8000", limits=UpstreamLimits(connect_timeout=2)) as client:
            sink = Recorder()
            client.stream("GET", "/", {}, None, sink)
            await sink.finished()
        assert bool(asked) is proxied


@pytest.mark.parametrize(
    "proxy", ["socks5://127.0.0.1:1", "https://127.0.0.1:1", "http://", "http://a b", "http://x:y"]
)
async def test_a_proxy_that_cannot_be_used_stops_the_start(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy.replace("//", "//user:s3cret@"))
    with pytest.raises(ConfigurationError, match="HTTP_PROXY") as refusal:
        UpstreamClient("http://engine.test")
    assert "s3cret" not in str(refusal.value)
