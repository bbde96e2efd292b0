"""Arguments of calls: valid, or at least the beginning of JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonbase.formats.schemas.nodes import graph
from moonbase.verify.arguments import SchemaCheck, begins_json, bounded, parsed

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.booleans(), st.sampled_from([None, 2]), st.integers(min_value=0))
def test_every_beginning_of_json_begins_json(value: Any, ascii_only: bool, indent: int | None, cut: int) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert begins_json(text[: cut % (len(text) + 1)])


@pytest.mark.parametrize(
    "text",
    [
        *("{a", '{"a" 1', "[1,,", '{"a":1,]', "tru3", '{"a":01', '"\\x', "nul ", '{"a":}', "{'a", "Sure! {"),
        *('{"a":1}}', '{"a":1} x', "[1,]", '{"a":1,}', "NaN", '{"a": Infinity', "]", "1 2", '"a\nb', '{"a":1 "b"'),
    ],
)
def test_what_no_json_begins_with_does_not(text: str) -> None:
    assert not begins_json(text)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "object", "properties": {}, "additionalProperties": False}, True),
        ({"type": "object", "properties": {"a": {"type": "string", "maxLength": 4}}}, True),
        ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x"]}}}, True),
        ({"type": "object", "properties": {"a": {"type": "string"}}}, False),
        ({"type": "object"}, False),
        ({"type": "array", "items": {"type": "null"}}, False),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 3}, True),
        ({"anyOf": [{"type": "boolean"}, {"type": "string"}]}, False),
        ({"type": "object", "properties": {"next": {"$ref": "#"}}}, False),
        (
            {"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"type": "boolean"}}},
            True,
        ),
    ],
)
def test_a_schema_is_bounded_when_all_its_values_are(schema: dict[str, Any], expected: bool) -> None:
    assert bounded(graph(schema)) is expected


def test_a_violation_says_what_and_where() -> None:
    check = SchemaCheck.of({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}})

    assert check.violation('{"a": [1, 2]}') is None
    assert check.violation('{"a": [1, "x"]}') == '"x" is not of type "integer" at /a/1'
    assert (check.violation('{"a": ') or "").startswith("no JSON")


def test_an_id_that_is_no_uri_does_not_matter() -> None:
    check = SchemaCheck.of({"$id": "#user", "type": "object", "properties": {"next": {"$ref": "#"}}})

    assert check.violation('{"next": {}}') is None
    assert check.violation('{"next": 1}') is not None


def test_half_a_character_is_no_reason_to_break_down() -> None:
    check = SchemaCheck.of({"type": "object", "additionalProperties": {"type": "string", "maxLength": 1}})

    assert check.violation('{"a": "\\ud83d\\ude00"}') is None
    assert check.violation('{"a": "\\ud83dxx"}') == "not what the schema allows"
    assert begins_json('{"a": "\\ud83d')


def test_a_deep_value_that_is_wrong_is_no_reason_to_break_down() -> None:
    check = SchemaCheck.of({"type": "object", "properties": {"name": {"type": "string"}}})

    assert check.violation('{"name": ' * 300 + "{}" + "}" * 300) == "too deeply nested"


def test_what_is_no_schema_is_an_error() -> None:
    with pytest.raises(ValueError, match="thing"):
        SchemaCheck.of({"type": "thing"})


def test_constants_of_javascript_are_no_json() -> None:
    assert parsed("NaN")[1] == "no JSON (NaN is no JSON)"
