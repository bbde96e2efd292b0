"""Runs a server: in one process, or in a parent with several gateways."""

import contextlib
import logging
import resource
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import uvloop

from moonbase.config import MetricsSettings, ServerSettings, Settings
from moonbase.errors import ConfigurationError
from moonbase.server.gateways import Gateways
from moonbase.server.listeners import bind_all
from moonbase.server.serving import HttpServer, Started
from moonbase.server.world import Summary, build_world, first_key
from moonbase.store.database import database_url
from moonbase.store.migrate import migrate
from moonbase.telemetry import Metrics

log = logging.getLogger("moonbase.server")

_MOST_FILES = 1 << 20

Ready = Callable[[Summary, str, str | None], None]


def run(settings: Settings, home: Path, cache: Path, ready: Ready) -> None:
    """Serve until SIGTERM or SIGINT.

    `ready` is told what serves, the base URL and the key made at the first start of a database, once requests are
    accepted. Open answers get `server.shutdown_grace` seconds to finish. Raises `ConfigurationError` or
    `ModelFileError` for what stops a start.
    """
    _allow_open_files()
    uvloop.run(_serve(settings, home, cache, ready))


def _allow_open_files() -> None:
    """Each client, and each request to an engine behind HTTP, is one: as many as the system lets us ask for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS has another limit beside this one
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(settings: Settings, home: Path, cache: Path, ready: Ready) -> None:
    _check_tls(settings.server)
    with contextlib.ExitStack() as sockets:
        # First: a used port should not cost the loading of a model.
        listeners = bind_all(settings.server, sockets)
        await migrate(database_url(settings.database.url, home))
        url = _url(settings, listeners[0][0])

        async def started(summary: Summary) -> None:
            ready(summary, url, await first_key(settings, home))

        if settings.server.workers > 1:
            gateways = Gateways(settings, home, cache, listeners)
            _serve_metrics(settings.metrics, gateways.metrics)
            await gateways.serve(started)
        else:
            await _serve_here(settings, home, cache, listeners[0], started)
        log.info("stopping")


async def _serve_here(
    settings: Settings, home: Path, cache: Path, listeners: list[socket.socket], started: Started
) -> None:
    metrics = Metrics()
    _serve_metrics(settings.metrics, metrics)

    async def exposition() -> bytes:
        return metrics.exposition()

    async with build_world(settings, home, cache, metrics, exposition) as world:
        await HttpServer(settings.server, world.app, lambda: started(world.summary())).serve(listeners)


def _serve_metrics(settings: MetricsSettings, metrics: Metrics) -> None:
    if settings.port is None:
        return
    from prometheus_client import start_http_server

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
