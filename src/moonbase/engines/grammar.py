"""Constraints as one grammar for the whole output, in the words that xgrammar and llama.cpp share.

What they do not share is a `Dialect`'s: how a marker is written, free text around markers, and the strings of JSON.
Engines match control tokens by their literal text as well, wherever a grammar asks for characters; so neither free
text nor a JSON string may spell a marker, or a parser would see one where the grammar saw text.
"""

import asyncio
from typing import Protocol, assert_never

from msgspec import Struct

from moonbase.chat.constraint import (
    AnyText,
    Constraint,
    ConstString,
    Digits,
    JsonSchema,
    Marker,
    Optional,
    Or,
    Repeat,
    Sequence,
    Triggered,
)
from moonbase.engines.json_rules import Budget, JsonRules
from moonbase.engines.notation import grammar_text, literal, rules_text
from moonbase.formats.recent import Recent

_NOTHING = '""'
_CAPACITY = 32 * 1024 * 1024
_IN_THREAD = 4 * 1024  # characters of schemas; more would hold the event loop for more than a few milliseconds


class Grammar(Struct, frozen=True):
    """What an engine is told: `text` for its grammar compiler, and the tokens `banned` from the whole output."""

    text: str
    banned: tuple[int, ...] = ()


class Rules:
    """The rules of one grammar outside of JSON values. Equal rules are made once."""

    def __init__(self) -> None:
        self.bodies: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def add(self, body: str) -> str:
        """The name of the rule with this body. Names hold a `-`, which those of JSON values never do."""
        name = self._names.get(body)
        if name is None:
            name = self._names[body] = f"g-{len(self._names)}"
            self.bodies[name] = body
        return name


class Dialect(Protocol):
    """How the grammars of one engine write what the others write differently. Methods give expressions."""

    def marker(self, literal: str) -> str:
        """The marker, by its token where that is possible."""
        ...

    def text(self, excludes: tuple[str, ...], rules: Rules) -> str:
        """Free text without the markers `excludes`, to the end of the output."""
        ...

    def text_until(self, marker: str, excludes: tuple[str, ...], rules: Rules) -> str:
        """Free text without the markers `excludes`, and then `marker`."""
        ...

    def triggered(self, trigger: str, then: str, excludes: tuple[str, ...], rules: Rules) -> str:
        """Free text, to the end of the output or until `trigger` and the expression `then`."""
        ...

    @property
    def budget(self) -> Budget:
        """What its engine can compile without others having to wait."""
        ...

    def unspelled(self, markers: tuple[str, ...]) -> tuple[str, ...]:
        """What no JSON string may spell in an output with `markers`."""
        ...

    def banned(self, markers: tuple[str, ...]) -> tuple[int, ...]:
        """Control tokens that an output with `markers` has no use for, where the grammar cannot keep them out."""
        ...

    def finished(self, rules: dict[str, str], unspelled: tuple[str, ...]) -> dict[str, str]:
        """The rules of JSON values as the engine takes them. `rest` is that of a string after its opening quote."""
        ...

    def request(self, grammar: str) -> str:
        """The grammar as requests to the engine carry it."""
        ...


class Grammars:
    """Constraints as grammars of one dialect. `write` may be called from any thread, `prepare` in one event loop.

    What it wrote lately it keeps, since programs repeat their tools, and apart from the rest the rules of all JSON
    values, since the numbers that calls bear change from turn to turn. All clients share the memory. Only an identical
    constraint or list of schemas finds an entry, so response times tell nothing to a client that does not have it.
    """

    def __init__(self, dialect: Dialect, capacity: int = _CAPACITY) -> None:
        """`capacity` is in characters, of whole grammars and of rules of JSON values each."""
        self._dialect = dialect
        self._grammars: Recent[Constraint, Grammar] = Recent(capacity)
        self._values: Recent[tuple[tuple[str, ...], tuple[JsonSchema, ...]], _Values] = Recent(capacity)
        self._in_threads: dict[Constraint, asyncio.Task[Grammar]] = {}
        self._one_thread = asyncio.Semaphore()  # more would not be faster, and hold up what else needs a thread

    async def prepare(self, constraint: Constraint) -> Grammar:
        """The same as `write`, for the event loop: long schemas that are new are read in a thread, once for all who
        wait for them.
        """
        found = self._grammars.get(constraint)
        if found is not None:
            return found
        parts = _Parts(constraint)
        known = self._values.get(self._key(parts)) is not None
        if known or sum([len(each.schema) for each in parts.schemas]) <= _IN_THREAD:
            return self.write(constraint)
        task = self._in_threads.get(constraint)
        if task is None:
            task = self._in_threads[constraint] = asyncio.create_task(self._write_in_thread(constraint))
        return await asyncio.shield(task)  # who leaves does not end it: others may wait for it

    async def _write_in_thread(self, constraint: Constraint) -> Grammar:
        try:
            async with self._one_thread:
                return await asyncio.to_thread(self.write, constraint)
        finally:
            del self._in_threads[constraint]

    def write(self, constraint: Constraint) -> Grammar:
        """The grammar of the outputs that `constraint` allows; its start is the rule `root`."""
        found = self._grammars.get(constraint)
        if found is None:
            parts = _Parts(constraint)
            values = self._json(*self._key(parts))
            text = _Writer(self._dialect, values).write(constraint)
            found = Grammar(self._dialect.request(text), self._dialect.banned(tuple(parts.markers)))
            self._grammars.keep(constraint, found, len(found.text) + sum([len(each.schema) for each in values.starts]))
        return found

    def _key(self, parts: "_Parts") -> tuple[tuple[str, ...], tuple[JsonSchema, ...]]:
        return self._dialect.unspelled(tuple(parts.markers)), tuple(parts.schemas)

    def _json(self, unspelled: tuple[str, ...], schemas: tuple[JsonSchema, ...]) -> "_Values":
        key = unspelled, schemas
        found = self._values.get(key)
        if found is None:
            rules = JsonRules(unspelled, self._dialect.budget)
            starts = {each: rules.value(each.schema, spaced=each.spaced) for each in schemas}
            found = _Values(starts, rules_text(self._dialect.finished(rules.rules, unspelled)) if schemas else "")
            self._values.keep(key, found, len(found.text) + sum([len(each.schema) for each in schemas]))
        return found


