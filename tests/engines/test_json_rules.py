"""JSON Schemas as rules of a grammar. What a model writes under them is checked with the real one."""

import json
import random
import re
from decimal import Decimal
from itertools import pairwise
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from tests.engines.grammars import Grammar
from tests.formats.schemas import mfjs_cases

from moonbase.engines.json_rules import JsonRules
from moonbase.engines.notation import grammar_text
from moonbase.formats.schemas.schema import ANY_OBJECT, Refused, Schema, read


def rules_of(*schemas: Schema, spaced: bool = False, excludes: tuple[str, ...] = ()) -> Grammar:
    """The grammar of one value under each of `schemas`, one after another."""
    rules = JsonRules(excludes)
    root = " ".join([rules.value(schema.text, spaced=spaced) for schema in schemas])
    return Grammar(grammar_text(rules.rules, root))


def grammar(schema: Any, *, spaced: bool = False, excludes: tuple[str, ...] = ()) -> Grammar:
    return rules_of(read(json.dumps(schema), "schema"), spaced=spaced, excludes=excludes)


def accepts(schema: Any, text: str) -> bool:
    return grammar(schema).accepts(text)


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


def test_a_spaced_value_may_have_one_space_after_colon_and_comma():
    spaced = grammar(
        {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}, "b": {}}}, spaced=True
    )

    for right in ('{"a": [1, 2], "b": {"c": [1,2]}}', '{"a":[1,2],"b":null}', '{"a": [1,2]}', "{}"):
        assert spaced.accepts(right), right
    for wrong in ('{ "a": [1]}', '{"a":  [1]}', '{"a" :[1]}', '{"a":\n[1]}', '{"a": [1 ,2]}', '{"a": [ 1]}', "{} "):
        assert not spaced.accepts(wrong), wrong


def test_any_object_is_what_a_tool_without_strictness_takes():
    any_object = rules_of(ANY_OBJECT, spaced=True)

    for right in ("{}", '{"any": [1, -2.5e3, {"thing": null}], "é": "\\""}'):
        assert any_object.accepts(right), right
    for wrong in ("[]", "null", '{"a":  1}', '{"a": 1} ', "{\n}"):
        assert not any_object.accepts(wrong), wrong


def test_optional_properties_may_each_be_absent():
    schema = {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}}}
    schema["required"] = ["b"]

    assert [
        text
        for names in ("", "a", "b", "c", "ab", "bc", "ac", "abc", "ba")
        if accepts(schema, text := "{" + ",".join(f'"{name}":null' for name in names) + "}")
    ] == ['{"b":null}', '{"a":null,"b":null}', '{"b":null,"c":null}', '{"a":null,"b":null,"c":null}']


def test_an_object_without_properties_is_open():
    for schema in ({"type": "object"}, {}):
        assert accepts(schema, '{"any":[1,-2.5e3,{"thing":null}],"é":"\\""}')
    assert accepts({"type": "object", "properties": {}, "additionalProperties": {"type": "boolean"}}, '{"a":true}')
    assert accepts({"type": "object", "properties": {}, "additionalProperties": False}, "{}")


def test_other_members_never_have_the_name_of_a_property():
    """Else the value of one could come under the rule of the other."""
    schema = {
        "type": "object",
        "properties": {"city": {"type": "integer"}, "c": {"type": "integer"}},
        "additionalProperties": {"type": "string"},
    }

    for right in ('{"x":"1"}', '{"city":1,"x":"1"}', '{"ca":"1"}', '{"cit":"1"}', '{"cities":"1"}', '{"City":"1"}'):
        assert accepts(schema, right), right
    for wrong in ('{"city":"1"}', '{"c":"1"}', '{"city":1,"city":"1"}', '{"\\u0063":"1"}', '{"cit\\u0079":"1"}'):
        assert not accepts(schema, wrong), wrong


@given(low=st.integers(-300, 300), size=st.integers(0, 2000), value=st.integers(-400, 2500))
def test_integers_keep_their_bounds_exactly(low: int, size: int, value: int):
    schema = {"type": "integer", "minimum": low, "maximum": low + size}

    assert accepts(schema, str(value)) == (low <= value <= low + size)


