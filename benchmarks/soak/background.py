"""Clients that do everything right, whatever goes on beside them, and remember what they were told they used."""

import asyncio
import time
from dataclasses import dataclass, field

from benchmarks.soak.dialects import DIALECTS, Dialect
from benchmarks.soak.servers import ECHO, FAR
from benchmarks.soak.stage import Stage, Wrong, expect
from benchmarks.soak.wire import connected, request

_KEPT = 20  # requests on one connection
_PAUSE = 0.5  # seconds between two requests of a client
_PATIENCE = 30.0


@dataclass
class Told:
    """What all answers together said that they used, and how long they took."""

    requests: int = 0
    prompt: int = 0
    output: int = 0
    seconds: list[float] = field(default_factory=list)


class WellBehaved:
    """For each dialect and model one client that streams and one that does not, one request after the other.

    They have a `key` of their own, so that the ledger can be held against what they were told.
    """

    def __init__(self, stage: Stage, key: str) -> None:
        self.told = Told()
        self._stage = stage
        self._key = key

    async def run(self, until: float) -> None:
        """Until `until` of the monotonic clock. Raises `Wrong` or whatever else ended an answer."""
        async with asyncio.TaskGroup() as clients:
            for dialect in DIALECTS:
                for model in (ECHO, FAR):
                    for stream in (False, True):
                        clients.create_task(self._client(dialect, model, stream, until))

    async def _client(self, dialect: Dialect, model: str, stream: bool, until: float) -> None:
        while time.monotonic() < until:
            async with connected(self._stage.port) as connection:
                for _ in range(_KEPT):
                    if time.monotonic() >= until:
                        return
                    last = self._stage.prompts.text(self._stage.chance.randint(2, 40))
                    messages = self._stage.prompts.conversation(last)
                    body = dialect.body(model, messages, limit=2_000, stream=stream)
                    began = time.monotonic()
                    async with asyncio.timeout(_PATIENCE):
                        answer = await connection.ask(request(dialect.path, self._key, body))
                    self.told.seconds.append(time.monotonic() - began)
                    expect(answer, 200)
                    said = dialect.said(answer)
                    if said.text != last or said.finish not in ("stop", "end_turn"):
                        raise Wrong(f"{model} said {said.text!r} and {said.finish!r} to {last!r}")
                    self.told.requests += 1
                    self.told.prompt += said.prompt
                    self.told.output += said.output
                    await asyncio.sleep(_PAUSE)
