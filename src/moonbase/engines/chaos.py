"""`chaos`: an engine without a model that does what is demanded of it, and seeded faults.

For rehearsing what clients and operators will meet, and for tool loops where no model is at hand.
"""

import asyncio
import random
import re
import zlib
from array import array
from contextlib import suppress
from typing import assert_never
from weakref import WeakSet

import msgspec

from moonbase.chat.constraint import (
    AnyText,
    Constraint,
    ConstString,
    Digits,
    JsonSchema,
    Marker,
    Optional,
    Or,
    Repeat,
    Sequence,
    Triggered,
)
from moonbase.chat.events import EngineFinish
from moonbase.config import ChaosSettings, Fault
from moonbase.engines.base import EngineDescription, GenerateRequest, Generation, Tokenizer
from moonbase.engines.json_value import ValueWriter
from moonbase.engines.playback import Pieces, Playback, cut, words
from moonbase.errors import EngineUnavailable
from moonbase.formats.schemas.nodes import graph

_DEAD_SECONDS = 1.0
_PACE = 0.005
_GREEDY_BELOW = 0.01  # temperatures under this give the same answer to the same prompt
_MORE = 0.35  # the chance of each further call
_NAME = re.compile(r'(functions\.|"name": ")(?=[a-zA-Z])')  # what stands before a tool's name, in either format


class ChaosEngine:
    """The n-th request of a run meets the same fault in every run with the same settings.

    Without a fault it repeats the last user message word by word, as `echo` does, also as its thoughts where it is to
    think first, and writes what the request demands where it demands something: JSON that its schema allows, calls of
    its tools; of requests that leave the choice about every second is answered by calls.

    Faults of the machine: `slow_first_token` waits before the first token, `stall` stops mid-stream without an end,
    `cut` breaks the stream, `death` ends every running request and refuses new ones for a second, `malformed` plays
    bytes that are neither UTF-8 nor what was asked for. Faults of the model, each where the request gives it the
    opportunity:

    - `undeclared_tool`: calls a tool under a name that was not declared
    - `invalid_arguments`, `broken_arguments`: arguments without what their schema requires; with a comma too many
    - `missing_call`: text in place of calls
    - `parallel_calls`: all calls twice
    - `leaked_marker`: the marker of a call as plain text before it
    - `prose_answer`, `invalid_answer`: talk around a JSON answer; one without what its schema requires
    - `empty_answer`: nothing in place of free text
    - `cut_short`: breaks off as if the output limit were reached
    """

    description = EngineDescription(name="chaos", model="chaos", window=None, validates_only=True, reads_text=True)
    waiting = 0

    def __init__(self, settings: ChaosSettings, tokenizer: Tokenizer) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._random = random.Random(settings.seed)
        self._playing: WeakSet[Playback] = WeakSet()
        self._dead_until = 0.0
        self._requests = 0

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
        kept, finish = self._output(request, fault)
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

    def _output(self, request: GenerateRequest, fault: Fault | None) -> tuple[Pieces, EngineFinish]:
        """What is played, and how it ends."""
        self._requests += 1
        seed = zlib.crc32(request.prompt_ids, self._settings.seed & 0xFFFFFFFF)
        if request.sampling.temperature >= _GREEDY_BELOW:
            seed += self._requests
        pieces = _Output(request, self._tokenizer, random.Random(seed), fault).pieces()
        if fault == "malformed":
            pieces = [[self._random.randrange(256) for _ in piece] for piece in pieces]
        if fault == "cut_short" and len(pieces) > 1:
            return cut(pieces[: len(pieces) // 2], request.max_tokens)[0], "length"
        return cut(pieces, request.max_tokens)

    def _next_fault(self) -> Fault | None:
        if self._random.random() >= self._settings.fault_rate or not self._settings.faults:
            return None
        return self._random.choice(self._settings.faults)

    def _die(self) -> None:
        self._dead_until = asyncio.get_running_loop().time() + _DEAD_SECONDS
        for playback in list(self._playing):
            playback.fail(EngineUnavailable(retry_after=1))


class _Output:
    """One raw output: a way through the request's constraint, left where the fault says so.

    A word of an echo is a piece, and so is every token of anything else.
    """

    def __init__(
        self, request: GenerateRequest, tokenizer: Tokenizer, chance: random.Random, fault: Fault | None
    ) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._chance = chance
        self._fault = fault
        self._named = False  # whether what comes next is arguments
        self._marker = ""  # the first
        self._calls = False

    def pieces(self) -> Pieces:
        pieces = self._walk(self._request.constraint or self._free())
        if not self._calls:
            return pieces
        match self._fault:
            case "missing_call":
                return self._echo()
            case "parallel_calls":
                return pieces + pieces
            case "leaked_marker":
                return self._text(self._marker) + pieces
            case _:
                return pieces

    def _free(self) -> Constraint:
        """What an answer is of which nothing is demanded: a thought before the text where the prompt has begun one."""
        with suppress(KeyError):
            if self._request.prompt_ids[-1:] == array("I", [self._tokenizer.control("<think>")]):
                return Sequence((AnyText(), Marker("</think>"), AnyText()))
        return AnyText()

    def _walk(self, constraint: Constraint) -> Pieces:
        match constraint:
            case AnyText():
                return [] if self._fault == "empty_answer" else self._echo()
            case ConstString(value):
                return self._const(value)
            case Digits():
                return self._text(str(self._chance.randrange(10)))
            case Marker(literal):
                return self._control(literal)
            case JsonSchema():
                return self._text(self._json(constraint))
            case Sequence(parts):
                return [piece for part in parts for piece in self._walk(part)]
            case Or(parts):
                return self._walk(self._chance.choice(parts))
            case Optional(part):
                return self._walk(part) if self._chance.random() < _MORE else []
            case Repeat(part):
                pieces: Pieces = []
                while self._chance.random() < _MORE:
                    pieces += self._walk(part)
                return pieces
            case Triggered(trigger, then):
                if self._chance.random() < 0.5:
                    return self._walk(AnyText())
                return self._control(trigger) + self._walk(then)
            case _:
                assert_never(constraint)

    def _echo(self) -> Pieces:
        return words(self._request, self._tokenizer)

    def _const(self, value: str) -> Pieces:
        if _NAME.search(value):
            self._named = self._calls = True
            if self._fault == "undeclared_tool":
                value = _NAME.sub(r"\1undeclared_", value)
        return self._text(value)

    def _json(self, demanded: JsonSchema) -> str:
        arguments, self._named = self._named, False
        writer = ValueWriter(graph(msgspec.json.decode(demanded.schema)), self._chance, spaced=demanded.spaced)
        match self._fault:
            case "invalid_arguments" if arguments:
                return writer.broken()
            case "broken_arguments" if arguments:
                return f"{writer.write()[:-1]},}}"
            case "invalid_answer" if not arguments:
                return writer.broken()
            case "prose_answer" if not arguments:
                return f"Certainly! Here is what you asked for: {writer.write()}"
            case _:
                return writer.write()

    def _control(self, literal: str) -> Pieces:
        self._marker = self._marker or literal
        try:
            return [[self._tokenizer.control(literal)]]
        except KeyError:
            return self._text(literal)

    def _text(self, text: str) -> Pieces:
        return [[token] for token in self._tokenizer.encode_plain(text)]