@given(low=st.integers(-300, 300), value=st.integers(-4000, 4000))
def test_one_bound_alone_is_exact_too(low: int, value: int):
    assert accepts({"type": "integer", "minimum": low}, str(value)) == (low <= value)
    assert accepts({"type": "integer", "maximum": low}, str(value)) == (value <= low)


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
    assert accepts({"type": "number", "minimum": 0.5}, "999999999999999.96")
    assert not accepts({"type": "number", "minimum": 0}, "-1")
    assert not accepts({"type": "number", "maximum": 999_999_999_999_999}, "999999999999999.5")


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        (r"^[A-Z]{3}-\d{4}$", ["ABC-1234"], ["ABC-123", "abc-1234", "ABC-1234 "]),
        (r"^(a|bc)+$", ["a", "bcabc"], ["", "b"]),
        (r'^[^"a]$', ["b", "é"], ['"', "a"]),
        (r'^a"\\$', ['a"\\'], ["a"]),
        (r"^\w+@\w+\.(com|org)$", ["a_1@b.org"], ["a@b.net"]),
        (r"(^a$|^b$)", ["a", "b"], ["ab", ""]),
    ],
)
def test_a_plain_pattern_is_enforced(pattern: str, right: list[str], wrong: list[str]):
    schema = {"type": "string", "pattern": pattern}

    assert all(accepts(schema, json.dumps(text, ensure_ascii=False)) for text in right)
    assert not any(accepts(schema, json.dumps(text, ensure_ascii=False)) for text in wrong)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "maxLength": 10**30}, '"a"'),
        ({"type": "string", "minLength": 10_000}, '"a"'),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 10**30}, "[null]"),
        ({"type": "string", "pattern": "^((abc){64}){64}$"}, '"a"'),
        ({"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(3000)}}, '{"p2999":null}'),
    ],
)
def test_an_expensive_bound_is_relaxed(schema: dict[str, Any], text: str):
    assert accepts(schema, text)


def test_bounded_strings_share_one_chain_of_rules_over_all_schemas():
    schemas = [
        read(json.dumps({"type": "object", "properties": {"p": {"type": "string", "maxLength": 30 + i}}}), "schema")
        for i in range(20)
    ]

    assert sum(name.startswith("most") for name in rules_of(*schemas).rules) == 50


def test_schemas_of_one_grammar_stay_apart():
    one = read('{"$defs":{"a":{"type":"integer"}},"type":"array","items":{"$ref":"#/$defs/a"}}', "schema")
    other = read('{"$defs":{"a":{"type":"null"}},"type":"array","items":{"$ref":"#/$defs/a"}}', "schema")
    both = rules_of(one, other)

    assert both.accepts("[1][null]")
    assert not both.accepts("[null][1]")


def test_references_may_recur_when_they_can_end():
    node = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}
    schema = {"$defs": {"node": {**node, "required": ["next"]}}, "$ref": "#/$defs/node"}

    assert accepts(schema, '{"next":{"next":null}}')
    assert not accepts(schema, '{"next":{}}')


def test_what_can_never_end_is_not_offered():
    endless = {"type": "object", "properties": {"next": {"$ref": "#/$defs/endless"}}, "required": ["next"]}
    schema = {
        "type": "object",
        "properties": {
            "node": {"$ref": "#/$defs/endless"},
            "list": {"type": "array", "items": {"$ref": "#/$defs/endless"}},
            "either": {"anyOf": [{"$ref": "#/$defs/endless"}, {"type": "null"}]},
        },
        "$defs": {"endless": endless},
    }

    assert accepts(schema, '{"list":[],"either":null}')
    assert not accepts(schema, '{"node":{"next":{"next":{}}}}')
    assert not accepts(schema, '{"list":[{"next":{}}]}')


def test_siblings_of_any_of_hold_in_every_branch():
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    }
    for right in ('{"a":1}', '{"b":1}', '{"a":1,"b":2}'):
        assert accepts(schema, right), right
    assert not accepts(schema, "{}")

    numbers = {"type": "number", "anyOf": [{"enum": [-73, "x"]}, {"maximum": -100}, {"type": "string"}]}
    assert [text for text in ("-73", '"x"', "-100", "-99", '""') if accepts(numbers, text)] == ["-73", "-100"]


def test_an_enumeration_keeps_the_bounds_beside_it():
    assert [text for text in "12345" if accepts({"type": "integer", "enum": [1, 3, 5], "minimum": 2}, text)] == [
        "3",
        "5",
    ]


