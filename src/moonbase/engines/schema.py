"""JSON Schema to a grammar that an engine can enforce while it generates.

The grammar (EBNF in xgrammar's notation) accepts compact JSON only, so a model cannot lose itself in
white space. It is *sound* where that is cheap: what it accepts is valid under the schema. Where a bound
would make compiling expensive it is left out of the grammar, and the validation after generation still
holds the answer to it. The output may be narrower than the schema: properties come in the schema's
order, an object with `properties` is closed unless `additionalProperties` opens it, and numbers have at
most fifteen digits before and after the point.

Compiling is done by the engine between two steps, so its cost stalls every stream. Measured with
xgrammar 0.1.31, a vocabulary of 49,152 and two cores: 7 ms for each place of a bounded string, 1 ms for
a place that only few characters fit, 0.3 ms for any other rule. The budgets below keep every schema
under some 600 ms, and thousands of counted places, which crash the compiler, out of reach.
"""

import json
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import msgspec

from moonbase.engines.number_range import magnitudes, signed
from moonbase.engines.pattern import Pattern, literal
from moonbase.errors import InvalidRequest

_MAX_DEPTH = 30
_MAX_SIZE = 120_000  # characters
_MAX_TEXT = 64_000  # characters of a grammar; compiling takes some milliseconds per thousand
_MAX_RANGE_TEXT = 8_000  # of these, for numbers with bounds
_MAX_STEPS = 20_000  # subschemas translated, repeats counted
_MAX_RULES = 1_000
_MAX_PLACES = 64  # of bounded strings; what a pattern repeats counts in proportion
_MAX_ITEMS = 1_000  # of all bounded arrays together
_MAX_ORDERED = 100  # optional properties of one object that keep their order
_MAX_ALTERNATIVES = 1_000
_MAX_ALTERNATIVES_WEIGHT = 1_500_000  # squared characters; half a second
_DIGITS = 15  # every integer of so many digits is exact in a double

# Right recursion of one rule, because a repeated rule (`char*`) makes xgrammar test the whole vocabulary in
# every step, and a repeated class leaves no place for escapes.
_PLAIN, _ESCAPED = r"[^\x22\\\x00-\x1f]", r'"\\" escape'
_BASIC = {
    "escape": r'["\\/bfnrt] | "u" [0-9a-cefA-CEF] hex hex hex | "u" [dD] [0-7] hex hex',
    "hex": "[0-9a-fA-F]",
    "rest": rf'"\"" | {_PLAIN} rest | {_ESCAPED} rest',
    "string": r'"\"" rest',
    "integer": r'"-"? ("0" | [1-9] [0-9]{0,14})',
    "number": r'"-"? ("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,15})? ([eE] [+-]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "array": '"[" (value ("," value)*)? "]"',
    "object": '"{" (member ("," member)*)? "}"',
    "member": 'string ":" value',
}
_NOTHING = '""'


def grammar(schema: str, field: str = "response_format.json_schema.schema") -> str:
    """The grammar of the compact JSON texts that `schema` (JSON text) allows; its start is the rule `root`.

    Raises `InvalidRequest` naming `field` for a schema that is not one or that nothing can satisfy.
    """
    if len(schema) > _MAX_SIZE:
        raise InvalidRequest(f"`{field}`: schema exceeds maximum allowed size")
    try:
        tree = msgspec.json.decode(schema)
        return _Grammar(tree).text()
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"`{field}`: JSON schema parsing error: {error}") from error
    except RecursionError as error:
        raise InvalidRequest(f"`{field}`: schema depth exceeds maximum limit of {_MAX_DEPTH}") from error
    except _Unusable as error:
        raise InvalidRequest(f"`{field}`: At path '{error.path}': {error.reason}") from error


