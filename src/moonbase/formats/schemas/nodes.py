"""The enforced part of a schema as a graph of what a text may be: what grammars are made of.

Here, and in `endings` for recursion, is settled what follows from a schema as a whole: references, what `anyOf` and
its siblings ask for together, bounds that leave nothing, and what would be too expensive for any engine.
The graph may be narrower than the schema, never wider but where `pattern` meets length bounds: an object with
`properties` is closed unless `additionalProperties` opens it, what no value can satisfy is not offered, and numbers
have at most fifteen digits before and after the point.
"""

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import jsonschema_rs

from moonbase.formats.schemas import mfjs
from moonbase.formats.schemas.endings import check_chains, definition, finite
from moonbase.formats.schemas.enforced import PATTERNS
from moonbase.formats.schemas.pattern import parse, with_lengths
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
    Unenforceable,
)

DIGITS = 15  # every integer of so many digits is exact in a double
_MAX_NODES = 20_000
_MAX_WORDS = 64_000  # characters of names and enumerated values; compiling takes some milliseconds per thousand
_MAX_ALTERNATIVES_WEIGHT = 1_500_000  # squared characters of the values of one enumeration; half a second to compile
_LARGEST_LEAST = 262_144
_SCALAR_BOUNDS: frozenset[str] = frozenset({"minLength", "maxLength", "pattern", "minimum", "maximum"})


def graph(tree: dict[str, Any]) -> Graph:
    """The graph of the enforced part of a schema. Raises `Unenforceable`."""
    check_chains(tree)
    builder = _Builder(tree)
    definitions = finite(builder.build())
    if definitions is not None:
        return Graph(definitions)
    if builder.impossible is not None:
        raise Unenforceable(*builder.impossible)
    raise Unenforceable(mfjs.ROOT, mfjs.ENDLESS, hard=True)


