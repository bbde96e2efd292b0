"""`response_format`: what the engine is told to enforce, and the check of what came out.

The supported keywords of moonshot-api.md 10.1 (and `pattern`) are enforced and validated; the others are left out
of both, so that an answer is never refused for a rule that the model was not held to.
"""

import math
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import msgspec

from moonbase.chat.constraint import Constraint, JsonSchema
from moonbase.chat.request import ResponseFormat
from moonbase.errors import InvalidOutput, InvalidRequest

_FIELD = "response_format.json_schema.schema"
_ANY_OBJECT = JsonSchema('{"type":"object"}')
_SUPPORTED = frozenset(
    {"type", "properties", "additionalProperties", "items", "enum", "required", "anyOf", "$defs", "$ref", "$id"}
    | {"minLength", "maxLength", "pattern", "minimum", "maximum", "minItems", "maxItems"}
    | {"title", "description", "default"}
)
_UNSUPPORTED = frozenset(
    {"oneOf", "allOf", "not", "if", "then", "else", "const", "format", "exclusiveMinimum", "exclusiveMaximum"}
    | {"multipleOf", "uniqueItems", "contains", "minContains", "maxContains", "prefixItems", "patternProperties"}
    | {"propertyNames", "minProperties", "maxProperties", "dependentRequired", "dependentSchemas"}
)
_PATTERN_BYTES = 1 << 18  # compiled; what one pattern may take
_LARGEST_LEAST = 262_144
_MAX_PATTERNS = 100
_MAX_DEPTH = 30
_MAX_SIZE = 120_000
_MAX_STEPS = 200_000


class OutputRule:
    """What one request's output must be. `constraint` goes to the engine; `check` comes after it."""

    def __init__(
        self, constraint: Constraint, schema: dict[str, Any] | None = None, left_out: tuple[str, ...] = ()
    ) -> None:
        """`left_out` names the keywords of the client's schema that are neither enforced nor checked."""
        self.constraint = constraint
        self.left_out = left_out
        self._schema = schema
        self._validator = _validator(schema if schema is not None else {})

    def check(self, text: str) -> None:
        """Raise `InvalidOutput` unless `text` is what was asked for."""
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidOutput("it is not valid JSON") from error
        if self._schema is None:
            if not isinstance(value, dict):
                raise InvalidOutput("it is not a JSON object")
            return
        if not _Steps(self._schema).affordable(value):
            raise InvalidOutput(f"it is too deeply nested to be checked against `{_FIELD}`")
        broken = next(self._validator.iter_errors(value), None)
        if broken is not None:
            raise InvalidOutput(f"it does not match `{_FIELD}`: {broken.message}")


def output_rule(wanted: ResponseFormat) -> OutputRule | None:
    """The rule for a request's `response_format`, None for plain text.

    Raises `InvalidRequest` for a schema that nothing could enforce.
    """
    if wanted.kind == "text":
        return None
    if wanted.kind == "json_object" or not wanted.strict:
        return OutputRule(_ANY_OBJECT)
    assert wanted.schema is not None
    if len(wanted.schema) > _MAX_SIZE:
        raise InvalidRequest(f"`{_FIELD}`: schema exceeds maximum allowed size")
    left_out: set[str] = set()
    schema = _supported(msgspec.json.decode(wanted.schema), 0, left_out)
    subschemas = list(_subschemas(schema))
    for subschema in subschemas:
        if "$ref" in subschema:
            _check_reference(subschema["$ref"], schema)
    if sum(["pattern" in subschema for subschema in subschemas]) > _MAX_PATTERNS:
        raise InvalidRequest(f"`{_FIELD}`: there are more than {_MAX_PATTERNS} patterns")
    if not _Steps(schema).affordable(None):
        raise InvalidRequest(f"`{_FIELD}`: detected infinite recursion without termination condition")
    return OutputRule(JsonSchema(msgspec.json.encode(schema).decode()), schema, tuple(sorted(left_out)))