class _Unusable(Exception):
    """A schema that cannot be enforced. Never leaves this module."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path = path.lstrip(".") or "root"
        self.reason = reason


class _Grammar:
    """One translation. Equal rules are made once."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._references: dict[str, str] = {}
        self._spent = 0.0
        self._items = 0
        self._steps = 0
        self._range_text = 0

    def text(self) -> str:
        _check_ends(self._root)
        start = self._reference("#", "", frozenset(), 0)
        lines = [f"root ::= {start}", *(f"{name} ::= {body}" for name, body in self._rules.items())]
        lines += [f"{name} ::= {body}" for name, body in _BASIC.items()]
        text = "\n".join(lines) + "\n"
        if len(text) > _MAX_TEXT:
            raise _Unusable("", "schema exceeds maximum allowed size")
        return text

    def _rule(self, body: str) -> str:
        name = self._names.get(body)
        if name is None:
            name = self._names[body] = f"r{len(self._rules)}"
            self._rules[name] = body
        return name

    def _value(self, schema: Any, path: str, chain: frozenset[str], depth: int) -> str:
        """An expression for `schema`. `chain` holds the references open since the last character of output."""
        self._steps += 1
        if self._steps > _MAX_STEPS:  # `anyOf` hands its siblings to every branch, so depth multiplies them
            raise _Unusable(path, "schema exceeds maximum allowed size")
        if depth > _MAX_DEPTH:
            raise _Unusable(path, f"schema depth exceeds maximum limit of {_MAX_DEPTH}")
        if schema is True:
            return "value"
        if not isinstance(schema, dict):
            raise _Unusable(path, "schema must be a dict" if schema is not False else "it accepts no value")
        if "$ref" in schema:
            return self._reference(schema["$ref"], path, chain, depth)
        if "enum" in schema:
            return self._enumeration(schema, path)
        if "anyOf" in schema:
            return self._any_of(schema, path, chain, depth)
        kind = schema.get("type", _implied_type(schema))
        if isinstance(kind, list):
            if not kind:
                raise _Unusable(path, "type array cannot be empty")
            kinds = [self._value({**schema, "type": one}, path, chain, depth + 1) for one in kind]
            return self._alternatives(kinds, path)
        return self._typed(kind, schema, path, depth)

    def _typed(self, kind: Any, schema: dict[str, Any], path: str, depth: int) -> str:
        match kind:
            case None:
                return "value"
            case "boolean" | "null":
                return str(kind)
            case "string":
                return self._string(schema, path)
            case "integer" | "number":
                return self._number(schema, path, whole=kind == "integer")
            case "array" | "object" if len(self._rules) > _MAX_RULES:
                return str(kind)
            case "array":
                return self._array(schema, path, depth)
            case "object":
                return self._object(schema, path, depth)
            case str():
                raise _Unusable(path, f"invalid type {kind!r}")
            case _:
                raise _Unusable(path, "type must be string or array of strings")

    def _alternatives(self, expressions: Iterable[str], path: str) -> str:
        distinct = list(dict.fromkeys(expressions))
        if len(distinct) > _MAX_ALTERNATIVES:
            raise _Unusable(path, f"there are more than {_MAX_ALTERNATIVES} alternatives")
        return self._rule(self._joined(distinct, path))

    def _joined(self, alternatives: list[str], path: str) -> str:
        """Long alternatives are what compiles slowest, in proportion to the square of their length."""
        if sum([len(alternative) ** 2 for alternative in alternatives]) > _MAX_ALTERNATIVES_WEIGHT:
            raise _Unusable(path, "the alternatives are too many and too long to be enforced")
        return " | ".join(alternatives)

    def _reference(self, reference: Any, path: str, chain: frozenset[str], depth: int) -> str:
        target = _resolve(self._root, reference, path)
        if reference in chain:
            raise _Unusable(path, "detected infinite recursion without termination condition")
        if reference not in self._references:
            name = self._references[reference] = f"ref{len(self._references)}"
            self._rules[name] = "null"  # holds the name until the target, which may refer back, is translated
            self._rules[name] = self._value(target, path, chain | {reference}, depth)
        return self._references[reference]

    def _any_of(self, schema: dict[str, Any], path: str, chain: frozenset[str], depth: int) -> str:
        branches = schema["anyOf"]
        if not isinstance(branches, list):
            raise _Unusable(path, "anyOf must be an array")
        if not 1 <= len(branches) <= 500:
            raise _Unusable(path, "anyOf must have 1-500 items")
        shared = {key: value for key, value in schema.items() if key != "anyOf"}
        merged = [{**shared, **branch} if isinstance(branch, dict) else branch for branch in branches]
        return self._alternatives([self._value(branch, f"{path}.anyOf", chain, depth + 1) for branch in merged], path)

    def _enumeration(self, schema: dict[str, Any], path: str) -> str:
        values, kinds = schema["enum"], schema.get("type")
        if not isinstance(values, list):
            raise _Unusable(path, "enum must be an array")
        if not values:
            raise _Unusable(path, "enum array cannot be empty")
        if kinds is not None:
            allowed = kinds if isinstance(kinds, list) else [kinds]
            values = [value for value in values if _type_of(value) & set(map(str, allowed))]
            if not values:
                raise _Unusable(path, f"no enum value matches any type in {allowed}")
        return self._alternatives([literal(_json(value)) for value in values], path)

    def _string(self, schema: dict[str, Any], path: str) -> str:
        least, most = _bounds(schema, "minLength", "maxLength", path)
        pattern = schema.get("pattern")
        if isinstance(pattern, str) and (translated := Pattern.parse(pattern, least, most)) is not None:
            body = f'"\\"" {translated.body(self._rule)} "\\""'
            if body in self._names or self._afford(translated.places):
                return self._rule(body)
        if not least and most is None:
            return "string"
        places = self._places(least, most)
        return "string" if places is None else self._rule(f'"\\"" {places}')

    def _places(self, least: int, most: int | None) -> str | None:
        """The rule for the rest of a string that still has from `least` to `most` characters; None if too expensive.

        All maximums share one chain of rules, so a schema pays for its longest only.
        """
        longest = least if most is None else most
        if longest > _MAX_PLACES:
            return None
        names = [self._place_name(max(least - i, 0), None if most is None else most - i) for i in range(longest + 1)]
        if not self._afford(sum(name not in self._rules for name in names)):
            return None
        for index, (name, following) in enumerate(zip(names, [*names[1:], None], strict=True)):
            closed = ['"\\""'] if index >= least else []
            longer = [f"{_PLAIN} {following}", f"{_ESCAPED} {following}"] if following else []
            if name != "rest":
                self._rules[name] = " | ".join(closed + longer)
        return names[0]

    @staticmethod
    def _place_name(least: int, most: int | None) -> str:
        if most is None:
            return f"least{least}" if least else "rest"
        return f"between{least}and{most}" if least else f"most{most}"

    def _afford(self, places: float) -> bool:
        affordable = self._spent + places <= _MAX_PLACES
        self._spent += places if affordable else 0
        return affordable

    def _number(self, schema: dict[str, Any], path: str, *, whole: bool) -> str:
        low, high = (_decimal(schema, key, path) for key in ("minimum", "maximum"))
        if low is not None and high is not None and low > high:
            raise _Unusable(path, f"minimum ({low}) cannot be greater than maximum ({high})")
        if low is None and high is None:
            return "integer" if whole else "number"
        limit = Decimal(10**_DIGITS - 1)
        if (low is not None and low > limit) or (high is not None and high < -limit):
            raise _Unusable(path, f"only numbers of up to {_DIGITS} digits are supported")
        low, high = max(low if low is not None else -limit, -limit), min(high if high is not None else limit, limit)
        places = 0 if whole else min(max(_places(low), _places(high)), _DIGITS)
        first, last = math.ceil(low.scaleb(places)), math.floor(high.scaleb(places))
        parts = signed(first, last, places)
        if not whole:  # more digits move away from zero by less than one unit, so the outermost unit is left out
            digits = f"[0-9]{{1,{_DIGITS - places}}}" if places < _DIGITS else ""
            point = "" if places else '"." '
            if digits:
                top, bottom = (last if high == limit else last - 1), (-first if low == -limit else -first - 1)
                parts += [f"{part} {point}{digits}" for part in magnitudes(max(first, 0), top, places)]
                parts += [f'"-" {part} {point}{digits}' for part in magnitudes(max(-last, 0), bottom, places)]
        if not parts:
            raise _Unusable(path, "no value lies between minimum and maximum")
        body = " | ".join(dict.fromkeys(parts))
        if body not in self._names:
            if self._range_text + len(body) > _MAX_RANGE_TEXT:
                return "integer" if whole else "number"
            self._range_text += len(body)
        return self._rule(body)

    def _array(self, schema: dict[str, Any], path: str, depth: int) -> str:
        least, most = _bounds(schema, "minItems", "maxItems", path)
        if most == 0:
            return '"[]"'
        item = self._value(schema.get("items", True), f"{path}.items", frozenset(), depth + 1)
        counts = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        if self._items + (most or least) > _MAX_ITEMS:
            counts = "*"
        else:
            self._items += most or least
        body = f'{item} ("," {item}){counts}'
        return self._rule(f'"[" {body} "]"' if least else f'"[" ({body})? "]"')

    def _object(self, schema: dict[str, Any], path: str, depth: int) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict):
            raise _Unusable(path, "properties must be an object")
        if not isinstance(required, list):
            raise _Unusable(path, "required must be an array")
        for name in required:
            if not isinstance(name, str):
                raise _Unusable(path, "items in required array must be strings")
            if name not in properties:
                raise _Unusable(path, f"required property {name!r} is not defined in properties")
        extra = schema.get("additionalProperties", not properties)
        members = {
            name: f"{literal(_json(name) + ':')} {self._value(inner, f'{path}.{name}', frozenset(), depth + 1)}"
            for name, inner in properties.items()
        }
        if extra is False:
            head = tail = ""
        else:
            value = self._value(extra, f"{path}.additionalProperties", frozenset(), depth + 1)
            member = self._rule(f'string ":" {value}')
            tail = self._rule(f'("," {member})*')
            head = self._rule(f"({member} {tail})?")
        optional = [name for name in members if name not in required]
        if len(optional) > _MAX_ORDERED:
            others = [] if extra is False else [member]
            member = self._rule(self._joined([*(members[name] for name in optional), *others], path))
            tail = self._rule(f'("," {member})*')
            head = self._rule(f"({member} {tail})?")
            members = {name: body for name, body in members.items() if name in required}
        # From the last property to the first: `tail` follows a member, `head` follows the brace.
        for name in reversed(members):
            if name in required:
                head = f"{members[name]} {tail}"
                tail = f'"," {head}'
            else:
                rest = self._rule(tail) if tail else _NOTHING
                head = self._rule(f"{members[name]} {rest} | {head or _NOTHING}")
                tail = self._rule(f'"," {members[name]} {rest} | {rest}')
        return self._rule(f'"{{" {head} "}}"')


