"""The `sglang` engine over answers in the form that SGLang's documentation and source give them."""

from typing import Any

import msgspec
import pytest
from tests.engines.constrained import generated
from tests.engines.token_server import PROMPT, STOP_IDS, Reply, collect, request, running, token_server

from moonbase.chat.constraint import JsonSchema, Marker
from moonbase.config import EngineSettings
from moonbase.engines.sglang import sglang_engine
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.errors import ApiError, ConfigurationError, EngineOverloaded, EngineUnavailable, PromptTooLong

pytestmark = pytest.mark.anyio

MODELS = b'{"object": "list", "data": [{"id": "k2", "root": "/models/k2", "max_model_len": 131072}]}'
PAGES: dict[str, Reply] = {"/health": (200, "text/plain", b""), "/v1/models": (200, "application/json", MODELS)}


def event(ids: list[int], done: int, finish: dict[str, Any] | None = None, *, index: int = 0, cached: int = 0) -> bytes:
    meta = {"id": "test", "prompt_tokens": 8, "completion_tokens": done, "cached_tokens": cached}
    chunk = {"text": "", "output_ids": ids, "meta_info": {**meta, "finish_reason": finish}, "index": index}
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def stream(*events: bytes) -> Reply:
    return 200, "text/event-stream", b"".join(events) + b"data: [DONE]\n\n"


CUMULATIVE = stream(
    event([5], 1, cached=6), event([5, 6, 7], 3, cached=6), event([5, 6, 7, 8], 4, {"type": "length", "length": 4})
)
INCREMENTAL = stream(
    event([5], 1, cached=6), event([6, 7], 3, cached=6), event([8], 4, {"type": "length", "length": 4})
)


async def answered(reply: Reply, n: int = 1, **options: Any) -> tuple[Any, Any]:
    async with token_server(PAGES, reply) as server:
        settings = EngineSettings(name="sglang", model="k2", url=server.url)
        async with running(sglang_engine(settings, ApproximateTokenizer())) as engine:
            assert engine.description.window == 131072
            return await collect(generated(engine, request(n=n, **options))), server


@pytest.mark.parametrize("reply", [CUMULATIVE, INCREMENTAL], ids=["all tokens so far", "new tokens"])
async def test_new_tokens_are_found_however_the_server_streams_them(reply: Reply):
    answer, _ = await answered(reply)
    assert (answer.tokens, answer.finish, answer.cached) == ({0: [5, 6, 7, 8]}, {0: "length"}, {0: 6})


async def test_the_token_that_ends_an_answer_is_not_part_of_it():
    answer, _ = await answered(stream(event([5], 1), event([5, 163586], 2, {"type": "stop", "matched": 163586})))
    assert (answer.tokens, answer.finish) == ({0: [5]}, {0: "stop"})


async def test_choices_come_apart():
    answer, _ = await answered(
        stream(
            event([5], 1),
            event([7], 1, index=1),
            event([7, 8], 2, {"type": "length", "length": 2}, index=1),
            event([5, 6], 2, {"type": "length", "length": 2}),
        ),
        n=2,
    )
    assert answer.tokens == {0: [5, 6], 1: [7, 8]}


async def test_a_request_says_all_that_the_server_would_else_choose():
    _, server = await answered(CUMULATIVE, max_tokens=4, constraint=Marker("<|tool_call_begin|>"))
    assert server.paths == ["/generate"]
    tag = server.bodies[0]["sampling_params"].pop("structural_tag")
    assert msgspec.json.decode(tag)["format"]["grammar"].startswith("root ::= Token(")
    assert server.bodies == [
        {
            "input_ids": PROMPT.tolist(),
            "sampling_params": {
                "max_new_tokens": 4,
                "temperature": 1.0,
                "top_p": 1.0,
                "top_k": -1,
                "min_p": 0.0,
                "n": 1,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "repetition_penalty": 1.0,
                "stop_token_ids": list(STOP_IDS),
            },
            "stream": True,
            "rid": "test",
            "extra_key": "org-a",
        }
    ]


async def test_tokens_that_a_constraint_has_no_use_for_are_banned():
    tokenizer = ApproximateTokenizer()
    tokens = [tokenizer.control(name) for name in ("[BOS]", "<|tool_call_begin|>", "</think>")]
    async with token_server(PAGES, CUMULATIVE) as server:
        engine = sglang_engine(EngineSettings(name="sglang", url=server.url), tokenizer)
        async with running(engine):
            await collect(generated(engine, request(constraint=JsonSchema('{"type":"string"}'))))
    assert server.bodies[0]["sampling_params"]["logit_bias"] == {str(tokens[0]): -100, str(tokens[2]): -100}


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (
            (400, "application/json", b'{"error": {"message": "The input (9 tokens) is longer than the model\'s '
             b'context length (8 tokens)."}}'),
            PromptTooLong,
        ),
        ((503, "text/plain", b"busy"), EngineUnavailable),
        ((429, "application/json", b"{}"), EngineOverloaded),
        (stream(event([], 0, {"type": "abort", "message": "The request queue is full.", "status_code": 503})),
         EngineUnavailable),
        (stream(event([5], 1)), EngineUnavailable),
    ],
)  # fmt: skip
async def test_a_refusal_becomes_an_error_of_ours(reply: Reply, error: type[ApiError]):
    answer, _ = await answered(reply)
    assert type(answer.error) is error


async def test_an_engine_without_a_server_and_a_model_says_so():
    with pytest.raises(ConfigurationError, match=r"the engine sglang needs a model's folder"):
        sglang_engine(EngineSettings(name="sglang"), ApproximateTokenizer())
