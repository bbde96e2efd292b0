"""Values that a schema allows, written by chance: what `chaos` answers with where a request demands a schema."""

import json
import math
import random
from collections.abc import Mapping
from decimal import Decimal

from moonbase.formats.schemas.pattern import Class, Group, Literal
from moonbase.formats.schemas.shapes import (
    AnyValue,
    Array,
    Boolean,
    Choice,
    Enumeration,
    Graph,
    Node,
    Nothing,
    Null,
    Number,
    Object,
    Reference,
    String,
)

_MAX_DEPTH = 4  # from here on, values are as small as the schema allows
_MANY = 3  # items and characters beyond what is required
_TRIES = 50
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORDS = ("alpha", "Tōkyō", "blue sky", "北京", 'a "quoted" word', "x<y", "back\\slash", "émigré", "42", "🙂")
_SCALARS = ('"any"', "17", "true", "null", "-2.5")
_CLASS_SAMPLE = _LETTERS + _LETTERS.upper() + "0123456789_- .,:;@#/+*!?%&()<>=~|'\"\\\t\u00e9\u4e2d"


class ValueWriter:
    """Writes one value of `graph` after another, each of finite size.

    What the graph says is kept; the lengths beside a `pattern` are met where some tries find such a string.
    """

    def __init__(self, graph: Graph, chance: random.Random, *, spaced: bool) -> None:
        """With `spaced`, a space follows each `:` and `,`."""
        self._definitions = graph.definitions
        self._chance = chance
        self._comma, self._colon = (", ", ": ") if spaced else (",", ":")
        self._heights = _heights(graph.definitions)

    def write(self) -> str:
        return self._value(self._definitions[""], 0)

    def broken(self) -> str:
        """A value that the schema does not allow, as far as it forbids anything: without what it requires."""
        root = self._definitions[""]
        required = isinstance(root, Object) and any(each.required for each in root.properties)
        return "{}" if required else "null"

    def _value(self, node: Node, depth: int) -> str:
        match node:
            case AnyValue():
                return self._chance.choice(_SCALARS)
            case Boolean():
                return self._chance.choice(("true", "false"))
            case Null() | Nothing():
                return "null"
            case Enumeration(values):
                return self._chance.choice(values)
            case String():
                return json.dumps(self._string(node), ensure_ascii=False)
            case Number():
                return self._number(node)
            case Array(item, least, most):
                count = least if depth >= _MAX_DEPTH else self._count(least, most)
                return f"[{self._comma.join([self._value(item, depth + 1) for _ in range(count)])}]"
            case Object():
                return self._object(node, depth)
            case Choice(branches):
                if depth >= _MAX_DEPTH:
                    return self._value(min(branches, key=self._height), depth)
                return self._value(self._chance.choice(branches), depth)
            case Reference(name):
                return self._value(self._definitions[name], depth + 1)

    def _count(self, least: int, most: int | None) -> int:
        return self._chance.randint(least, least + _MANY if most is None else min(most, least + _MANY))

    def _object(self, node: Object, depth: int) -> str:
        small = depth >= _MAX_DEPTH
        members = [
            self._member(each.name, each.value, depth)
            for each in node.properties
            if each.required or (not small and self._chance.random() < 0.5)
        ]
        if node.extra is not None and not small and "extra" not in node.taken and self._chance.random() < 0.3:
            members.append(self._member("extra", node.extra, depth))
        return f"{{{self._comma.join(members)}}}"

    def _member(self, name: str, value: Node, depth: int) -> str:
        return f"{json.dumps(name, ensure_ascii=False)}{self._colon}{self._value(value, depth + 1)}"

    def _string(self, node: String) -> str:
        if node.pattern is None:
            most = node.least + 12 if node.most is None else node.most
            text = self._chance.choice(_WORDS)
            while len(text) < node.least:
                text += self._chance.choice(_LETTERS)
            return text[:most]
        for _ in range(_TRIES):
            text = self._matching(node.pattern)
            if node.least <= len(text) <= (math.inf if node.most is None else node.most):
                break
        return text

    def _matching(self, group: Group) -> str:
        texts: list[str] = []
        for atom, least, most in self._chance.choice(group.branches):
            for _ in range(self._count(least, most)):
                match atom:
                    case Literal(character):
                        texts.append(character)
                    case Class():
                        texts.append(self._character(atom))
                    case Group():
                        texts.append(self._matching(atom))
        return "".join(texts)

    def _character(self, allowed: Class) -> str:
        found = [character for character in _CLASS_SAMPLE if allowed.allows(ord(character))]
        return self._chance.choice(found) if found else chr(allowed.ranges[0][0])

    def _number(self, node: Number) -> str:
        if node.first is None or node.last is None:
            whole = self._chance.randint(-1_000, 1_000)
            return str(whole) if node.whole else str(whole / 8)
        return format(Decimal(self._chance.randint(node.first, node.last)).scaleb(-node.places), "f")

    def _height(self, node: Node) -> float:
        return _height(node, self._heights)


def _heights(definitions: Mapping[str, Node]) -> dict[str, float]:
    """The smallest nesting of a value of each definition."""
    heights = dict.fromkeys(definitions, math.inf)
    while True:
        lower = {name: _height(node, heights) for name, node in definitions.items()}
        if lower == heights:
            return heights
        heights = lower


def _height(node: Node, heights: Mapping[str, float]) -> float:
    match node:
        case Choice(branches):
            return min([_height(branch, heights) for branch in branches])
        case Reference(name):
            return heights[name] + 1
        case Array(item, least) if least:
            return _height(item, heights) + 1
        case Object(properties):
            return max([_height(each.value, heights) + 1 for each in properties if each.required], default=0)
        case _:
            return 0
