"""What models of the `hermes` format write, read as it comes."""

from enum import Enum, auto

from moonbase.chat.events import ArgumentsDelta, OutputEvent, ReasoningDelta, TextDelta, ToolCallStarted
from moonbase.chat.prompt import Segment
from moonbase.formats.hermes.call import Called, CallReader
from moonbase.formats.hermes.prompt import CALL, THINK

_CALL, _CALL_END = CALL
_THINK, _THOUGHT = THINK


class _At(Enum):
    """Where in an output the parser is."""

    REASONING = auto()
    CONTENT = auto()
    CALL = auto()
    BETWEEN = auto()  # after a call


class HermesParser:
    """Implements `Parser`. What it does where outputs leave the grammar:

    A call is reported as `CallReader` says. Text between and after calls is dropped, and white space before them.
    Reasoning ends where a call begins; `<think>` begins it only before any text. Line breaks after `<think>`
    and `</think>` and white space before `</think>` are dropped.

    A marker out of place vanishes where it is a token, and stays as text where it is spelled: so a spelled
    `</tool_call>` does not end a call inside a JSON string. Without `calls`, their markers are always out of place.
    """

    def __init__(self, choice: int, first_call: int, *, calls: bool, tokens: frozenset[str]) -> None:
        """`first_call` is the number in the first call's id; `tokens` are the markers that are not spelled."""
        self._choice = choice
        self._first_call = first_call
        self._may_call = calls
        self._tokens = tokens
        self._at = _At.CONTENT
        self._said = False  # any text
        self._fresh = False  # right after `<think>` or `</think>`
        self._held: list[str] = []  # white space, given only when more text comes
        self._reader = CallReader()
        self.calls = 0
        self.dropped = 0
        """Calls that were begun and never reported."""

    @property
    def reasoning(self) -> bool:
        return self._at is _At.REASONING

    def feed(self, segments: list[Segment]) -> list[OutputEvent]:
        events: list[OutputEvent] = []
        for segment in segments:
            if isinstance(segment, str):
                self._text(segment, events)
            elif not self._marker(segment.name, events) and segment.name not in self._tokens:
                self._text(segment.name, events)
        return events

    def flush(self, *, complete: bool) -> list[OutputEvent]:
        events: list[OutputEvent] = []
        if self._at is _At.CALL:
            self._end_call(events, complete=False)  # whoever ended the output: an object that is open is no JSON
        elif self._held:
            self._say("".join(self._held), events)
            self._held = []
        return events

    def _text(self, text: str, events: list[OutputEvent]) -> None:
        if self._at is _At.CALL:
            self._report(self._reader.feed(text), events)
        elif self._at is not _At.BETWEEN:
            if self._fresh:
                text = text.lstrip("\n")
                self._fresh = not text
            said = text.rstrip()
            if said:
                self._say("".join([*self._held, said]) if self._held else said, events)
                self._held = []
            if len(said) < len(text):
                self._held.append(text[len(said) :])

    def _say(self, text: str, events: list[OutputEvent]) -> None:
        if self._at is _At.REASONING:
            events.append(ReasoningDelta(self._choice, text))
        else:
            self._said = True
            events.append(TextDelta(self._choice, text))

    def _marker(self, name: str, events: list[OutputEvent]) -> bool:
        """Whether the marker means something here; if so, do it."""
        if self._at is _At.CALL and self._reader.quoted and name not in self._tokens:
            return False
        if name == _CALL and self._may_call:
            if self._at is _At.CALL:
                self._end_call(events, complete=True)
            self._at, self._reader = _At.CALL, CallReader()
        elif name == _CALL_END and self._at is _At.CALL:
            self._end_call(events, complete=True)
            self._at = _At.BETWEEN if self.calls else _At.CONTENT
        elif name == _THINK and self._at is _At.CONTENT and not self._said:
            self._at, self._fresh = _At.REASONING, True
        elif name == _THOUGHT and self._at is _At.REASONING:
            self._at, self._fresh = _At.CONTENT, True
        else:
            return False
        self._held = []
        return True

    def _end_call(self, events: list[OutputEvent], *, complete: bool) -> None:
        self._report(self._reader.flush(complete=complete), events)
        self.dropped += self._reader.lost

    def _report(self, found: list[Called | str], events: list[OutputEvent]) -> None:
        for item in found:
            if isinstance(item, str):
                events.append(ArgumentsDelta(self._choice, self.calls - 1, item))
            else:
                number = self._first_call + self.calls
                events.append(ToolCallStarted(self._choice, self.calls, f"{item.name}:{number}", item.name))
                self.calls += 1
