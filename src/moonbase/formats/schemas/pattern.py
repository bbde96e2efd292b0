"""The `pattern` keyword: the plain part of ECMA-262 regular expressions, read so that grammars can be made of it.

Look-around, back-references, word boundaries and Unicode classes are not part of it. A pattern may match anywhere in
a string; here it is read as what the whole string is, which is one way to satisfy it.
"""

import re
from typing import NamedTuple

MAX_LENGTH = 1_000
MAX_REPEAT = 64
_MAX_DEPTH = 20  # groups inside one another
_CLASSES = {
    "d": ((0x30, 0x39),),
    "w": ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)),
    "s": ((0x20, 0x20),),  # engines of regular expressions differ about the others, so they are neither in nor out
}
_ALL_SPACES = (
    *((0x09, 0x0D), (0x20, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)),
    *((0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)),
)
_LINE_ENDS = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_ESCAPES = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B, "0": 0x00}


class Class(NamedTuple):
    """One character in `ranges` of code points, or with `negated` one that is in none of them."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False

    def allows(self, code: int) -> bool:
        return any(first <= code <= last for first, last in self.ranges) != self.negated


class Literal(NamedTuple):
    character: str


class Group(NamedTuple):
    """One of several sequences."""

    branches: tuple[tuple["Repeat", ...], ...]


class Repeat(NamedTuple):
    """`atom`, `least` to `most` times; None is no limit."""

    atom: "Class | Literal | Group"
    least: int
    most: int | None


def parse(pattern: str) -> Group | None:
    """None for a pattern that uses more than the plain part, or is too long or deep."""
    if len(pattern) > MAX_LENGTH:
        return None
    try:
        return _Parser(pattern).parse()
    except (_Unsupported, RecursionError):
        return None


def with_lengths(tree: Group, least: int, most: int | None) -> Group | None:
    """`tree` held to these lengths, where it is one repeated character; any other is as it was.

    None when no length fits both.
    """
    if len(tree.branches) != 1 or len(tree.branches[0]) != 1 or not isinstance(tree.branches[0][0].atom, Class):
        return tree
    atom, own_least, own_most = tree.branches[0][0]
    both_least = max(own_least, least)
    both_most = min([bound for bound in (own_most, most) if bound is not None], default=None)
    if both_most is not None and both_most < both_least:
        return None
    if both_least > MAX_REPEAT:
        return tree
    return Group(((Repeat(atom, both_least, both_most if both_most is None or both_most <= MAX_REPEAT else None),),))


class _Unsupported(Exception):
    """The pattern uses more than the plain part. Never leaves this module."""


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._depth = 0
        self._anchors = 0

    def parse(self) -> Group:
        tree = self._alternation(anchors=True)
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

    def _alternation(self, *, anchors: bool) -> Group:
        branches = [self._sequence(anchors=anchors)]
        while self._skip("|"):
            branches.append(self._sequence(anchors=anchors))
        return Group(tuple(branches))

    def _sequence(self, *, anchors: bool) -> tuple[Repeat, ...]:
        """`anchors` tells whether it begins where the string begins, and ends where it ends."""
        if anchors and self._skip("^"):
            self._anchors += 1
        items = []
        while self._peek() not in ("", "|", ")"):
            if anchors and self._skip("$"):
                self._anchors += 1
                if self._peek() not in ("", "|", ")"):
                    raise _Unsupported
                break
            items.append(self._quantified(self._atom()))
        return tuple(items)

    def _atom(self) -> Class | Literal | Group:
        begin = self._at
        character = self._next()
        match character:
            case "(":
                return self._group(begin)
            case "[":
                return self._class()
            case ".":
                return Class(_LINE_ENDS, negated=True)
            case "\\":
                return self._escaped()
            case "*" | "+" | "?" | "{" | "}" | "]" | "^" | "$":
                raise _Unsupported
            case _:
                return Literal(character)

    def _group(self, begin: int) -> Group:
        """A group may have anchors only where it is the whole pattern."""
        self._depth += 1
        if self._depth > _MAX_DEPTH or (self._peek() == "?" and not self._skip("?:")):
            raise _Unsupported
        before = self._anchors
        inner = self._alternation(anchors=begin == 0)
        if not self._skip(")") or (self._anchors > before and self._at < len(self._text)):
            raise _Unsupported
        self._depth -= 1
        return inner

    def _escaped(self) -> Class | Literal:
        character = self._next()
        if character == "S":
            return Class(_ALL_SPACES, negated=True)
        if character.lower() in _CLASSES:
            return Class(_CLASSES[character.lower()], negated=character.isupper())
        return Literal(chr(self._escaped_code(character)))

    def _escaped_code(self, character: str) -> int:
        if character in _ESCAPES:
            return _ESCAPES[character]
        if character in ("u", "x"):
            width = 4 if character == "u" else 2
            digits = self._text[self._at : self._at + width]
            self._at += width
            if len(digits) < width or any(digit not in "0123456789abcdefABCDEF" for digit in digits):
                raise _Unsupported
            return _text_code(int(digits, 16))
        if character.isalnum():
            raise _Unsupported
        return ord(character)

    def _class(self) -> Class:
        negated = self._skip("^")
        ranges: list[tuple[int, int]] = []
        while not self._skip("]"):
            if any(self._text.startswith(sign, self._at) for sign in ("[", "&&", "--", "~~")):
                raise _Unsupported  # set operations in some engines of regular expressions
            character = self._next()
            if character == "\\":
                character = self._next()
                if character in _CLASSES:
                    ranges += _ALL_SPACES if negated and character == "s" else _CLASSES[character]
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
        if not ranges or not (negated or any(last >= 0x20 for _, last in ranges)):
            raise _Unsupported  # nothing that JSON can hold without an escape
        return Class(tuple(ranges), negated)

    def _quantified(self, atom: Class | Literal | Group) -> Repeat:
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
        return Repeat(atom, least, most)

    def _counts(self) -> tuple[int, int | None]:
        inner, closed, _ = self._text[self._at :].partition("}")
        found = re.fullmatch(r"([0-9]{1,4})(,?)([0-9]{0,4})", inner) if closed else None
        if found is None or (found[3] and not found[2]):
            raise _Unsupported
        self._at += len(inner) + 1
        least = int(found[1])
        most = (int(found[3]) if found[3] else None) if found[2] else least
        if least > MAX_REPEAT or (most or 0) > MAX_REPEAT or (most is not None and most < least):
            raise _Unsupported
        return least, most


def _text_code(code: int) -> int:
    if 0xD800 <= code <= 0xDFFF:
        raise _Unsupported  # half a character
    return code
