"""A client's JSON Schema, ready to hold an engine and to check its output."""

from functools import cached_property
from typing import Any

import msgspec

from moonbase.formats.schemas import mfjs
from moonbase.formats.schemas.enforced import PATTERN_BYTES, Enforced, enforced
from moonbase.formats.schemas.nodes import graph
from moonbase.formats.schemas.rewording import reworded
from moonbase.formats.schemas.shapes import Unenforceable
from moonbase.formats.schemas.validation import TooManyChecks, Validator


class Refused(Exception):
    """A schema that is not served. `hard` is true where the service itself refuses it with this very finding."""

    def __init__(self, finding: mfjs.Finding, *, hard: bool) -> None:
        super().__init__(str(finding))
        self.finding = finding
        self.hard = hard


class Schema:
    """Immutable. Of the client's schema it keeps the enforced part and what was found about the rest."""

    def __init__(
        self,
        tree: dict[str, Any],
        field: str,
        left_out: tuple[str, ...] = (),
        warnings: tuple[str, ...] = (),
        patterns: int = 0,
    ) -> None:
        """Made by `read`. `tree` is the enforced part, with `patterns` patterns, of what the client sent as `field`.

        `left_out` names keywords that are neither enforced nor checked, sorted; `warnings` are the service's soft
        findings, in its order.
        """
        self.text = msgspec.json.encode(tree).decode()
        self.left_out = left_out
        self.warnings = warnings
        self._tree = tree
        self._field = field
        self._patterns = patterns

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes once it has been used."""
        return 20 * len(self.text) + sum(map(len, self.warnings)) + self._patterns * PATTERN_BYTES

    def violation(self, text: str) -> str | None:
        """Why `text` is not what the schema asks for, as a clause about "it"; None when it is."""
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return "it is not valid JSON"
        if self._tree.get("type") == "object" and not isinstance(value, dict):
            return "it is not a JSON object"
        try:
            reason = self._validator.violation(value, 1 + text.count(",") + text.count("[") + text.count("{"))
        except TooManyChecks:
            return f"it needs too many checks against `{self._field}`"
        if reason is None:
            return None
        return f"it does not match `{self._field}`" + (reason and f": {reason}")

    def warning(self, tool_name: str) -> str | None:
        """The value of `msh-schema-warning` for a tool with these parameters (moonshot-api.md 10.3).

        The first finding only, as the service has it. It may hold any character that a property's name may.
        """
        if not self.warnings:
            return None
        field = f"tools.function[{tool_name}].parameters"
        return f"{field} is not a valid moonshot flavored json schema, details: <{self.warnings[0]}>"

    @cached_property
    def _validator(self) -> Validator:
        return Validator(self._tree)


ANY_OBJECT = Schema({"type": "object"}, "json_object")
"""What `strict: false` and `json_object` ask for."""


def read(text: str, field: str) -> Schema:
    """The schema with the JSON text `text`, which the client sent as `field`. Raises `Refused`."""
    tree = decode(text)
    report = mfjs.inspect(tree)
    if report.hard is not None:
        raise Refused(report.hard, hard=True)
    part = _reworded_part(tree) or _part(tree)
    return Schema(part.tree, field, tuple(sorted(part.left_out)), tuple(map(str, report.soft)), part.patterns)


def _part(tree: dict[str, Any]) -> Enforced:
    """The enforced part of an inspected schema. Raises `Refused`."""
    part = enforced(tree)
    try:
        graph(part.tree)
    except Unenforceable as error:
        raise Refused(mfjs.Finding(error.path, error.reason), hard=error.hard) from error
    return part


def _reworded_part(tree: dict[str, Any]) -> Enforced | None:
    """The same of what `reworded` makes of it; None where that is nothing, or nothing that can be held to."""
    other = reworded(tree)
    if other is None or mfjs.inspect(other).hard is not None:
        return None
    try:
        return _part(other)
    except Refused:
        return None


def decode(text: str) -> Any:
    """The JSON value of `text`. Raises `Refused` where it is none or is larger than the service allows."""
    try:
        tree = msgspec.json.decode(text)
        size = len(text.encode()) if len(text) <= mfjs.MAX_SIZE else len(msgspec.json.encode(tree))
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise Refused(mfjs.Finding(mfjs.ROOT, f"JSON schema parsing error: {error}"), hard=True) from error
    except RecursionError as error:
        raise Refused(mfjs.Finding(mfjs.ROOT, mfjs.TOO_DEEP), hard=True) from error
    if size > mfjs.MAX_SIZE:
        raise Refused(mfjs.Finding(mfjs.ROOT, mfjs.TOO_LARGE), hard=True)
    return tree
