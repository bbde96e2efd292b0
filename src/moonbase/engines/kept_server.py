"""Servers that run for us alone: who keeps one running, and where it is in each of its lives."""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from moonbase.engines.process import Launch, ServerProcess, free_port
from moonbase.engines.suspects import Suspects
from moonbase.engines.upstream.client import UpstreamClient
from moonbase.errors import ConfigurationError, UpstreamFailed

_LOAD_SECONDS = 3600.0  # hundreds of gigabytes take their time
_MAX_FACTS = 1024 * 1024  # bytes
PROBE_SECONDS = 5.0
"""The longest that a server may take to say how it is, and how long one that is ready is not asked."""


class Program(Struct, frozen=True):
    """A server that can be started here. `command` is its command line for a port of the loopback address.

    It sees nothing but `environment`, and in `key_variable` a key that it has to demand of everybody. It can work when
    it answers 200 at `/health` and has an answer at `facts_path`, where it tells its facts.
    """

    name: str
    facts_path: str
    command: Callable[[int], Sequence[str]]
    key_variable: str
    environment: Mapping[str, str]


class ServerLife(Struct, frozen=True):
    """One life of a server, from 1: where it is, and the key that it demands. Others have other ports and keys."""

    number: int
    url: str
    key: str


class ServerKeeper(Protocol):
    """Who keeps a server running: this process, or one that keeps it for several."""

    suspects: Suspects
    """What the server may have died of."""

    @property
    def life(self) -> ServerLife | None:
        """The life in which it can work; None before the first and between two."""
        ...

    @property
    def pid(self) -> int | None:
        """The process that holds the server on its leash; None while there is none, and where another keeps it."""
        ...

    def on_change(self, told: Callable[[], None]) -> None:
        """`told` is called whenever `life` has changed."""
        ...

    def end(self, number: int) -> bool:
        """The life of this number is of no use any more: end it, for the next to begin. False when that is under way
        or over.
        """
        ...

    async def start(self) -> None:
        """Wait for the first life if the server is kept here. Raises `WorkerDied` when it ends before it can work."""
        ...

    async def close(self) -> None:
        """End the server, if it is kept here. Idempotent."""
        ...


class KeptServer:
    """A program that this process keeps running. Implements `ServerKeeper`."""

    def __init__(self, program: Program) -> None:
        self.suspects = Suspects()
        self._program = program
        self._told: list[Callable[[], None]] = []
        self._begun = ServerLife(0, "", "")
        self._process = ServerProcess(
            program.name, self._begin, self._answers, load_timeout=_LOAD_SECONDS, changed=self._changed
        )

    @property
    def life(self) -> ServerLife | None:
        return self._begun if self._process.can_work else None

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def on_change(self, told: Callable[[], None]) -> None:
        self._told.append(told)

    def end(self, number: int) -> bool:
        return self._process.can_work and self._begun.number == number and self._process.end_life()

    async def start(self) -> None:
        await self._process.start()

    async def close(self) -> None:
        await self._process.close()

    async def _begin(self) -> Launch:
        """A life begins, at a port that is free now and with a key that nobody has seen: somebody may have taken the
        port of the last life, and been sent its key.
        """
        port, key = free_port(), secrets.token_hex()
        self._begun = ServerLife(self._begun.number + 1, f"http://127.0.0.1:{port}", key)
        environment = {**self._program.environment, self._program.key_variable: key}
        return Launch(self._program.command(port), environment, key)

    async def _answers(self) -> bool:
        async with UpstreamClient(self._begun.url, headers={"Authorization": f"Bearer {self._begun.key}"}) as client:
            health, _ = await ask(client, "/health")
            if health == 404:
                raise ConfigurationError(f"{self._begun.url}: there is no {self._program.name} server")
            if health != 200:
                return False
            facts, _ = await ask(client, self._program.facts_path)
            return not later(facts)

    def _changed(self) -> None:
        for told in self._told:
            told()


async def ask(client: UpstreamClient, path: str) -> tuple[int, bytes]:
    """The status and the body of what a server says of itself.

    Raises `UpstreamFailed`, whose cause is a `TimeoutError` when there is no answer in time.
    """
    try:
        async with asyncio.timeout(PROBE_SECONDS), client.request("GET", path) as response:
            return response.status, await response.body(_MAX_FACTS)
    except TimeoutError as error:
        raise UpstreamFailed(f"{path} is not answered within {PROBE_SECONDS:g} s", began=True) from error


def later(status: int) -> bool:
    """Whether a server that answers so may say something else when it has loaded its model."""
    return status >= 500 or status in (408, 429)