class _Builder:
    """Each schema becomes a node once for each set of siblings that an `anyOf` around it has."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self.impossible: tuple[str, str] | None = None  # path and reason of the first node that nothing satisfies
        self._schemas: dict[str, dict[str, Any]] = {"": tree, **tree.get("$defs", {})}
        self._known: dict[object, Node] = {}
        self._names: dict[object, str] = {}
        self._wanted: list[tuple[str, str, Mapping[str, Any]]] = []
        self._words = 0

    def build(self) -> dict[str, Node]:
        built: dict[str, Node] = {}
        self._reference("", {})
        while self._wanted:
            name, schema, outer = self._wanted.pop()
            built[name] = self._node(self._schemas[schema], ("$defs", schema) if schema else (), outer)
        return built

    def _reference(self, name: str, outer: Mapping[str, Any]) -> Reference:
        """A reference to the definition `name`, to which the siblings `outer` of an `anyOf` come."""
        key = (name, *_identity(outer))
        if key not in self._names:
            self._names[key] = f"{name}+{len(self._names)}" if outer else name
            self._wanted.append((self._names[key], name, outer))
        return Reference(self._names[key])

    def _node(self, schema: Any, path: tuple[str, ...], outer: Mapping[str, Any]) -> Node:
        """What satisfies `schema` and `outer`, the keywords around the `anyOf` of which it is a branch."""
        if not isinstance(schema, dict):
            return AnyValue() if schema else self._nothing(path, "it accepts no value")
        key = (id(schema), *_identity(outer))
        node = self._known.get(key)
        if node is None:
            if len(self._known) > _MAX_NODES:
                raise Unenforceable(mfjs.path_text(path), mfjs.TOO_LARGE)
            node = self._known[key] = self._new(schema, path, outer)
        return node

    def _new(self, schema: dict[str, Any], path: tuple[str, ...], outer: Mapping[str, Any]) -> Node:
        if "$ref" in schema:
            return self._reference(definition(schema["$ref"]), outer)
        own = {key: value for key, value in schema.items() if key != "$defs"}
        twice = own.keys() & outer.keys() - {"type"}
        for one, other in ((own, outer), (outer, own)):
            if "additionalProperties" in one and "properties" in other and "properties" not in one:
                twice |= {"additionalProperties"}
        if twice:
            raise Unenforceable(mfjs.path_text(path), mfjs.conflict(twice), hard=True)
        types = _types(own, outer)
        if types is not None and not types:
            return self._nothing(path, "no type is allowed both beside anyOf and in it")
        own |= outer
        if types is not None:
            own["type"] = types
        if "anyOf" in own:
            branches = own.pop("anyOf")
            return Choice(tuple([self._node(branch, (*path, "anyOf"), own) for branch in branches]))
        if "enum" in own:
            return self._enumeration(own, path, types)
        kinds = types or _implied_types(own)
        if not kinds:
            return AnyValue()
        nodes = [self._typed(kind, own, path) for kind in kinds]
        return nodes[0] if len(nodes) == 1 else Choice(tuple(nodes))

    def _nothing(self, path: tuple[str, ...], reason: str) -> Nothing:
        if self.impossible is None:
            self.impossible = mfjs.path_text(path), reason
        return Nothing()

    def _typed(self, kind: str, schema: dict[str, Any], path: tuple[str, ...]) -> Node:
        match kind:
            case "boolean":
                return Boolean()
            case "null":
                return Null()
            case "string":
                return self._string(schema, path)
            case "integer" | "number":
                return self._number(schema, path, whole=kind == "integer")
            case "array":
                return self._array(schema, path)
            case _:
                return self._object(schema, path)

    def _enumeration(self, schema: dict[str, Any], path: tuple[str, ...], types: tuple[str, ...] | None) -> Node:
        values = schema["enum"]
        if types is not None:
            values = [value for value in values if mfjs.type_names(value) & set(types)]
        bounds: dict[str, Any] = {key: schema[key] for key in _SCALAR_BOUNDS & schema.keys()}
        if bounds:
            fits = jsonschema_rs.Draft202012Validator(bounds, pattern_options=PATTERNS).is_valid
            values = [value for value in values if fits(value)]
        texts = [json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in values]
        if not texts:
            return self._nothing(path, "no enum value fits the type and bounds beside it")
        self._spend(sum(map(len, texts)), path)
        if sum([len(text) ** 2 for text in texts]) > _MAX_ALTERNATIVES_WEIGHT:
            raise Unenforceable(mfjs.path_text(path), "the alternatives are too many and too long to be enforced")
        return Enumeration(tuple(dict.fromkeys(texts)))

    def _spend(self, characters: int, path: tuple[str, ...]) -> None:
        self._words += characters
        if self._words > _MAX_WORDS:
            raise Unenforceable(mfjs.path_text(path), "its names and values are too long to be enforced")

    def _counts(
        self, schema: dict[str, Any], least_key: str, most_key: str, path: tuple[str, ...]
    ) -> tuple[int, int | None]:
        least, most = int(schema.get(least_key, 0)), schema.get(most_key)
        if least > _LARGEST_LEAST:
            raise Unenforceable(mfjs.path_text(path), f"{least_key} ({least}) is more than any answer can hold")
        return least, None if most is None else int(most)

    def _string(self, schema: dict[str, Any], path: tuple[str, ...]) -> Node:
        least, most = self._counts(schema, "minLength", "maxLength", path)
        if most is not None and least > most:
            return self._nothing(path, "no length fits its bounds")
        if "pattern" not in schema:
            return String(least, most)
        whole = parse(schema["pattern"])
        assert whole is not None  # else it would have been left out
        held = with_lengths(whole, least, most)
        return String(least, most, held) if held is not None else self._nothing(path, "no length fits its bounds")

    def _number(self, schema: dict[str, Any], path: tuple[str, ...], *, whole: bool) -> Node:
        low, high = (None if schema.get(key) is None else Decimal(str(schema[key])) for key in ("minimum", "maximum"))
        if low is None and high is None:
            return Number(whole)
        limit = Decimal(10**DIGITS)
        if (low is not None and low >= limit) or (high is not None and high <= -limit):
            raise Unenforceable(mfjs.path_text(path), f"only numbers of up to {DIGITS} digits are supported")
        no_low, no_high = low is None or low <= -limit, high is None or high >= limit
        places = 0 if whole else min(max([_places(bound) for bound in (low, high) if bound is not None]), DIGITS)
        widest = 10 ** (DIGITS + places) - 1
        first = -widest if low is None or no_low else math.ceil(low.scaleb(places))
        last = widest if high is None or no_high else math.floor(high.scaleb(places))
        if first > last:
            return self._nothing(path, "no value lies between minimum and maximum")
        return Number(whole, first, last, places, no_low, no_high)

    def _array(self, schema: dict[str, Any], path: tuple[str, ...]) -> Node:
        least, most = self._counts(schema, "minItems", "maxItems", path)
        if most is not None and least > most:
            return self._nothing(path, "no number of items fits its bounds")
        return Array(self._node(schema.get("items", True), (*path, "items"), {}), least, most)

    def _object(self, schema: dict[str, Any], path: tuple[str, ...]) -> Node:
        given, required = schema.get("properties", {}), set(schema.get("required", ()))
        extra_schema = schema.get("additionalProperties", not given)
        extra = None
        if extra_schema is not False:
            extra = self._node(extra_schema, (*path, "additionalProperties"), {})
        self._spend(sum(map(len, given)), path)
        properties = [
            Property(name, self._node(inner, (*path, "properties", name), {}), name in required)
            for name, inner in given.items()
        ]
        for name in schema.get("required", ()):
            if name not in given:
                if extra is None:
                    return self._nothing(path, f"required property '{name}' is not defined in properties")
                properties.append(Property(name, extra, required=True))
        return Object(tuple(properties), extra, tuple(given))


def _identity(outer: Mapping[str, Any]) -> list[tuple[str, object]]:
    """What tells `outer` from others. Values are parts of the schema, but for the types that two sides have left."""
    return sorted([(name, value if name == "type" else id(value)) for name, value in outer.items()])


def _types(own: Mapping[str, Any], outer: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The types that both sides allow, None where neither says."""
    sides: list[set[str]] = []
    for keywords in (own, outer):
        if "type" in keywords:
            given = keywords["type"]
            side = {given} if isinstance(given, str) else set(given)
            sides.append(side | {"integer"} if "number" in side else side)
    if not sides:
        return None
    both = set.intersection(*sides)
    return tuple([name for name in mfjs.TYPES if name in both and not (name == "integer" and "number" in both)])


def _implied_types(schema: Mapping[str, Any]) -> tuple[str, ...]:
    if schema.keys() & {"properties", "additionalProperties", "required"}:
        return ("object",)
    if schema.keys() & {"items", "minItems", "maxItems"}:
        return ("array",)
    if schema.keys() & {"pattern", "minLength", "maxLength"}:
        return ("string",)
    return ("number",) if schema.keys() & {"minimum", "maximum"} else ()


def _places(value: Decimal) -> int:
    """Digits after the point that `value` needs."""
    exponent = value.normalize().as_tuple().exponent
    return max(-exponent, 0) if isinstance(exponent, int) else 0
