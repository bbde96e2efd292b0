"""Moonshot Flavored JSON Schema: what the service objects to in a schema, in its own words (moonshot-api.md 10).

A finding is hard where the service refuses the request, soft where only its strictest level objects: then it serves
the request and says so in the header `msh-schema-warning` (10.3). Findings come in the order in which the service
looks, so the first is the one that it prints. Endless recursion is found by `nodes`, which follows the references.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from moonbase.formats.schemas import references

MAX_SIZE = 120_000  # bytes of compact JSON
MAX_DEPTH = 30  # levels of a value: properties, items and additional properties
MAX_NESTING = 100  # schemas inside one another, branches of `anyOf` included
MAX_PROPERTIES = 3_000
MAX_BRANCHES = 500
MAX_ENUM = 1_000
_MAX_SOFT = 16_384  # characters of soft findings that are kept, since one schema can have thousands

ROOT = "root"  # the path of the root
TOO_LARGE = "schema exceeds maximum allowed size"
TOO_DEEP = f"schema depth exceeds maximum limit of {MAX_DEPTH}"
ENDLESS = "detected infinite recursion without termination condition"

TYPES = ("string", "number", "integer", "boolean", "null", "array", "object")
_ANNOTATIONS = frozenset({"description", "title"})
_ROOT_ONLY = frozenset({"$defs", "$id"})
_RESERVED = frozenset({"$defs", "$ref", "anyOf", "required", "additionalProperties"})
_NUMBER = frozenset({"minimum", "maximum", "enum"})
_BESIDE: dict[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties", "$ref", "anyOf"}),
    "array": frozenset({"items", "minItems", "maxItems", "$ref"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "enum"}),
    "number": _NUMBER,
    "integer": _NUMBER,
    "boolean": frozenset({"enum"}),
    "null": frozenset({"enum"}),
}
SUPPORTED = frozenset({"type", "default", *_ANNOTATIONS, *_ROOT_ONLY}).union(*_BESIDE.values())
_RANGES = (("minLength", "maxLength"), ("minimum", "maximum"), ("minItems", "maxItems"))


class Finding(Struct, frozen=True):
    """One objection. `path` is written as the service writes it: `root`, `properties.x`, `anyOf.items`."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"At path '{self.path}': {self.message}"


class Report(Struct, frozen=True):
    """`hard` is the first hard finding; `soft` are the soft ones, of many the first."""

    hard: Finding | None
    soft: tuple[Finding, ...]


def inspect(schema: Any) -> Report:
    """What the service objects to in `schema`, a decoded JSON value."""
    inspection = _Inspection(schema)
    try:
        inspection.run()
    except _Hard as hard:
        return Report(hard.finding, tuple(inspection.soft))
    return Report(None, tuple(inspection.soft))


Path = tuple[str, ...]


def path_text(path: Path) -> str:
    return ".".join(path) or ROOT