class _Values(Struct, frozen=True):
    """The JSON values of a grammar: the rule that each schema starts with, and the text of all rules."""

    starts: dict[JsonSchema, str]
    text: str


class _Parts:
    """The markers and schemas of a constraint, each once, in their order."""

    def __init__(self, constraint: Constraint) -> None:
        self.markers: dict[str, None] = {}
        self.schemas: dict[JsonSchema, None] = {}
        self._seen: set[int] = set()  # formats use equal parts again, so that a part is visited once only
        self._visit(constraint)

    def _visit(self, constraint: Constraint) -> None:
        if id(constraint) in self._seen:
            return
        self._seen.add(id(constraint))
        match constraint:
            case Marker(name):
                self.markers[name] = None
            case JsonSchema():
                self.schemas[constraint] = None
            case AnyText(excludes):
                self.markers |= dict.fromkeys(excludes)
            case Triggered(trigger, then, excludes):
                self.markers |= dict.fromkeys((trigger, *excludes))
                self._visit(then)
            case Sequence(parts) | Or(parts):
                for part in parts:
                    if not isinstance(part, ConstString):
                        self._visit(part)
            case Optional(part) | Repeat(part):
                self._visit(part)


class _Writer:
    """One translation."""

    def __init__(self, dialect: Dialect, values: _Values) -> None:
        self._dialect = dialect
        self._values = values
        self._rules = Rules()
        self._known: dict[int, tuple[Constraint, str]] = {}

    def write(self, constraint: Constraint) -> str:
        root = self._expression(constraint)
        return grammar_text(self._rules.bodies, root) + self._values.text

    def _expression(self, constraint: Constraint) -> str:
        """What can stand in a sequence: no alternatives outside parentheses."""
        known = self._known.get(id(constraint))
        if known is None:  # with the constraint itself, so that its identity stays its own
            known = self._known[id(constraint)] = constraint, self._new(constraint)
        return known[1]

    def _new(self, constraint: Constraint) -> str:
        match constraint:
            case AnyText(excludes):
                return self._dialect.text(excludes, self._rules)
            case ConstString(value):
                return literal(value)
            case Digits():
                return "[0-9]{1,9}"
            case Marker(name):
                return self._dialect.marker(name)
            case JsonSchema():
                return self._values.starts[constraint]
            case Sequence(parts):
                return self._sequence(parts)
            case Or(parts):
                return self._choice(sorted([_split(part) for part in parts], key=_beginning))
            case Optional(part):
                return f"({self._expression(part)})?"
            case Repeat(part):
                return f"({self._expression(part)})*"
            case Triggered(trigger, then, excludes):
                return self._dialect.triggered(trigger, self._expression(then), excludes, self._rules)
            case _:
                assert_never(constraint)

    def _sequence(self, parts: tuple[Constraint, ...]) -> str:
        written: list[str] = []
        left = list(reversed(parts))
        while left:
            part, following = left.pop(), left[-1] if left else None
            if isinstance(part, AnyText) and isinstance(following, Marker):
                left.pop()
                written.append(self._dialect.text_until(following.literal, part.excludes, self._rules))
            else:
                written.append(self._expression(part))
        return " ".join(written) or _NOTHING

    def _choice(self, alternatives: list[tuple[str, Constraint]], start: int = 0) -> str:
        """Alternatives, sorted by what they begin with from `start` on, so that few are open at any point."""
        bodies: list[str] = []
        at = 0
        while at < len(alternatives):
            text, then = alternatives[at]
            first, begin = text[start : start + 1], at
            at += 1
            if not first:
                bodies.append(self._expression(then))
                continue
            while at < len(alternatives) and alternatives[at][0].startswith(first, start):
                at += 1
            if at - begin == 1:
                bodies.append(f"{literal(text[start:])} {self._expression(then)}")
            else:
                shared = _shared_length(text, alternatives[at - 1][0])
                bodies.append(f"{literal(text[start:shared])} {self._choice(alternatives[begin:at], shared)}")
        return self._rules.add(" | ".join(bodies))


def _split(constraint: Constraint) -> tuple[str, Constraint]:
    """The characters that it begins with, and the rest."""
    if isinstance(constraint, ConstString):
        return constraint.value, Sequence(())
    if isinstance(constraint, Sequence) and constraint.parts:
        first, *rest = constraint.parts
        if isinstance(first, ConstString):
            return first.value, rest[0] if len(rest) == 1 else Sequence(tuple(rest))
    return "", constraint


def _beginning(alternative: tuple[str, Constraint]) -> str:
    return alternative[0]


def _shared_length(one: str, other: str) -> int:
    """Of what both begin with."""
    differ = (at for at, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    return next(differ, min(len(one), len(other)))