def _resolve(root: Any, reference: Any, path: str) -> Any:
    if not isinstance(reference, str):
        raise _Unusable(path, "$ref must be a string")
    if reference == "#":
        return root
    if not reference.startswith("#/$defs/"):
        raise _Unusable(path, "references must start with #/$defs/")
    definitions = root.get("$defs") if isinstance(root, dict) else None
    name = reference.removeprefix("#/$defs/")
    if not isinstance(definitions, dict) or name not in definitions:
        raise _Unusable(path, f"$defs not found for reference: {reference}")
    return definitions[name]


def _check_ends(root: Any) -> None:
    """Refuse a schema whose every value would be endless: a required property that requires itself."""
    ending: set[str] = set()
    while True:
        known = len(ending)
        if _ends({"$ref": "#"}, root, ending, set()):
            return
        if len(ending) == known:
            raise _Unusable("", "detected infinite recursion without termination condition")


def _ends(schema: Any, root: Any, ending: set[str], seen: set[str]) -> bool:
    """Whether `schema` has a finite value, as far as the references in `ending` tell; adds to them."""
    if not isinstance(schema, dict):
        return True
    if "$ref" in schema:
        reference = schema["$ref"]
        target = _resolve(root, reference, "")
        if reference not in ending and reference not in seen:
            seen.add(reference)
            if _ends(target, root, ending, seen):
                ending.add(reference)
        return reference in ending
    if isinstance(schema.get("anyOf"), list) and schema["anyOf"]:
        return any(_ends(branch, root, ending, seen) for branch in schema["anyOf"])
    properties, required = schema.get("properties"), schema.get("required")
    if isinstance(properties, dict) and isinstance(required, list):
        return all(_ends(inner, root, ending, seen) for name, inner in properties.items() if name in required)
    if isinstance(schema.get("minItems"), int) and schema["minItems"] > 0:
        return _ends(schema.get("items"), root, ending, seen)
    return True


