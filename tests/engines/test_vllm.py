"""The `vllm` engine over answers that were recorded from vLLM 0.32 serving `tiny_k2`."""

import asyncio
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.engines.constrained import generated
from tests.engines.token_server import (
    PROMPT,
    STOP_IDS,
    Reply,
    Route,
    TokenServer,
    collect,
    request,
    running,
    sample,
    token_server,
    until,
)
from tests.engines.upstream.server import Peer

from moonbase.chat.constraint import JsonSchema, Marker
from moonbase.config import EngineSettings
from moonbase.engines.token_server import TokenServerEngine
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.engines.vllm import vllm_engine
from moonbase.errors import (
    ApiError,
    ConfigurationError,
    EngineOverloaded,
    EngineUnavailable,
    InvalidRequest,
    ModelFileError,
    PromptTooLong,
)

pytestmark = pytest.mark.anyio

SAMPLES = Path(__file__).with_name("vllm_samples")
HEALTHY: Reply = (200, "text/plain", b"")
PAGES = {"/health": HEALTHY, "/v1/models": sample(SAMPLES / "models.json")}
STREAM = "text/event-stream; charset=utf-8"


def settings(url: str, **more: Any) -> EngineSettings:
    return EngineSettings(name="vllm", model="k2", url=url, **more)


@asynccontextmanager
async def serving(
    answer: str | Reply | Route, pages: dict[str, Reply] | None = None, **more: Any
) -> AsyncIterator[tuple[TokenServer, TokenServerEngine]]:
    """A server that answers with the sample of that name or as told, and an engine over it."""
    told = sample(SAMPLES / answer) if isinstance(answer, str) else answer
    async with token_server(PAGES | (pages or {}), told) as server:
        engine = vllm_engine(settings(server.url, **more), ApproximateTokenizer())
        async with running(engine):
            yield server, engine


async def test_the_server_says_its_model_and_window():
    async with serving("stream.txt") as (_, engine):
        assert engine.ready
        assert (engine.description.model, engine.description.window) == ("k2", 8192)


async def test_token_ids_come_as_they_were_streamed():
    async with serving("stream.txt") as (_, engine):
        answer = await collect(engine.generate(request(max_tokens=4)))
    chunks = [line[6:] for line in (SAMPLES / "stream.txt").read_text().splitlines() if line.startswith("data: {")]
    streamed = [msgspec.json.decode(chunk)["choices"] for chunk in chunks]
    assert answer.tokens[0] == [token for choices in streamed for token in (choices[0]["token_ids"] if choices else ())]
    assert len(answer.tokens[0]) == 4
    assert answer.finish == {0: "length"}


async def test_choices_come_apart():
    async with serving("choices.txt") as (_, engine):
        answer = await collect(engine.generate(request(n=2, max_tokens=3)))
    assert {choice: len(ids) for choice, ids in answer.tokens.items()} == {0: 3, 1: 3}
    assert answer.finish == {0: "length", 1: "length"}


async def test_the_token_that_ends_an_answer_is_not_part_of_it():
    async with serving("call.txt") as (_, engine):
        answer = await collect(engine.generate(request(max_tokens=20)))
    assert answer.finish == {0: "stop"}
    assert (answer.tokens[0][0], answer.tokens[0][-1]) == (163595, 163596)


async def test_cached_tokens_are_reported():
    async with serving("cached.txt") as (_, engine):
        answer = await collect(engine.generate(request(max_tokens=2)))
    assert answer.cached == {0: 384}


async def test_a_request_says_all_that_the_server_would_else_choose():
    async with serving("stream.txt") as (server, engine):
        await collect(engine.generate(request(max_tokens=4, temperature=0.3, top_p=0.0, frequency_penalty=0.5)))
    assert server.paths == ["/v1/completions"]
    assert server.bodies == [
        {
            "model": "k2",
            "prompt": PROMPT.tolist(),
            "max_tokens": 4,
            "temperature": 0.3,
            "top_p": 1e-6,
            "n": 1,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.5,
            "stop_token_ids": list(STOP_IDS),
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
            "skip_special_tokens": False,
            "request_id": "test",
            "cache_salt": "org-a",
        }
    ]


async def test_several_choices_are_never_greedy():
    async with serving("choices.txt") as (server, engine):
        await collect(engine.generate(request(n=2, max_tokens=3, temperature=0.0)))
    assert server.bodies[0]["temperature"] == 0.01


async def test_a_constraint_is_sent_as_a_structural_tag():
    async with serving("call.txt") as (server, engine):
        await collect(generated(engine, request(constraint=Marker("<|tool_call_begin|>"))))
    tag = msgspec.json.decode(server.bodies[0]["structured_outputs"]["structural_tag"])
    assert tag["type"] == "structural_tag"
    assert tag["format"]["grammar"].startswith("root ::= Token(")


