"""A client's schema: what is enforced of it, and what its output is checked against."""

import json
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonbase.engines.json_rules import JsonRules
from moonbase.engines.notation import grammar_text
from moonbase.formats.schemas import mfjs
from moonbase.formats.schemas.schema import ANY_OBJECT, Refused, Schema, read


def schema(tree: Any) -> Schema:
    return read(json.dumps(tree), "parameters")


def enforced(tree: Any) -> Any:
    return json.loads(schema(tree).text)


@pytest.mark.parametrize(
    ("tree", "good", "bad"),
    [
        ({"type": "integer", "minimum": 0, "maximum": 9}, ["0", "9"], ["-1", "10", "1.5", '"1"']),
        ({"type": ["string", "null"], "maxLength": 2}, ['"ab"', "null", '"世界"'], ['"abc"', "1"]),
        ({"type": "string", "pattern": "^a+$"}, ['"aa"'], ['"b"', '""']),
        ({"anyOf": [{"enum": ["x", 1, None]}]}, ['"x"', "1", "null"], ['"y"', "2"]),
        ({"anyOf": [{"type": "integer"}, {"type": "boolean"}]}, ["1", "true"], ['"x"', "null"]),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "integer"}},
                "required": ["a", "a"],
                "additionalProperties": False,
            },
            ['{"a":1}'],
            ["{}", '{"a":"1"}', '{"a":1,"b":2}'],
        ),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2}, ["[1]"], ["[]", "[1,2,3]"]),
        (
            {"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"},
            ["[[],[[]]]"],
            ["[1]", "1"],
        ),
        ({"type": "object", "properties": {"a": {"type": "null"}}}, ['{"a":null}', '{"b":1}'], ['{"a":1}']),
    ],
)
def test_the_supported_keywords_are_checked(tree: Any, good: list[str], bad: list[str]) -> None:
    found = schema(tree)
    for text in good:
        assert found.violation(text) is None
    for text in bad:
        assert found.violation(text) is not None


@pytest.mark.parametrize("levels", [100, 250, 300, 400, 900])
def test_a_deep_value_is_refused_or_described_but_never_an_accident(levels: int) -> None:
    found = schema({"type": "object", "properties": {"a": {"type": "number"}}})
    reason = found.violation('{"a":' + "[" * levels + "]" * levels + "}")
    assert reason is not None
    assert reason.startswith("it ")


def test_a_violation_names_the_field_and_the_place() -> None:
    found = schema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})

    assert found.violation("{}") == 'it does not match `parameters`: "a" is a required property'
    assert found.violation('{"a":"x"}') == 'it does not match `parameters`: "x" is not of type "integer"'
    for text in ("", "{", "{} {}", "{'a':1}", '{"a":1e999}'):
        assert found.violation(text) == "it is not valid JSON"
    for text in ("[]", "1", "null"):
        assert found.violation(text) == "it is not a JSON object"
        assert ANY_OBJECT.violation(text) == "it is not a JSON object"
    assert ANY_OBJECT.violation('{"a": [1, null]}') is None


