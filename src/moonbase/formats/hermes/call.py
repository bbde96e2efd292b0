"""What stands between `<tool_call>` and `</tool_call>`, read as it comes."""

import re
from enum import Enum, auto

import msgspec
from msgspec import Struct

_NO_SPACE = re.compile(r"\S")
_NO_SPACE_OR_COMMA = re.compile(r"[^\s,]")
_IN_STRING = re.compile(r'["\\]')  # what counts there
_IN_STRUCTURE = re.compile(r'["{}\[\]]')
_AFTER_SCALAR = re.compile(r"[\s,}\]]")


class Called(Struct, frozen=True):
    """A call begins; the texts up to the next one are its arguments."""

    name: str


class _At(Enum):
    """Where in the text the reader is."""

    OUTSIDE = auto()  # of any object
    KEY = auto()  # before one, or before the end of the object
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()  # before one
    IN_VALUE = auto()
    IN_ARGUMENTS = auto()  # of a call whose name is known
    BROKEN = auto()


class CallReader:
    """Reads JSON objects with the keys `name` and `arguments`, each of them a call. `feed` and `flush`.

    Arguments are given as they come as soon as the name is known, whatever value they are and wherever it breaks
    off; `{}` when the object has none. The order of the keys does not matter, of two that are equal the first
    counts, other keys are skipped, and so is all that is outside objects. An object that has no name, or is no JSON
    before its arguments, is no call.
    """

    def __init__(self) -> None:
        self._at = _At.OUTSIDE
        self._value = _Value("{")
        self._read: list[str] = []  # of the key or the value that is not given as it comes
        self._key = ""
        self._name: str | None = None
        self._early: str | None = None  # arguments that came before the name
        self._started = False
        self._objects = 0
        self._calls = 0

    @property
    def lost(self) -> int:
        """Objects that were no calls; 1 where there was no object at all."""
        return max(self._objects, 1) - self._calls

    @property
    def quoted(self) -> bool:
        """Whether what comes next is inside a JSON string."""
        return self._value.quoted

    def feed(self, text: str) -> list[Called | str]:
        found: list[Called | str] = []
        at = 0
        while at < len(text):
            match self._at:
                case _At.IN_ARGUMENTS:
                    end = self._value.end(text, at)
                    if end > at:
                        found.append(text[at:end])
                    if self._value.ended:
                        self._at = _At.KEY
                    at = end
                case _At.IN_KEY | _At.IN_VALUE:
                    end = self._value.end(text, at)
                    self._read.append(text[at:end])
                    if self._value.ended:
                        self._take("".join(self._read), found)
                    at = end
                case _At.OUTSIDE:
                    at = self._outside(text, at)
                case _At.BROKEN:
                    at = len(text)
                case _:
                    at = self._between(text, at, found)
        return found

    def flush(self, *, complete: bool) -> list[Called | str]:
        """What is known at the end; unless `complete`, the text was cut there."""
        found: list[Called | str] = []
        if self._at is _At.KEY and complete:
            self._end_object(found)
        return found

    def _outside(self, text: str, at: int) -> int:
        brace = text.find("{", at)
        if brace < 0:
            return len(text)
        self._at = _At.KEY
        self._name, self._early, self._started = None, None, False
        self._objects += 1
        return brace + 1

    def _between(self, text: str, at: int, found: list[Called | str]) -> int:
        """Before a key, a colon or a value."""
        next_one = (_NO_SPACE_OR_COMMA if self._at is _At.KEY else _NO_SPACE).search(text, at)
        if next_one is None:
            return len(text)
        at = next_one.start()
        match self._at, text[at]:
            case _At.KEY, '"':
                self._begin(_At.IN_KEY, '"')
                return at
            case _At.KEY, "}":
                self._end_object(found)
            case _At.COLON, ":":
                self._at = _At.VALUE
            case _At.VALUE, first if first not in ",:}]":
                if self._key == "arguments" and self._name is not None and not self._started:
                    self._start(self._name, found)
                    self._begin(_At.IN_ARGUMENTS, first)
                else:
                    self._begin(_At.IN_VALUE, first)
                return at
            case _:
                self._at = _At.BROKEN
        return at + 1

    def _begin(self, at: _At, first: str) -> None:
        self._at, self._value, self._read = at, _Value(first), []

    def _take(self, read: str, found: list[Called | str]) -> None:
        """A key or value that has been read to its end."""
        if self._at is _At.IN_KEY:
            self._at, self._key = _At.COLON, _string(read) or ""
            return
        self._at = _At.KEY
        if self._key == "arguments" and self._early is None:
            self._early = read
        elif self._key == "name" and self._name is None:
            self._name = _string(read)
            if self._name is not None and self._early is not None:
                self._start(self._name, found)
                found.append(self._early)

    def _end_object(self, found: list[Called | str]) -> None:
        if self._name is not None and not self._started:
            self._start(self._name, found)
            found.append("{}")
        self._at = _At.OUTSIDE

    def _start(self, name: str, found: list[Called | str]) -> None:
        self._started = True
        self._calls += 1
        found.append(Called(name))


class _Value:
    """Finds the end of one JSON value; what is in it may be no JSON."""

    def __init__(self, first: str) -> None:
        """`first` is its first character."""
        self._scalar = first not in '"{['
        self._depth = 0
        self._escaped = False
        self.quoted = False
        self.ended = False

    def end(self, text: str, at: int) -> int:
        """How far from `at` the value goes in `text`."""
        if self._scalar:
            after = _AFTER_SCALAR.search(text, at)
            self.ended = after is not None
            return len(text) if after is None else after.start()
        if self._escaped:
            self._escaped = False
            at += 1
        while found := (_IN_STRING if self.quoted else _IN_STRUCTURE).search(text, at):
            at = found.end()
            match text[at - 1]:
                case "\\":
                    self._escaped = at == len(text)
                    at += 1
                case '"':
                    self.quoted = not self.quoted
                case "{" | "[":
                    self._depth += 1
                case _:
                    self._depth -= 1
            if not (self._depth or self.quoted):
                self.ended = True
                return at
        return len(text)


def _string(read: str) -> str | None:
    """The value of a JSON string, None when it is none."""
    try:
        return msgspec.json.decode(read, type=str)
    except msgspec.DecodeError:
        return None