def _implied_type(schema: Mapping[str, Any]) -> str | None:
    if schema.keys() & {"properties", "additionalProperties", "required"}:
        return "object"
    if schema.keys() & {"items", "minItems", "maxItems"}:
        return "array"
    if schema.keys() & {"pattern", "minLength", "maxLength"}:
        return "string"
    return "number" if schema.keys() & {"minimum", "maximum"} else None


def _type_of(value: Any) -> set[str]:
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


def _bounds(schema: Mapping[str, Any], least_key: str, most_key: str, path: str) -> tuple[int, int | None]:
    least, most = schema.get(least_key, 0), schema.get(most_key)
    for key, value in ((least_key, least), (most_key, most)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise _Unusable(path, f"{key} must be an integer")
        if value < 0:
            raise _Unusable(path, f"{key} must be non-negative")
    if most is not None and least > most:
        raise _Unusable(path, f"{least_key} ({least}) cannot be greater than {most_key} ({most})")
    return int(least), None if most is None else int(most)


def _decimal(schema: Mapping[str, Any], key: str, path: str) -> Decimal | None:
    value = schema.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Unusable(path, f"{key} must be a number")
    return Decimal(str(value))


def _places(value: Decimal) -> int:
    """Digits after the point that `value` needs."""
    exponent = value.normalize().as_tuple().exponent
    return max(-exponent, 0) if isinstance(exponent, int) else 0


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
