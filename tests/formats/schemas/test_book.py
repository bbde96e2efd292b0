"""The schemas of recent requests: read once, refused in the service's words."""

import json
import sys
from types import FrameType
from typing import Any

import pytest

from moonbase.chat.request import ResponseFormat, Tool
from moonbase.errors import InvalidRequest
from moonbase.formats.schemas.book import SchemaBook
from moonbase.formats.schemas.schema import Schema

CITY = '{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}'


def answer(book: SchemaBook, text: str) -> Schema:
    """The schema of an answer."""
    schema = book.answer(ResponseFormat(kind="json_schema", schema=text))
    assert schema is not None
    return schema


def parameters(book: SchemaBook, text: str, name: str, *, strict: bool = True) -> Schema:
    """The schema of a tool's arguments."""
    return book.parameters(Tool(name=name, declaration="{}", parameters=text, strict=strict))


def refusal(book: SchemaBook, schema: Any, tool_name: str = "get_weather") -> str:
    with pytest.raises(InvalidRequest) as refused:
        parameters(book, json.dumps(schema), tool_name)
    return str(refused.value)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            {"type": "object", "properties": {"x": {"enum": ["a"]}}},
            "Invalid request: tools.function.parameters is not a valid moonshot flavored json schema, "
            "details: <At path 'properties.x': type is not defined>",
        ),
        ({}, 'Invalid request: tools.function.parameters.type is required and must be "object"'),
        ({"type": "array"}, 'Invalid request: tools.function.parameters.type is required and must be "object"'),
        (
            {"anyOf": [{"type": "object"}]},
            'Invalid request: tools.function.parameters.type is required and must be "object"',
        ),
        (
            [],
            "Invalid request: tools.function.parameters is not a valid moonshot flavored json schema, "
            "details: <At path 'root': JSON schema parsing error: it is not an object>",
        ),
        (
            {"type": "object", "properties": {"x": {"type": "integer", "minimum": 1e300}}, "required": ["x"]},
            "Invalid request: tools.function[get_weather].parameters cannot be enforced, "
            "details: <At path 'properties.x': only numbers of up to 15 digits are supported>",
        ),
    ],
)
def test_parameters_are_refused_in_the_services_words(schema: Any, message: str) -> None:
    assert refusal(SchemaBook(), schema) == message


def test_a_refusal_for_our_own_reasons_names_the_tool_each_time() -> None:
    book = SchemaBook()
    endless = {"type": "object", "properties": {"x": {"type": "string", "minLength": 10**9}}, "required": ["x"]}
    for name in ("one", "other"):
        assert f"tools.function[{name}].parameters" in refusal(book, endless, name)


def test_the_warning_of_a_tool_is_the_services_first_finding() -> None:
    book = SchemaBook()
    strange = '{"$schema":"x","type":"object","properties":{"a":{"type":"string","format":"uri"}}}'

    found = parameters(book, strange, "get_weather")
    assert found.warning("get_weather") == (
        "tools.function[get_weather].parameters is not a valid moonshot flavored json schema, "
        "details: <At path 'root': unsupported keywords: $schema>"
    )
    assert found.left_out == ("format",)
    assert parameters(book, CITY, "get_weather").warning("get_weather") is None


def test_a_schema_for_an_answer_may_have_any_root_and_names_its_field() -> None:
    book = SchemaBook()

    assert answer(book, '{"type":"array"}').violation("[]") is None
    assert answer(book, CITY).violation("{}") == (
        'it does not match `response_format.json_schema.schema`: "city" is a required property'
    )
    for text, message in (
        ('{"$ref":"http://a.example/b"}', "At path '$ref': references must start with #/$defs/"),
        ('{"type":"number","minimum":1e300}', "At path 'root': only numbers of up to 15 digits are supported"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            answer(book, text)
        assert str(refused.value) == f"Invalid request: `response_format.json_schema.schema`: {message}"


def test_a_known_schema_costs_a_look_up() -> None:
    book = SchemaBook()
    texts = [CITY.replace("city", f"city{i}") for i in range(128)]
    tools = [Tool(name=f"tool{i}", declaration="{}", parameters=text) for i, text in enumerate(texts)]
    first = [book.parameters(tool) for tool in tools]
    calls = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        again = [book.parameters(tool) for tool in tools]
    finally:
        sys.setprofile(before)

    assert all(one is other for one, other in zip(first, again, strict=True))
    assert calls <= 3 * len(tools) + 10


def test_the_same_text_is_another_schema_for_an_answer() -> None:
    book = SchemaBook()
    assert answer(book, "{}").violation("1") is None
    assert 'must be "object"' in refusal(book, {})


def test_the_least_recently_used_go_when_the_room_is_full() -> None:
    texts = [CITY.replace("city", f"city{i}") for i in range(4)]
    room = SchemaBook()
    one = parameters(room, texts[0], "t")
    book = SchemaBook(capacity=3 * (one.size + 4 * len(texts[0])))
    first = [parameters(book, text, "t") for text in texts[:3]]
    assert parameters(book, texts[0], "t") is first[0]

    parameters(book, texts[3], "t")

    assert parameters(book, texts[0], "t") is first[0]
    assert parameters(book, texts[1], "t") is not first[1]


def test_a_schema_larger_than_the_room_is_served_all_the_same() -> None:
    book = SchemaBook(capacity=10)
    assert parameters(book, CITY, "t").violation('{"city":"x"}') is None
    assert parameters(book, CITY, "t").violation("{}") is not None


def test_a_tool_that_is_not_strict_takes_any_object_but_its_root_is_still_one() -> None:
    schema = parameters(SchemaBook(), '{"type":"object","properties":5,"required":["a"]}', "f", strict=False)
    assert schema.violation('{"b":1}') is None
    assert schema.violation("[]") is not None
    with pytest.raises(InvalidRequest, match='type is required and must be "object"'):
        parameters(SchemaBook(), '{"type":"string"}', "f", strict=False)
    with pytest.raises(InvalidRequest, match="schema exceeds maximum allowed size"):
        parameters(SchemaBook(), '{"type":"object","description":"' + "x" * 130_000 + '"}', "f", strict=False)
