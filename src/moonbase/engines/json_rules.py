"""JSON Schemas as rules of a grammar that an engine can enforce while it generates.

The rules accept compact JSON, or JSON with at most one space after `:` and `,`, so a model cannot lose itself in white
space. What they accept is valid under the schema, with these exceptions, to which only the validation after generation
holds the output: bounds that would make compiling expensive, lengths beside most patterns, and what is inside arrays,
objects and enumerations when a grammar becomes too long.

Some engines compile between two steps, so its cost stalls every stream. Measured in processor time with xgrammar
0.1.31, a vocabulary of 49,152 and two busy cores: 9 ms for each place of a bounded string, 1 ms for a place that only
few characters fit, 3 to 6 ms for a thousand characters of other rules and 6 to 11 ms for as many of an enumeration.
Thousands of counted places, which crash the compiler, are out of reach. What a single schema may cost is limited
before, by `formats.schemas`. With the ordinary budget the worst grammars found take 0.8 s.
"""

import json
from collections.abc import Iterable
from typing import assert_never

import msgspec
from msgspec import Struct

from moonbase.engines import pattern
from moonbase.engines.json_strings import ESCAPED, Strings
from moonbase.engines.notation import literal
from moonbase.engines.number_range import magnitudes, signed
from moonbase.formats.schemas.nodes import DIGITS, graph
from moonbase.formats.schemas.pattern import Group
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
    Property,
    Reference,
    String,
)

_MAX_RANGE_TEXT = 8_000  # characters, for numbers with bounds
_MAX_ITEMS = 1_000  # of all bounded arrays together
_MAX_ORDERED = 100  # optional properties of one object that keep their order
_MAX_OTHER = 4  # places for the names that other members of an object may not have

_SCALARS = {
    "integer": r'"-"? ("0" | [1-9] [0-9]{0,14})',
    "number": r'"-"? ("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,15})? ([eE] [+-]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
}
_NOTHING = '""'
_MEMBER = 16  # characters of a member of an object beside its name


class Budget(Struct, frozen=True):
    """What the rules of one grammar may cost.

    `places` are those of bounded strings; what a pattern repeats counts in proportion. `characters` are those of all
    rules, and of enumerations half as many again.
    """

    places: int = 64
    characters: int = 80_000


_BUDGET = Budget()


class JsonRules:
    """The rules for JSON values in one grammar. Equal rules are made once, and all schemas share the budgets.

    Names of rules are lower-case letters and digits.
    """

    def __init__(self, excludes: Iterable[str] = (), budget: Budget = _BUDGET) -> None:
        """No string spells one of `excludes`; see `Strings`."""
        self._shared = _Shared(Strings(excludes), budget)
        self._starts: dict[tuple[str, bool], str] = {}

    @property
    def rules(self) -> dict[str, str]:
        """All rules, each name with its body."""
        used = {spaced for _, spaced in self._starts}
        containers = {name: body for spaced in used for name, body in _containers(_suffix(spaced)).items()}
        return {**self._shared.rules, **_SCALARS, **containers, **self._shared.strings.rules()}

    def value(self, schema: str, *, spaced: bool = False) -> str:
        """The rule for one value under `schema`, which is the text of a `formats.schemas.schema.Schema`.

        With `spaced`, a space may follow each `:` and `,`.
        """
        key = schema, spaced
        if key not in self._starts:
            self._starts[key] = self._start(schema, _suffix(spaced))
        return self._starts[key]

    def _start(self, schema: str, suffix: str) -> str:
        tree = msgspec.json.decode(schema)
        if self._shared.read(len(schema)):
            return _Translation(graph(tree), self._shared, suffix).start()
        return f"{'object' if tree.get('type') == 'object' else 'value'}{suffix}"


def _suffix(spaced: bool) -> str:
    """Of the names of rules that differ in the space after `:` and `,`."""
    return "spaced" if spaced else ""


