"""Our grammars read back: which texts one accepts, and texts written by chance under it."""

import math
import random
from collections.abc import Iterable
from typing import Any

PALETTE = "aZ09 _-/:,.<>|{}[]\u00e9\u4f60\U0001f600\u2028"
"""Characters that texts are written with where a class leaves the choice."""


class Grammar:
    """A grammar in the notation of `moonbase.engines.notation`, by brute force. Its start is the rule `root`."""

    def __init__(self, text: str) -> None:
        pairs = [line.partition(" ::= ") for line in text.splitlines()]
        assert len({name for name, _, _ in pairs}) == len(pairs), "a rule is there twice"
        self.rules = {name: _parse(body) for name, _, body in pairs}
        self._heights = self._all_heights()

    def accepts(self, text: str) -> bool:
        return len(text) in self._ends(("name", "root"), text, 0)

    def write(self, chance: random.Random, steps: int = 400) -> str:
        """A text that the grammar accepts; after `steps` choices it takes the shortest way out."""
        self._left = steps
        return self._written(("name", "root"), chance)

    def names(self) -> set[str]:
        """All names that bodies use."""
        return {name for body in self.rules.values() for name in _names(body)}

    def _ends(self, node: Any, text: str, at: int) -> set[int]:
        match node:
            case ("name", name):
                return self._ends(self.rules[name], text, at)
            case ("text", literal):
                return {at + len(literal)} if text.startswith(literal, at) else set()
            case ("class", ranges, negated):
                inside = at < len(text) and any(low <= text[at] <= high for low, high in ranges) != negated
                return {at + 1} if inside and at < len(text) else set()
            case ("choice", branches):
                return set().union(*(self._ends(branch, text, at) for branch in branches))
            case ("sequence", items):
                ends = {at}
                for item in items:
                    ends = set().union(*(self._ends(item, text, end) for end in ends))
                return ends
            case ("repeat", item, least, most):
                ends, found = {at}, {at} if least == 0 else set()
                for count in range(1, min(most, len(text) + 1) + 1):
                    ends = set().union(*(self._ends(item, text, end) for end in ends))
                    if not ends:
                        break
                    if count >= least:
                        found |= ends
                return found
        raise AssertionError(node)

    def _written(self, node: Any, chance: random.Random) -> str:
        match node:
            case ("name", name):
                return self._written(self.rules[name], chance)
            case ("text", literal):
                return str(literal)
            case ("class", ranges, negated):
                return _character(ranges, negated, chance)
            case ("choice", branches):
                self._left -= 1
                if self._left < 0:
                    return self._written(min(branches, key=self._height), chance)
                return self._written(chance.choice(branches), chance)
            case ("sequence", items):
                return "".join([self._written(item, chance) for item in items])
            case ("repeat", item, least, most):
                self._left -= 1
                count = least if self._left < 0 else chance.randint(least, min(most, least + 3))
                return "".join([self._written(item, chance) for _ in range(count)])
        raise AssertionError(node)

    def _all_heights(self) -> dict[str, float]:
        """The fewest rules inside one another with which each rule comes to an end."""
        self._heights = dict.fromkeys(self.rules, math.inf)
        while True:
            lower = {name: self._height(body) + 1 for name, body in self.rules.items()}
            if lower == self._heights:
                return lower
            self._heights = lower

    def _height(self, node: Any) -> float:
        match node:
            case ("name", name):
                return self._heights[name]
            case ("choice", branches):
                return min(map(self._height, branches))
            case ("sequence", items):
                return max(map(self._height, items), default=0)
            case ("repeat", item, least, _):
                return self._height(item) if least else 0
            case _:
                return 0


def _character(ranges: Iterable[tuple[str, str]], negated: bool, chance: random.Random) -> str:
    if negated:
        allowed = [one for one in PALETTE if not any(low <= one <= high for low, high in ranges)]
        return chance.choice(allowed)
    low, high = chance.choice(list(ranges))
    return chr(chance.randint(ord(low), ord(high)))


def _names(node: Any) -> Iterable[str]:
    match node:
        case ("name", name):
            yield name
        case ("choice" | "sequence", inner):
            for one in inner:
                yield from _names(one)
        case ("repeat", item, _, _):
            yield from _names(item)


def _parse(body: str) -> Any:
    at = 0

    def choice() -> Any:
        nonlocal at
        branches = [sequence()]
        while body[at : at + 1] == "|":
            at += 1
            branches.append(sequence())
        return ("choice", branches)

    def sequence() -> Any:
        nonlocal at
        items = []
        while True:
            while body[at : at + 1] == " ":
                at += 1
            if body[at : at + 1] in ("", "|", ")"):
                return ("sequence", items)
            items.append(counted(atom()))

    def counted(item: Any) -> Any:
        nonlocal at
        sign = body[at : at + 1]
        if sign in ("*", "?"):
            at += 1
            return ("repeat", item, 0, 10**9 if sign == "*" else 1)
        if sign == "{":
            low, _, high = body[at + 1 : body.index("}", at)].partition(",")
            at = body.index("}", at) + 1
            return ("repeat", item, int(low), int(high) if high else 10**9)
        return item

    def atom() -> Any:
        nonlocal at
        match body[at]:
            case "(":
                at += 1
                inner = choice()
                at += 1
                return inner
            case '"':
                at += 1
                letters = ""
                while body[at] != '"':
                    letters += letter()
                at += 1
                return ("text", letters)
            case "[":
                at += 1
                negated = body[at] == "^"
                at += negated
                ranges = []
                while body[at] != "]":
                    low = letter()
                    if body[at] == "-" and body[at + 1] != "]":
                        at += 1
                        ranges.append((low, letter()))
                    else:
                        ranges.append((low, low))
                at += 1
                return ("class", ranges, negated)
        start = at
        while at < len(body) and (body[at].isalnum() or body[at] in "_-"):
            at += 1
        assert at > start, (body, at)
        return ("name", body[start:at])

    def letter() -> str:
        nonlocal at
        if body[at] != "\\":
            at += 1
            return body[at - 1]
        width = {"x": 2, "U": 8}.get(body[at + 1], 0)
        at += 2 + width
        return chr(int(body[at - width : at], 16)) if width else body[at - 1]

    return choice()
