"""The `pattern` keyword as a grammar: the plain part of ECMA-262 regular expressions.

A pattern may match anywhere in a string; the grammar asks for a string that it matches as a whole, which
is one way to satisfy it. Look-around, back-references and Unicode classes are not translated.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

_MAX_LENGTH = 1_000
_MAX_REPEAT = 64
_NARROW = 0.15  # what a place that few characters fit costs, in places that most characters fit
_QUOTE, _BACKSLASH = 0x22, 0x5C
_CLASSES = {
    "d": [(0x30, 0x39)],
    "w": [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
    "s": [(0x20, 0x20)],  # the other kinds of white space would have to be escaped in JSON
}
_ESCAPES = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B, "0": 0x00}


def literal(text: str) -> str:
    """`text` as a quoted string of the grammar."""
    return '"' + "".join(_escape(character) for character in text) + '"'


def _escape(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08X}"


class _Unsupported(Exception):
    """This pattern is left to the validation."""


class _Class(NamedTuple):
    ranges: list[tuple[int, int]]
    negated: bool


class _Literal(NamedTuple):
    text: str


class _Group(NamedTuple):
    branches: list[list["_Repeat"]]


class _Repeat(NamedTuple):
    atom: "_Class | _Literal | _Group"
    least: int
    most: int | None


class Pattern:
    """A pattern that can be enforced. `places` is what compiling it costs, in places of a bounded string."""

    def __init__(self, tree: _Group) -> None:
        self._tree = tree
        self.places = _cost(tree)

    @classmethod
    def parse(cls, pattern: str, min_length: int, max_length: int | None) -> "Pattern | None":
        """None when it uses what is not translated.

        Lengths are combined with a pattern that is one repeated character; else the pattern alone is enforced.
        """
        if len(pattern) > _MAX_LENGTH:
            return None
        parser = _Parser(pattern)
        try:
            tree = _with_lengths(parser.parse(), min_length, max_length)
            _group(tree, lambda body: "r")  # meets every character that JSON cannot hold
        except (_Unsupported, RecursionError):
            return None
        return cls(tree)

    def body(self, rule: Callable[[str], str]) -> str:
        """The expression; `rule` names a body and returns the name."""
        return _group(self._tree, rule)


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0

    def parse(self) -> _Group:
        tree = self._alternation()
        if self._at < len(self._text):
            raise _Unsupported
        return tree

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        character = self._peek()
        if not character:
            raise _Unsupported
        self._at += 1
        return character

    def _skip(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def _alternation(self) -> _Group:
        branches = [self._sequence()]
        while self._skip("|"):
            branches.append(self._sequence())
        return _Group(branches)

    def _sequence(self) -> list[_Repeat]:
        self._skip("^")
        items = []
        while self._peek() not in ("", "|", ")"):
            if self._skip("$"):
                if self._peek() not in ("", "|", ")"):
                    raise _Unsupported
                break
            items.append(self._quantified(self._atom()))
        return items

    def _atom(self) -> _Class | _Literal | _Group:
        character = self._next()
        match character:
            case "(":
                if self._peek() == "?" and not self._skip("?:"):
                    raise _Unsupported
                inner = self._alternation()
                if not self._skip(")"):
                    raise _Unsupported
                return inner
            case "[":
                return self._class()
            case ".":
                return _Class([(0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)], negated=True)
            case "\\":
                return self._escaped()
            case "*" | "+" | "?" | "{" | "}" | "]" | "^":
                raise _Unsupported
            case _:
                return _Literal(character)

    def _escaped(self) -> _Class | _Literal:
        character = self._next()
        if character.lower() in _CLASSES:
            return _Class(_CLASSES[character.lower()], negated=character.isupper())
        return _Literal(chr(self._escaped_code(character)))

    def _escaped_code(self, character: str) -> int:
        if character in _ESCAPES:
            return _ESCAPES[character]
        if character in ("u", "x"):
            width = 4 if character == "u" else 2
            digits = self._text[self._at : self._at + width]
            self._at += width
            if len(digits) < width or not digits.isalnum() or any(d not in "0123456789abcdefABCDEF" for d in digits):
                raise _Unsupported
            return int(digits, 16)
        if character.isalnum():
            raise _Unsupported
        return ord(character)

    def _class(self) -> _Class:
        negated = self._skip("^")
        ranges: list[tuple[int, int]] = []
        while not self._skip("]"):
            character = self._next()
            if character == "\\":
                character = self._next()
                if character in _CLASSES:
                    ranges += _CLASSES[character]
                    continue
                first = 0x08 if character == "b" else self._escaped_code(character)
            else:
                first = ord(character)
            last = first
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("", "]"):
                self._at += 1
                character = self._next()
                last = self._escaped_code(self._next()) if character == "\\" else ord(character)
            if last < first:
                raise _Unsupported
            ranges.append((first, last))
        return _Class(ranges, negated)

    def _quantified(self, atom: _Class | _Literal | _Group) -> _Repeat:
        least, most = 1, 1  # type: int, int | None
        if self._skip("*"):
            least, most = 0, None
        elif self._skip("+"):
            least, most = 1, None
        elif self._skip("?"):
            least, most = 0, 1
        elif self._skip("{"):
            least, most = self._counts()
        self._skip("?")  # lazy or greedy, the strings are the same
        return _Repeat(atom, least, most)

    def _counts(self) -> tuple[int, int | None]:
        inner, closed, _ = self._text[self._at :].partition("}")
        low, comma, high = inner.partition(",")
        if not closed or not low.isdecimal() or (high and not high.isdecimal()) or len(inner) > 9:
            raise _Unsupported
        self._at += len(inner) + 1
        least = int(low)
        most = (int(high) if high else None) if comma else least
        if least > _MAX_REPEAT or (most or 0) > _MAX_REPEAT or (most is not None and most < least):
            raise _Unsupported
        return least, most


def _with_lengths(tree: _Group, min_length: int, max_length: int | None) -> _Group:
    if len(tree.branches) != 1 or len(tree.branches[0]) != 1:
        return tree
    atom, least, most = tree.branches[0][0]
    if not isinstance(atom, _Class):
        return tree
    least = max(least, min_length)
    if max_length is not None:
        most = max_length if most is None else min(most, max_length)
    if least > _MAX_REPEAT or (most is not None and most < least):
        raise _Unsupported
    return _Group([[_Repeat(atom, least, most if most is None or most <= _MAX_REPEAT else None)]])


def _cost(tree: _Group) -> float:
    total = 0.0
    for branch in tree.branches:
        for atom, least, most in branch:
            match atom:
                case _Group():
                    once = _cost(atom)
                case _Class(_, negated):
                    once = 1.0 if negated else _NARROW
                case _Literal():
                    once = 0.0
            total += once * max(least if most is None else most, 1)
    return total


def _group(tree: _Group, rule: Callable[[str], str]) -> str:
    return rule(" | ".join(" ".join(_repeat(item, rule) for item in branch) or '""' for branch in tree.branches))


def _repeat(item: _Repeat, rule: Callable[[str], str]) -> str:
    atom, least, most = item
    match atom:
        case _Literal():
            body = literal(_json_character(ord(atom.text)))
        case _Class():
            body = rule(_class_body(atom))
        case _Group():
            body = _group(atom, rule)
    if most == 0:
        return '""'
    if (least, most) == (1, 1):
        return body
    return f"{body}{{{least},{'' if most is None else most}}}"


def _class_body(atom: _Class) -> str:
    """What the class allows inside a JSON string: plain characters, and `"` and `\\` with their escape."""

    def allows(code: int) -> bool:
        return any(first <= code <= last for first, last in atom.ranges) != atom.negated

    if atom.negated:
        excluded = [*atom.ranges, (0, 0x1F), (_QUOTE, _QUOTE), (_BACKSLASH, _BACKSLASH)]
        parts = ["[^" + "".join(_range(*pair) for pair in excluded) + "]"]
    else:
        plain = [piece for pair in atom.ranges for piece in _without_special(*pair)]
        parts = ["[" + "".join(_range(*pair) for pair in plain) + "]"] if plain else []
    parts += [literal(_json_character(code)) for code in (_QUOTE, _BACKSLASH) if allows(code)]
    if not parts:
        raise _Unsupported
    return " | ".join(parts)


def _without_special(first: int, last: int) -> list[tuple[int, int]]:
    """The range without control characters, quote, backslash and surrogates."""
    pieces = [(max(first, 0x20), last)]
    for low, high in ((_QUOTE, _QUOTE), (_BACKSLASH, _BACKSLASH), (0xD800, 0xDFFF)):
        pieces = [part for start, end in pieces for part in ((start, min(end, low - 1)), (max(start, high + 1), end))]
        pieces = [(start, end) for start, end in pieces if start <= end]
    return pieces


def _range(first: int, last: int) -> str:
    def code(value: int) -> str:
        return chr(value) if chr(value).isascii() and chr(value).isalnum() else f"\\U{value:08X}"

    return code(first) if first == last else f"{code(first)}-{code(last)}"


def _json_character(code: int) -> str:
    if 0xD800 <= code <= 0xDFFF:
        raise _Unsupported
    return json.dumps(chr(code), ensure_ascii=False)[1:-1]
