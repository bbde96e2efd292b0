"""What engines without a model share: an output known beforehand, played into a `Generation`."""

import asyncio
import re
from itertools import islice

from moonbase.chat.events import EngineFinish
from moonbase.engines.base import Delta, GenerateRequest, Generation, Tokenizer
from moonbase.errors import ApiError

Pieces = list[list[int]]

_AT_ONCE = 256  # pieces of each choice

_WORD = re.compile(r"\S+\s*|\s+")


def words(request: GenerateRequest, tokenizer: Tokenizer) -> Pieces:
    """The last user message, one piece a word; a word has at least one token, so no more than the limit is read."""
    found = islice(_WORD.finditer(request.user_text), request.max_tokens + 1)
    return [tokenizer.encode_plain(word[0]).tolist() for word in found]


def cut(pieces: Pieces, max_tokens: int) -> tuple[Pieces, EngineFinish]:
    """The pieces that fit into `max_tokens`, and how an output of them ends."""
    kept: Pieces = []
    left = max_tokens
    for piece in pieces:
        if len(piece) > left:
            return ([*kept, piece[:left]] if left else kept), "length"
        kept.append(piece)
        left -= len(piece)
    return kept, "stop"


class Playback:
    """Plays the same pieces to every choice, `first_delay` and then `delay` seconds apart, until cancelled.

    Without a delay some at a time, so that others have their turns, and no more while the reader is slow.
    """

    def __init__(self, pieces: Pieces, finish: EngineFinish, *, choices: int, first_delay: float, delay: float) -> None:
        self.generation = Generation(choices, self._cancel, self._flow)
        self._loop = asyncio.get_running_loop()
        self._deltas = [Delta(choice, piece) for piece in pieces for choice in range(choices)]
        self._ends = [Delta(choice, [], finish) for choice in range(choices)]
        self._per_step = choices if delay else choices * _AT_ONCE
        self._delay = delay
        self._played = 0
        self._paused = False
        self._timer = self._loop.call_later(first_delay, self._step)

    def halt(self) -> None:
        """Play nothing more; the generation stays open."""
        self._timer.cancel()
        self._deltas.clear()

    def fail(self, error: ApiError) -> None:
        """Play nothing more; the reader gets what was played, then `error`."""
        self.halt()
        self.generation.fail(error)

    def _step(self) -> None:
        deltas = self._deltas[self._played : self._played + self._per_step]
        self._played += len(deltas)
        if self._played >= len(self._deltas):
            deltas += self._ends
        self.generation.put(deltas)
        if not self._paused:
            self._go_on()

    def _go_on(self) -> None:
        if self._played < len(self._deltas) and self.generation.open:
            self._timer = self._loop.call_later(self._delay, self._step)

    def _flow(self, on: bool) -> None:
        if self._paused and on:
            self._go_on()
        self._paused = not on

    def _cancel(self, choice: int | None) -> None:
        if choice is None or not self.generation.open:
            self._timer.cancel()
