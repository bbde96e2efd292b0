"""What an output must be, from the request's `response_format` to the check of what came out."""

import json
from typing import Any

import pytest

from moonbase.chat.request import ResponseFormat
from moonbase.errors import InvalidRequest
from moonbase.formats.schemas.book import SchemaBook
from moonbase.formats.schemas.schema import Schema


def rule(schema: Any, *, strict: bool = True) -> Schema:
    wanted = ResponseFormat(kind="json_schema", schema=json.dumps(schema), strict=strict)
    found = SchemaBook().answer(wanted)
    assert found is not None
    return found


def test_plain_text_has_no_rule() -> None:
    assert SchemaBook().answer(ResponseFormat()) is None


def test_json_object_is_any_object() -> None:
    found = SchemaBook().answer(ResponseFormat(kind="json_object"))
    assert found is not None
    assert found.text == '{"type":"object"}'
    assert found.left_out == ()
    assert found.violation('{"a": [1, null]}') is None
    for text in ("[]", "1", "", "{", "{} {}", "null"):
        assert found.violation(text) is not None


def test_a_schema_that_is_not_strict_asks_for_an_object_only() -> None:
    found = rule({"type": "object", "required": ["a"]}, strict=False)
    assert found.violation("{}") is None


def test_a_schema_is_enforced_and_checked_but_for_what_is_left_out() -> None:
    found = rule({"type": "string", "maxLength": 3, "format": "email", "not": {}, "$schema": "s"})

    assert found.text == '{"type":"string","maxLength":3}'
    assert found.left_out == ("format", "not")
    assert found.violation('"any"') is None
    reason = found.violation('"four"')
    assert reason is not None
    assert reason.startswith("it does not match `response_format.json_schema.schema`: ")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$ref": "http://a.example/b"}, "At path '$ref': references must start with #/$defs/"),
        (
            {"properties": {"a": {"$ref": "other.json"}}},
            "At path 'properties.a.$ref': references must start with #/$defs/",
        ),
        ({"$defs": {}, "$ref": "#/$defs/a"}, "At path '$ref': $defs not found for reference: #/$defs/a"),
        ({"type": "strange"}, "At path 'root': invalid type"),
        ({"properties": 5}, "At path 'properties': properties must be an object"),
        ({"$defs": 5}, "At path '$defs': $defs must be an object"),
        (
            {"type": "array", "minItems": 1_000_000_000},
            "At path 'root': minItems (1000000000) is more than any answer can hold",
        ),
    ],
)
def test_a_schema_that_nothing_could_enforce_is_refused(schema: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        rule(schema)
    assert str(refusal.value) == f"Invalid request: `response_format.json_schema.schema`: {reason}"
