"""What checking a value against a schema costs, known before it is spent."""

import math
from collections.abc import Iterator
from typing import Any

from moonbase.formats.schemas.references import DEFINITION

MAX_STEPS = 200_000


class _TooManySteps(Exception):
    """Counting alone costs too much. Never leaves this module."""


class Steps:
    """How many subschemas a validator visits for a value, found without visiting any twice.

    References and `anyOf` let a short schema ask for more visits than a computer can make. A validator
    has no memory of what it has seen, so its work is counted before it is started.
    """

    def __init__(self, tree: dict[str, Any]) -> None:
        """`tree` is the enforced part of a schema."""
        self._root = tree
        self._known: dict[tuple[int, int], float] = {}
        self._asked = 0

    def affordable(self, value: Any) -> bool:
        """Whether a validator would be done with `value` before long; an endless reference is not."""
        try:
            return self._of(self._root, value) <= MAX_STEPS
        except (RecursionError, _TooManySteps):
            return False

    def _of(self, schema: Any, value: Any) -> float:
        """Visits for `value` under `schema`; infinite when `schema` leads back to itself without a step into it."""
        self._asked += 1
        if self._asked > MAX_STEPS:
            raise _TooManySteps
        if not isinstance(schema, dict):
            return 1
        key = (id(schema), id(value))
        known = self._known.get(key)
        if known is None:
            self._known[key] = math.inf  # until this is known: what comes back here before never ends
            known = self._known[key] = 1 + sum([self._of(inner, part) for inner, part in self._next(schema, value)])
        return known

    def _next(self, schema: dict[str, Any], value: Any) -> Iterator[tuple[Any, Any]]:
        reference = schema.get("$ref")
        if isinstance(reference, str):
            yield self._root if reference == "#" else self._root["$defs"][reference.removeprefix(DEFINITION)], value
        for branch in schema.get("anyOf", ()):
            yield branch, value
        if isinstance(value, dict):
            properties = schema.get("properties", {})
            for name, part in value.items():
                yield properties.get(name, schema.get("additionalProperties")), part
        elif isinstance(value, list):
            for part in value:
                yield schema.get("items"), part
