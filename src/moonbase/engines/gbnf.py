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

from moonbase.engines import automaton
from moonbase.engines.base import Tokenizer
from moonbase.engines.grammar import Dialect, Rules
from moonbase.engines.json_rules import Budget
from moonbase.engines.json_strings import SURROGATES
from moonbase.engines.notation import Ranges, any_of
from moonbase.engines.structural_tag import TokenDialect
from moonbase.formats.recent import Recent

_LAST_CODE = 0x10FFFF
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
        """One rule for each state of an automaton that finds markers."""
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
    states = automaton.without(excludes)
    prefix = f"text-{zlib.crc32(repr(list(states)).encode()):08x}"
    names = {state: f"{prefix}-{number}" for number, state in enumerate(states)}
    rules: dict[str, str] = {}
    for state, following in states.items():
        others = _complement([(0, 0), SURROGATES, *[(ord(one), ord(one)) for one in following]])
        parts = ['""', f"{any_of(others)} {names['']}"]
        parts += [
            f"{any_of([(ord(character), ord(character))])} {names[then]}"
            for character, then in following.items()
            if then is not None
        ]
        rules[names[state]] = " | ".join(parts)
    return rules


def _translated(term: re.Match[str]) -> str:
    text = term.group()
    if not text.startswith("[^"):
        return text
    return any_of(_complement([SURROGATES, *_members(text[2:-1])]))


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
