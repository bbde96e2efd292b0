"""Grammars as llama.cpp takes them (GBNF).

Markers that are tokens of the vocabulary are matched by id, `<[163595]>`. End-of-turn tokens are no part of a grammar:
llama.cpp allows them exactly where it is complete. A grammar holds from the first token on, also where calls are
optional: llama.cpp's own lazy grammars leave the text before the trigger to itself, and a request fails whose trigger
ends inside a token.
"""

import re
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from moonbase.engines.base import Tokenizer
from moonbase.engines.grammar import Dialect, Rules
from moonbase.engines.json_rules import Budget
from moonbase.engines.notation import Ranges, any_of
from moonbase.engines.structural_tag import TokenDialect
from moonbase.formats.recent import Recent

_LAST_CODE = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
_TEXTS = 16  # formats know few kinds of text
_TERM = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]')
_MEMBER = re.compile(r"(\\U[0-9A-F]{8}|[^\\])(?:-(\\U[0-9A-F]{8}|[^\\]))?")


class GbnfDialect(TokenDialect):
    """llama.cpp. It takes control tokens for the characters of their names, as xgrammar does.

    Free text and JSON strings are automata of plain rules, whose states cost next to nothing here.
    """

    budget = Budget(places=512, characters=250_000)

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._texts: Recent[tuple[str, ...], dict[str, str]] = Recent(_TEXTS)

    def marker(self, name: str) -> str:
        token = self._token(name)
        return super().marker(name) if token is None else f"<[{token}]>"

    def text(self, excludes: tuple[str, ...], rules: Rules) -> str:
        """One rule for each beginning of a marker that may be open: Aho and Corasick's automaton."""
        states = self._texts.get(excludes)
        if states is None:
            states = _text(excludes)
            self._texts.keep(excludes, states, 1)
        rules.bodies.update(states)
        return next(iter(states))

    def finished(self, rules: dict[str, str], unspelled: tuple[str, ...]) -> dict[str, str]:
        """Classes that exclude become classes that allow: the former would let characters pass that do not exist."""
        return {name: _TERM.sub(_translated, body) for name, body in rules.items()}

    def request(self, grammar: str) -> str:
        return grammar


def _text(excludes: tuple[str, ...]) -> dict[str, str]:
    """The rules of text without `excludes`, the one that it starts with first."""
    whole = [text for text in excludes if not any(other in text for other in excludes if other != text)]
    prefix = f"text-{zlib.crc32(repr(whole).encode()):08x}"
    beginnings = dict.fromkeys(["", *[text[:end] for text in whole for end in range(1, len(text))]])
    names = {beginning: f"{prefix}-{number}" for number, beginning in enumerate(beginnings)}
    return {name: _state(beginning, names, whole) for beginning, name in names.items()}


def _state(beginning: str, names: dict[str, str], whole: list[str]) -> str:
    """What may follow `beginning`, the longest end of the text so far that one of `whole` begins with."""
    ends = [beginning[at:] for at in range(len(beginning) + 1) if beginning[at:] in names]
    following: dict[str, str] = {}  # of a character with a meaning, the beginning that is open after it
    for end in ends:  # the longest first, so that it decides
        for text in whole:
            if text.startswith(end):
                following.setdefault(text[len(end)], end + text[len(end)])
    others = _complement([(0, 0), _SURROGATES, *[(ord(one), ord(one)) for one in following]])
    parts = ['""', f"{any_of(others)} {names['']}"]
    parts += [
        f"{any_of([(ord(character), ord(character))])} {names[opened]}"
        for character, opened in following.items()
        if not any((beginning + character).endswith(text) for text in whole)
    ]
    return " | ".join(parts)


def _translated(term: re.Match[str]) -> str:
    text = term.group()
    if not text.startswith("[^"):
        return text
    return any_of(_complement([_SURROGATES, *_members(text[2:-1])]))


def _members(inside: str) -> Iterator[tuple[int, int]]:
    for first, last in _MEMBER.findall(inside):
        yield _code(first), _code(last or first)


def _code(text: str) -> int:
    return int(text[2:], 16) if len(text) > 1 else ord(text)


def _complement(ranges: Ranges) -> list[tuple[int, int]]:
    allowed: list[tuple[int, int]] = []
    start = 0
    for first, last in sorted(ranges):
        if start < first:
            allowed.append((start, first - 1))
        start = max(start, last + 1)
    return [*allowed, (start, _LAST_CODE)] if start <= _LAST_CODE else allowed


if TYPE_CHECKING:

    def _conforms(dialect: GbnfDialect) -> Dialect:
        return dialect
