"""What an output must be, from the request's schema to the check of what came out."""

import json
import time
import tracemalloc
from typing import Any

import pytest

from moonbase.chat.constraint import JsonSchema
from moonbase.chat.request import ResponseFormat
from moonbase.errors import InvalidOutput, InvalidRequest
from moonbase.formats.response_format import OutputRule, output_rule


def rule(schema: Any, *, strict: bool = True) -> OutputRule:
    found = output_rule(ResponseFormat(kind="json_schema", schema=json.dumps(schema), strict=strict))
    assert found is not None
    return found


def test_plain_text_has_no_rule() -> None:
    assert output_rule(ResponseFormat()) is None


def test_json_object_is_any_object() -> None:
    found = output_rule(ResponseFormat(kind="json_object"))
    assert found is not None
    assert found.constraint == JsonSchema('{"type":"object"}')
    found.check('{"a": [1, null]}')
    for text in ("[]", "1", "", "{", "{} {}", "null"):
        with pytest.raises(InvalidOutput):
            found.check(text)


def test_a_schema_that_is_not_strict_asks_for_an_object_only() -> None:
    found = rule({"type": "object", "required": ["a"]}, strict=False)
    found.check("{}")


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer", "minimum": 0, "maximum": 9}, ["0", "9"], ["-1", "10", "1.5", '"1"']),
        ({"type": ["string", "null"], "maxLength": 2}, ['"ab"', "null", '"世界"'], ['"abc"', "1"]),
        ({"type": "string", "pattern": "^a+$"}, ['"aa"'], ['"b"', '""']),
        ({"enum": ["x", 1, None]}, ['"x"', "1", "null"], ['"y"', "2"]),
        ({"anyOf": [{"type": "integer"}, {"type": "boolean"}]}, ["1", "true"], ['"x"', "null"]),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "integer"}},
                "required": ["a"],
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
    ],
)
def test_the_supported_keywords_are_checked(schema: Any, good: list[str], bad: list[str]) -> None:
    found = rule(schema)
    for text in good:
        found.check(text)
    for text in bad:
        with pytest.raises(InvalidOutput, match=r"response_format\.json_schema\.schema"):
            found.check(text)


def test_other_keywords_are_neither_enforced_nor_checked() -> None:
    schema = {"type": "string", "format": "email", "const": "x", "not": {}, "oneOf": [{"type": "integer"}]}
    found = rule({"$schema": "http://a.example/schema", **schema})
    assert found.constraint == JsonSchema('{"type":"string"}')
    found.check('"anything"')


def test_a_property_may_be_called_like_a_keyword() -> None:
    schema = {"type": "object", "properties": {"format": {"type": "integer"}, "$ref": {"type": "string"}}}
    found = rule(schema)
    found.check('{"format": 1, "$ref": "x"}')
    with pytest.raises(InvalidOutput):
        found.check('{"format": "x"}')


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$ref": "http://a.example/b"}, "references must start with #/$defs/"),
        ({"properties": {"a": {"$ref": "other.json"}}}, "references must start with #/$defs/"),
        ({"$defs": {}, "$ref": "#/$defs/a"}, "$defs not found for reference: #/$defs/a"),
        ({"type": "strange"}, "is not a valid JSON schema"),
        ({"properties": 5}, "is not a valid JSON schema"),
        ({"$defs": 5}, "is not a valid JSON schema"),
        ({"type": "array", "minItems": 1_000_000_000}, "minItems (1000000000) is more than any answer can hold"),
        ({"type": "string", "minLength": 1_000_000_000}, "minLength (1000000000) is more than any answer can hold"),
        ({"type": "string", "pattern": "(?=a)b"}, "is not a valid JSON schema"),
        ({"type": "string", "pattern": "(a)\\1"}, "is not a valid JSON schema"),
        ({"anyOf": [{"type": "string", "pattern": f"a{n}"} for n in range(101)]}, "there are more than 100 patterns"),
    ],
)
def test_a_schema_that_nothing_could_enforce_is_refused(schema: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        rule(schema)
    assert reason in str(refusal.value)


def doubling(levels: int) -> dict[str, Any]:
    """A short schema that a validator without memory visits 2 ** levels times."""
    steps = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": {**steps, f"a{levels}": {"type": "string"}}, "$ref": "#/$defs/a0"}


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param(doubling(40), id="doubling"),
        pytest.param({"$ref": "#"}, id="itself"),
        pytest.param({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}, id="in a circle"),
    ],
)
def test_a_schema_that_costs_without_end_is_refused_at_once(schema: Any) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidRequest):
        rule(schema)
    assert time.monotonic() - began < 2


def test_an_output_that_would_cost_too_much_to_check_is_an_error_at_once() -> None:
    """Each level of the value doubles the visits: two branches that both go into the items."""
    branch = {"type": "array", "items": {"$ref": "#/$defs/t"}}
    found = rule({"$defs": {"t": {"anyOf": [branch, branch]}}, "$ref": "#/$defs/t"})
    found.check("[[[]]]")
    began = time.monotonic()
    with pytest.raises(InvalidOutput):
        found.check("[" * 60 + "1" + "]" * 60)
    assert time.monotonic() - began < 2


def test_an_output_nested_beyond_all_sense_is_an_error() -> None:
    with pytest.raises(InvalidOutput):
        rule({"type": "array", "items": {"$ref": "#"}}).check("[" * 100_000 + "]" * 100_000)


def test_many_branches_over_many_items_are_an_error_before_they_fill_the_memory() -> None:
    branches = [{"type": "array", "items": {"type": "integer", "maximum": n}} for n in range(500)]
    found = rule({"anyOf": branches})
    found.check("[1, 2, 3]")
    tracemalloc.start()
    try:
        with pytest.raises(InvalidOutput, match="too deeply nested to be checked"):
            found.check(json.dumps(list(range(4_000))))
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


def test_keywords_that_are_left_out_are_named_wherever_they_are() -> None:
    inner = {"type": "string", "format": "email", "x-note": 1}
    found = rule({"type": "object", "oneOf": [{}], "properties": {"const": {"anyOf": [inner]}}})
    assert found.left_out == ("format", "oneOf"), "neither a property's name nor an unknown keyword counts"
