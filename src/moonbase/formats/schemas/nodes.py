"""The enforced part of a schema as a graph of what a text may be: what grammars are made of.

Here and nowhere else is settled what follows from a schema as a whole: references, what `anyOf` and its siblings ask
for together, bounds that leave nothing, recursion that never ends, and what would be too expensive for any engine.
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
from msgspec import Struct

from moonbase.formats.schemas import mfjs
from moonbase.formats.schemas.enforced import PATTERNS
from moonbase.formats.schemas.pattern import Group, parse, with_lengths

DIGITS = 15  # every integer of so many digits is exact in a double
_MAX_NODES = 20_000
_MAX_WORDS = 64_000  # characters of names and enumerated values; compiling takes some milliseconds per thousand
_MAX_ALTERNATIVES_WEIGHT = 1_500_000  # squared characters of the values of one enumeration; half a second to compile
_LARGEST_LEAST = 262_144
_SCALAR_BOUNDS: frozenset[str] = frozenset({"minLength", "maxLength", "pattern", "minimum", "maximum"})


class AnyValue(Struct, frozen=True):
    pass


class Boolean(Struct, frozen=True):
    pass


class Null(Struct, frozen=True):
    pass


class Nothing(Struct, frozen=True):
    """What no value satisfies. Not in a finished graph."""


class Enumeration(Struct, frozen=True):
    """`values` are compact JSON texts."""

    values: tuple[str, ...]


class String(Struct, frozen=True):
    """`least` and `most` are in characters."""

    least: int = 0
    most: int | None = None
    pattern: Group | None = None


class Number(Struct, frozen=True):
    """From `first` to `last`, both in units of 10 to the power of -`places`; any number where both are None.

    An integer has no places. On a side without a bound of its own (`no_low`, `no_high`) stands what the digits allow.
    """

    whole: bool
    first: int | None = None
    last: int | None = None
    places: int = 0
    no_low: bool = False
    no_high: bool = False


class Array(Struct, frozen=True):
    item: "Node"
    least: int = 0
    most: int | None = None


class Property(Struct, frozen=True):
    name: str
    value: "Node"
    required: bool


class Object(Struct, frozen=True):
    """`extra` is what members with other names are, None: there are none; `taken` are the names they may not have."""

    properties: tuple[Property, ...]
    extra: "Node | None"
    taken: tuple[str, ...] = ()


class Choice(Struct, frozen=True):
    branches: tuple["Node", ...]


class Reference(Struct, frozen=True):
    """A definition of the graph by its name; the empty name is the root."""

    name: str


Node = AnyValue | Boolean | Null | Nothing | Enumeration | String | Number | Array | Object | Choice | Reference


class Graph(Struct, frozen=True):
    """Every node of it has a finite value. `definitions` holds what references name, the root as the empty name."""

    definitions: dict[str, Node]


class Unenforceable(Exception):
    """No engine could be held to the schema. `path` is as in `mfjs.Finding`; `hard`: the service refuses it too."""

    def __init__(self, path: str, reason: str, *, hard: bool = False) -> None:
        super().__init__(reason)
        self.path = path
        self.reason = reason
        self.hard = hard


def graph(tree: dict[str, Any]) -> Graph:
    """The graph of the enforced part of a schema. Raises `Unenforceable`."""
    _check_chains(tree)
    builder = _Builder(tree)
    definitions = builder.build()
    live = _live(definitions)
    if id(definitions[""]) not in live:
        if builder.impossible is not None:
            raise Unenforceable(*builder.impossible)
        raise Unenforceable(mfjs.ROOT, mfjs.ENDLESS, hard=True)
    return Graph(_Pruning(definitions, live).run())


def _check_chains(tree: dict[str, Any]) -> None:
    """Refuse references that lead back to themselves, or through too many others, before anything is written.

    Kahn's algorithm over definitions; an edge is a reference that needs no step into the value.
    """
    definitions = {"": tree, **tree.get("$defs", {})}
    follow = {name: _at_once(schema) for name, schema in definitions.items()}
    open_ends = dict.fromkeys(definitions, 0)
    for names in follow.values():
        for name in names:
            open_ends[name] += 1
    ready, length = [name for name, count in open_ends.items() if not count], dict.fromkeys(definitions, 0)
    done = 0
    while ready:
        name = ready.pop()
        done += 1
        if length[name] > mfjs.MAX_NESTING:
            raise Unenforceable(mfjs.ROOT, mfjs.TOO_DEEP, hard=True)
        for following in follow[name]:
            length[following] = max(length[following], length[name] + 1)
            open_ends[following] -= 1
            if not open_ends[following]:
                ready.append(following)
    if done < len(definitions):
        name = next(name for name, count in open_ends.items() if count)
        raise Unenforceable(f"$defs.{name}" if name else mfjs.ROOT, mfjs.ENDLESS, hard=True)


def _at_once(schema: dict[str, Any]) -> set[str]:
    """The definitions that a value of `schema` may have to satisfy itself."""
    found, rest = set(), [schema]
    while rest:
        schema = rest.pop()
        rest += schema.get("anyOf", ())
        if "$ref" in schema:
            found.add(_name(schema["$ref"]))
    return found


def _name(reference: str) -> str:
    return reference.removeprefix("#").removeprefix("/$defs/")


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
            return self._reference(_name(schema["$ref"]), outer)
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


def _needs(node: Node, definitions: Mapping[str, Node]) -> tuple[Node, ...]:
    """What must have a finite value that `node` may have one: all of it, but of a choice one."""
    match node:
        case Choice(branches):
            return branches
        case Reference(name):
            return (definitions[name],)
        case Array(item, least) if least:
            return (item,)
        case Object(properties):
            return tuple([each.value for each in properties if each.required])
        case _:
            return ()


def _inside(node: Node) -> tuple[Node, ...]:
    match node:
        case Choice(branches):
            return branches
        case Array(item):
            return (item,)
        case Object(properties, extra):
            return (*[each.value for each in properties], *([] if extra is None else [extra]))
        case _:
            return ()


def _live(definitions: Mapping[str, Node]) -> set[int]:
    """The nodes that have a finite value, by identity."""
    nodes: dict[int, Node] = {}
    rest = list(definitions.values())
    while rest:
        node = rest.pop()
        if id(node) not in nodes:
            nodes[id(node)] = node
            rest += _inside(node)
    dependents: dict[int, list[int]] = {}
    missing: dict[int, int] = {}
    live: set[int] = set()
    ready: list[int] = []
    for key, node in nodes.items():
        needs = {id(need) for need in _needs(node, definitions)}
        missing[key] = min(len(needs), 1) if isinstance(node, Choice) else len(needs)
        for need in needs:
            dependents.setdefault(need, []).append(key)
        if not needs and not isinstance(node, Nothing):
            ready.append(key)
    while ready:
        key = ready.pop()
        if key in live:
            continue
        live.add(key)
        for dependent in dependents.get(key, ()):
            missing[dependent] -= 1
            if missing[dependent] <= 0:
                ready.append(dependent)
    return live


class _Pruning:
    """Copies what the root leads to, without what is not live."""

    def __init__(self, definitions: Mapping[str, Node], live: set[int]) -> None:
        self._definitions = definitions
        self._live = live
        self._known: dict[int, Node] = {}
        self._wanted = [""]

    def run(self) -> dict[str, Node]:
        pruned: dict[str, Node] = {}
        while self._wanted:
            name = self._wanted.pop()
            if name not in pruned:
                pruned[name] = self._node(self._definitions[name])
        return pruned

    def _node(self, node: Node) -> Node:
        """`node`, which is live, without its parts that are not."""
        known = self._known.get(id(node))
        if known is None:
            known = self._known[id(node)] = self._copy(node)
        return known

    def _copy(self, node: Node) -> Node:
        match node:
            case Choice(branches):
                kept = [self._node(branch) for branch in branches if id(branch) in self._live]
                return kept[0] if len(kept) == 1 else Choice(tuple(kept))
            case Reference(name):
                self._wanted.append(name)
                return node
            case Array(item, least, most):
                return Array(self._node(item), least, most) if id(item) in self._live else Array(Null(), 0, 0)
            case Object(properties, extra, taken):
                kept_properties = [
                    Property(each.name, self._node(each.value), each.required)
                    for each in properties
                    if id(each.value) in self._live
                ]
                kept_extra = None if extra is None or id(extra) not in self._live else self._node(extra)
                return Object(tuple(kept_properties), kept_extra, taken)
            case _:
                return node


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
