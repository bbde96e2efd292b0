"""Deployments over engines that take token ids, as the settings describe them, and what is said when they cannot be."""

from pathlib import Path
from typing import Any

import pytest

from moonbase.catalog.catalog import load_catalog
from moonbase.config import EngineSettings, Settings, cache
from moonbase.errors import ConfigurationError, ModelFileError
from moonbase.router.deployment import Deployment
from moonbase.server.deployments import build_deployment

CATALOG = load_catalog({})
SMOLLM2 = cache() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
NOWHERE = "http://127.0.0.1:9"


def built(folder: Path, **fields: Any) -> Deployment:
    return build_deployment("deployments.x", EngineSettings(**fields), Settings(), CATALOG, folder)


@pytest.mark.parametrize("name", ["vllm", "sglang", "llamacpp"])
def test_a_server_at_a_url_needs_a_vocabulary_and_no_model(tmp_path: Path, name: str) -> None:
    assert built(tmp_path, name=name, url=NOWHERE, vocabulary=str(SMOLLM2)).name == name
    with pytest.raises(ConfigurationError, match=r"^deployments\.x\.vocabulary: must name the folder or GGUF file"):
        built(tmp_path, name=name, url=NOWHERE)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": "vllm"}, r"\.model: must be set to a model's folder for the engine vllm, or deployments\.x\.url"),
        ({"name": "sglang", "model": "moonshotai/Kimi-K2"}, r"\.model: moonshotai/Kimi-K2 is no folder; .* download"),
        ({"name": "vllm", "model": str(SMOLLM2)}, ": the engine vllm needs a model's folder, or the url"),
        ({"name": "vllm", "url": "gpu-1:8000", "vocabulary": str(SMOLLM2)}, ": 'gpu-1:8000' is not an address"),
        ({"name": "llamacpp", "model": "/nowhere.gguf"}, r"\.model: /nowhere\.gguf is no file and no name"),
    ],
)
def test_what_cannot_be_started_is_told_by_its_key(tmp_path: Path, fields: dict[str, str], sentence: str) -> None:
    with pytest.raises((ConfigurationError, ModelFileError), match=rf"^deployments\.x{sentence}"):
        built(tmp_path, **fields)
