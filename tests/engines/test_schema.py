"""JSON Schemas as grammars. What a model writes under them is checked with the real one."""

import json
import time
from decimal import Decimal
from itertools import pairwise
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonbase.engines.schema import grammar
from moonbase.errors import InvalidRequest


class Rules:
    """Tells which texts a grammar of ours accepts: the few notations that it uses, by brute force."""

    def __init__(self, text: str) -> None:
        self._rules = {name: _parse(body) for name, _, body in (line.partition(" ::= ") for line in text.splitlines())}

    def accepts(self, text: str) -> bool:
        return len(text) in self._ends(("name", "root"), text, 0)

    def _ends(self, node: Any, text: str, at: int) -> set[int]:
        match node:
            case ("name", name):
                return self._ends(self._rules[name], text, at)
            case ("text", literal):
                return {at + len(literal)} if text.startswith(literal, at) else set()
            case ("class", ranges, negated):
                inside = at < len(text) and any(low <= text[at] <= high for low, high in ranges) != negated
                return {at + 1} if inside and at < len(text) else set()
            case ("choice", branches):
                return set().union(*(self._ends(branch, text, at) for branch in branches))
            case ("sequence", items):
                ends = {at}
                for item in items:
                    ends = set().union(*(self._ends(item, text, end) for end in ends))
                return ends
            case ("repeat", item, least, most):
                ends, found = {at}, {at} if least == 0 else set()
                for count in range(1, min(most, len(text) + 1) + 1):
                    ends = set().union(*(self._ends(item, text, end) for end in ends))
                    if not ends:
                        break
                    if count >= least:
                        found |= ends
                return found
        raise AssertionError(node)


def _parse(body: str) -> Any:
    at = 0

    def choice() -> Any:
        nonlocal at
        branches = [sequence()]
        while body[at : at + 1] == "|":
            at += 1
            branches.append(sequence())
        return ("choice", branches)

    def sequence() -> Any:
        nonlocal at
        items = []
        while True:
            while body[at : at + 1] == " ":
                at += 1
            if body[at : at + 1] in ("", "|", ")"):
                return ("sequence", items)
            items.append(counted(atom()))

    def counted(item: Any) -> Any:
        nonlocal at
        sign = body[at : at + 1]
        if sign in ("*", "?"):
            at += 1
            return ("repeat", item, 0, 10**9 if sign == "*" else 1)
        if sign == "{":
            low, _, high = body[at + 1 : body.index("}", at)].partition(",")
            at = body.index("}", at) + 1
            return ("repeat", item, int(low), int(high) if high else 10**9)
        return item

    def atom() -> Any:
        nonlocal at
        match body[at]:
            case "(":
                at += 1
                inner = choice()
                at += 1
                return inner
            case '"':
                at += 1
                letters = ""
                while body[at] != '"':
                    letters += letter()
                at += 1
                return ("text", letters)
            case "[":
                at += 1
                negated = body[at] == "^"
                at += negated
                ranges = []
                while body[at] != "]":
                    low = letter()
                    if body[at] == "-" and body[at + 1] != "]":
                        at += 1
                        ranges.append((low, letter()))
                    else:
                        ranges.append((low, low))
                at += 1
                return ("class", ranges, negated)
        start = at
        while at < len(body) and (body[at].isalnum() or body[at] == "_"):
            at += 1
        assert at > start, (body, at)
        return ("name", body[start:at])

    def letter() -> str:
        nonlocal at
        if body[at] != "\\":
            at += 1
            return body[at - 1]
        width = {"x": 2, "U": 8}.get(body[at + 1], 0)
        at += 2 + width
        return chr(int(body[at - width : at], 16)) if width else body[at - 1]

    return choice()


def accepts(schema: Any, text: str) -> bool:
    return Rules(grammar(json.dumps(schema))).accepts(text)


def test_a_person_is_compact_json_in_the_schemas_order():
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }

    assert accepts(schema, '{"name":"Bob","age":12}')
    assert accepts(schema, '{"name":"B\\n\\u00e9ob","age":150}')
    for wrong in (
        '{"name": "Bob","age":12}',
        '{"age":12,"name":"Bob"}',
        '{"name":"Robert","age":12}',
        '{"name":"Bob","age":151}',
        '{"name":"Bob","age":-1}',
        '{"name":"Bob","age":012}',
        '{"name":"Bob"}',
        '{"name":"Bob","age":12,"x":1}',
        '{"name":"\\ud800","age":12}',
    ):
        assert not accepts(schema, wrong), wrong


