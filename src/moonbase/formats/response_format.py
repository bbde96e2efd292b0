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
_MAX_DEPTH = 30
_MAX_SIZE = 120_000
_MAX_STEPS = 200_000


class OutputRule:
    """What one request's output must be. `constraint` goes to the engine; `check` comes after it."""

    def __init__(self, constraint: Constraint, schema: dict[str, Any] | None) -> None:
        self.constraint = constraint
        self._schema = schema

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
        try:
            affordable = _Steps(self._schema).of(self._schema, value) <= _MAX_STEPS
        except RecursionError:
            affordable = False
        if not affordable:
            raise InvalidOutput(f"it is too deeply nested to be checked against `{_FIELD}`")
        broken = next(_validator(self._schema).iter_errors(value), None)
        if broken is not None:
            raise InvalidOutput(f"it does not match `{_FIELD}`: {broken.message}")


def output_rule(wanted: ResponseFormat) -> OutputRule | None:
    """The rule for a request's `response_format`, None for plain text.

    Raises `InvalidRequest` for a schema that nothing could enforce.
    """
    if wanted.kind == "text":
        return None
    if wanted.kind == "json_object" or not wanted.strict:
        return OutputRule(_ANY_OBJECT, None)
    assert wanted.schema is not None
    if len(wanted.schema) > _MAX_SIZE:
        raise InvalidRequest(f"`{_FIELD}`: schema exceeds maximum allowed size")
    schema = _supported(msgspec.json.decode(wanted.schema), 0)
    for reference in _references(schema):
        _check_reference(reference, schema)
    _validator(schema)
    if _Steps(schema).of(schema, None) > _MAX_STEPS:
        raise InvalidRequest(f"`{_FIELD}`: detected infinite recursion without termination condition")
    return OutputRule(JsonSchema(msgspec.json.encode(schema).decode()), schema)


def _supported(schema: Any, depth: int) -> Any:
    """The schema without keywords that are neither enforced nor validated."""
    if depth > _MAX_DEPTH:
        raise InvalidRequest(f"`{_FIELD}`: schema depth exceeds maximum limit of {_MAX_DEPTH}")
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key not in _SUPPORTED:
            continue
        if key in ("properties", "$defs") and isinstance(value, dict):
            kept[key] = {name: _supported(inner, depth + 1) for name, inner in value.items()}
        elif key in ("items", "additionalProperties"):
            kept[key] = _supported(value, depth + 1)
        elif key == "anyOf" and isinstance(value, list):
            kept[key] = [_supported(inner, depth + 1) for inner in value]
        else:
            kept[key] = value
    return kept


def _references(schema: Any) -> Iterator[Any]:
    if not isinstance(schema, dict):
        return
    if "$ref" in schema:
        yield schema["$ref"]
    for key in ("properties", "$defs"):
        if isinstance(schema.get(key), dict):
            for inner in schema[key].values():
                yield from _references(inner)
    for key in ("items", "additionalProperties"):
        yield from _references(schema.get(key))
    if isinstance(schema.get("anyOf"), list):
        for inner in schema["anyOf"]:
            yield from _references(inner)


def _check_reference(reference: Any, root: dict[str, Any]) -> None:
    """Only `#` and `#/$defs/name` are followed: a schema must never make this process fetch anything."""
    if reference == "#":
        return
    if not isinstance(reference, str) or not reference.startswith("#/$defs/"):
        raise InvalidRequest(f"`{_FIELD}`: references must start with #/$defs/")
    definitions = root.get("$defs")
    if not isinstance(definitions, dict) or reference.removeprefix("#/$defs/") not in definitions:
        raise InvalidRequest(f"`{_FIELD}`: $defs not found for reference: {reference}")


class _Steps:
    """How many subschemas a validator visits for a value, found without visiting any twice.

    References and `anyOf` let a short schema ask for more visits than a computer can make. A validator
    has no memory of what it has seen, so its work is counted before it is started.
    """

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._known: dict[tuple[int, int], float] = {}

    def of(self, schema: Any, value: Any) -> float:
        """Visits for `value` under `schema`; infinite when `schema` leads back to itself without a step into it.

        Raises `RecursionError` for values nested more deeply than Python recurses.
        """
        if not isinstance(schema, dict):
            return 1
        key = (id(schema), id(value))
        known = self._known.get(key)
        if known is None:
            self._known[key] = math.inf  # until this is known: what comes back here before never ends
            known = self._known[key] = 1 + sum([self.of(inner, part) for inner, part in self._next(schema, value)])
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
        return jsonschema_rs.Draft202012Validator(schema)
    except (jsonschema_rs.ValidationError, ValueError) as error:
        reason = getattr(error, "message", str(error)).splitlines()[0]
        raise InvalidRequest(f"`{_FIELD}` is not a valid JSON schema: {reason}") from error
