"""The tools and texts that the contract's checks ask with."""

import json
from typing import Any

from moonbase.verify.answers import Json

SEA = "Write one sentence about the sea and one about the mountains."
LONG = "Repeat these words: " + " ".join([f"word{number}" for number in range(1, 81)])
WEATHER = "What is the weather in Beijing? Use the tools."
AS_JSON = "Give me the name and the population of a city as a JSON object with the keys name and population."

_NODE = {"type": "object", "properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}}}


def _object(properties: Json, *optional: str, **more: Any) -> Json:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False} | more


SCHEMAS: dict[str, Json] = {
    "get_weather": _object(
        {
            "city": {"type": "string", "description": "City name", "maxLength": 40},
            "unit": {"type": "string", "enum": ["c", "f"]},
        },
        "unit",
    ),
    "pick_colour": _object(
        {
            "colour": {"type": "string", "enum": ["red", "green", "very dark blue"]},
            "level": {"type": "integer", "enum": [1, 20, 300]},
        }
    ),
    "book_trip": _object(
        {
            "traveller": _object(
                {
                    "name": {"type": "string", "maxLength": 30},
                    "address": _object({"street": {"type": "string", "maxLength": 30}, "zip": {"type": "integer"}}),
                }
            ),
            "paid": {"type": "boolean"},
        }
    ),
    "add_numbers": _object(
        {
            "numbers": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 4},
            "labels": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
        }
    ),
    "set_value": _object(
        {
            "value": {"anyOf": [{"type": "integer"}, {"type": "boolean"}, {"type": "null"}]},
            "note": {"type": ["string", "null"]},
        },
        "note",
    ),
    "store_list": {
        "type": "object",
        "properties": {"first": {"$ref": "#/$defs/node"}},
        "required": ["first"],
        "$defs": {"node": _NODE | {"required": ["value"], "additionalProperties": False}},
    },
    "set_limits": _object(
        {
            "percent": {"type": "integer", "minimum": 0, "maximum": 100},
            "ratio": {"type": "number", "minimum": -1.5, "maximum": 2.5},
            "code": {"type": "string", "minLength": 3, "maxLength": 8},
        }
    ),
    "count_words": {
        "type": "object",
        "properties": {},
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "no_arguments": {"type": "object", "properties": {}},
}
"""Parameters by the name of their tool: a spread of what MFJS allows (moonshot-api.md 10.1)."""

CITY = _object({"name": {"type": "string", "maxLength": 40}, "population": {"type": "integer", "minimum": 0}})
STORY = _object({"story": {"type": "string", "minLength": 60}})


def tool(name: str, parameters: Json | None = None) -> Json:
    """A declared function, with the parameters of `SCHEMAS` unless others are given."""
    schema = SCHEMAS[name] if parameters is None else parameters
    function = {"name": name, "description": f"The function {name}.", "parameters": schema}
    return {"type": "function", "function": function}


def named(name: str) -> Json:
    """The `tool_choice` that demands one function."""
    return {"type": "function", "function": {"name": name}}


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def called(*calls: tuple[str, str, Json], reasoning: str | None = None) -> Json:
    """An assistant message with calls, each an id, a name and arguments."""
    message: Json = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for id, name, arguments in calls
        ],
    }
    return message if reasoning is None else message | {"reasoning_content": reasoning}


def returned(id: str, result: str) -> Json:
    return {"role": "tool", "tool_call_id": id, "content": result}