async def test_tokens_that_a_constraint_has_no_use_for_are_banned():
    tokenizer = ApproximateTokenizer()
    tokens = [tokenizer.control(name) for name in ("[BOS]", "<|tool_call_begin|>", "</think>")]
    async with token_server(PAGES, sample(SAMPLES / "call.txt")) as server:
        engine = vllm_engine(settings(server.url), tokenizer)
        async with running(engine):
            await collect(generated(engine, request(constraint=JsonSchema('{"type":"string"}'))))
    assert server.bodies[0]["logit_bias"] == {str(tokens[0]): -100, str(tokens[2]): -100}


async def test_no_more_tokens_are_banned_than_the_server_has_room_for():
    tokenizer = ApproximateTokenizer()
    for number in range(2000):
        tokenizer.control(f"[extra_{number}]")
    async with token_server(PAGES, sample(SAMPLES / "call.txt")) as server:
        engine = vllm_engine(settings(server.url), tokenizer)
        async with running(engine):
            await collect(generated(engine, request(constraint=Marker("<|tool_call_begin|>"))))
    assert len(server.bodies[0]["logit_bias"]) == 1024


async def test_a_key_is_sent_with_every_request():
    async with serving("stream.txt", api_key="secret") as (server, engine):
        await collect(engine.generate(request()))
    assert server.keys == {"Bearer secret"}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("too_long.json", PromptTooLong),
        ("bad_tag.json", InvalidRequest),
        ("unknown_id.txt", InvalidRequest),
        ("no_model.json", EngineUnavailable),
        ((429, "application/json", b"{}"), EngineOverloaded),
        ((503, "text/html", b"<html>"), EngineUnavailable),
        ((500, "application/json", b'{"error": {"code": 500}}'), EngineUnavailable),
        ((200, STREAM, b'data: {"error": {"code": 500, "message": "Internal server error"}}\n\n'), EngineUnavailable),
        ((200, STREAM, b"data: nonsense\n\n"), EngineUnavailable),
        ((200, STREAM, b"data: [DONE]\n\n"), EngineUnavailable),
        (
            (200, STREAM, b'data: {"choices": [{"index": 0, "token_ids": [], "finish_reason": "abort"}]}\n\n'),
            EngineUnavailable,
        ),
    ],
)
async def test_a_refusal_becomes_an_error_of_ours(answer: str | Reply, error: type[ApiError]):
    async with serving(answer) as (_, engine):
        found = await collect(engine.generate(request()))
        assert type(found.error) is error
        assert (engine.running, engine.waiting) == (0, 0)


async def test_the_servers_words_reach_nobody():
    async with serving("too_long.json") as (_, engine):
        found = await collect(engine.generate(request(prompt=array("I", [5] * 9000), max_tokens=10)))
    assert str(found.error) == "Invalid request: Your request exceeded model token limit: 8192 (requested: 9010)"


async def test_a_broken_stream_gives_what_came_and_an_error():
    body = (SAMPLES / "stream.txt").read_bytes()

    async def cut(peer: Peer, _: Any) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9999\r\n\r\n")
        await peer.send(body[: body.index(b"\n\n") + 2])
        peer.reset()

    async with serving(cut) as (server, engine):
        looks = server.looks
        found = await collect(engine.generate(request(max_tokens=4)))
        await until(lambda: server.looks > looks)  # it sees at once whether the server is still there
    assert len(found.tokens[0]) == 1
    assert isinstance(found.error, EngineUnavailable)


async def test_leaving_a_generation_closes_its_connection():
    left = asyncio.Event()

    async def endless(peer: Peer, _: Any) -> None:
        chunk = b'data: {"choices": [{"index": 0, "token_ids": [7]}]}\n\n'
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 99999\r\n\r\n" + chunk)
        await peer.gone()
        left.set()

    async with serving(endless) as (_, engine):
        with engine.generate(request()) as generation:
            assert engine.waiting == 1
            await generation.read()
            assert (engine.running, engine.waiting) == (1, 0)
        assert (engine.running, engine.waiting) == (0, 0)
        async with asyncio.timeout(1):
            await left.wait()


NONSENSE = [
    b'{"choices": [{"index": 0, "token_ids": [-1]}]}',
    b'{"choices": [{"index": 0, "token_ids": [2147483648]}]}',
    b'{"choices": [{"index": 0, "token_ids": [1.5]}]}',
    b'{"choices": [{"index": 1, "token_ids": [9]}]}',
    b'{"choices": [{"index": -1, "token_ids": [9]}]}',
    b'{"choices": [{"index": 0, "finish_reason": "\xff\xfe"}]}',
    b'{"x": ' + b"[" * 100_000,
]


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_before_nonsense_is_what_was_delivered_and_after_it_an_error(
    nonsense: bytes, caplog: pytest.LogCaptureFixture
):
    good = b'data: {"choices": [{"index": 0, "token_ids": [7]}]}\n\n'

    async def answer(peer: Peer, _: Any) -> Reply:
        return 200, STREAM, good + b"data: " + nonsense + b"\n\n"

    async with serving(answer) as (_, engine):
        found = await collect(engine.generate(request()))
    assert found.tokens == {0: [7]}
    assert isinstance(found.error, EngineUnavailable)
    assert "Traceback" not in caplog.text


