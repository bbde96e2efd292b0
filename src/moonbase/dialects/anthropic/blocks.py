"""Output events to content blocks, of which one is open at a time (moonshot-api.md 8.3)."""

from typing import Literal, Protocol

import msgspec

from moonbase.chat.events import ArgumentsDelta, OutputEvent, ReasoningDelta, TextDelta, ToolCallStarted

Kind = Literal["thinking", "text", "tool_use"]


class BlockSink(Protocol):
    """Is told of one block after the other."""

    def open(self, kind: Kind, call: ToolCallStarted | None) -> None:
        """A new block; `call` begins one of kind `tool_use`."""

    def add(self, text: str) -> None:
        """More of the block that is open: of its thinking, its text or its arguments."""

    def close(self) -> None:
        """The end of the block that is open."""


class BlockSequence:
    """Puts the events of one choice into blocks.

    Calls come one after the other as a rule. Where an upstream sends them by turns, those behind wait until the one
    that is open has all of its arguments; text that comes after the first call waits for the end.
    """

    def __init__(self, sink: BlockSink) -> None:
        self._sink = sink
        self._open: Kind | None = None
        self._call = -1  # the index of the latest call with a block
        self._arguments: list[str] = []  # of that call
        self._waiting: list[ToolCallStarted | ArgumentsDelta] = []
        self._late: list[TextDelta | ReasoningDelta] = []

    def take(self, event: OutputEvent) -> None:
        match event:
            case TextDelta() | ReasoningDelta() if self._call < 0:
                self._write(event)
            case TextDelta() | ReasoningDelta():
                self._late.append(event)
            case ArgumentsDelta(_, index, text) if index == self._call and not self._waiting:
                self._arguments.append(text)
                self._sink.add(text)
            case ArgumentsDelta() | ToolCallStarted():
                self._waiting.append(event)
                self._tell_waiting(to_the_end=False)

    def finish(self) -> None:
        """Nothing more comes."""
        self._tell_waiting(to_the_end=True)
        for event in self._late:
            self._write(event)
        self._leave()

    def _write(self, event: TextDelta | ReasoningDelta) -> None:
        kind: Kind = "text" if isinstance(event, TextDelta) else "thinking"
        if self._open != kind:
            self._enter(kind, None)
        self._sink.add(event.text)

    def _tell_waiting(self, *, to_the_end: bool) -> None:
        while self._waiting:
            first = self._waiting[0]
            if isinstance(first, ToolCallStarted) and (to_the_end or self._call < 0 or self._complete()):
                del self._waiting[0]
                self._call, self._arguments = first.index, []
                self._enter("tool_use", first)
                continue
            due = [event for event in self._waiting if isinstance(event, ArgumentsDelta) and event.index <= self._call]
            if not due:
                return
            self._waiting = [event for event in self._waiting if event not in due]
            for event in due:
                if event.index == self._call:  # to arguments that are complete, nothing but white space can come
                    self._arguments.append(event.text)
                    self._sink.add(event.text)

    def _complete(self) -> bool:
        return is_json("".join(self._arguments))

    def _enter(self, kind: Kind, call: ToolCallStarted | None) -> None:
        self._leave()
        self._open = kind
        self._sink.open(kind, call)

    def _leave(self) -> None:
        if self._open is not None:
            self._open = None
            self._sink.close()


def is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
