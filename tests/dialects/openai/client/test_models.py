"""Lists of models, as different servers give them."""

import json
from typing import Any

import pytest

from moonbase.dialects.openai.client.models import UpstreamModel, decode_models
from moonbase.dialects.openai.models import ModelEntry, encode_models


def test_our_own_list_is_understood() -> None:
    entry = ModelEntry(
        id="kimi-k2.6",
        created=1,
        context_length=262_144,
        supports_image_in=True,
        supports_video_in=False,
        supports_reasoning=True,
        served_by="x",
    )
    assert decode_models(encode_models([entry])) == (
        UpstreamModel(id="kimi-k2.6", window=262_144, image_in=True, video_in=False, reasoning=True),
    )


@pytest.mark.parametrize(
    ("fields", "window", "image_in"),
    [
        ({}, None, False),
        ({"max_model_len": 8192, "object": "model", "owned_by": "vllm"}, 8192, False),
        ({"context_window": 131_072, "active": True}, 131_072, False),
        ({"max_context_length": 32_768}, 32_768, False),
        ({"context_length": 0, "max_model_len": 7}, 7, False),
        ({"context_length": None, "supports_image_in": None}, None, False),
        ({"context_length": 5, "architecture": {"input_modalities": ["text", "image"]}}, 5, True),
    ],
)
def test_windows_and_abilities_go_by_several_names(fields: dict[str, Any], window: int | None, image_in: bool) -> None:
    (model,) = decode_models(json.dumps({"data": [{"id": "m"} | fields]}).encode())
    assert (model.window, model.image_in) == (window, image_in)


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b'{"data":[{}]}', b'{"data":{"id":"m"}}', b"[" * 100_000])
def test_what_is_no_list_tells_nothing(body: bytes) -> None:
    assert decode_models(body) == ()
