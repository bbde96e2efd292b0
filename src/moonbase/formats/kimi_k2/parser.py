"""What Kimi K2 models write, read as it comes (kimi-protocol.md 3)."""

from enum import Enum, auto

from moonbase.chat.events import ArgumentsDelta, OutputEvent, ReasoningDelta, TextDelta, ToolCallStarted
from moonbase.chat.prompt import Segment
from moonbase.formats.kimi_k2.prompt import CALLS, THINK

MISSPELT = ("<|tool_call_section_begin|>", "<|tool_call_section_end|>")
"""What models write in place of a section's markers, always as text (kimi-protocol.md 5, row 23)."""

_SECTION, _SECTION_END, _CALL, _ARGUMENTS, _CALL_END = CALLS
_THINK, _THOUGHT = THINK
_TURN_END = "<|im_end|>"
_PREFIX = "functions."


class _At(Enum):
    """Where in an output the parser is."""

    REASONING = auto()
    CONTENT = auto()
    BETWEEN = auto()  # in a section or after one, outside calls
    ID = auto()
    ARGUMENTS = auto()
    END = auto()


class KimiK2Parser:
    """Implements `Parser`. What it does where outputs leave the grammar (kimi-protocol.md 3.5):

    A call is reported when its arguments begin, under the name between `functions.` and the last `:number`, or all
    that is there when the id has another form; arguments are passed on as they come, whatever they are, `{}` when
    there are none. So a call that is broken off in its arguments stays, one broken off before is dropped. Text
    between and after calls is dropped, and blank text before them. Reasoning ends where calls begin, and `<think>`
    begins it only before any text. Markers out of place vanish. Nothing counts after the end of the turn.

    Without `calls`, their markers vanish and the text between them is content.
    """

    def __init__(self, choice: int, first_call: int, *, reasoning: bool, calls: bool) -> None:
        """`first_call` is the number in the first call's id, `reasoning` whether the prompt opened `<think>`."""
        self._choice = choice
        self._first_call = first_call
        self._may_call = calls
        self._at = _At.REASONING if reasoning else _At.CONTENT
        self._blank = True  # no text or arguments yet but white space, which is held
        self._held: list[str] = []  # that white space, or the id
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
            else:
                self._marker(segment.name, events)
        return events

    def flush(self, *, complete: bool) -> list[OutputEvent]:
        events: list[OutputEvent] = []
        self._end(events, complete=complete)
        return events

    def _text(self, text: str, events: list[OutputEvent]) -> None:
        at = self._at
        if at is _At.REASONING:
            events.append(ReasoningDelta(self._choice, text))
        elif at is _At.ID:
            self._held.append(text)
        elif at is _At.CONTENT or at is _At.ARGUMENTS:
            if self._blank:
                self._held.append(text)
                if text.isspace():
                    return
                text = self._take_held()
                self._blank = False
            self._say(text, events)

    def _say(self, text: str, events: list[OutputEvent]) -> None:
        if self._at is _At.CONTENT:
            events.append(TextDelta(self._choice, text))
        else:
            events.append(ArgumentsDelta(self._choice, self.calls - 1, text))

    def _take_held(self) -> str:
        held = "".join(self._held)
        self._held = []
        return held

    def _marker(self, name: str, events: list[OutputEvent]) -> None:
        at = self._at
        if at is _At.END:
            return
        if name == _TURN_END:
            self._end(events, complete=True)
        elif name == _THINK:
            if at is _At.CONTENT and self._blank:
                self._at, self._held = _At.REASONING, []
        elif name == _THOUGHT:
            if at is _At.REASONING:
                self._at = _At.CONTENT
        elif name in MISSPELT:
            if at is _At.ARGUMENTS:
                self._text(name, events)
        elif not self._may_call:
            if at is _At.REASONING and name in (_SECTION, _CALL):
                self._at = _At.CONTENT
        elif name == _ARGUMENTS:
            if at is _At.ID:
                self._start(events)
        elif name == _CALL:
            self._end_call(events, complete=True)
            self._at, self._held = _At.ID, []
        elif name == _SECTION:
            self._end_call(events, complete=True)
            self._at = _At.BETWEEN
        elif at not in (_At.REASONING, _At.CONTENT):  # the end of a call or of a section
            self._end_call(events, complete=True)
            self._at = _At.BETWEEN if self.calls or name == _CALL_END else _At.CONTENT

    def _start(self, events: list[OutputEvent]) -> None:
        name = _name(self._take_held())
        number = self._first_call + self.calls
        events.append(ToolCallStarted(self._choice, self.calls, f"{name}:{number}", name))
        self.calls += 1
        self._at, self._blank = _At.ARGUMENTS, True

    def _end_call(self, events: list[OutputEvent], *, complete: bool) -> None:
        """The end of the call that is open, if any; `complete` when the output goes on after it."""
        if self._at is _At.ID:
            self.dropped += 1
        elif self._at is _At.ARGUMENTS and self._blank and complete:
            self._say("{}", events)
        self._held = []

    def _end(self, events: list[OutputEvent], *, complete: bool) -> None:
        if self._at is _At.CONTENT and self._held:
            self._say(self._take_held(), events)
        self._end_call(events, complete=complete)
        self._at = _At.END


def _name(written: str) -> str:
    """The name in an id as a model writes it (kimi-protocol.md 3.2)."""
    name = written.strip()
    while name.startswith(_PREFIX):
        name = name.removeprefix(_PREFIX)
    stem, colon, number = name.rpartition(":")
    return stem if colon and number.isascii() and number.isdigit() else name