def test_optional_properties_may_each_be_absent():
    schema = {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}}}
    schema["required"] = ["b"]

    assert [
        text
        for names in ("", "a", "b", "c", "ab", "bc", "ac", "abc", "ba")
        if accepts(schema, text := "{" + ",".join(f'"{name}":null' for name in names) + "}")
    ] == ['{"b":null}', '{"a":null,"b":null}', '{"b":null,"c":null}', '{"a":null,"b":null,"c":null}']


def test_an_object_without_properties_is_open():
    for schema in ({"type": "object"}, True, {}):
        assert accepts(schema, '{"any":[1,-2.5e3,{"thing":null}],"é":"\\""}')
    assert accepts({"type": "object", "properties": {}, "additionalProperties": {"type": "boolean"}}, '{"a":true}')
    assert accepts({"type": "object", "properties": {}, "additionalProperties": False}, "{}")


@given(low=st.integers(-300, 300), size=st.integers(0, 2000), value=st.integers(-400, 2500))
def test_integers_keep_their_bounds_exactly(low: int, size: int, value: int):
    schema = {"type": "integer", "minimum": low, "maximum": low + size}

    assert accepts(schema, str(value)) == (low <= value <= low + size)


@given(
    bounds=st.lists(st.decimals(-50, 50, places=2), min_size=2, max_size=2, unique=True).map(sorted),
    value=st.decimals(-60, 60, places=3),
)
def test_numbers_never_leave_their_bounds(bounds: list[Decimal], value: Decimal):
    low, high = bounds
    schema = {"type": "number", "minimum": float(low), "maximum": float(high)}

    if accepts(schema, str(value)):
        assert low <= value <= high


def test_numbers_have_decimals():
    schema = {"type": "number", "minimum": 0.25, "maximum": 1}
    assert [text for text in ("0.25", "0.2", "0.251", "0.999", "1.00", "1.001", "0") if accepts(schema, text)] == [
        "0.25",
        "0.251",
        "0.999",
        "1.00",
    ]
    assert accepts({"type": "number", "minimum": 0}, "123456.75")
    assert not accepts({"type": "number", "minimum": 0}, "-1")


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        (r"^[A-Z]{3}-\d{4}$", ["ABC-1234"], ["ABC-123", "abc-1234", "ABC-1234 "]),
        (r"^(a|bc)+$", ["a", "bcabc"], ["", "b"]),
        (r'^[^"a]$', ["b", "é"], ['"', "a"]),
        (r'^a"\\$', ['a"\\'], ["a"]),
        (r"^\w+@\w+\.(com|org)$", ["a_1@b.org"], ["a@b.net"]),
    ],
)
def test_a_plain_pattern_is_enforced(pattern: str, right: list[str], wrong: list[str]):
    schema = {"type": "string", "pattern": pattern}

    assert all(accepts(schema, json.dumps(text, ensure_ascii=False)) for text in right)
    assert not any(accepts(schema, json.dumps(text, ensure_ascii=False)) for text in wrong)


@pytest.mark.parametrize(
    "pattern", [r"(?=a)b", r"(a)\1", r"\p{L}", "(", "[", "a{2", r"[\x00]", r"\ud800", "a{1,99999999}"]
)
def test_a_pattern_that_is_not_translated_is_left_to_the_validation(pattern: str):
    assert accepts({"type": "string", "pattern": pattern}, '"anything"')


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "maxLength": 10**30}, '"a"'),
        ({"type": "string", "minLength": 10_000}, '"a"'),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 10**30}, "[null]"),
        ({"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(3000)}}, '{"p2999":null}'),
    ],
)
def test_an_expensive_bound_is_relaxed(schema: dict[str, Any], text: str):
    assert accepts(schema, text)


def test_bounded_strings_share_one_chain_of_rules():
    properties = {f"p{i}": {"type": "string", "maxLength": 30 + i} for i in range(20)}

    assert grammar(json.dumps({"type": "object", "properties": properties})).count("\nmost") == 50


def test_references_may_recur_when_they_can_end():
    node = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}
    schema = {"$defs": {"node": {**node, "required": ["next"]}}, "$ref": "#/$defs/node"}

    assert accepts(schema, '{"next":{"next":null}}')
    assert not accepts(schema, '{"next":{}}')