def _supported(schema: Any, depth: int, left_out: set[str]) -> Any:
    """The schema without keywords that are neither enforced nor validated; adds the known ones to `left_out`."""
    if depth > _MAX_DEPTH:
        raise InvalidRequest(f"`{_FIELD}`: schema depth exceeds maximum limit of {_MAX_DEPTH}")
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key not in _SUPPORTED:
            left_out |= {key} & _UNSUPPORTED
            continue
        if key in ("properties", "$defs") and isinstance(value, dict):
            kept[key] = {name: _supported(inner, depth + 1, left_out) for name, inner in value.items()}
        elif key in ("items", "additionalProperties"):
            kept[key] = _supported(value, depth + 1, left_out)
        elif key == "anyOf" and isinstance(value, list):
            kept[key] = [_supported(inner, depth + 1, left_out) for inner in value]
        else:
            if key in ("minItems", "minLength") and isinstance(value, int | float) and value > _LARGEST_LEAST:
                raise InvalidRequest(f"`{_FIELD}`: {key} ({value}) is more than any answer can hold")
            kept[key] = value
    return kept


def _subschemas(schema: Any) -> Iterator[dict[str, Any]]:
    """The schema and all schemas in it."""
    if not isinstance(schema, dict):
        return
    yield schema
    for key in ("properties", "$defs"):
        if isinstance(schema.get(key), dict):
            for inner in schema[key].values():
                yield from _subschemas(inner)
    for key in ("items", "additionalProperties"):
        yield from _subschemas(schema.get(key))
    if isinstance(schema.get("anyOf"), list):
        for inner in schema["anyOf"]:
            yield from _subschemas(inner)


def _check_reference(reference: Any, root: dict[str, Any]) -> None:
    """Only `#` and `#/$defs/name` are followed: a schema must never make this process fetch anything."""
    if reference == "#":
        return
    if not isinstance(reference, str) or not reference.startswith("#/$defs/"):
        raise InvalidRequest(f"`{_FIELD}`: references must start with #/$defs/")
    definitions = root.get("$defs")
    if not isinstance(definitions, dict) or reference.removeprefix("#/$defs/") not in definitions:
        raise InvalidRequest(f"`{_FIELD}`: $defs not found for reference: {reference}")


class _TooManySteps(Exception):
    """Counting alone costs too much. Never leaves this module."""


class _Steps:
    """How many subschemas a validator visits for a value, found without visiting any twice.

    References and `anyOf` let a short schema ask for more visits than a computer can make. A validator
    has no memory of what it has seen, so its work is counted before it is started.
    """

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._known: dict[tuple[int, int], float] = {}
        self._asked = 0

    def affordable(self, value: Any) -> bool:
        """Whether a validator would be done with `value` before long; an endless reference is not."""
        try:
            return self._of(self._root, value) <= _MAX_STEPS
        except (RecursionError, _TooManySteps):
            return False

    def _of(self, schema: Any, value: Any) -> float:
        """Visits for `value` under `schema`; infinite when `schema` leads back to itself without a step into it."""
        self._asked += 1
        if self._asked > _MAX_STEPS:
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
            definitions = self._root.get("$defs") or {}
            yield (self._root if reference == "#" else definitions[reference.removeprefix("#/$defs/")]), value
        for branch in schema.get("anyOf") or ():
            yield branch, value
        if isinstance(value, dict):
            properties = schema.get("properties") or {}
            for name, part in value.items():
                yield properties.get(name, schema.get("additionalProperties")), part
        elif isinstance(value, list):
            for part in value:
                yield schema.get("items"), part


def _validator(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    try:
        return jsonschema_rs.Draft202012Validator(
            schema, pattern_options=jsonschema_rs.RegexOptions(size_limit=_PATTERN_BYTES, dfa_size_limit=_PATTERN_BYTES)
        )
    except (jsonschema_rs.ValidationError, ValueError) as error:
        reason = getattr(error, "message", str(error)).splitlines()[0]
        raise InvalidRequest(f"`{_FIELD}` is not a valid JSON schema: {reason}") from error
