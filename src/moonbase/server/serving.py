"""Serves a world over HTTP until it is told to stop."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Awaitable, Callable, Generator, Sequence

import uvicorn
from starlette.types import ASGIApp

from moonbase.config import ServerSettings
from moonbase.server.http import protocol_factory
from moonbase.server.memory import SpareMemory
from moonbase.server.world import Summary

Listening = Callable[[], Awaitable[None]]
Started = Callable[[Summary], Awaitable[None]]
"""Told what serves, once requests are accepted."""


class HttpServer:
    """An application at bound sockets. SIGTERM and SIGINT stop it."""

    def __init__(self, settings: ServerSettings, app: ASGIApp, listening: Listening) -> None:
        """`listening` is called once requests are accepted."""
        self._server = _Server(_uvicorn_config(settings, app), listening)

    async def serve(self, sockets: Sequence[socket.socket]) -> None:
        """Until `stop`. Open answers then get `server.shutdown_grace` seconds to finish; what is left is cancelled, and
        settles.
        """
        await self._server.serve(sockets=list(sockets))
        await self._server.cut_open_answers()

    def stop(self, *, cut: bool) -> None:
        """Stop as with a signal. `cut`, once that is under way, does not wait for open answers."""
        self._server.handle_exit(signal.SIGINT if cut else signal.SIGTERM, None)


def _uvicorn_config(settings: ServerSettings, app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol_factory(settings),  # type: ignore[arg-type]
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
    """Announces that it listens, returns spare memory, and ends by returning: uvicorn's own would die of its signal."""

    def __init__(self, config: uvicorn.Config, listening: Listening) -> None:
        super().__init__(config)
        self._listening = listening
        self._spare_memory = SpareMemory()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        _spare_collections()
        await self._listening()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        await self._spare_memory.look(asked=bool(self.server_state.tasks), answered=self.server_state.total_requests)
        return await super().on_tick(counter)

    async def cut_open_answers(self) -> None:
        """A second signal leaves answers open; cancelled, they settle."""
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        with stopping_signals(lambda number: self.handle_exit(number, None)):
            yield


def _spare_collections() -> None:
    """What a server is made of stays, and requests leave few cycles: looking for garbage as often as Python does by
    default took a sixth of the CPU of small requests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@contextlib.contextmanager
def stopping_signals(stop: Callable[[int], None]) -> Generator[None, None, None]:
    """`stop` is called with the number of every SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