@pytest.mark.parametrize(
    ("tree", "kept", "left_out"),
    [
        ({"type": "string", "format": "email", "const": 5, "not": {}, "allOf": [{}]}, {"type": "string"}, 4),
        ({"type": "string", "title": "T", "default": "x", "description": "d", "$id": "i"}, {"type": "string"}, 0),
        ({"type": ["null", "null"], "x-note": 1, "nullable": True}, {"type": "null"}, 0),
        ({"type": "object", "minLength": 1, "items": {}, "pattern": "a"}, {"type": "object"}, 0),
        ({"type": "string", "pattern": "(?=a)b"}, {"type": "string"}, 1),
        ({"type": "string", "pattern": "(a)\\1"}, {"type": "string"}, 1),
        ({"type": "string", "pattern": "a" * 1_001}, {"type": "string"}, 1),
        ({"type": "string", "minLength": None, "maxLength": 3}, {"type": "string", "maxLength": 3}, 0),
        (
            {"anyOf": [{"$ref": "#/$defs/a", "minLength": 10, "description": "d"}], "$defs": {"a": {}, "b": {}}},
            {"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {}}},
            1,
        ),
        (
            {"type": "object", "additionalProperties": False, "anyOf": [{"properties": {"a": {}}}, {}]},
            {"type": "object", "anyOf": [{"properties": {"a": {}}}, {}]},
            1,
        ),
    ],
)
def test_what_is_not_enforced_is_not_checked(tree: Any, kept: Any, left_out: int) -> None:
    assert enforced(tree) == kept
    assert len(schema(tree).left_out) == left_out


_ONE = {"type": "integer", "enum": [1]}
_CAT = {"type": "object", "properties": {"kind": {"const": "cat", "title": "Kind", "type": "string"}}}
_DOG = {"type": "object", "properties": {"kind": {"const": "dog", "title": "Kind", "type": "string"}}}


@pytest.mark.parametrize(
    ("tree", "kept", "left_out"),
    [
        ({"const": "a", "type": "string"}, {"type": "string", "enum": ["a"]}, ()),
        ({"const": "a", "type": ["string", "null"]}, {"type": ["string", "null"], "enum": ["a"]}, ()),
        ({"const": 7}, {"type": "integer", "enum": [7]}, ()),
        ({"const": True}, {"type": "boolean", "enum": [True]}, ()),
        ({"items": {"const": 1.5}}, {"items": {"type": "number", "enum": [1.5]}}, ()),
        ({"oneOf": [{"type": "string"}, {"const": 1}]}, {"anyOf": [{"type": "string"}, _ONE]}, ()),
        (
            {"$defs": {"c": {"oneOf": [{"type": "string"}, {}]}}, "$ref": "#/$defs/c"},
            {"$defs": {"c": {"anyOf": [{"type": "string"}, {}]}}, "$ref": "#/$defs/c"},
            (),
        ),
        # what has no other words, or none that the service takes
        ({"const": {"a": 1}}, {}, ("const",)),
        ({"const": 5, "type": "string"}, {"type": "string"}, ("const",)),
        ({"const": "a", "enum": ["a", "b"], "type": "string"}, {"enum": ["a", "b"], "type": "string"}, ("const",)),
        ({"oneOf": [{"type": "string"}], "anyOf": [{}]}, {"anyOf": [{}]}, ("oneOf",)),
        ({"oneOf": []}, {}, ("oneOf",)),
        ({"oneOf": [5]}, {}, ("oneOf",)),
        ({"oneOf": [{"$ref": "#/$defs/none"}]}, {}, ("oneOf",)),
        ({"oneOf": 5, "type": "string"}, {"type": "string"}, ("oneOf",)),
    ],
)
def test_const_and_one_of_are_held_to_in_other_words(tree: Any, kept: Any, left_out: tuple[str, ...]) -> None:
    assert enforced(tree) == kept
    assert schema(tree).left_out == left_out


def test_a_union_with_a_discriminator_is_held_to() -> None:
    """As pydantic writes it."""
    found = schema(
        {
            "$defs": {"Cat": _CAT, "Dog": _DOG},
            "type": "object",
            "properties": {
                "pet": {
                    "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}},
                    "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
                }
            },
            "required": ["pet"],
        }
    )
    assert found.violation('{"pet":{"kind":"dog"}}') is None
    assert found.violation('{"pet":{"kind":"cow"}}') is not None
    assert found.violation('{"pet":-2.5}') is not None
    assert found.left_out == ()


def test_a_union_of_any_depth_is_no_accident() -> None:
    text = '{"oneOf":[' * 300 + '{"type":"string"}' + "]}" * 300
    assert read(text, "parameters").left_out == ("oneOf",)


def test_keywords_that_are_left_out_are_named_wherever_they_are() -> None:
    inner = {"type": "string", "format": "email", "x-note": 1}
    found = schema({"type": "object", "allOf": [{}], "properties": {"const": {"anyOf": [inner]}}})

    assert found.left_out == ("allOf", "format"), "neither a property's name nor an unknown keyword counts"


def test_a_property_may_be_called_like_a_keyword() -> None:
    found = schema({"type": "object", "properties": {"format": {"type": "integer"}, "$ref": {"type": "string"}}})

    assert found.violation('{"format": 1, "$ref": "x"}') is None
    assert found.violation('{"format": "x"}') is not None


@pytest.mark.parametrize(
    "reference", ["#/$defs/a~0b c%/properties/x%25%C3%A9", "#/$defs/a~0b%20c%25/properties/x%25é", "#/$defs/plain"]
)
def test_references_are_pointers_with_their_escapes(reference: str) -> None:
    """`~0` and `%xx` mean the same to the finder, the grammar and the validator."""
    definitions = {"a~b c%": {"type": "object", "properties": {"x%é": {"type": "null"}}}, "plain": {"type": "null"}}
    found = schema({"type": "array", "items": {"$ref": reference}, "$defs": definitions})

    assert found.violation("[null]") is None
    assert found.violation("[1]") is not None
    rules = JsonRules()
    assert '"null"' in grammar_text(rules.rules, rules.value(found.text))


@pytest.mark.parametrize(
    "reference",
    [
        "#/$defs/a/type",
        "#/$defs/a/properties",
        "#/$defs/a/anyOf/1",
        "#/$defs/a/anyOf/x",
        "#/$defs/a/enum/0",
        "#/$defs/b",
    ],
)
def test_references_reach_schemas_only(reference: str) -> None:
    a = {"type": "object", "properties": {"x": {}}, "anyOf": [{}], "enum": [{"type": "null"}]}
    with pytest.raises(Refused, match="not found for reference"):
        schema({"anyOf": [{"$ref": reference}], "$defs": {"a": a}})


def test_patterns_beyond_the_limits_are_left_out() -> None:
    many = {"anyOf": [{"type": "string", "pattern": f"^a{n}$"} for n in range(101)]}
    assert schema(many).text.count("pattern") == 100
    assert schema(many).left_out == ("pattern",)

    same = {"anyOf": [{"type": "string", "pattern": "^a$"}] * 200}
    assert schema(same).text.count("pattern") == 100

    long = {"anyOf": [{"type": "string", "pattern": f"^{'a' * 900}{n}$"} for n in range(20)]}
    assert schema(long).text.count("pattern") == 8


REFUSED = [
    pytest.param({"type": "array", "minItems": 10**9}, "minItems (1000000000) is more than any", id="items"),
    pytest.param({"type": "string", "minLength": 10**9}, "minLength (1000000000) is more than any", id="length"),
    pytest.param({"type": "integer", "minimum": 0.2, "maximum": 0.8}, "no value lies between", id="no integer"),
    pytest.param({"type": "number", "minimum": 1e300}, "only numbers of up to 15 digits", id="digits"),
    pytest.param({"type": "string", "pattern": "^[a]{3}$", "maxLength": 2}, "no length fits", id="too short"),
    pytest.param({"type": "integer", "enum": [1], "minimum": 2}, "no enum value fits", id="enum"),
    pytest.param({"type": "string", "anyOf": [{"type": "null"}]}, "no type is allowed both", id="types"),
    pytest.param(
        {"type": "string", "enum": [f"{i:0100}" for i in range(500)]}, "too many and too long", id="enum text"
    ),
]


@pytest.mark.parametrize(("tree", "reason"), REFUSED)
def test_what_nothing_could_enforce_is_refused_by_its_path(tree: Any, reason: str) -> None:
    nested = {"type": "object", "properties": {"x": tree}, "required": ["x"]}
    with pytest.raises(Refused) as refused:
        schema(nested)
    assert refused.value.finding.path in ("properties.x", "properties.x.anyOf")
    assert reason in refused.value.finding.message
    assert not refused.value.hard


def doubling(levels: int) -> dict[str, Any]:
    """A short schema that a validator without memory visits 2 ** levels times."""
    steps = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": {**steps, f"a{levels}": {"type": "string"}}, "$ref": "#/$defs/a0"}


def props(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **more}


def nested(levels: int, around: Callable[[Any], Any], inside: Any) -> Any:
    for _ in range(levels):
        inside = around(inside)
    return inside


def chain(length: int, link: Callable[[Any], Any]) -> dict[str, Any]:
    """Definitions each of which refers to the next."""
    links = {f"a{i}": link({"$ref": f"#/$defs/a{i + 1}"}) for i in range(length)}
    return {"$defs": {**links, f"a{length}": {"type": "null"}}, **props({"x": {"$ref": "#/$defs/a0"}})}


def clique(size: int) -> dict[str, Any]:
    """Definitions each of which refers to all."""
    everyone = {f"p{i}": {"$ref": f"#/$defs/a{i}"} for i in range(size)}
    return {"$defs": {f"a{i}": props(everyone) for i in range(size)}, **props({"x": {"$ref": "#/$defs/a0"}})}


def sibling_sets() -> dict[str, Any]:
    """Every definition reaches the last one with and without a keyword of its own: 2 ** 8 sets of siblings."""
    bounds = {"minLength": 0, "maxLength": 5, "minimum": 0, "maximum": 5, "minItems": 0, "maxItems": 4}
    definitions: dict[str, Any] = {}
    for i, (keyword, value) in enumerate([*bounds.items(), ("pattern", "a"), ("items", {"type": "null"})]):
        following = [{"$ref": f"#/$defs/a{i + 1}"}]
        definitions[f"a{i}"] = {"anyOf": [{keyword: value, "anyOf": following}, {"anyOf": following}]}
    return {"$defs": {**definitions, "a8": {"type": ["string", "number", "array"]}}, "$ref": "#/$defs/a0"}


HOSTILE = {
    "wide": props({f"p{i}": {"type": "string"} for i in range(3_000)}),
    "wide and required": props({f"p{i}": {} for i in range(3_000)}, required=[f"p{i}" for i in range(3_000)]),
    "wide and open": props({f"{i}p": {"type": "null"} for i in range(2_000)}, additionalProperties={"type": "null"}),
    "many objects": props({f"p{i}": props({"a": {}, "b": {"type": "null"}}) for i in range(900)}),
    "all types": props({f"p{i}": {"type": ["string", "object", "array", "null"]} for i in range(1_000)}),
    "huge enumeration": {"type": "string", "enum": [f"value {i:0100}" for i in range(1_000)]},
    "huge integers": {"type": "integer", "enum": [10**60 + i for i in range(1_000)]},
    "many enumerations": props({f"p{i}": {"type": "string", "enum": ["a", "b"]} for i in range(1_500)}),
    "many branches": {"anyOf": [props({f"p{i}": {"type": "integer", "minimum": i}}) for i in range(500)]},
    "branches of branches": {"anyOf": [{"anyOf": [{"type": "string"}] * 200} for _ in range(20)]},
    "siblings at every level": nested(28, lambda it: {"items": it, "anyOf": [{"minItems": 1}, {"maxItems": 3}]}, {}),
    "sets of siblings": sibling_sets(),
    "doubling": doubling(10),
    "doubling beyond reach": doubling(40),
    "itself": {"$ref": "#"},
    "aliases": chain(2_000, lambda it: it),
    "chain": chain(1_500, lambda it: props({"x": it})),
    "chain of required": chain(1_200, lambda it: props({"x": it}, required=["x"])),
    "everyone to everyone": clique(45),
    "everyone to one branch": props(
        {f"p{i}": {"$ref": "#/$defs/a/anyOf/499"} for i in range(1_500)}, **{"$defs": {"a": {"anyOf": [{}] * 500}}}
    ),
    "deep": nested(30, lambda it: props({"a": it}), {}),
    "too deep": nested(200, lambda it: {"items": it}, {}),
    "far too deep": nested(900, lambda it: {"items": it}, {}),
    "long paths": nested(29, lambda it: props({"n" * 3_000: it, "f": {"format": "x"}}), {}),
    "thousands of patterns": props(
        {f"p{i}": {"type": "string", "pattern": f"^[a-z]{{1,60}}{i}$"} for i in range(1_500)}
    ),
    "repeats of repeats": {"type": "string", "pattern": "(" * 19 + "a{64}" + "){64}" * 19},
    "brackets": {"type": "string", "pattern": "(" * 500 + ")" * 500},
    "bounded strings": props(
        {f"p{i}": {"type": "string", "minLength": i % 60, "maxLength": 60 + i} for i in range(1_500)}
    ),
    "bounded numbers": props(
        {f"p{i}": {"type": "number", "minimum": i + 0.123, "maximum": 10**14} for i in range(900)}
    ),
    "long names": props({"n" * 30_000 + str(i): {} for i in range(3)}),
    "twice required": props({"a": {}}, required=["a"] * 25_000),
    "large default": {"type": "null", "default": nested(900, lambda it: [it], 1)},
}
MOST_CALLS = 500_000
MOST_RULES = 6_000
MOST_TEXT = 200_000


def calls_of(function: Callable[[], None]) -> int:
    """How many functions written in Python `function` calls: what it costs, on any machine."""
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("name", HOSTILE)
def test_no_schema_is_expensive_to_accept_or_to_refuse(name: str) -> None:
    text = json.dumps(HOSTILE[name])
    rules = JsonRules(("<|",))

    def take() -> None:
        with suppress(Refused):
            rules.value(read(text, "parameters").text, spaced=True)

    assert calls_of(take) < MOST_CALLS
    assert len(rules.rules) < MOST_RULES
    assert len(grammar_text(rules.rules, "null")) < MOST_TEXT


def test_of_those_the_refused_are_these() -> None:
    refused = set()
    for name, tree in HOSTILE.items():
        try:
            schema(tree)
        except Refused:
            refused.add(name)

    assert refused == {
        "huge enumeration",
        "huge integers",
        "doubling beyond reach",
        "itself",
        "aliases",
        "too deep",
        "far too deep",
        "long paths",
        "long names",
    }


def test_an_output_whose_every_level_doubles_the_ways_to_check_it_is_checked_all_the_same() -> None:
    """Two branches that both go into the items: what was seen once is not looked at again."""
    branch = {"type": "array", "items": {"$ref": "#/$defs/t"}}
    found = schema({"$defs": {"t": {"anyOf": [branch, branch]}}, "$ref": "#/$defs/t"})

    def check() -> None:
        assert found.violation("[" * 60 + "]" * 60) is None
        assert found.violation("[" * 60 + "1" + "]" * 60) == "it does not match `parameters`"

    assert calls_of(check) < MOST_CALLS


_BINARY = ["add", "sub", "mul", "div", "min", "max", "pow", "mod"]


def expressions(depth: int, last: Any) -> dict[str, Any]:
    """A tree of binary operations of which each level has one more, and `last` at its end."""
    tree = last
    for level in range(depth):
        tree = {"op": _BINARY[level % len(_BINARY)], "l": {"n": level}, "r": tree}
    return tree


@pytest.mark.parametrize("depth", [10, 200])
def test_a_deep_tree_of_many_kinds_of_nodes_is_checked(depth: int) -> None:
    """What a model writes for an expression: each kind of node is tried at each level."""
    kinds = [
        {
            "type": "object",
            "properties": {
                "op": {"type": "string", "enum": [operation]},
                "l": {"$ref": "#/$defs/e"},
                "r": {"$ref": "#/$defs/e"},
            },
            "required": ["l", "r", "op"],
        }
        for operation in _BINARY
    ]
    number = {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}
    found = schema({"$defs": {"e": {"anyOf": [*kinds, number]}}, "$ref": "#/$defs/e"})

    assert found.violation(json.dumps(expressions(depth, {"n": 1}))) is None
    assert found.violation(json.dumps(expressions(depth, {"n": "1"}))) is not None


def test_an_output_nested_beyond_all_sense_is_an_error() -> None:
    found = schema({"type": "array", "items": {"$ref": "#"}})
    assert found.violation("[" * 500 + "]" * 500) is None
    assert found.violation("[" * 100_000 + "]" * 100_000) is not None


def test_many_branches_over_many_items_are_an_error_before_they_fill_the_memory() -> None:
    branches = [{"type": "array", "items": {"type": "integer", "maximum": 10_000 + n}} for n in range(500)]
    found = schema({"anyOf": branches})
    assert found.violation("[1, 2, 3]") is None
    tracemalloc.start()
    try:
        reason = found.violation(json.dumps([*range(5_000), 20_000]))
        assert tracemalloc.get_traced_memory()[1] < 200_000_000
    finally:
        tracemalloc.stop()
    assert reason == "it needs too many checks against `parameters`"


def test_a_long_document_of_many_kinds_of_blocks_is_checked() -> None:
    blocks = [
        {
            "type": "object",
            "properties": {"kind": {"type": "string", "enum": [f"kind{n}"]}, "text": {"type": "string"}},
            "required": ["kind", "text"],
        }
        for n in range(50)
    ]
    found = schema({"type": "object", "properties": {"blocks": {"type": "array", "items": {"anyOf": blocks}}}})
    document = {"blocks": [{"kind": f"kind{n % 50}", "text": "x" * 20} for n in range(4_000)]}
    assert found.violation(json.dumps(document)) is None
    document["blocks"][-1]["kind"] = "another"
    assert found.violation(json.dumps(document)) is not None


def test_bounds_that_nothing_reaches_are_no_burden() -> None:
    found = schema({"type": "array", "items": {"type": "string", "maxLength": 10**30}, "maxItems": 10**30})
    assert found.violation('["a"]') is None


_KEYWORDS = st.sampled_from([*sorted(mfjs.SUPPORTED), "a", "b", "oneOf", "$schema"])
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.floats(-3, 3)
    | st.sampled_from(
        ["string", "object", "array", "number", "integer", "a", "b", "#", "#/$defs/a", "#/$defs/b/items", "^a"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYWORDS, inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=400, deadline=None)
@given(tree=_JSON)
def test_any_json_is_a_schema_or_refused_with_words(tree: Any) -> None:
    """And what is accepted is a schema for the validator too."""
    try:
        found = read(json.dumps(tree), "parameters")
    except Refused:
        return
    jsonschema_rs.Draft202012Validator(json.loads(found.text))
    found.violation("{}")
    rules = JsonRules()
    rules.value(found.text)
