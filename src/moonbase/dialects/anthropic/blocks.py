"""Output events to content blocks, of which one is open at a time (moonshot-api.md 8.3)."""

from collections import deque
from typing import Literal, Protocol

import msgspec

from moonbase.chat.events import ArgumentsDelta, FinishReason, OutputEvent, ReasoningDelta, TextDelta, ToolCallStarted
from moonbase.errors import InvalidOutput

_SHORT = 4_096  # characters of arguments that cost next to nothing to look at

Kind = Literal["thinking", "text", "tool_use"]


class BlockSink(Protocol):
    """Is told of one block after the other."""

    def open(self, kind: Kind, call: ToolCallStarted | None) -> None:
        """A new block; `call` begins one of kind `tool_use`."""

    def add(self, text: str) -> None:
        """More of the block that is open: of its thinking, its text or its arguments."""

    def close(self) -> None:
        """The end of the block that is open."""


class _Call:
    """A call and its arguments so far; `told` of their pieces have been given on."""

    __slots__ = ("_looked_at", "_size", "arguments", "start", "told")

    def __init__(self, start: ToolCallStarted) -> None:
        self.start = start
        self.arguments: list[str] = []
        self.told = 0
        self._size = 0
        self._looked_at = 0  # the size at the latest look

    def add(self, text: str) -> bool:
        """Take more arguments; returns whether it is time to see if they are complete.

        Long ones are looked at when a tenth more has come, or each piece would cost as much as all before it. What
        is noticed late only waits.
        """
        self.arguments.append(text)
        self._size += len(text)
        if not text.rstrip().endswith("}") or _SHORT < self._size < 1.1 * self._looked_at:
            return False
        self._looked_at = self._size
        return True

    @property
    def complete(self) -> bool:
        """Whether the arguments are a JSON object."""
        return is_object("".join(self.arguments))


class BlockSequence:
    """Puts the events of one choice into blocks.

    Calls come one after the other as a rule. Where an upstream sends them by turns, those behind wait until the one
    that is open is complete; text that comes after the first call waits for the end.
    """

    def __init__(self, sink: BlockSink) -> None:
        self._sink = sink
        self._open: Kind | None = None
        self._calls: list[_Call] = []
        self._behind: deque[_Call] = deque()
        self._current: _Call | None = None  # the call whose block is open
        self._late: list[TextDelta | ReasoningDelta] = []

    def take(self, event: OutputEvent) -> None:
        match event:
            case TextDelta() | ReasoningDelta() if not self._calls:
                self._write(event)
            case TextDelta() | ReasoningDelta():
                self._late.append(event)
            case ToolCallStarted():
                call = _Call(event)
                self._calls.append(call)
                self._behind.append(call)
                self._open_calls()
            case ArgumentsDelta(_, index, text):
                call = self._calls[index]
                due = call.add(text)
                if call is self._current:
                    self._tell(call)
                    if self._behind and due:
                        self._open_calls()

    def finish(self, reason: FinishReason) -> None:
        """Nothing more comes.

        Raises `InvalidOutput` for arguments that are no JSON object: clients have no place for them. The limit may
        have cut the last call.
        """
        for call in self._calls[:-1] if reason == "length" else self._calls:
            if not call.complete:
                raise InvalidOutput(f"the arguments for {call.start.name}: it is not a JSON object")
        self._open_calls(to_the_end=True)
        for event in self._late:
            self._write(event)
        self._leave()

    def _write(self, event: TextDelta | ReasoningDelta) -> None:
        kind: Kind = "text" if isinstance(event, TextDelta) else "thinking"
        if self._open != kind:
            self._enter(kind, None)
        self._sink.add(event.text)

    def _open_calls(self, *, to_the_end: bool = False) -> None:
        """Go on to the calls that wait, as far as those before them are complete."""
        while self._behind and (to_the_end or self._current is None or self._current.complete):
            call = self._current = self._behind.popleft()
            self._enter("tool_use", call.start)
            self._tell(call)

    def _tell(self, call: _Call) -> None:
        for text in call.arguments[call.told :]:
            self._sink.add(text)
        call.told = len(call.arguments)

    def _enter(self, kind: Kind, call: ToolCallStarted | None) -> None:
        self._leave()
        self._open = kind
        self._sink.open(kind, call)

    def _leave(self) -> None:
        if self._open is not None:
            self._open = None
            self._sink.close()


def is_object(text: str) -> bool:
    """Whether `text` is a JSON object."""
    text = text.strip()
    if not (text.startswith("{") and text.endswith("}")):
        return False
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
