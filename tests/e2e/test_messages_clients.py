"""Clients of the Messages API, unmodified: the SDKs for Python and Node, and programs as users have them."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import anthropic
import pytest
from anthropic import Anthropic
from tests.e2e.conftest import RunNode, StartServer
from tests.e2e.server import K2, Server, run_program

TOOLS: Any = [
    {
        "name": "get_weather",
        "description": "Weather of a city",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
]
HI: Any = [{"role": "user", "content": "Hello there, 世界"}]


@pytest.fixture(scope="module")
def chaos(start_module_server: StartServer) -> Server:
    return start_module_server("--set", "chaos.fault_rate=0", engine="chaos")


class ClientOf(Protocol):
    """A client of a server with the server's key, or with other options."""

    def __call__(self, server: Server, base: str = "/anthropic", **options: Any) -> Anthropic: ...


@pytest.fixture
def client_of() -> Iterator[ClientOf]:
    with ExitStack() as stack:

        def make(server: Server, base: str = "/anthropic", **options: Any) -> Anthropic:
            options = options or {"api_key": server.key}
            url = server.base_url.removesuffix("/v1") + base
            return stack.enter_context(Anthropic(base_url=url, max_retries=0, **options))

        yield make


@pytest.mark.parametrize("base", ["/anthropic", "/anthropic/v1", "", "/v1"])
def test_a_chat_a_stream_and_a_count(client_of: ClientOf, echo: Server, base: str) -> None:
    client = client_of(echo, base)
    whole = client.messages.create(model=K2, max_tokens=50, messages=HI)
    with client.messages.stream(model=K2, max_tokens=50, messages=HI) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    counted = client.messages.count_tokens(model=K2, messages=HI)

    assert whole.content[0].type == "text"
    assert whole.content[0].text == text == "Hello there, 世界"
    assert whole.model_dump(exclude={"id"}) == final.model_dump(exclude={"id", "parsed_output"}) | {
        "content": [block.model_dump() for block in whole.content]
    }
    assert counted.input_tokens == whole.usage.input_tokens


def test_a_key_may_come_as_a_bearer(client_of: ClientOf, echo: Server) -> None:
    client = client_of(echo, auth_token=echo.key)
    assert client.messages.create(model=K2, max_tokens=5, messages=HI).stop_reason in ("end_turn", "max_tokens")


def test_a_tool_loop_streamed_and_not(client_of: ClientOf, chaos: Server) -> None:
    client = client_of(chaos)
    turns: list[Any] = [{"role": "user", "content": "Weather in Tokyo?"}]
    first = client.messages.create(
        model=K2, max_tokens=200, messages=turns, tools=TOOLS, tool_choice={"type": "tool", "name": "get_weather"}
    )
    assert first.stop_reason == "tool_use"
    turns += [{"role": "assistant", "content": first.content}, results(first.content)]
    with client.messages.stream(
        model=K2, max_tokens=200, messages=turns, tools=TOOLS, tool_choice={"type": "any"}
    ) as stream:
        second = stream.get_final_message()
    assert second.stop_reason == "tool_use"
    calls = [block for message in (first, second) for block in message.content if block.type == "tool_use"]
    assert [call.id for call in calls] == [f"get_weather:{number}" for number in range(len(calls))]
    assert all(isinstance(call.input, dict) and isinstance(call.input["city"], str) for call in calls)
    turns += [{"role": "assistant", "content": second.content}, results(second.content)]
    assert client.messages.create(model=K2, max_tokens=200, messages=turns, tools=TOOLS, tool_choice={"type": "none"})


def results(content: list[Any]) -> dict[str, Any]:
    uses = [block for block in content if block.type == "tool_use"]
    return {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "22"} for use in uses],
    }


def test_thinking_comes_apart_and_may_be_sent_back(
    client_of: ClientOf, start_server: StartServer, tmp_path: Path
) -> None:
    script = tmp_path / "raw.txt"
    script.write_text("Hm, well.</think>Cold.")
    client = client_of(start_server("--set", f"echo.script={script}", "--set", "engine.format=kimi-k2.6"))
    with client.messages.stream(
        model="kimi-k2.6", max_tokens=2048, messages=HI, thinking={"type": "enabled", "budget_tokens": 1024}
    ) as stream:
        message = stream.get_final_message()
    assert [block.type for block in message.content] == ["thinking", "text"]
    turns: Any = [*HI, {"role": "assistant", "content": message.content}, *HI]
    assert client.messages.create(model="kimi-k2.6", max_tokens=2048, messages=turns).content[0].type == "thinking"


def test_errors_are_the_exceptions_that_programs_catch(client_of: ClientOf, echo: Server) -> None:
    client = client_of(echo)
    with pytest.raises(anthropic.BadRequestError, match="must not be empty"):
        client.messages.create(model=K2, max_tokens=5, messages=[{"role": "user", "content": ""}])
    with pytest.raises(anthropic.NotFoundError, match="Not found the model"):
        client.messages.create(model="claude-9", max_tokens=5, messages=HI)
    stranger = client_of(echo, "/v1", api_key="sk-x")
    with pytest.raises(anthropic.AuthenticationError, match="Invalid Authentication"):
        stranger.messages.create(model=K2, max_tokens=5, messages=HI)


def test_the_sdk_for_node(chaos: Server, run_node: RunNode) -> None:
    result = json.loads(run_node(chaos, Path(__file__).parent / "node" / "messages.mjs"))
    assert result == {
        "chat": "Hello there, 世界",
        "pieces": "one two three",
        "counted": True,
        "tool": {"name": "get_weather", "id": "get_weather:0", "city": "string", "stop": "tool_use"},
        "streamed": {"name": "get_weather", "city": "string", "stop": "tool_use"},
        "refused": {"status": 400, "type": "invalid_request_error"},
    }


@pytest.mark.parametrize("name", ["messages.py", "messages_v1_base.py"])
def test_the_program_gets_what_its_user_would_accept(chaos: Server, name: str) -> None:
    run_program(chaos, name)
