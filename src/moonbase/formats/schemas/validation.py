"""Whether a value is what a schema asks for, found out in bounded time.

References and `anyOf` let a short schema ask for more visits than a computer can make. The library's validator is
fast but has no memory of what it has seen, so it is given only what its work is known to be small for. The rest is
checked here with such a memory, which asks nothing twice: each subschema once for each part of the value, at most.
"""

import math
from collections.abc import Generator, Iterator
from typing import Any

import jsonschema_rs

from moonbase.formats.schemas.endings import definition
from moonbase.formats.schemas.enforced import PATTERNS

_MAX_VISITS = 2_000_000  # of the library's validator: a tenth of a second
_MAX_STEPS = 1_000_000  # of the one with a memory: a second or two
_LONGEST_REASON = 300  # characters

_Check = Generator[tuple[Any, Any], bool | None, bool]


class TooManyChecks(Exception):
    """Even with a memory the check costs too much."""


class Validator:
    """Of one schema: the library's for what costs little, else the one with a memory. Immutable."""

    def __init__(self, tree: dict[str, Any]) -> None:
        """`tree` is the enforced part of a schema, in which no reference leads back to itself at once."""
        self._tree = tree
        self._library = jsonschema_rs.Draft202012Validator(tree, pattern_options=PATTERNS)
        self._remembering = _Remembering(tree)
        try:
            self._visits_of_each = _Visits(tree).of_each(tree)
        except RecursionError:
            self._visits_of_each = math.inf

    def violation(self, value: Any, size: int) -> str | None:
        """What is wrong with `value`, empty where nobody can say; None when it is valid. Raises `TooManyChecks`.

        `size` is how many values are in it, at most.
        """
        if size * self._visits_of_each > _MAX_VISITS:
            return None if self._remembering.valid(value) else ""
        if self._library.is_valid(value):  # describing what is wrong takes a thousand times as long
            return None
        try:
            self._library.validate(value)
        except jsonschema_rs.ValidationError as error:
            return _shortened(error.message)
        except ValueError:  # it lies too deep to be described
            pass
        return ""


class _Remembering:
    """Checks each subschema against each part of a value once, however many ways lead there."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self._tree = tree
        self._local: dict[int, jsonschema_rs.Draft202012Validator] = {}  # by the identity of a schema

    def valid(self, value: Any) -> bool:
        """Raises `TooManyChecks`. The depth of `value` is bounded by memory only."""
        known: dict[tuple[int, int], bool] = {}  # by the identities of a schema and a part of `value`
        stack = [((id(self._tree), id(value)), self._check(self._tree, value))]
        steps = 0
        answer: bool | None = None  # to the latest question; None starts a check
        while stack:
            try:
                schema, part = stack[-1][1].send(answer)
            except StopIteration as end:
                answer = known[stack.pop()[0]] = end.value
                continue
            steps += 1
            if steps > _MAX_STEPS:
                raise TooManyChecks
            if isinstance(schema, bool):
                answer = schema
            elif not isinstance(part, dict | list) and "anyOf" not in schema and "$ref" not in schema:
                answer = self._of_itself(schema).is_valid(part)
            else:
                key = id(schema), id(part)
                answer = known.get(key)
                if answer is None:
                    stack.append((key, self._check(schema, part)))
        return bool(answer)

    def _check(self, schema: dict[str, Any], value: Any) -> _Check:
        """Asks of parts of `value` whether they are valid, and is sent the answers."""
        if not self._of_itself(schema).is_valid(_outside(schema, value)):
            return False
        if "$ref" in schema and not (yield _target(self._tree, schema["$ref"]), value):
            return False
        if "anyOf" in schema:
            for branch in schema["anyOf"]:
                if (yield branch, value):
                    break
            else:
                return False
        for inner, part in _parts(schema, value):
            if not (yield inner, part):
                return False
        return True

    def _of_itself(self, schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
        """Of what `schema` says without the schemas in it."""
        validator = self._local.get(id(schema))
        if validator is None:
            local = {keyword: rule for keyword, rule in schema.items() if keyword not in _WITH_SCHEMAS}
            if schema.get("additionalProperties") is False:
                local |= {
                    "properties": dict.fromkeys(schema.get("properties", ()), True),
                    "additionalProperties": False,
                }
            validator = self._local[id(schema)] = jsonschema_rs.Draft202012Validator(local, pattern_options=PATTERNS)
        return validator


_WITH_SCHEMAS = frozenset({"$ref", "$defs", "anyOf", "properties", "additionalProperties", "items"})


def _target(root: dict[str, Any], reference: str) -> Any:
    name = definition(reference)
    return root["$defs"][name] if name else root


def _outside(schema: dict[str, Any], value: Any) -> Any:
    """`value` without what is in its parts, where `schema` itself says nothing about that."""
    if any(isinstance(one, dict | list) for one in schema.get("enum", ())):
        return value
    if isinstance(value, dict):
        return dict.fromkeys(value)
    return [None] * len(value) if isinstance(value, list) else value


def _parts(schema: dict[str, Any], value: Any) -> Iterator[tuple[Any, Any]]:
    """The parts of `value`, each with what `schema` asks of it."""
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name, part in value.items():
            yield properties.get(name, others), part
    elif isinstance(value, list) and "items" in schema:
        for part in value:
            yield schema["items"], part


class _Visits:
    """Of the library's validator to one value, whatever it is and wherever it lies; infinite where a schema recurs."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self._tree = tree
        self._known: dict[int, tuple[float, float]] = {}

    def of_each(self, schema: Any) -> float:
        """For the value under `schema`, or any one inside it."""
        return max(self._visits(schema))

    def _visits(self, schema: Any) -> tuple[float, float]:
        """For the value under `schema` itself, and for any one inside."""
        if not isinstance(schema, dict):
            return 1, 1
        known = self._known.get(id(schema))
        if known is None:
            self._known[id(schema)] = math.inf, math.inf  # until this is known: what comes back here recurs
            beside = [self._visits(other) for other in self._beside(schema)]
            itself = 1 + sum([here for here, _ in beside])
            inside = max([self.of_each(part) for part in self._inside(schema)])
            known = self._known[id(schema)] = itself, inside + sum([there for _, there in beside])
        return known

    def _beside(self, schema: dict[str, Any]) -> Iterator[Any]:
        """What the same value is checked against, too."""
        if "$ref" in schema:
            yield _target(self._tree, schema["$ref"])
        yield from schema.get("anyOf", ())

    @staticmethod
    def _inside(schema: dict[str, Any]) -> Iterator[Any]:
        """What the values inside may be checked against, each against one."""
        yield from schema.get("properties", {}).values()
        yield schema.get("additionalProperties")
        yield schema.get("items")


def _shortened(reason: str) -> str:
    """A validator's sentence quotes the value."""
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}…"
