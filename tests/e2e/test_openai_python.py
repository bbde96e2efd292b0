"""The openai package for Python, unmodified: sync, async, streams, schemas, errors."""

import asyncio
import json
from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionUserMessageParam
from pydantic import BaseModel
from tests.e2e.prompts import prompt_tokens
from tests.e2e.server import K2, Server

pytestmark = pytest.mark.anyio


class Person(BaseModel):
    name: str
    age: int


def say(text: str) -> list[ChatCompletionUserMessageParam]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def client(echo: Server) -> Iterator[OpenAI]:
    with OpenAI(api_key=echo.key, base_url=echo.base_url, max_retries=0) as client:
        yield client


def test_a_chat(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=K2, messages=say("Hello there"), max_tokens=64)
    answer = raw.parse()
    assert answer.choices[0].message.content == "Hello there"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    asked, answered = prompt_tokens("Hello there"), 2 + 2  # two words of 6 and 5 bytes
    tokens = (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens)
    assert tokens == (asked, answered, asked + answered)
    assert answer.id.startswith("chatcmpl-")
    assert len(raw.headers["msh-request-id"]) == 36


def test_a_stream_has_usage_in_the_last_choice_and_in_a_chunk_of_its_own(client: OpenAI) -> None:
    total = prompt_tokens("one two three") + 1 + 1 + 2  # three words of 4, 4 and 5 bytes
    chunks = list(
        client.chat.completions.create(
            model=K2, messages=say("one two three"), stream=True, stream_options={"include_usage": True}
        )
    )
    assert [chunk.choices[0].delta.content for chunk in chunks[:-1]] == ["", "one ", "two ", "three", None]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert (chunks[-2].choices[0].model_extra or {})["usage"]["total_tokens"] == total
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == total


def test_the_stream_helper_folds_to_the_same_answer(client: OpenAI) -> None:
    with client.chat.completions.stream(model=K2, messages=say("four five"), n=2) as stream:
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == ["four five", "four five"]


async def test_many_at_once(echo: Server) -> None:
    async with AsyncOpenAI(api_key=echo.key, base_url=echo.base_url, max_retries=0) as client:
        answers = await asyncio.gather(
            *[client.chat.completions.create(model=K2, messages=say(f"number {i}")) for i in range(32)]
        )
        assert [answer.choices[0].message.content for answer in answers] == [f"number {i}" for i in range(32)]
        assert len({answer.id for answer in answers}) == 32
        stream = await client.chat.completions.create(model=K2, messages=say("one two"), stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == "one two"


def test_a_schema_gives_a_parsed_answer(client: OpenAI) -> None:
    answer = client.chat.completions.parse(model=K2, messages=say('{"name":"Bob","age":12}'), response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Bob", age=12)


def test_an_answer_that_breaks_its_schema_is_an_error_and_not_an_answer(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.parse(model=K2, messages=say('{"name":"Bob"}'), response_format=Person)
    assert failed.value.status_code == 500
    assert failed.value.type == "unexpected_output"


def test_a_stream_that_breaks_its_schema_raises(client: OpenAI) -> None:
    schema = {"name": "person", "schema": Person.model_json_schema()}
    with pytest.raises(openai.APIError, match="not valid JSON"):
        list(
            client.chat.completions.create(
                model=K2,
                messages=say("no JSON at all"),
                stream=True,
                response_format={"type": "json_schema", "json_schema": schema},
            )
        )


@pytest.mark.parametrize(
    ("kind", "fields", "error"),
    [
        (
            openai.BadRequestError,
            {"temperature": 1.5},
            {"message": "invalid temperature: must be between 0 and 1", "type": "invalid_request_error"},
        ),
        (
            openai.NotFoundError,
            {"model": "gpt-4o"},
            {"message": "Not found the model gpt-4o or Permission denied", "type": "resource_not_found_error"},
        ),
    ],
)
def test_an_expected_error_has_its_class_and_body(
    client: OpenAI, kind: type[openai.APIStatusError], fields: dict[str, object], error: dict[str, str]
) -> None:
    with pytest.raises(kind) as failed:
        client.chat.completions.create(**{"model": K2, "messages": say("x")} | fields)  # type: ignore[call-overload]
    assert failed.value.body == error


def test_a_wrong_key_is_an_authentication_error(client: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as failed:
        client.with_options(api_key="sk-wrong").models.list()
    assert failed.value.body == {"message": "Invalid Authentication", "type": "invalid_authentication_error"}


def test_the_models_have_their_windows(client: OpenAI) -> None:
    windows = {model.id: (model.model_extra or {})["context_length"] for model in client.models.list()}
    assert windows[K2] == 262_144


def test_a_client_that_leaves_a_stream_early_can_go_on(client: OpenAI) -> None:
    with client.chat.completions.create(model=K2, messages=say("word " * 500), stream=True) as stream:
        next(iter(stream))
    assert client.chat.completions.create(model=K2, messages=say("next")).choices[0].message.content == "next"


def test_json_mode_accepts_an_object(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=K2, messages=say('{"a": 1}'), response_format={"type": "json_object"})
    assert json.loads(answer.choices[0].message.content or "") == {"a": 1}