def test_references_that_double_stay_small():
    definitions: dict[str, Any] = {"a200": {"type": "null"}}
    for left, right in pairwise(range(201)):
        definitions[f"a{left}"] = {"type": "array", "items": {"anyOf": [{"$ref": f"#/$defs/a{right}"}] * 2}}

    with pytest.raises(InvalidRequest, match="depth"):
        grammar(json.dumps({"$defs": definitions, "$ref": "#/$defs/a0"}))
    definitions = {"a25": {"type": "null"}} | {
        f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}, {"$ref": f"#/$defs/a{i + 1}"}]} for i in range(25)
    }
    assert len(grammar(json.dumps({"$defs": definitions, "$ref": "#/$defs/a10"}))) < 3000


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ('{"type":"object"', "JSON schema parsing error"),
        ("[]", "schema must be a dict"),
        ("false", "it accepts no value"),
        ('{"type":"text"}', "At path 'root': invalid type 'text'"),
        ('{"type":7}', "type must be string or array of strings"),
        ('{"type":[]}', "type array cannot be empty"),
        ('{"type":"object","properties":{"a":{"type":"text"}}}', "At path 'a': invalid type"),
        ('{"type":"object","properties":5}', "properties must be an object"),
        ('{"type":"object","required":[["a"]]}', "items in required array must be strings"),
        ('{"type":"object","required":["a"]}', "required property 'a' is not defined"),
        ('{"enum":[]}', "enum array cannot be empty"),
        ('{"anyOf":[]}', "anyOf must have 1-500 items"),
        ('{"$ref":["x"]}', r"\$ref must be a string"),
        ('{"$ref":"http://example.com"}', "references must start with"),
        ('{"$defs":5,"$ref":"#/$defs/a"}', r"\$defs not found"),
        ('{"$ref":"#"}', "infinite recursion"),
        ('{"anyOf":[{"$ref":"#"},{"type":"null"}]}', "infinite recursion"),
        ('{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}', "infinite recursion"),
        ('{"type":"integer","minimum":3,"maximum":2}', "cannot be greater"),
        ('{"type":"integer","minimum":0.2,"maximum":0.8}', "no value lies between"),
        ('{"type":"number","minimum":1e300}', "digits"),
        ('{"type":"string","minLength":-1}', "non-negative"),
        ('{"type":"string","minLength":3,"maxLength":2}', "cannot be greater"),
        ('{"items":' * 40 + "{}" + "}" * 40, "depth exceeds maximum limit of 30"),
        ("[" * 100_000, "depth exceeds"),
        ('{"title":"' + "a" * 120_000 + '"}', "maximum allowed size"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_by_name(schema: str, reason: str):
    with pytest.raises(InvalidRequest, match=reason) as caught:
        grammar(schema)

    assert "`response_format.json_schema.schema`" in str(caught.value)


def test_alternatives_that_multiply_with_depth_are_refused():
    """Every `anyOf` hands its siblings to each branch, so a short text asks for 2 ** levels translations."""
    for levels in (14, 28):
        schema: dict[str, Any] = {"type": "null"}
        for _ in range(levels):
            schema = {"items": schema, "anyOf": [{"minItems": 1}, {"maxItems": 3}]}
        began = time.monotonic()
        with pytest.raises(InvalidRequest, match="exceeds maximum"):
            grammar(json.dumps(schema))
        assert time.monotonic() - began < 5


def test_many_bounded_numbers_do_not_swell_the_grammar():
    properties = {f"p{i}": {"type": "number", "minimum": i + 0.1, "maximum": 7 * i + 123.4} for i in range(900)}
    text = grammar(json.dumps({"type": "object", "properties": properties, "required": list(properties)}))

    assert len(text) < 70_000


def test_alternatives_that_are_too_many_and_too_long_are_refused_by_their_path():
    values = [f"{i:0100}" for i in range(500)]

    with pytest.raises(InvalidRequest, match="At path 'colour': the alternatives are too many and too long"):
        grammar(json.dumps({"type": "object", "properties": {"colour": {"enum": values}}}))


_LEAVES = st.sampled_from(
    [
        {"type": "string", "maxLength": 3},
        {"type": "integer", "minimum": -5, "maximum": 5},
        {"type": ["boolean", "null"]},
        {"enum": ["a", 1, None, 'q"']},
        {"type": "number"},
    ]
)
_SCHEMAS = st.recursive(
    _LEAVES,
    lambda inner: (
        st.builds(lambda item: {"type": "array", "items": item, "maxItems": 2}, inner)
        | st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner)
        | st.builds(
            lambda one, two: {"type": "object", "properties": {"a": one, "b": two}, "required": ["b"]}, inner, inner
        )
    ),
    max_leaves=4,
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "a", 'q"', "long"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)


@given(schema=_SCHEMAS, value=_VALUES)
def test_what_a_grammar_accepts_is_valid(schema: dict[str, Any], value: Any):
    if accepts(schema, json.dumps(value, separators=(",", ":"))):
        assert jsonschema_rs.is_valid(schema, value)
