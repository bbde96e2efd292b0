"""Chat deployments as the settings describe them."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.engines.upstream.server import serving
from tests.router.test_chat_deployment import WHOLE, Upstream, everything, saying

from moonbase.catalog.catalog import load_catalog
from moonbase.catalog.rules import sampling
from moonbase.chat.request import ChatRequest, Message, TextPart
from moonbase.config import EngineSettings, Settings
from moonbase.errors import ConfigurationError
from moonbase.formats.schemas.book import SchemaBook
from moonbase.router.deployment import Deployment
from moonbase.server.deployments import build_deployment
from moonbase.service.demand import Demand

pytestmark = pytest.mark.anyio

CATALOG = load_catalog({})


def built(folder: Path, **fields: Any) -> Deployment:
    return build_deployment("deployments.x", EngineSettings(**fields), Settings(), CATALOG, folder)


async def asked(folder: Path, model_id: str, **fields: Any) -> dict[str, Any]:
    """What an upstream is asked when a client asks for `model_id` and leaves everything to the server."""
    upstream = Upstream(saying(WHOLE))
    model = CATALOG.resolve(model_id)
    request = ChatRequest(model=model_id, messages=(Message(role="user", content=(TextPart("Hi"),)),))
    demand = Demand(request, model, "lenient", SchemaBook())
    async with serving(upstream) as server:
        deployment = built(folder, url=f"{server.url}/v1", **fields)
        await deployment.start()
        try:
            prepared = await deployment.prepare(request, demand.conversation, "org")
            defaults = sampling(model, request.sampling, thinks=demand.thinks)
            with prepared.open("id", sampling=defaults, max_tokens=64) as stream:
                await everything(stream)
        finally:
            await deployment.close()
    found: dict[str, Any] = json.loads(upstream.asked[-1].body)
    return found


async def test_without_a_model_the_id_is_passed_on_with_its_defaults(tmp_path: Path) -> None:
    for name in ("openai", "moonshot"):
        body = await asked(tmp_path, "kimi-k2-0905-preview", name=name)
        assert (body["model"], body["temperature"]) == ("kimi-k2-0905-preview", 0.6)
        assert "thinking" not in body


@pytest.mark.parametrize(
    ("stand_in", "thinking"),
    [("kimi-k2.6", {"type": "disabled"}), ("kimi-k2.7-code", None), ("kimi-k99", {"type": "disabled"})],
)
async def test_a_stand_in_is_told_not_to_think_unless_it_always_does(
    tmp_path: Path, stand_in: str, thinking: dict[str, str] | None
) -> None:
    body = await asked(tmp_path, "kimi-k2-0905-preview", name="moonshot", model=stand_in)
    assert body["model"] == stand_in
    assert body.get("thinking") == thinking
    assert "temperature" not in body


async def test_a_model_at_another_server_gets_the_defaults_of_the_id(tmp_path: Path) -> None:
    body = await asked(tmp_path, "kimi-k2-0905-preview", name="openai", model="Qwen/Qwen3-8B")
    assert (body["model"], body["temperature"]) == ("Qwen/Qwen3-8B", 0.6)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"name": "moonshot", "api_key": "k"}, "x"),
        ({"name": "moonshot", "api_key": "k", "model": "kimi-k2.6"}, "kimi-k2.6"),
        ({"name": "openai", "url": "http://localhost:1/v1"}, "x"),
    ],
)
def test_it_is_called_after_its_model_or_else_its_table(tmp_path: Path, fields: dict[str, Any], name: str) -> None:
    deployment = built(tmp_path, **fields)
    assert (deployment.name, deployment.enforces, deployment.ready) == (name, False, False)


@pytest.mark.parametrize(("model", "name"), [(None, "openai"), ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B")])
def test_the_default_engine_without_a_model_is_called_after_its_kind(
    tmp_path: Path, model: str | None, name: str
) -> None:
    engine = EngineSettings(name="openai", url="http://localhost:1/v1", model=model)
    assert build_deployment("engine", engine, Settings(), CATALOG, tmp_path).name == name


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "moonshot"},
        {"name": "openai", "url": "localhost:8000"},
        {"name": "openai", "url": "http://h/v1", "api_key": "two\nlines"},
    ],
)
def test_what_cannot_be_used_stops_the_start_and_names_the_table(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"^deployments\.x"):
        built(tmp_path, **fields)
