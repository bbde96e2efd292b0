"""The tool loop of an ordinary program: the openai library against the embedded engine with the default model."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

pytest.importorskip("openvino_genai")

from openai import OpenAI
from openai.types.chat import ChatCompletion
from tests.e2e.conftest import StartServer
from tests.e2e.server import K2, Server, run_program

from moonbase.config import cache

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Tokyo", "Paris", "Lima"]},
        "unit": {"enum": ["celsius", "fahrenheit"], "type": "string"},
    },
    "required": ["city"],
}
SEARCH = {
    "type": "object",
    "properties": {"topic": {"type": "string", "enum": ["weather", "news"]}, "limit": {"type": "integer"}},
    "required": ["topic", "limit"],
}
SCHEMAS = {"get_weather": WEATHER, "search": SEARCH}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "description": f"To {name}.", "parameters": schema}}
    for name, schema in SCHEMAS.items()
]


@pytest.fixture(scope="module")
def server(start_module_server: StartServer) -> Server:
    return start_module_server(engine=None, cache=cache())


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(api_key=server.key, base_url=server.base_url) as client:
        yield client


def ask(client: OpenAI, messages: list[Any], **fields: Any) -> ChatCompletion:
    return client.chat.completions.create(
        model=K2, messages=messages, tools=TOOLS, temperature=0.6, **{"max_tokens": 120, **fields}
    )


def answered(messages: list[Any], answer: ChatCompletion) -> int:
    """Add the turn and a result for each of its calls, as programs do; the number of calls, all of them valid."""
    message = answer.choices[0].message
    messages.append(message)
    calls = message.tool_calls or []
    for call in calls:
        assert call.type == "function"
        assert jsonschema_rs.is_valid(SCHEMAS[call.function.name], json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 22}'})
    return len(calls)


@pytest.mark.parametrize("name", ["tools.py", "tool_loop.py", "messages.py"])
def test_the_program_gets_what_its_user_would_accept(server: Server, name: str) -> None:
    """A city of sixty characters in each of the model's calls is more than their limit of tokens allows."""
    run_program(server, name, tries=3)


@pytest.mark.parametrize("engine", ["openvino", pytest.param("llamacpp", marks=pytest.mark.full)])
def test_the_model_ends_its_calls_where_it_would_call_on_and_on(start_server: StartServer, engine: str) -> None:
    if engine == "llamacpp":
        pytest.importorskip("xllamacpp", reason="LEFT OUT: llamacpp")
    server = start_server(engine=engine, cache=cache())
    with OpenAI(api_key=server.key, base_url=server.base_url) as client:
        messages: list[Any] = [{"role": "user", "content": "Weather?"}]
        answer = ask(client, messages, tool_choice="required", max_tokens=1000, n=5)
        for choice in answer.choices:
            assert choice.finish_reason == "tool_calls"
            assert 1 <= len(choice.message.tool_calls or []) <= 4


def test_ask_call_result_answer(client: OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What's the weather in Tokyo?"}]
    one: Any = {"type": "function", "function": {"name": "get_weather"}}
    call = ask(client, messages, tool_choice=one)
    assert call.choices[0].finish_reason == "tool_calls"
    assert answered(messages, call) == 1
    assert [message.id for message in call.choices[0].message.tool_calls or []] == ["get_weather:0"]
    answer = ask(client, messages, tool_choice="none")
    assert answer.choices[0].message.content
    assert not answer.choices[0].message.tool_calls


def test_ten_turns_of_calls_keep_counting_and_their_beginning_stays_in_the_cache(client: OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Look up the weather and the news, again and again."}]
    numbers: list[int] = []
    prompts: list[tuple[int, int]] = []
    for _ in range(10):
        answer = ask(client, messages, tool_choice="required", parallel_tool_calls=False)
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answered(messages, answer) == 1
        numbers += [int(call.id.rpartition(":")[2]) for call in answer.choices[0].message.tool_calls or []]
        assert answer.usage is not None
        prompts.append((answer.usage.prompt_tokens, getattr(answer.usage, "cached_tokens", 0) or 0))
    assert numbers == list(range(10))
    for (before, _), (_, cached) in pairwise(prompts):
        assert cached >= before - 2 * 32, "all but the last blocks of the prompt before: the turn's end is new"


def test_parallel_calls_are_answered_together(client: OpenAI) -> None:
    """The model calls as often as it likes, and often until its limit: a turn that is cut is no turn."""
    for _ in range(20):
        messages: list[Any] = [{"role": "user", "content": "Compare Tokyo, Paris and Lima. Call a tool for each."}]
        answer = ask(client, messages, tool_choice="required", max_tokens=150)
        if answer.choices[0].finish_reason == "tool_calls" and answered(messages, answer) > 1:
            break
    else:
        raise AssertionError("it never called two tools at once")
    calls = answer.choices[0].message.tool_calls or []
    assert [int(call.id.rpartition(":")[2]) for call in calls] == list(range(len(calls)))
    assert ask(client, messages, tool_choice="none").choices[0].message.content


def test_a_loop_that_a_script_plays_goes_from_the_call_to_the_answer(start_server: StartServer, tmp_path: Path) -> None:
    """The script of docs/guides/tools.md, and the program of an ordinary user."""
    guide = (Path(__file__).parents[2] / "docs/guides/tools.md").read_text(encoding="utf-8")
    script = tmp_path / "loop.jsonl"
    script.write_text(guide.partition("```json\n")[2].partition("```")[0], encoding="utf-8")
    server = start_server("--set", f"echo.script={script}")
    messages: list[Any] = [{"role": "user", "content": "What's the weather in Tokyo?"}]

    with OpenAI(api_key=server.key, base_url=server.base_url) as client:
        assert answered(messages, ask(client, messages)) == 1
        assert ask(client, messages).choices[0].message.content == "It is 22 degrees in Tokyo."
        assert ask(client, [{"role": "user", "content": "Hello"}]).choices[0].message.content == "Hello"


def test_a_streamed_call_is_put_together_by_the_library(client: OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What's the weather in Lima?"}]
    with client.chat.completions.stream(
        model=K2,
        messages=messages,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=120,
        temperature=0.6,
    ) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_completion()
    calls = answer.choices[0].message.tool_calls
    assert calls
    for call in calls:
        assert jsonschema_rs.is_valid(SCHEMAS[call.function.name], json.loads(call.function.arguments))
