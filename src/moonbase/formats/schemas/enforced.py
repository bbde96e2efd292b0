"""The part of a schema that is enforced: what an engine is held to, and what its output is checked against.

The supported keywords of moonshot-api.md 10.1 and the patterns that a grammar can express. Whatever else a schema
says is left out of both, so that no output is refused for a rule that the model was not held to.
"""

import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
from msgspec import Struct

from moonbase.formats.schemas import mfjs, references
from moonbase.formats.schemas.pattern import parse

MAX_PATTERNS = 100
MAX_PATTERN_TEXT = 8_000  # characters of all patterns
PATTERN_BYTES = 1 << 18  # compiled; what one pattern may take
PATTERNS = jsonschema_rs.RegexOptions(size_limit=PATTERN_BYTES, dfa_size_limit=PATTERN_BYTES)

_CONSTRAINTS = frozenset(mfjs.SUPPORTED - {"$ref", "$defs", "$id", "title", "description", "default"})
_UNSUPPORTED = frozenset(
    {"oneOf", "allOf", "not", "if", "then", "else", "const", "format", "exclusiveMinimum", "exclusiveMaximum"}
    | {"multipleOf", "uniqueItems", "contains", "minContains", "maxContains", "prefixItems", "patternProperties"}
    | {"propertyNames", "minProperties", "maxProperties", "dependentRequired", "dependentSchemas"}
)
_FOR: dict[str, frozenset[str]] = {
    "properties": frozenset({"object"}),
    "additionalProperties": frozenset({"object"}),
    "required": frozenset({"object"}),
    "items": frozenset({"array"}),
    "minItems": frozenset({"array"}),
    "maxItems": frozenset({"array"}),
    "minLength": frozenset({"string"}),
    "maxLength": frozenset({"string"}),
    "pattern": frozenset({"string"}),
    "minimum": frozenset({"integer", "number"}),
    "maximum": frozenset({"integer", "number"}),
}


class Enforced(Struct, frozen=True):
    """`tree` is a JSON Schema of its own, whose references are `#` or `#/$defs/NAME` and need no escapes.

    `left_out` names the keywords of the original that ask for something and are not in it; `patterns` counts those
    that are.
    """

    tree: dict[str, Any]
    left_out: frozenset[str]
    patterns: int


def enforced(root: dict[str, Any]) -> Enforced:
    """The enforced part of `root`, in which `mfjs.inspect` found nothing hard."""
    return _Filter(root).run()


class _Filter:
    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._names: dict[int, str] = {}  # of the schemas that references name, by identity
        self._wanted: list[dict[str, Any]] = []
        self._left_out: set[str] = set()
        self._patterns: dict[str, bool] = {}
        self._pattern_text = 0
        self._count = 0

    def run(self) -> Enforced:
        self._name_targets()
        tree = self._body(self._root)
        definitions: dict[str, Any] = {}
        while self._wanted:
            schema = self._wanted.pop()
            name = self._names[id(schema)]
            if name not in definitions:
                definitions[name] = None  # it may lead back to itself
                definitions[name] = self._body(schema)
        if definitions:
            tree["$defs"] = definitions
        return Enforced(tree, frozenset(self._left_out), self._count)

    def _name_targets(self) -> None:
        used: set[str] = set()
        for schema in _all_schemas(self._root):
            reference = schema.get("$ref", "#")
            if reference == "#":
                continue
            target = self._target(schema)
            if id(target) in self._names or target is self._root:
                continue
            name = ".".join(references.parts(reference)[1:])
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name in used:
                name = f"ref{len(used)}"
                while name in used:
                    name += "x"
            used.add(name)
            self._names[id(target)] = name

    def _target(self, schema: dict[str, Any]) -> dict[str, Any]:
        """What `schema` is a reference to, at first hand; itself when it is none."""
        target = references.target(self._root, schema["$ref"]) if "$ref" in schema else schema
        assert target is not None  # inspected
        return target

    def _divided(self, schema: dict[str, Any], parent: dict[str, Any] | None) -> bool:
        """Whether `additionalProperties` of `schema` is about properties that the other side of an `anyOf` names.

        Read literally it would forbid them, which no author of such a schema means.
        """
        if "properties" in schema:
            return False
        return (parent is not None and "properties" in parent) or any(
            "properties" in self._target(branch) for branch in schema.get("anyOf", ())
        )

    def _schema(self, schema: dict[str, Any], parent: dict[str, Any] | None = None) -> dict[str, Any]:
        if id(schema) in self._names:
            self._wanted.append(schema)
            return {"$ref": references.DEFINITION + self._names[id(schema)]}
        return self._body(schema, parent)

    def _body(self, schema: dict[str, Any], parent: dict[str, Any] | None = None) -> dict[str, Any]:
        """`parent` is the schema of whose `anyOf` it is a branch."""
        self._left_out |= schema.keys() & _UNSUPPORTED
        if "$ref" in schema:
            self._left_out |= schema.keys() & _CONSTRAINTS
            target = self._target(schema)
            return {"$ref": "#"} if target is self._root else self._schema(target)
        types = _types(schema)
        kept: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword not in _CONSTRAINTS or value is None or (types and not types & _FOR.get(keyword, types)):
                continue
            if keyword == "additionalProperties" and self._divided(schema, parent):
                self._left_out.add(keyword)
                continue
            match keyword:
                case "type":
                    distinct = list(dict.fromkeys(value)) if isinstance(value, list) else [value]
                    kept[keyword] = distinct if len(distinct) > 1 else distinct[0]
                case "properties":
                    kept[keyword] = {name: self._schema(inner) for name, inner in value.items()}
                case "items" | "additionalProperties":
                    kept[keyword] = self._schema(value) if isinstance(value, dict) else value
                case "anyOf":
                    kept[keyword] = [self._schema(branch, schema) for branch in value]
                case "required":
                    kept[keyword] = list(dict.fromkeys(value))
                case "pattern":
                    if self._enforceable(value):
                        kept[keyword] = value
                    else:
                        self._left_out.add(keyword)
                case _:
                    kept[keyword] = value
        return kept

    def _enforceable(self, pattern: str) -> bool:
        if pattern not in self._patterns:
            within = self._pattern_text + len(pattern) <= MAX_PATTERN_TEXT
            self._patterns[pattern] = within and parse(pattern) is not None and _compiles(pattern)
            self._pattern_text += len(pattern)
        enforceable = self._patterns[pattern] and self._count < MAX_PATTERNS
        self._count += enforceable
        return enforceable


def _types(schema: dict[str, Any]) -> frozenset[str]:
    given = schema.get("type", [])
    return frozenset([given] if isinstance(given, str) else given)


def _compiles(pattern: str) -> bool:
    try:
        jsonschema_rs.Draft202012Validator({"pattern": pattern}, pattern_options=PATTERNS)
    except (jsonschema_rs.ValidationError, ValueError):
        return False
    return True


def _all_schemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    rest = [schema]
    while rest:
        schema = rest.pop()
        yield schema
        for keyword in ("$defs", "properties"):
            rest += schema.get(keyword, {}).values()
        rest += [
            schema[keyword] for keyword in ("items", "additionalProperties") if isinstance(schema.get(keyword), dict)
        ]
        rest += schema.get("anyOf", [])