class _Hard(Exception):
    """Ends an inspection. Never leaves this module."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.finding = Finding(path_text(path), message)


class _Inspection:
    def __init__(self, root: Any) -> None:
        self.soft: list[Finding] = []
        self._root = root
        self._kept = 0
        self._properties = 0

    def run(self) -> None:
        if self._root is None:
            raise _Hard((), "schema must be a dict")
        if not isinstance(self._root, dict):
            raise _Hard((), "JSON schema parsing error: it is not an object")
        self._schema(self._root, (), 0, None)

    def _note(self, path: Path, message: str) -> None:
        """Note a soft finding."""
        if self._kept < _MAX_SOFT:
            finding = Finding(path_text(path), message)
            self._kept += len(finding.path) + len(message)
            self.soft.append(finding)

    def _schema(self, schema: dict[str, Any], path: Path, depth: int, parent: dict[str, Any] | None) -> None:
        """Look at `schema` and all schemas in it. `parent` is the schema of whose `anyOf` it is a branch."""
        if depth > MAX_DEPTH or len(path) > 2 * MAX_NESTING:
            raise _Hard(path, TOO_DEEP)
        if unsupported := sorted(schema.keys() - SUPPORTED):
            self._note(path, f"unsupported keywords: {', '.join(unsupported)}")
        definitions = schema.get("$defs")
        if isinstance(definitions, dict):
            for name in sorted(definitions):
                if not isinstance(definitions[name], dict):
                    raise _Hard((*path, "$defs"), f"$defs schema must be object: {name}")
                self._schema(definitions[name], (*path, "$defs", name), depth, None)
        types = self._types(schema, path)
        self._keywords(schema, path, types)
        for least, most in _RANGES:
            self._range(schema, path, least, most, types)
        self._definitions(schema, path)
        self._reference(schema, path)
        if not isinstance(schema.get("additionalProperties", True), bool | dict):
            raise _Hard((*path, "additionalProperties"), "additionalProperties must be a boolean or an object")
        self._branches(schema, path)
        if not isinstance(schema.get("description", ""), str):
            raise _Hard((*path, "description"), "description must be a string")
        self._enumeration(schema, path, types, parent)
        if not isinstance(schema.get("items", {}), dict):
            raise _Hard((*path, "items"), "items must be an object")
        if not isinstance(schema.get("pattern"), str | None):
            raise _Hard((*path, "pattern"), "pattern must be a string")
        self._object_keywords(schema, path, types, parent)
        for inner, step, deeper in _inner(schema):
            self._schema(inner, path + step, depth + deeper, schema if step == ("anyOf",) else None)

    def _types(self, schema: dict[str, Any], path: Path) -> tuple[str, ...]:
        """The types of `schema`, none where it has no `type`."""
        if "type" not in schema:
            return ()
        given = schema["type"]
        if "anyOf" in schema:  # the live service has relaxed this (moonshot-api.md 10.3)
            reason = "type should be defined in anyOf items instead of the parent schema"
            self._note(path, f"when using anyOf, {reason}")
        if "$ref" in schema:
            reason = "type should be defined in the referenced schema instead of the parent schema"
            raise _Hard(path, f"when using $ref, {reason}")
        match given:
            case str():
                if given not in TYPES:
                    raise _Hard(path, "invalid type")
                return (given,)
            case []:
                raise _Hard(path, "type array cannot be empty")
            case list():
                if not all(isinstance(one, str) and one in TYPES for one in given):
                    raise _Hard(path, "invalid type in type array")
                if len(set(given)) < len(given):
                    self._note((*path, "type"), "duplicate types in type array")
                return tuple(dict.fromkeys(given))
            case _:
                raise _Hard(path, "type must be string or array of strings")

    def _keywords(self, schema: dict[str, Any], path: Path, types: tuple[str, ...]) -> None:
        """Keywords where they have no effect."""
        given = schema.keys() & SUPPORTED - _ANNOTATIONS - {"type"} - (frozenset() if path else _ROOT_ONLY)
        if len(types) > 1 and not (len(types) == 2 and "enum" in schema):
            for keyword in sorted(given):
                self._note(path, f"keyword {keyword} is not allowed in combination with multiple types")
        for keyword in sorted(given & _ROOT_ONLY):
            self._note(path, f"keyword {keyword} must be at root level")
        effective = frozenset.intersection(*(_BESIDE[one] for one in types)) if types else given
        if invalid := sorted(given - effective - _ROOT_ONLY - {"default", "anyOf"}):
            self._note(path, f"invalid keywords: {', '.join(invalid)}")

    def _range(self, schema: dict[str, Any], path: Path, low_key: str, high_key: str, types: tuple[str, ...]) -> None:
        if low_key not in schema and high_key not in schema:
            return
        counts = low_key != "minimum"
        whole = counts or types == ("integer",)
        values = {key: schema[key] for key in (low_key, high_key) if schema.get(key) is not None}
        for key, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise _Hard(path, f"{key} must be {'an integer' if whole else 'a number'}")
            if counts and value < 0:
                raise _Hard(path, f"{key} must be non-negative")
            if whole and value != int(value):
                if counts:
                    raise _Hard(path, "not a valid integer")
                self._note(path, "not a valid integer")
        if len(values) == 2 and values[low_key] > values[high_key]:
            low, high = (_printed(value) for value in values.values())
            at = (*path, low_key) if low_key == "minLength" else path
            raise _Hard(at, f"{low_key} ({low}) cannot be greater than {high_key} ({high})")

    def _definitions(self, schema: dict[str, Any], path: Path) -> None:
        if not isinstance(schema.get("$id"), str | None):
            raise _Hard((*path, "$id"), "$id must be a string")
        if "$defs" not in schema:
            return
        if not isinstance(schema["$defs"], dict):
            raise _Hard((*path, "$defs"), "$defs must be an object")
        if "" in schema["$defs"]:
            self._note((*path, "$defs"), "$defs property name cannot be empty")
        if not path and (key := next(_keys_with_slash(schema["$defs"]), None)) is not None:
            raise _Hard((*path, "$defs"), f"$defs property name '{key}' cannot contain '/' character")

    def _reference(self, schema: dict[str, Any], path: Path) -> None:
        if "$ref" not in schema:
            return
        reference, at = schema["$ref"], (*path, "$ref")
        if not isinstance(reference, str):
            raise _Hard(at, "$ref must be a string")
        if reference != "#" and not reference.startswith(references.DEFINITION):
            raise _Hard(at, f"references must start with {references.DEFINITION}")
        if reference == references.DEFINITION:
            raise _Hard(at, "definition name cannot be empty")
        target = references.target(self._root, reference)
        if target is None:
            raise _Hard(at, f"$defs not found for reference: {reference}")
        for keyword in sorted(schema.keys() - _ANNOTATIONS - {"$ref"} - (frozenset() if path else _ROOT_ONLY)):
            self._note(path, f"keyword '{keyword}' is not allowed at the same level as $ref")
        # Soft, although walle refuses it at every level: schemas of MCP tools describe both, and only annotations clash
        # (moonshot-api.md 10.3).
        if twice := sorted(schema.keys() & target.keys() & _ANNOTATIONS):
            self._note(path, f"conflicting keywords found after $ref expansion: {', '.join(twice)}")

    def _branches(self, schema: dict[str, Any], path: Path) -> None:
        if "anyOf" not in schema:
            return
        branches, at = schema["anyOf"], (*path, "anyOf")
        if not isinstance(branches, list):
            raise _Hard(at, "anyOf must be an array")
        if not 1 <= len(branches) <= MAX_BRANCHES:
            raise _Hard(at, f"anyOf must have 1-{MAX_BRANCHES} items")
        if not all(isinstance(branch, dict) for branch in branches):
            raise _Hard(at, "schema in anyOf must be an object")
        beside = schema.keys() - _ANNOTATIONS - {"anyOf", "type", "$ref"} - (frozenset() if path else _ROOT_ONLY)
        for keyword in sorted(beside):
            self._note(path, f"keyword '{keyword}' is not allowed at the same level as anyOf")
        for branch in branches:
            twice = schema.keys() & branch.keys() - {"anyOf"}
            if twice - _ANNOTATIONS - {"type"} and "$ref" not in schema:  # beside a reference nothing has an effect
                raise _Hard(path, conflict(twice))
        if twice := schema.keys() & set().union(*branches) - {"anyOf"}:
            self._note(path, conflict(twice))

    def _enumeration(
        self, schema: dict[str, Any], path: Path, types: tuple[str, ...], parent: dict[str, Any] | None
    ) -> None:
        if "enum" not in schema:
            return
        values, at = schema["enum"], (*path, "enum")
        if not isinstance(values, list):
            raise _Hard(at, "enum must be an array")
        if not values:
            raise _Hard(at, "enum array cannot be empty")
        if len(values) > MAX_ENUM:
            raise _Hard(at, f"enum array cannot have more than {MAX_ENUM} items")
        if not types:
            if parent is None:
                raise _Hard(path, "type is not defined")
            self._note(path, "type is not defined")  # the live service has relaxed this for branches (10.3)
            return
        if len(types) > 1 and (found := [one for one in types if one in ("object", "array")]):
            raise _Hard(path, f"type {found[0]} is not allowed in combination with enum")
        if len(types) > 2 or (len(types) == 2 and "null" not in types):
            raise _Hard(
                path,
                "when type is array and enum is specified, currently only 2 types are supported, "
                "one must be null, and the other can be string/integer/number/boolean",
            )
        for value in values:
            if not type_names(value) & set(types):
                if types in (("number",), ("integer",)):
                    raise _Hard(at, f"not a valid {types[0]}")
                shown = " ".join(types)
                raise _Hard(at, f"enum value ({_printed(value)}) does not match any type in [{shown}]")

    def _object_keywords(
        self, schema: dict[str, Any], path: Path, types: tuple[str, ...], parent: dict[str, Any] | None
    ) -> None:
        properties = schema.get("properties", {})
        if not isinstance(properties, dict):
            raise _Hard((*path, "properties"), "properties must be an object")
        for name, inner in properties.items():
            if not name:
                self._note((*path, "properties"), "property name cannot be empty")
            if name in _RESERVED:
                reason = f"property name '{name}' is reserved for JSON Schema keywords"
                self._note((*path, "properties"), reason)
            if not isinstance(inner, dict):
                raise _Hard((*path, "properties"), f"property schema for '{name}' must be an object")
        self._properties += len(properties)
        if self._properties > MAX_PROPERTIES:
            count = f"total number of properties keys({self._properties})"
            raise _Hard(path, f"{count} across all objects exceeds maximum limit of {MAX_PROPERTIES}")
        self._required(schema, (*path, "required"), types, parent)

    def _required(
        self, schema: dict[str, Any], at: Path, types: tuple[str, ...], parent: dict[str, Any] | None
    ) -> None:
        required = schema.get("required", [])
        if not isinstance(required, list):
            raise _Hard(at, "required must be an array")
        if not required:
            return
        if not all(isinstance(name, str) for name in required):
            raise _Hard(at, "items in required array must be strings")
        if "" in required:
            self._note(at, "property names in required array cannot be empty")
        if len(set(required)) < len(required):
            twice = next(name for name, count in Counter(required).items() if count > 1)
            self._note(at, f"duplicate items in required array: {twice}")
        if types != ("object",):
            self._note(at, "required keyword must be used with object")
        if "properties" not in schema:
            self._note(at, "required specified but 'properties' keyword is missing")
        known = schema.get("properties", {}).keys()
        if parent is not None and isinstance(parent.get("properties"), dict):
            known = known | parent["properties"].keys()
        for name in required:
            if name not in known:
                raise _Hard(at, f"required property '{name}' is not defined in properties")


def conflict(keywords: set[str]) -> str:
    """What the service says of `keywords` that stand beside `anyOf` and in a branch of it."""
    return (
        f"conflicting keywords found in anyOf with parent: keywords ({', '.join(sorted(keywords))}) are defined on "
        "the parent schema and inside anyOf; remove them from the parent or from anyOf branches"
    )


def type_names(value: Any) -> set[str]:
    """The types that the JSON value `value` has."""
    match value:
        case None:
            return {"null"}
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"integer", "number"} if value.is_integer() else {"number"}
        case str():
            return {"string"}
        case list():
            return {"array"}
        case _:
            return {"object"}


def _inner(schema: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Path, int]]:
    """The schemas directly in `schema` but its definitions, the way to each, and how many levels deeper it is."""
    for name, inner in schema.get("properties", {}).items():
        yield inner, ("properties", name), 1
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), dict):
            yield schema[keyword], (keyword,), 1
    for branch in schema.get("anyOf", ()):
        yield branch, ("anyOf",), 0


def _keys_with_slash(value: Any) -> Iterator[str]:
    rest = [value]
    while rest:
        match rest.pop():
            case dict() as found:
                yield from [key for key in found if "/" in key]
                rest += found.values()
            case list() as found:
                rest += found


def _printed(value: Any) -> str:
    """`value` as the service prints it: numbers without a needless point, null as `<nil>`."""
    match value:
        case None:
            return "<nil>"
        case str():
            return value
        case float() if value.is_integer() and abs(value) < 1e21:
            return str(int(value))
        case _:
            return json.dumps(value, ensure_ascii=False)
