"""Engines whose servers misbehave: the connection is not used again, even when the whole response came in one read."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from tests.engines.token_server import Reply, collect, request, running, token_server, until
from tests.engines.upstream.server import Peer

from moonbase.config import EngineSettings
from moonbase.engines.base import Engine
from moonbase.engines.llamacpp.engine import llamacpp_engine
from moonbase.engines.sglang import sglang_engine
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.engines.vllm import vllm_engine
from moonbase.errors import EngineUnavailable

pytestmark = pytest.mark.anyio

PROPS = {"default_generation_settings": {"n_ctx": 4096}, "total_slots": 2, "model_path": "/models/k2.gguf"}
PAGES: dict[str, Reply] = {
    "/health": (200, "application/json", b"{}"),
    "/v1/models": (200, "application/json", b'{"data": [{"id": "k2", "root": "/k2", "max_model_len": 8192}]}'),
    "/props": (200, "application/json", msgspec.json.encode(PROPS)),
}
ENGINES: dict[str, Callable[[EngineSettings, ApproximateTokenizer], Engine]] = {
    "vllm": vllm_engine,
    "sglang": sglang_engine,
    "llamacpp": llamacpp_engine,
}
STREAM = "text/event-stream"


def events(*chunks: Any) -> Reply:
    return 200, STREAM, b"".join(b"data: " + msgspec.json.encode(each) + b"\n\n" for each in chunks)


def vllm_answer(choice: int) -> Reply:
    last = {"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": 1}}
    return events({"choices": [{"index": choice, "token_ids": [7], "finish_reason": "length"}]}, last)


GOOD = {
    "vllm": vllm_answer(0),
    "sglang": events(
        {"output_ids": [7], "meta_info": {"completion_tokens": 1, "finish_reason": {"type": "length"}}, "index": 0}
    ),
    "llamacpp": events(
        {"index": 0, "content": "x", "tokens": [7], "stop": False, "tokens_predicted": 1},
        {"index": 0, "content": "", "tokens": [], "stop": True, "stop_type": "limit", "tokens_predicted": 1},
    ),
}
BAD: dict[str, Reply] = {
    "a page": (200, "text/html", b"<html>"),
    "nothing": (200, STREAM, b""),
    "done at once": (200, STREAM, b"data: [DONE]\n\n"),
    "no event": (200, STREAM, b"data: no\n\n"),
    "half an event": (200, STREAM, b'data: {"choices": ['),
}


@pytest.mark.parametrize(
    ("name", "bad"),
    [pytest.param(name, bad, id=f"{name}, {what}") for name in ENGINES for what, bad in BAD.items()]
    + [pytest.param("vllm", vllm_answer(7), id="vllm, choices that nobody asked for")],
)
async def test_a_connection_that_misbehaved_is_not_used_again(name: str, bad: Reply) -> None:
    """And one that did not is."""
    peers: list[Peer] = []

    async def answer(peer: Peer, _: Any) -> Reply:
        peers.append(peer)
        return bad if len(peers) == 1 else GOOD[name]

    async with token_server(PAGES, answer) as server:
        settings = EngineSettings(name=name, model="k2", url=server.url)  # type: ignore[arg-type]
        async with running(ENGINES[name](settings, ApproximateTokenizer())) as engine:
            assert isinstance((await collect(engine.generate(request()))).error, EngineUnavailable)
            for _ in range(2):
                await until(lambda: engine.ready)
                found = await collect(engine.generate(request()))
                assert (found.tokens, found.error) == ({0: [7]}, None)
    assert peers[0] is not peers[1]
    assert peers[1] is peers[2]