async def test_one_choice_of_two_can_be_left():
    async def both(peer: Peer, _: Any) -> Reply:
        events = [
            b'data: {"choices": [{"index": 0, "token_ids": [7]}]}\n\n',
            b'data: {"choices": [{"index": 1, "token_ids": [8]}]}\n\n',
            b'data: {"choices": [{"index": 0, "token_ids": [9, 163586], "finish_reason": "stop"}]}\n\n',
            b'data: {"choices": [{"index": 1, "token_ids": [10], "finish_reason": "length"}]}\n\n',
            b'data: {"choices": [], "usage": {"prompt_tokens": 8}}\n\ndata: [DONE]\n\n',
        ]
        return 200, STREAM, b"".join(events)

    async with serving(both) as (_, engine):
        generation = engine.generate(request(n=2))
        generation.stop(0)
        answer = await collect(generation)
    assert (answer.tokens, answer.finish) == ({1: [8, 10]}, {1: "length"})


async def test_too_many_that_wait_are_refused():
    async def silent(peer: Peer, _: Any) -> None:
        await peer.gone()

    async with serving(silent, max_waiting=3) as (server, engine):
        with engine.generate(request(n=2)), engine.generate(request()):
            assert engine.waiting == 3
            with pytest.raises(EngineOverloaded):
                engine.generate(request())
            await until(lambda: len(server.bodies) == 2)
        with engine.generate(request(n=2)):
            await until(lambda: len(server.bodies) == 3)


async def test_a_server_that_is_not_there_yet_is_found_when_it_comes():
    async with serving("stream.txt", {"/health": (503, "text/plain", b"")}) as (server, engine):
        with pytest.raises(EngineUnavailable):
            engine.generate(request())
        server.pages["/health"] = HEALTHY
        await until(lambda: engine.ready)
        assert engine.description.window == 8192


async def test_a_server_that_cannot_say_yet_what_it_serves_is_found_when_it_can():
    loading = {"/health": HEALTHY, "/v1/models": (503, "application/json", b"{}")}
    async with serving("stream.txt", loading) as (server, engine):
        assert not engine.ready
        server.pages["/v1/models"] = PAGES["/v1/models"]
        await until(lambda: engine.ready)


async def test_a_server_that_does_not_answer_any_more_is_not_asked():
    async with serving("stream.txt") as (server, engine):
        server.pages["/health"] = (503, "text/plain", b"")
        server.answer = (503, "text/plain", b"")
        await collect(engine.generate(request()))
        await until(lambda: not engine.ready)
        asked = len(server.bodies)
        with pytest.raises(EngineUnavailable):
            engine.generate(request())
        assert len(server.bodies) == asked


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        ((401, "application/json", b"{}"), "demands another api_key"),
        ((200, "text/html", b"<html>"), "there is no vllm server"),
        ((200, "application/json", b'{"data": []}'), "it has: none"),
    ],
)
async def test_a_server_of_no_use_is_told_at_the_start(models: Reply, reason: str):
    async with token_server({"/health": HEALTHY, "/v1/models": models}, HEALTHY) as server:
        engine = vllm_engine(settings(server.url), ApproximateTokenizer())
        with pytest.raises(ConfigurationError, match=reason):
            await engine.start()


async def test_an_address_with_a_path_too_much_is_told_at_the_start():
    async with token_server(PAGES, HEALTHY) as server:
        engine = vllm_engine(settings(f"{server.url}/v1"), ApproximateTokenizer())
        with pytest.raises(ConfigurationError, match="its url has no path such as /v1"):
            await engine.start()


async def test_the_only_model_of_a_server_serves_whatever_the_settings_call_it():
    async with token_server(PAGES, sample(SAMPLES / "stream.txt")) as server:
        named_otherwise = EngineSettings(name="vllm", model="kimi", url=server.url)
        async with running(vllm_engine(named_otherwise, ApproximateTokenizer())) as engine:
            assert engine.description.model == "k2"


async def test_an_engine_without_a_server_and_a_model_says_so():
    with pytest.raises(ConfigurationError, match=r"the engine vllm needs a model's folder"):
        vllm_engine(EngineSettings(name="vllm"), ApproximateTokenizer())


async def test_a_server_that_ends_at_its_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, text in (("python", "#!/bin/sh\nexit 3\n"), ("vllm", f"#!{tmp_path}/python\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    engine = vllm_engine(EngineSettings(name="vllm"), ApproximateTokenizer(), tmp_path)
    with pytest.raises(ModelFileError, match="exit status 3"):
        await engine.start()