def test_siblings_that_multiply_with_depth_cost_a_rule_each():
    """Every `anyOf` hands its siblings to each branch: a naive translation makes 2 ** levels of them."""
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(28):
        schema = {"items": schema, "anyOf": [{"minItems": 1}, {"maxItems": 3}]}

    assert len(grammar(schema).rules) < 200


def test_references_that_double_stay_small():
    definitions: dict[str, Any] = {"a200": {"type": "null"}}
    for left, right in pairwise(range(201)):
        definitions[f"a{left}"] = {"type": "array", "items": {"anyOf": [{"$ref": f"#/$defs/a{right}"}] * 2}}

    assert len(grammar({"$defs": definitions, "$ref": "#/$defs/a0"}).rules) < 1_000


def test_many_bounded_numbers_do_not_swell_the_grammar():
    properties = {f"p{i}": {"type": "number", "minimum": i + 0.1, "maximum": 7 * i + 123.4} for i in range(900)}
    schema = read(json.dumps({"type": "object", "properties": properties, "required": list(properties)}), "schema")
    rules = JsonRules()
    start = rules.value(schema.text)

    assert len(grammar_text(rules.rules, start)) < 80_000


_MARKERS = ("<|tool_call_end|>", "<|im_end|>", "</think>")


@pytest.mark.parametrize("excludes", [_MARKERS[:1], _MARKERS])
@pytest.mark.parametrize("bound", [{}, {"maxLength": 30}, {"minLength": 3}, {"pattern": "^[^b]*$"}])
def test_no_string_spells_what_is_excluded(bound: dict[str, Any], excludes: tuple[str, ...]):
    strings = grammar({"type": "string", **bound}, excludes=excludes)

    for text in excludes:
        for around in ("{}", "<{}", "<|{}", "xx{}yy", "</{}"):
            assert not strings.accepts(f'"{around.format(text)}"'), text
        assert strings.accepts(f'"\\u003c{text[1:]}"')


@pytest.mark.parametrize("bound", [{}, {"maxLength": 30}, {"minLength": 3}])
def test_what_only_begins_like_an_excluded_text_may_be_written(bound: dict[str, Any]):
    strings = grammar({"type": "string", **bound}, excludes=_MARKERS)

    for right in ("<b>.", "a < b", "2<3", "|tool", "xx<", "i <3 you", "<\\n.", "x\\u003c|im_end|>"):
        assert strings.accepts(f'"{right}"'), right


def test_fixed_texts_spell_what_is_excluded_with_an_escape():
    schema = {"type": "object", "properties": {"<|x|>": {"type": "string", "enum": ["<|x|>", "<|y|>"]}}}
    fixed = grammar(schema, excludes=("<|x|>",))

    assert fixed.accepts('{"\\u003c|x|>":"\\u003c|x|>"}')
    assert fixed.accepts('{"\\u003c|x|>":"<|y|>"}')
    assert not fixed.accepts('{"<|x|>":"<|x|>"}')


@given(seed=st.integers(0, 2**32), excludes=st.lists(st.text("<|[/", min_size=1, max_size=4), min_size=1, max_size=4))
def test_what_is_excluded_is_never_written(seed: int, excludes: list[str]):
    chance, excludes = random.Random(seed), ["<" + text for text in excludes]
    strings = grammar({"type": "array", "items": {"type": "string"}}, excludes=tuple(excludes))
    for _ in range(5):
        text = strings.write(chance)
        assert not any(one in text for one in excludes)
        json.loads(text)


def test_names_and_notation_are_those_that_engines_take():
    schema = read(
        json.dumps(
            {
                "type": "object",
                "properties": {
                    "a": {"type": "string", "pattern": r"^[^\n\"]{2,4}$"},
                    'b\n"': {"type": "number", "minimum": 0.1},
                    "c": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 5},
                },
                "additionalProperties": {"type": "string"},
            }
        ),
        "schema",
    )
    rules = JsonRules(("<|a|>",))
    start = rules.value(schema.text, spaced=True)

    read_back = Grammar(grammar_text(rules.rules, start))
    assert read_back.names() <= read_back.rules.keys()
    for name, body in rules.rules.items():
        assert re.fullmatch(r"[a-z][a-z0-9]*", name), "llama.cpp knows no underscore in names"
        assert "\n" not in body
        assert body.isprintable()


