"""Values that a schema allows, written by chance."""

import json
import random
from typing import Any

import jsonschema_rs
import pytest
from tests.e2e.server import shared

from moonbase.engines.json_value import ValueWriter
from moonbase.formats.schemas.nodes import graph
from moonbase.formats.schemas.schema import Refused, read

TREE = {"type": "object", "properties": {"next": {"$ref": "#"}, "v": {"type": "integer"}}, "required": ["next", "v"]}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object"},
    {"type": "array", "items": {"type": "string", "minLength": 20}, "minItems": 7, "maxItems": 9},
    {"type": "number", "minimum": -0.25, "maximum": 0.5},
    {"type": "integer", "minimum": 10**14, "maximum": 10**14 + 1},
    {"type": "string", "pattern": "^[A-Z]{3}-(foo|bar)[0-9]{2,}$"},
    {"type": "string", "minLength": 3, "maxLength": 3},
    {"type": "string", "pattern": '^[^"\\\\]+$', "maxLength": 12},
    {"type": ["string", "null"], "enum": ["a", "b c", None]},
    {"anyOf": [TREE["properties"]["v"], {"type": "array", "items": {"$ref": "#"}}]},
    {
        "type": "object",
        "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}, "name": {"type": ["string", "null"]}},
        "required": ["kids"],
        "additionalProperties": {"type": "boolean"},
    },
]


def written(schema: dict[str, Any], *, spaced: bool = False, times: int = 40) -> list[str]:
    held = json.loads(read(json.dumps(schema), "parameters").text)
    writer = ValueWriter(graph(held), random.Random(1), spaced=spaced)
    return [writer.write() for _ in range(times)]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_every_value_is_valid(schema: dict[str, Any]) -> None:
    validator = jsonschema_rs.Draft202012Validator(schema)
    for text in written(schema):
        assert validator.is_valid(json.loads(text)), text


def test_recursion_ends() -> None:
    schema = {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["a"]}
    assert max(map(len, written(schema, times=200))) < 200


def test_spaces_follow_colons_and_commas_where_they_are_wanted() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "boolean"}, "minItems": 2}},
        "required": ["a"],
        "additionalProperties": False,
    }
    (compact,), (spaced,) = written(schema, times=1), written(schema, spaced=True, times=1)
    assert compact == json.dumps(json.loads(compact), separators=(",", ":"))
    assert spaced == json.dumps(json.loads(spaced))


def test_a_broken_value_lacks_what_is_required() -> None:
    for schema, expected in (
        ({"type": "object", "properties": {"a": {}}, "required": ["a"]}, "{}"),
        (SCHEMAS[0], "null"),
    ):
        text = ValueWriter(graph(schema), random.Random(1), spaced=False).broken()
        assert text == expected
        assert not jsonschema_rs.Draft202012Validator(schema).is_valid(json.loads(text))


def test_values_of_the_public_schema_cases_are_valid() -> None:
    folder = shared("data", "mfjs-cases")
    if folder is None:
        pytest.skip("LEFT OUT: the MFJS cases; put them at ../shared/data/mfjs-cases")
    checked = 0
    for file in sorted(folder.glob("*/valid.jsonl")):
        for line in file.read_text(encoding="utf-8").split("\n"):
            if not line:
                continue
            try:
                values = written(json.loads(line), times=10)
            except Refused:
                continue  # no engine can be held to it
            schema = {key: value for key, value in json.loads(line).items() if key != "$id"}
            validator = jsonschema_rs.Draft202012Validator(schema)
            assert all(validator.is_valid(json.loads(text)) for text in values), line
            checked += 1
    assert checked > 100
