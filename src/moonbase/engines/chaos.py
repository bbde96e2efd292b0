"""`chaos`: like `echo`, with seeded faults, for rehearsing what clients and operators will meet."""

import asyncio
import random
from weakref import WeakSet

from moonbase.config import ChaosSettings, Fault
from moonbase.engines.base import EngineDescription, GenerateRequest, Generation, Tokenizer
from moonbase.engines.playback import Playback, cut, words
from moonbase.errors import EngineUnavailable

_DEAD_SECONDS = 1.0
_PACE = 0.005


class ChaosEngine:
    """The n-th request of a run meets the same fault in every run with the same settings.

    `slow_first_token` waits before the first token, `stall` stops mid-stream without an end, `cut`
    breaks the stream, `death` ends every running request and refuses new ones for a second,
    `malformed` plays bytes that are neither UTF-8 nor what was asked for.
    """

    description = EngineDescription(name="chaos", model="chaos", window=None, validates_only=True)
    waiting = 0

    def __init__(self, settings: ChaosSettings, tokenizer: Tokenizer) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._random = random.Random(settings.seed)
        self._playing: WeakSet[Playback] = WeakSet()
        self._dead_until = 0.0

    @property
    def ready(self) -> bool:
        return asyncio.get_running_loop().time() >= self._dead_until

    @property
    def running(self) -> int:
        return sum(playback.generation.open for playback in self._playing)

    async def start(self) -> None:
        """Nothing to make ready."""

    def generate(self, request: GenerateRequest) -> Generation:
        if not self.ready:
            raise EngineUnavailable(retry_after=1)
        fault = self._next_fault()
        pieces = words(request, self._tokenizer)
        if fault == "malformed":
            pieces = [[self._random.randrange(256) for _ in piece] for piece in pieces]
        kept, finish = cut(pieces, request.max_tokens)
        playback = Playback(
            kept,
            finish,
            choices=request.sampling.n,
            first_delay=self._settings.slow_seconds if fault == "slow_first_token" else 0.0,
            delay=_PACE,
        )
        self._playing.add(playback)
        loop = asyncio.get_running_loop()
        middle = _PACE * len(kept) / 2
        match fault:
            case "stall":
                loop.call_later(middle, playback.halt)
            case "cut":
                loop.call_later(middle, playback.fail, EngineUnavailable(retry_after=1))
            case "death":
                loop.call_later(middle, self._die)
            case _:
                pass
        return playback.generation

    async def close(self) -> None:
        """Nothing to end: a generation ends with its reader."""

    def _next_fault(self) -> Fault | None:
        if self._random.random() >= self._settings.fault_rate or not self._settings.faults:
            return None
        return self._random.choice(self._settings.faults)

    def _die(self) -> None:
        self._dead_until = asyncio.get_running_loop().time() + _DEAD_SECONDS
        for playback in list(self._playing):
            playback.fail(EngineUnavailable(retry_after=1))