def _containers(suffix: str) -> dict[str, str]:
    space = ' " "?' if suffix else ""
    bodies = {
        "comma": f'","{space}',
        "colon": f'":"{space}',
        "value": "object@ | array@ | string | number | boolean | null",
        "array": '"[" (value@ (comma@ value@)*)? "]"',
        "object": '"{" (member@ (comma@ member@)*)? "}"',
        "member": "string colon@ value@",
    }
    return {name + suffix: body.replace("@", suffix) for name, body in bodies.items()}


class _Shared:
    """What the schemas of one grammar share: rules and budgets."""

    def __init__(self, strings: Strings, budget: Budget) -> None:
        self.strings = strings
        self._places = float(budget.places)
        self._characters = budget.characters
        self.rules: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._patterns: dict[Group, str | None] = {}
        self._references = 0
        self._items = 0
        self._range_text = 0

    def read(self, characters: int) -> bool:
        """Whether a schema so long is worth reading; that counts too, since the rules may come to nothing."""
        worth = characters <= 2 * self._characters
        self._characters -= characters // 8 if worth else 0
        return worth

    def fits(self, characters: int) -> bool:
        """Whether there is room for so many characters of rules."""
        return characters <= self._characters

    @property
    def ranges_full(self) -> bool:
        """Whether there is no room for another number with bounds."""
        return self._range_text > _MAX_RANGE_TEXT

    def rule(self, body: str) -> str:
        """The name of the rule with this body."""
        name = self._names.get(body)
        if name is None:
            name = self._names[body] = f"r{len(self._names)}"
            self.rules[name] = body
            self._characters -= len(name) + len(body)
        return name

    def enumeration(self, alternatives: Iterable[str]) -> str | None:
        """The rule for one of `alternatives`, None if it is too long."""
        body = " | ".join(dict.fromkeys(alternatives))
        if body not in self._names:
            if not self.fits(3 * len(body) // 2):
                return None
            self._characters -= len(body) // 2
        return self.rule(body)

    def reserve(self) -> str:
        """A name whose rule comes later."""
        self._references += 1
        return f"ref{self._references}"

    def pattern(self, tree: Group) -> str | None:
        """The rule for a string that is `tree` as a whole, None if too expensive."""
        if tree not in self._patterns:
            affordable = self._afford(pattern.places(tree))
            inner = pattern.body(tree, self.rule, self.strings) if affordable else ""
            self._patterns[tree] = self.rule(rf'"\"" {inner} "\""') if affordable else None
        return self._patterns[tree]

    def bounded(self, least: int, most: int | None) -> str | None:
        """The rule for what follows the quote of a string of `least` to `most` characters; None if too expensive.

        All maximums share one chain of rules, so a grammar pays for its longest only.
        """
        longest = least if most is None else most
        if longest > self._places + len(self.rules):
            return None  # more than could be there already
        names = [_place_name(max(least - i, 0), None if most is None else most - i) for i in range(longest + 1)]
        openings = self.strings.openings
        if not self._afford(sum(name not in self.rules for name in names) * (1 + len(openings))):
            return None
        beyond = [None if most is not None else "rest"] * 2
        states: list[str | None] = [*names, *beyond]
        for index, name in enumerate(names):
            if name == "rest":
                continue
            following, second = states[index + 1 : index + 3]
            parts = self._place(self.strings.plain, following, closed=index >= least)
            if following is not None:
                for character, plain in openings.items():
                    opened = self._place(plain, second, closed=index + 1 >= least)
                    parts.append(f"{literal(character)} {self.rule(' | '.join(opened))}")
            self.rules[name] = " | ".join(parts)
        return names[0]

    @staticmethod
    def _place(plain: str, following: str | None, *, closed: bool) -> list[str]:
        longer = [f"{plain} {following}", f"{ESCAPED} {following}"] if following is not None else []
        return ([r'"\""'] if closed else []) + longer

    def other_name(self, taken: tuple[str, ...]) -> str | None:
        """The rule for a string that is none of `taken`, None if too expensive.

        It rejects some other names as well: those that share a beginning with a taken name which is longer than the
        budget reaches, or that have an escape there.
        """
        if not taken:
            return "string"
        beginnings = _beginnings(taken, _MAX_OTHER)
        if not self._afford(len(beginnings)):
            return None
        rules: dict[str, str] = {}
        for beginning in reversed(beginnings):
            following = {name[len(beginning)] for name in taken if name.startswith(beginning) and name != beginning}
            parts = [r'"\""'] if beginning and beginning not in taken else []
            parts.append(f"{self.strings.plain_but([(ord(one), ord(one)) for one in sorted(following)])} rest")
            for character in sorted(following):
                if (inner := rules.get(beginning + character)) and self.strings.is_plain(character):
                    parts.append(f"{literal(character)} {inner}")
            rules[beginning] = self.rule(" | ".join(parts))
        return self.rule(rf'"\"" {rules[""]}')

    def items(self, count: int) -> bool:
        """Whether there is room for an array that counts so many items."""
        affordable = self._items + count <= _MAX_ITEMS
        self._items += count if affordable else 0
        return affordable

    def range(self, body: str) -> str | None:
        """The rule for a number with bounds, None if there is no room for it."""
        if body not in self._names:
            self._range_text += len(body)
            if self._range_text > _MAX_RANGE_TEXT:
                return None
        return self.rule(body)

    def _afford(self, places: float) -> bool:
        affordable = places <= self._places
        self._places -= places if affordable else 0
        return affordable


class _Translation:
    """One schema's graph as rules."""

    def __init__(self, schema: Graph, shared: _Shared, suffix: str) -> None:
        self._definitions = schema.definitions
        self._shared = shared
        self._any_value, self._any_array, self._any_object = f"value{suffix}", f"array{suffix}", f"object{suffix}"
        self._comma, self._colon = f"comma{suffix}", f"colon{suffix}"
        self._rule = shared.rule
        self._known: dict[int, str] = {}
        self._references: dict[str, str] = {}
        self._wanted: list[str] = []

    def start(self) -> str:
        start = self._reference("")
        while self._wanted:
            name = self._wanted.pop()
            self._shared.rules[self._references[name]] = self._value(self._definitions[name])
        return start

    def _reference(self, name: str) -> str:
        if name not in self._references:
            self._references[name] = self._shared.reserve()
            self._wanted.append(name)
        return self._references[name]

    def _value(self, node: Node) -> str:
        """The name of a rule, or a literal."""
        found = self._known.get(id(node))
        if found is None:
            found = self._known[id(node)] = self._new(node)
        return found

    def _new(self, node: Node) -> str:
        match node:
            case AnyValue():
                return self._any_value
            case Boolean():
                return "boolean"
            case Null():
                return "null"
            case Enumeration(values):
                return self._enumeration(values)
            case String():
                return self._string(node)
            case Number():
                return self._number(node)
            case Array():
                return self._array(node) if self._shared.fits(0) else self._any_array
            case Object(properties):
                fits = self._shared.fits(sum([_MEMBER + len(each.name) for each in properties]))
                return self._object(node) if fits else self._any_object
            case Choice(branches):
                return self._alternatives([self._value(branch) for branch in branches])
            case Reference(name):
                return self._reference(name)
            case Nothing():
                raise AssertionError("a finished graph has no such node")
            case _:
                assert_never(node)

    def _alternatives(self, expressions: Iterable[str]) -> str:
        return self._rule(" | ".join(dict.fromkeys(expressions)))

    def _enumeration(self, values: tuple[str, ...]) -> str:
        found = self._shared.enumeration([literal(self._shared.strings.written(value)) for value in values])
        if found is not None:
            return found
        return "string" if all(value.startswith('"') for value in values) else self._any_value

    def _string(self, node: String) -> str:
        if node.pattern is not None and (found := self._shared.pattern(node.pattern)) is not None:
            return found
        if not node.least and node.most is None:
            return "string"
        rest = self._shared.bounded(node.least, node.most) or self._shared.bounded(node.least, None)
        return "string" if rest is None else self._rule(rf'"\"" {rest}')

    def _number(self, node: Number) -> str:
        anything = "integer" if node.whole else "number"
        first, last, places = node.first, node.last, node.places
        if first is None or last is None or self._shared.ranges_full:
            return anything
        parts = signed(first, last, places)
        if not node.whole:  # more digits move away from zero by less than one unit, so the outermost unit is left out
            digits = f"[0-9]{{1,{DIGITS - places}}}" if places < DIGITS else ""
            point = "" if places else '"." '
            if digits:
                top, bottom = (last if node.no_high else last - 1), (-first if node.no_low else -first - 1)
                parts += [f"{part} {point}{digits}" for part in magnitudes(max(first, 0), top, places)]
                parts += [f'"-" {part} {point}{digits}' for part in magnitudes(max(-last, 0), bottom, places)]
        return self._shared.range(" | ".join(dict.fromkeys(parts))) or anything

    def _array(self, node: Array) -> str:
        least, most = node.least, node.most
        if most == 0:
            return '"[]"'
        item = self._value(node.item)
        counts = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        if not self._shared.items(most or least):
            counts = "*"
        body = f"{item} ({self._comma} {item}){counts}"
        return self._rule(f'"[" {body} "]"' if least else f'"[" ({body})? "]"')

    def _object(self, node: Object) -> str:
        members = {
            each.name: f"{literal(self._name(each))} {self._colon} {self._value(each.value)}"
            for each in node.properties
        }
        required = {each.name for each in node.properties if each.required}
        other = None if node.extra is None else self._shared.other_name(node.taken)
        head = tail = ""
        if node.extra is not None and other is not None:
            member = self._rule(f"{other} {self._colon} {self._value(node.extra)}")
            tail = self._rule(f"({self._comma} {member})*")
            head = self._rule(f"({member} {tail})?")
        optional = [body for name, body in members.items() if name not in required]
        if len(optional) > _MAX_ORDERED:
            member = self._alternatives([*optional, *([member] if tail else [])])
            tail = self._rule(f"({self._comma} {member})*")
            head = self._rule(f"({member} {tail})?")
            members = {name: body for name, body in members.items() if name in required}
        # From the last property to the first: `tail` follows a member, `head` follows the brace.
        for name in reversed(members):
            if name in required:
                head = f"{members[name]} {tail}".rstrip()
                tail = f"{self._comma} {head}"
            else:
                rest = self._named(tail)
                head = self._rule(f"{members[name]} {rest} | {head or _NOTHING}")
                tail = self._rule(f"{self._comma} {members[name]} {rest} | {rest}")
        return self._rule(f'"{{" {head} "}}"')

    def _named(self, expression: str) -> str:
        """The expression itself where it is a name, or nothing; else a rule for it."""
        if not expression:
            return _NOTHING
        return expression if expression in self._shared.rules else self._rule(expression)

    def _name(self, each: Property) -> str:
        return self._shared.strings.written(json.dumps(each.name, ensure_ascii=False))


def _place_name(least: int, most: int | None) -> str:
    if most is None:
        return f"least{least}" if least else "rest"
    return f"between{least}and{most}" if least else f"most{most}"


def _beginnings(names: Iterable[str], limit: int) -> list[str]:
    """The first `limit` proper beginnings of `names`, the shorter first, and with them the names themselves."""
    found = {name[:end] for name in names for end in range(min(len(name), limit) + 1)}
    return sorted(found, key=lambda beginning: (len(beginning), beginning))[:limit]
