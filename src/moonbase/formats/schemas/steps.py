"""What checking a value against a schema costs, known before it is spent.

References and `anyOf` let a short schema ask for more visits than a computer can make. A validator has no memory of
what it has seen, so its work is bounded before it is started: by the schema alone where that suffices, else by
counting, which visits nothing twice.
"""

import math
from collections.abc import Iterator
from typing import Any

from moonbase.formats.schemas.references import DEFINITION

MAX_STEPS = 2_000_000
_MAX_COUNTED = 500_000


class _TooManySteps(Exception):
    """Counting alone costs too much. Never leaves this module."""


class Steps:
    """How many subschemas a validator visits for a value, at most."""

    def __init__(self, tree: dict[str, Any]) -> None:
        """`tree` is the enforced part of a schema."""
        self._tree = _Tree(tree)
        try:
            self._of_each = _Static(self._tree).of_each(tree)
        except RecursionError:
            self._of_each = math.inf

    def affordable(self, value: Any, size: int) -> bool:
        """Whether a validator would be done with `value` within a tenth of a second; an endless reference is not.

        `size` is how many values are in it, at most. Where the schema refers to itself, or has many alternatives, this
        may take a second.
        """
        return size * self._of_each <= MAX_STEPS or self._counted(value) <= MAX_STEPS

    def _counted(self, value: Any) -> float:
        try:
            return _Count(self._tree).of(self._tree.root, value)
        except (RecursionError, _TooManySteps):
            return math.inf


class _Tree:
    """The ways from a schema to those that apply with it."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root

    def beside(self, schema: dict[str, Any]) -> Iterator[Any]:
        """What the same value is checked against, too."""
        reference = schema.get("$ref")
        if isinstance(reference, str):
            yield self.root if reference == "#" else self.root["$defs"][reference.removeprefix(DEFINITION)]
        yield from schema.get("anyOf", ())

    @staticmethod
    def inside(schema: dict[str, Any]) -> Iterator[Any]:
        """What the values inside may be checked against, each against one."""
        yield from schema.get("properties", {}).values()
        yield schema.get("additionalProperties")
        yield schema.get("items")


class _Static:
    """Visits of a single value, whatever it is and wherever it lies; infinite for a schema that refers to itself."""

    def __init__(self, tree: _Tree) -> None:
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
            self._known[id(schema)] = math.inf, math.inf  # until this is known: what comes back here never ends
            beside = [self._visits(other) for other in self._tree.beside(schema)]
            itself = 1 + sum([here for here, _ in beside])
            inside = max([self.of_each(part) for part in self._tree.inside(schema)])
            known = self._known[id(schema)] = itself, inside + sum([there for _, there in beside])
        return known


class _Count:
    """Visits of one value and all that is in it."""

    def __init__(self, tree: _Tree) -> None:
        self._tree = tree
        self._known: dict[tuple[int, int | type], float] = {}

    def of(self, schema: Any, value: Any) -> float:
        """Infinite when `schema` leads back to itself without a step into `value`."""
        if not isinstance(schema, dict):
            return 1
        key = id(schema), id(value) if isinstance(value, dict | list) else type(value)
        known = self._known.get(key)
        if known is None:
            if len(self._known) > _MAX_COUNTED:
                raise _TooManySteps
            self._known[key] = math.inf  # until this is known: what comes back here before never ends
            known = self._known[key] = 1 + sum([self.of(inner, part) for inner, part in self._next(schema, value)])
        return known

    def _next(self, schema: dict[str, Any], value: Any) -> Iterator[tuple[Any, Any]]:
        for other in self._tree.beside(schema):
            yield other, value
        if isinstance(value, dict):
            properties = schema.get("properties", {})
            for name, part in value.items():
                yield properties.get(name, schema.get("additionalProperties")), part
        elif isinstance(value, list):
            for part in value:
                yield schema.get("items"), part
