"""The description of the interface is made from the types that requests are read with."""

import json

import msgspec

from moonbase.dialects.openai.decode import ChatCompletionRequest
from moonbase.server.openapi import document


def test_every_field_that_is_read_is_described() -> None:
    described = document()["components"]["schemas"]["ChatCompletionRequest"]
    assert set(described["properties"]) == {field.name for field in msgspec.structs.fields(ChatCompletionRequest)}
    assert described["required"] == ["model", "messages"]


def test_it_is_plain_json_with_no_loose_references() -> None:
    text = json.dumps(document())
    names = set(json.loads(text)["components"]["schemas"])
    for reference in text.split('"#/components/schemas/')[1:]:
        assert reference.split('"')[0] in names


def test_only_health_needs_no_key() -> None:
    paths = document()["paths"]
    open_to_all = {
        path for path, item in paths.items() for operation in item.values() if operation.get("security") == []
    }
    assert open_to_all == {"/healthz", "/readyz"}
