"""Runs a server: sockets, signals, a graceful end."""

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import uvicorn
import uvloop
from starlette.types import ASGIApp

from moonbase.config import MetricsSettings, ServerSettings, Settings
from moonbase.errors import ConfigurationError
from moonbase.server.protocol import protocol_class
from moonbase.server.world import World, build_world
from moonbase.telemetry import Metrics

log = logging.getLogger("moonbase.server")

Ready = Callable[[World, str], None]


def run(settings: Settings, home: Path, cache: Path, ready: Ready) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is told the world and the base URL once requests are accepted.

    Open answers get `server.shutdown_grace` seconds to finish. Raises `ConfigurationError` or
    `ModelFileError` for what stops a start.
    """
    uvloop.run(_serve(settings, home, cache, ready))


async def _serve(settings: Settings, home: Path, cache: Path, ready: Ready) -> None:
    metrics = Metrics()
    _check_tls(settings.server)
    with contextlib.ExitStack() as sockets:
        # First: a used port should not cost the loading of a model.
        listeners = [sockets.enter_context(listener) for listener in _listeners(settings.server)]
        if settings.metrics.port is not None:
            _serve_metrics(settings.metrics, metrics)
        async with build_world(settings, home, cache, metrics) as world:
            server = _Server(
                _uvicorn_config(settings.server, world.app), lambda: ready(world, _url(settings, listeners[0]))
            )
            await server.serve(sockets=listeners)
            await server.cut_open_answers()
            log.info("stopping")


def _listeners(settings: ServerSettings) -> Iterator[socket.socket]:
    """The main one first."""
    yield _bind("server.port", settings.host, settings.port)
    if settings.china_port is not None:
        yield _bind("server.china_port", settings.host, settings.china_port)


def _bind(key: str, host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: clients are refused, not kept waiting, until the model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        return listener
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"{key}: cannot listen on {host} port {port} ({error.strerror}); "
            f"stop what uses it or choose another{' with --port' if key == 'server.port' else ''}"
        ) from error


def _serve_metrics(settings: MetricsSettings, metrics: Metrics) -> None:
    from prometheus_client import start_http_server

    assert settings.port is not None
    try:
        start_http_server(settings.port, settings.host, registry=metrics.registry)
    except OSError as error:
        raise ConfigurationError(
            f"metrics.port: cannot listen on {settings.host} port {settings.port} ({error.strerror})"
        ) from error


def _check_tls(settings: ServerSettings) -> None:
    if settings.tls_certificate is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_certificate, settings.tls_key)
    except OSError as error:  # ssl.SSLError is one, and so is a missing file
        raise ConfigurationError(f"server.tls_certificate: cannot be used with server.tls_key ({error})") from error


def _url(settings: Settings, listener: socket.socket) -> str:
    scheme = "http" if settings.server.tls_certificate is None else "https"
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/v1"


def _uvicorn_config(settings: ServerSettings, app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol_class(settings),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_keep_alive=75,  # longer than the proxies and clients in front keep theirs, which then close first
        timeout_graceful_shutdown=max(1, round(settings.shutdown_grace)),
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )


class _Server(uvicorn.Server):
    """Announces that it listens, and ends by returning: uvicorn's own would die of the signal it caught."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening()

    async def cut_open_answers(self) -> None:
        """A second signal leaves answers open; cancelled, they settle."""
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