def values_are_valid(schema: Schema, *, spaced: bool, runs: int = 10) -> None:
    written = rules_of(schema, spaced=spaced)
    for seed in range(runs):
        text = written.write(random.Random(seed))
        assert schema.violation(text) is None, text
        assert jsonschema_rs.Draft202012Validator(json.loads(schema.text)).is_valid(json.loads(text))
        assert len(re.findall(r"\s", re.sub(r'"(?:[^"\\]|\\.)*"', "", text))) <= spaced * (
            text.count(",") + text.count(":")
        )


@pytest.mark.parametrize("spaced", [False, True])
def test_what_is_written_under_the_valid_mfjs_cases_is_valid(spaced: bool):
    too_long = {"TestRangeConstraints 1"}  # minLength 999999999999
    for case, text in mfjs_cases.valid():
        if case not in too_long:
            values_are_valid(read(text, "schema"), spaced=spaced)


_NAMES = st.sampled_from(["a", "b", "ab", "\u00e9", 'q"', "$ref"])
_LEAVES = st.one_of(
    st.builds(
        lambda low, size: {"type": "string", "minLength": low, "maxLength": low + size},
        st.integers(0, 2),
        st.integers(0, 3),
    ),
    st.sampled_from([r"^[a-c]{1,3}$", r"\d", r"^(x|yz)*$", r"^\S+$", r'^[^"]$', "(?=a)", "^a|b$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
    st.builds(
        lambda kind, low, size: {"type": kind, "minimum": low, "maximum": low + size},
        st.sampled_from(["integer", "number"]),
        st.sampled_from([-7, -0.5, 0, 0.25, 3]),
        st.sampled_from([1, 1.5, 20]),
    ),
    st.sampled_from(
        [
            {"type": ["boolean", "null"]},
            {"type": "string", "enum": ["a", 'q"', "bc"], "minLength": 1, "maxLength": 1},
            {"type": ["integer", "null"], "enum": [1, 2.0, None], "minimum": 1.5},
            {"type": "number"},
            {"type": "object"},
            {"minLength": 2},
            {},
            {"$ref": "#/$defs/one"},
            {"$ref": "#/$defs/two", "description": "x"},
            {"$ref": "#/$defs/one/properties/deep~0er%20name"},
            {"$ref": "#"},
        ]
    ),
)


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(properties: dict[str, Any], required: set[str], extra: Any, branches: list[str]) -> Any:
        schema: dict[str, Any] = {"type": "object", "properties": properties}
        if needed := sorted(required & properties.keys()):
            schema["required"] = needed
        elif branches := sorted(set(branches) & properties.keys()):
            schema["anyOf"] = [{"required": [name]} for name in branches]
        if extra is not None:
            schema["additionalProperties"] = extra
        return schema

    extras = st.none() | st.booleans() | inner
    return st.builds(
        build, st.dictionaries(_NAMES, inner, max_size=3), st.sets(_NAMES), extras, st.lists(_NAMES, max_size=2)
    )


_INNER = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.builds(
            lambda item, low, size: {"type": "array", "items": item, "minItems": low, "maxItems": low + size},
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.builds(lambda item: {"type": "array", "items": item}, inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches}),
        st.builds(
            lambda kind, branches: {"type": kind, "anyOf": branches},
            st.sampled_from(["string", "object", ["array", "string"], "number"]),
            st.lists(inner, min_size=1, max_size=3),
        ),
        _objects(inner),
    ),
    max_leaves=6,
)
_SCHEMAS = st.builds(
    lambda root, one, two: {
        **root,
        "$defs": {"one": {"type": "object", "properties": {"deep~er name": one}}, "two": two},
    },
    _INNER,
    _LEAVES,
    _INNER,
)


@settings(max_examples=300, deadline=None)
@given(schema=_SCHEMAS, spaced=st.booleans())
def test_what_a_grammar_writes_is_valid(schema: dict[str, Any], spaced: bool):
    try:
        accepted = read(json.dumps(schema), "schema")
    except Refused:
        reject()
    values_are_valid(accepted, spaced=spaced, runs=5)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "a", 'q"', "long"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)


@settings(deadline=None)
@given(schema=_SCHEMAS, value=_VALUES)
def test_what_a_grammar_accepts_is_valid(schema: dict[str, Any], value: Any):
    try:
        accepted = read(json.dumps(schema), "schema")
    except Refused:
        reject()
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    if rules_of(accepted).accepts(text):
        assert accepted.violation(text) is None
