"""The engine contract: describe yourself, generate, cancel.

An engine turns token ids, sampling and a constraint into deltas of token ids. It knows no
messages, no templates, no text. `Generation` is the one pipe between an engine and its reader:
an engine puts what a wake-up brought, the reader takes all of it at once.
"""

import time
from array import array
from collections.abc import Callable, Mapping
from typing import Annotated, Protocol, TypeAlias

import msgspec
from msgspec import Meta, Struct

from moonbase.chat.constraint import Constraint
from moonbase.chat.events import EngineFinish
from moonbase.chat.request import Sampling
from moonbase.engines.grammar import Dialect, Grammar
from moonbase.engines.pipe import Pipe
from moonbase.errors import ApiError

TokenIds: TypeAlias = "array[int]"  # of type code "I"; arrays cannot be subscripted at run time
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
"""A token as servers send it. One that the vocabulary lacks has no text."""
_MOST_UNREAD = 4096  # tokens that wait for the reader before the engine is asked to hold its own
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding JSON that others have sent may raise."""


class EngineDescription(Struct, frozen=True, kw_only=True):
    """What an engine can do.

    `window` is prompt plus completion in tokens; None means no limit of its own.
    `dialect` is how it takes grammars, None where it can be held to none; an engine with `validates_only` is told
    constraints instead and leaves them to the validation after generation. One that `spells_markers` knows no tokens
    in grammars: a marker that is one token may come as its characters all the same. One that `reads_text` answers from
    the user's text, which no other is given.
    """

    name: str
    model: str
    window: int | None
    dialect: Dialect | None = None
    validates_only: bool = False
    reports_cached: bool = False
    spells_markers: bool = False
    reads_text: bool = False


class GenerateRequest(Struct, frozen=True, kw_only=True):
    """One request to an engine.

    `prompt_ids` is not changed by anybody afterwards. `max_tokens` is at least 1 and
    fits the window. Generation stops at any of `stop_ids`, which are not part of the output.
    `constraint` is what the output must be, and `grammar` the same in the engine's own dialect: an engine with a
    dialect obeys `grammar` alone, and a `constraint` without one goes unenforced there.
    `cache_scope` separates prefix caches (an organization id). `user_text` is the last user message, which `turn`
    answers have followed, for engines that read text.
    """

    request_id: str
    prompt_ids: TokenIds
    sampling: Sampling
    max_tokens: int
    stop_ids: tuple[int, ...]
    constraint: Constraint | None = None
    grammar: Grammar | None = None
    cache_scope: str = ""
    user_text: str = ""
    turn: int = 0


class Delta(Struct):
    """New output tokens of one choice, with the finish reason when they are the last.

    `cached_tokens` is how much of the prompt came from the engine's cache; it counts in the
    first delta of a choice and is 0 afterwards.
    """

    choice: int
    token_ids: list[int]
    finish: EngineFinish | None = None
    cached_tokens: int = 0


class Generation(Pipe[Delta]):
    """A running request: the engine puts deltas, one reader takes them.

    Use it as a context manager: leaving it cancels whatever still runs in the engine, at once and
    without awaiting. Methods are called from the event loop's thread only.
    """

    __slots__ = ("_cancel", "_deltas", "_error", "_flow", "_last_put", "_listener", "_open_choices", "_unread")

    def __init__(
        self, choices: int, cancel: Callable[[int | None], None], flow: Callable[[bool], None] | None = None
    ) -> None:
        """`cancel(choice)` stops one choice in the engine, `cancel(None)` all that still run.

        `flow(False)` is called when much waits for the reader, so that no more is read from where it comes from, and
        `flow(True)` when it was taken. Without it all that the request may have can wait here.
        """
        super().__init__()
        self._cancel = cancel
        self._flow = flow
        self._unread = 0  # tokens
        self._deltas: list[Delta] = []
        self._error: ApiError | None = None
        self._open_choices = set(range(choices))
        self._listener: Callable[[], None] | None = None
        self._last_put: float | None = None

    def __enter__(self) -> "Generation":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.over:
            self._end()
            self._cancel(None)
        # All lead back to here, an error by its stack: without them nothing is left to the collector.
        self._listener = self._error = None
        self._cancel, self._flow = _nothing, None

    @property
    def open(self) -> bool:
        """Whether the engine still owes output."""
        return not self.over

    @property
    def last_put(self) -> float | None:
        """`time.monotonic()` when the latest output was taken, None before the first.

        Now, while output waits for a reader that is busy: the engine is not what is late then.
        """
        return time.monotonic() if self._deltas else self._last_put

    def put(self, deltas: list[Delta]) -> None:
        """Engine side: hand over what one wake-up brought. Deltas of stopped choices are dropped."""
        before = len(self._deltas)
        for delta in deltas:
            if delta.choice in self._open_choices:
                self._deltas.append(delta)
                self._unread += len(delta.token_ids)
                if delta.finish is not None:
                    self._open_choices.discard(delta.choice)
        self.over = not self._open_choices
        if len(self._deltas) > before:
            self.arrived()
            if self._unread > _MOST_UNREAD and self._flow is not None and not self.over:  # else nobody may come to take
                self._flow(False)

    def fail(self, error: ApiError) -> None:
        """Engine side: no more deltas; the reader gets what was put before, then `error`."""
        if not self.over:
            self._error = error
            self._end()
            self.arrived()

    def abort(self, error: ApiError) -> None:
        """Reader side: give up on the engine; the reader gets what was put before, then `error`."""
        if not self.over:
            self._cancel(None)
            self.fail(error)

    def stop(self, choice: int) -> None:
        """Reader side: this choice has all it needs (a stop string matched)."""
        if choice in self._open_choices:
            self._open_choices.discard(choice)
            self.over = not self._open_choices
            self._cancel(choice)

    def listen(self, listener: Callable[[], None]) -> None:
        """Reader side: `listener` is called when something came, for a reader that takes it there and then."""
        self._listener = listener

    def arrived(self) -> None:
        if self._listener is not None:
            self._listener()
        else:
            super().arrived()

    def take(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        if self._unread > _MOST_UNREAD and self._flow is not None:
            self._flow(True)
        self._unread = 0
        if deltas:
            self._last_put = time.monotonic()
        elif self._error is not None:
            raise self._error
        return deltas

    def _end(self) -> None:
        self._open_choices.clear()
        self.over = True


def _nothing(choice: int | None) -> None: ...


class Engine(Protocol):
    """A running instance of an engine. Its owner starts and closes it."""

    @property
    def description(self) -> EngineDescription: ...

    @property
    def ready(self) -> bool:
        """Whether `generate` would be accepted now."""
        ...

    @property
    def running(self) -> int:
        """Choices being generated."""
        ...

    @property
    def waiting(self) -> int:
        """Choices accepted and not yet started."""
        ...

    async def start(self) -> None:
        """Make it ready. Raises `ModelFileError` or `ConfigurationError` when it can never be."""
        ...

    def generate(self, request: GenerateRequest) -> Generation:
        """Start `request.sampling.n` choices. Raises `ApiError` when the engine cannot take it.

        With a dialect it is the caller who writes `request.grammar`: `request.constraint` alone holds the output to
        nothing.
        """
        ...

    async def close(self) -> None:
        """Stop generating, end processes, release files. Idempotent."""
        ...


class Tokenizer(Protocol):
    """Text to token ids and back, without ever reading control tokens out of text."""

    def encode_plain(self, text: str) -> TokenIds:
        """Ids (`array('I')`) of `text`, control literals in it included as plain characters. Thread-safe."""
        ...

    def control(self, name: str) -> int:
        """The id of a control token by its literal. Raises `KeyError`."""
        ...

    @property
    def silent(self) -> Mapping[str, int]:
        """The control tokens that `decode` gives nothing for, by literal."""
        ...

    def decode(self, ids: list[int]) -> bytes:
        """The bytes of `ids`; control tokens give nothing. May end inside a character."""
        ...
