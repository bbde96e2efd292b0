"""The `llamacpp` engine over a server that says what a test wants it to say."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from tests.engines.constrained import generated
from tests.engines.token_server import (
    PROMPT,
    Reply,
    Route,
    TokenServer,
    collect,
    request,
    running,
    token_server,
    until,
)
from tests.engines.upstream.server import Peer

from moonbase.chat.constraint import JsonSchema, Marker
from moonbase.config import EngineSettings
from moonbase.engines.llamacpp.engine import LlamaCppEngine, llamacpp_engine
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.errors import (
    ApiError,
    ConfigurationError,
    EngineOverloaded,
    EngineUnavailable,
    InvalidRequest,
    PromptTooLong,
)

pytestmark = pytest.mark.anyio

HEALTHY: Reply = (200, "application/json", b'{"status":"ok"}')
LOADING: Reply = (
    503,
    "application/json",
    b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}',
)
SLOTS = 2
PROPS: Reply = (
    200,
    "application/json",
    msgspec.json.encode(
        {"default_generation_settings": {"n_ctx": 4096}, "total_slots": SLOTS, "model_path": "/models/k2.gguf"}
    ),
)
PROGRESS = {"tokens": [0], "prompt_progress": {"total": 8, "cache": 5, "processed": 8}}


def chunk(*tokens: int, text: str = "x", at: int = 0) -> dict[str, Any]:
    return {"index": 0, "content": text, "tokens": tokens, "stop": False, "tokens_predicted": at or len(tokens)}


def last(kind: str, cached: int = 0) -> dict[str, Any]:
    return {"index": 0, "content": "", "tokens": [], "stop": True, "stop_type": kind, "timings": {"cache_n": cached}}


def events(*chunks: dict[str, Any]) -> Reply:
    return 200, "text/event-stream", b"".join(b"data: " + msgspec.json.encode(each) + b"\n\n" for each in chunks)


def refusal(status: int, **problem: Any) -> Reply:
    return status, "application/json", msgspec.json.encode({"error": {"code": status, **problem}})


def engine_at(url: str, **more: Any) -> LlamaCppEngine:
    return llamacpp_engine(EngineSettings(name="llamacpp", url=url, **more), ApproximateTokenizer())


@asynccontextmanager
async def serving(answer: Reply | Route, **more: Any) -> AsyncIterator[tuple[TokenServer, LlamaCppEngine]]:
    async with token_server({"/health": HEALTHY, "/props": PROPS}, answer) as server:
        engine = engine_at(server.url, **more)
        async with running(engine):
            yield server, engine


async def answer_of(answer: Reply | Route, **options: Any) -> Any:
    async with serving(answer) as (_, engine):
        return await collect(engine.generate(request(**options)))


async def test_the_server_says_its_model_and_window():
    async with serving(events(last("eos"))) as (_, engine):
        assert engine.ready
        assert (engine.description.model, engine.description.window) == ("k2", 4096)


async def test_a_request_says_all_that_the_server_would_else_choose():
    async with serving(events(last("eos"))) as (server, engine):
        await collect(engine.generate(request(max_tokens=4, temperature=0.3, frequency_penalty=0.5)))
    assert server.paths == ["/completion"]
    assert server.bodies == [
        {
            "prompt": PROMPT.tolist(),
            "n_predict": 4,
            "temperature": 0.3,
            "top_p": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.5,
            "repeat_last_n": 4,
            "samplers": ["penalties", "temperature", "top_p"],
            "grammar": "",
            "logit_bias": [],
            "response_fields": ["index", "tokens", "stop", "stop_type", "timings"],
            "stream": True,
            "return_tokens": True,
            "return_progress": True,
            "repeat_penalty": 1.0,
        }
    ]


async def test_the_key_is_sent():
    async with serving(events(last("eos")), api_key="secret") as (server, engine):
        await collect(engine.generate(request()))
    assert server.keys == {"Bearer secret"}


async def test_a_constraint_goes_along_as_a_grammar():
    async with serving(events(last("eos"))) as (server, engine):
        await collect(generated(engine, request(constraint=Marker("<|call|>"))))
    marker = ApproximateTokenizer().control("<|call|>")
    assert server.bodies[0]["grammar"].startswith(f"root ::= <[{marker}]>\n")


async def test_tokens_that_a_constraint_has_no_use_for_are_banned():
    tokenizer = ApproximateTokenizer()
    tokens = [tokenizer.control(name) for name in ("[BOS]", "<|tool_call_begin|>", "</think>")]
    async with token_server({"/health": HEALTHY, "/props": PROPS}, events(last("eos"))) as server:
        engine = llamacpp_engine(EngineSettings(name="llamacpp", url=server.url), tokenizer)
        async with running(engine):
            await collect(generated(engine, request(constraint=JsonSchema('{"type":"string"}'))))
    assert server.bodies[0]["logit_bias"] == [[tokens[0], -100.0], [tokens[2], -100.0]]


async def test_the_prompts_progress_is_no_output_and_tells_what_was_cached():
    answer = await answer_of(events(PROGRESS, PROGRESS, chunk(7), last("limit", cached=5)))
    assert (answer.tokens, answer.finish, answer.cached) == ({0: [7]}, {0: "length"}, {0: 5})


async def test_a_server_without_progress_tells_at_the_end_what_was_cached():
    answer = await answer_of(events(chunk(7), last("limit", cached=3)))
    assert (answer.tokens, answer.cached) == ({0: [7]}, {0: 3})


async def test_an_end_of_turn_that_only_the_server_knows_is_not_part_of_the_answer():
    answer = await answer_of(events(chunk(7, at=1), chunk(163593, text="", at=2), last("eos")))
    assert (answer.tokens, answer.finish) == ({0: [7]}, {0: "stop"})


async def test_a_token_without_text_that_is_not_the_end_is_part_of_it():
    marked = [chunk(7, at=1), chunk(163595, text="", at=2), chunk(8, at=3), chunk(163596, text="", at=4)]
    answer = await answer_of(events(*marked, last("limit")))
    assert answer.tokens == {0: [7, 163595, 8, 163596]}


async def test_ids_that_the_server_drops_are_those_of_the_text():
    answer = await answer_of(events(chunk(7, at=1), chunk(9, text="🤔🎉!!!!", at=4), last("limit")))
    tokenizer = ApproximateTokenizer()
    assert answer.tokens[0] == [7, *tokenizer.encode_plain("🤔🎉!!!!")]


async def test_a_stop_token_of_ours_ends_the_answer_and_then_the_work():
    gone = asyncio.get_running_loop().create_future()

    async def endless(peer: Peer, body: Any) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        await peer.send(events(chunk(7), chunk(163586, text="", at=2))[2])
        await asyncio.sleep(0.05)
        await peer.send(events(chunk(8, at=3))[2])
        gone.set_result(await peer.gone())

    async with serving(endless) as (_, engine):
        answer = await collect(engine.generate(request()))
        assert (answer.tokens, answer.finish) == ({0: [7]}, {0: "stop"})
        await asyncio.wait_for(gone, 5)


async def test_no_more_is_sent_than_the_server_has_slots_for():
    free = asyncio.Event()

    async def patient(peer: Peer, body: Any) -> Reply:
        await free.wait()
        return events(chunk(7), last("limit"))

    async with serving(patient, max_waiting=1) as (server, engine):
        generation = engine.generate(request(n=SLOTS + 1))
        await until(lambda: len(server.bodies) == SLOTS)
        assert (engine.running, engine.waiting) == (SLOTS, 1)
        with pytest.raises(EngineOverloaded):
            engine.generate(request())
        free.set()
        answer = await collect(generation)
        assert sorted(answer.finish) == list(range(SLOTS + 1))
        assert (engine.running, engine.waiting) == (0, 0)


@pytest.mark.parametrize(
    ("reply", "error", "sentence"),
    [
        (
            refusal(400, type="exceed_context_size_error", message="/srv/x", n_ctx=4096, n_prompt_tokens=5000),
            PromptTooLong,
            "Invalid request: Your request exceeded model token limit: 4096 (requested: 5000)",
        ),
        (
            refusal(400, type="invalid_request_error", message="failed to parse grammar at /srv/x"),
            InvalidRequest,
            "Invalid request: the engine cannot serve this schema",
        ),
        (
            refusal(400, type="invalid_request_error", message="Field 'top_p': /srv/x"),
            InvalidRequest,
            "Invalid request: the engine cannot serve this combination of parameters",
        ),
        (refusal(401, type="authentication_error", message="/srv/x"), EngineUnavailable, "not available"),
        (refusal(500, type="server_error", message="/srv/x"), EngineUnavailable, "not available"),
        (LOADING, EngineUnavailable, "not available"),
        ((502, "text/html", b"<html>/srv/x" * 200_000), EngineUnavailable, "not available"),
        (refusal(429, type="x", message="/srv/x"), EngineOverloaded, "overloaded"),
    ],
)
async def test_a_refusal_becomes_an_error_of_ours(reply: Reply, error: type[ApiError], sentence: str):
    answer = await answer_of(reply)
    assert type(answer.error) is error
    assert sentence in str(answer.error)
    assert "/srv" not in str(answer.error)


GARBAGE: list[Reply] = [
    (200, "text/event-stream", events(chunk(7))[2] + b"data: {not json\n\n"),
    (200, "text/event-stream", events(chunk(7))[2] + b'data: {"tokens":["a"]}\n\n'),
    (200, "text/event-stream", events(chunk(7))[2] + b'data: {"tokens":[8],"con'),
    (200, "text/event-stream", events(chunk(7))[2] + b"data: []\n\n"),
    (200, "text/event-stream", events(chunk(7))[2] + b'data: {"tokens":[-1]}\n\n'),
    (200, "text/event-stream", events(chunk(7))[2] + b'data: {"content":"\xff\xfe"}\n\n'),
    (200, "text/event-stream", events(chunk(7))[2] + b'data: {"x":' + b"[" * 100_000 + b"\n\n"),
    events(chunk(7)),
    events(chunk(7), {"error": {"code": 500, "message": "Unexpected empty grammar stack", "type": "server_error"}}),
]


@pytest.mark.parametrize("reply", GARBAGE)
async def test_what_breaks_off_is_what_was_delivered_and_then_an_error(reply: Reply, caplog: pytest.LogCaptureFixture):
    answer = await answer_of(reply)
    assert isinstance(answer.error, EngineUnavailable)
    assert answer.tokens == {0: [7]}
    assert "empty grammar" not in caplog.text  # the server's words may quote the model's


async def test_a_choice_that_fails_ends_its_request():
    async def second_fails(peer: Peer, body: Any) -> Reply:
        return events(chunk(7)) if len(server.bodies) == SLOTS else events(chunk(7), chunk(8, at=2), last("limit"))

    async with serving(second_fails) as (server, engine):
        answer = await collect(engine.generate(request(n=SLOTS)))
        assert isinstance(answer.error, EngineUnavailable)
        assert (engine.running, engine.waiting) == (0, 0)


async def test_leaving_closes_the_connection_at_once():
    gone = asyncio.get_running_loop().create_future()

    async def silent(peer: Peer, body: Any) -> None:
        gone.set_result(await peer.gone())

    async with serving(silent) as (server, engine):
        with engine.generate(request()):
            await until(lambda: bool(server.bodies))
        assert engine.running == 0
        await asyncio.wait_for(gone, 1)


async def test_a_server_that_loads_its_model_is_waited_for():
    pages = {"/health": LOADING, "/props": LOADING}
    async with token_server(pages, events(last("eos"))) as server:
        engine = engine_at(server.url)
        async with running(engine):
            with pytest.raises(EngineUnavailable):
                engine.generate(request())
            pages |= {"/health": HEALTHY, "/props": PROPS}
            await until(lambda: engine.ready)
            assert engine.description.window == 4096


async def test_a_server_that_is_not_there_is_looked_for(free_tcp_port: int):
    engine = engine_at(f"http://127.0.0.1:{free_tcp_port}")
    async with running(engine):
        assert not engine.ready
        with pytest.raises(EngineUnavailable):
            engine.generate(request())


async def test_a_server_that_goes_away_is_noticed_with_the_next_request():
    async with token_server({"/health": HEALTHY, "/props": PROPS}, events(last("eos"))) as server:
        engine = engine_at(server.url)
        await engine.start()
    answer = await collect(engine.generate(request()))
    assert isinstance(answer.error, EngineUnavailable)
    assert not engine.ready
    await engine.close()


@pytest.mark.parametrize(
    ("props", "sentence"),
    [(refusal(401, type="authentication_error", message="x"), "api_key"), ((200, "a/b", b"{}"), "no llama-server")],
)
async def test_what_can_never_be_served_stops_the_start(props: Reply, sentence: str):
    async with token_server({"/health": HEALTHY, "/props": props}, events(last("eos"))) as server:
        engine = engine_at(server.url)
        with pytest.raises(ConfigurationError, match=sentence):
            await engine.start()
        await engine.close()


async def test_closing_ends_what_runs_and_what_waits():
    async def silent(peer: Peer, body: Any) -> None:
        await peer.gone()

    async with serving(silent) as (_, engine):
        generation = engine.generate(request(n=SLOTS + 1))
        await engine.close()
        assert isinstance((await collect(generation)).error, EngineUnavailable)
        assert (engine.running, engine.waiting) == (0, 0)
        with pytest.raises(EngineUnavailable):
            engine.generate(request())
