"""A LiteLLM proxy in an environment of its own, with the ordinary configuration, in front of a server of ours."""

import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from benchmarks.programs import litellm_proxy
from openai import APIConnectionError, OpenAI
from tests.e2e.conftest import StartServer
from tests.e2e.server import Server, program

from moonbase.engines.process import free_port

pytestmark = pytest.mark.full

KEY = f"sk-{secrets.token_hex(16)}"  # what clients of the proxy have
EXAMPLE = Path(__file__).parents[2] / "examples" / "litellm_proxy.yaml"
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


@contextmanager
def proxy(config: Path, server: Server, folder: Path) -> Iterator[OpenAI]:
    port = free_port()
    try:
        command = litellm_proxy(config, port)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"LEFT OUT: the LiteLLM proxy; pip failed: {error.stderr.strip()[-300:]}")
    environ = {**os.environ, **server.client_environ, "LITELLM_MASTER_KEY": KEY, "HOME": str(folder)}
    log = folder / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen(command, env=environ, stdout=out, stderr=out) as process,
        OpenAI(api_key=KEY, base_url=f"http://127.0.0.1:{port}", max_retries=0, timeout=60) as client,
    ):
        try:
            deadline = time.monotonic() + 120
            while True:
                try:
                    client.models.list()
                    break
                except APIConnectionError:  # it is not there yet
                    if time.monotonic() > deadline or process.poll() is not None:
                        raise AssertionError(log.read_text(errors="replace")[-2000:]) from None
                    time.sleep(0.5)
            yield client
        finally:
            process.terminate()


@pytest.mark.parametrize("which", ["example", "ordinary"])
def test_chats_streams_and_tools_pass_through(start_server: StartServer, tmp_path: Path, which: str) -> None:
    config = EXAMPLE if which == "example" else program("litellm_proxy.yaml")
    server = start_server("--set", "chaos.fault_rate=0", engine="chaos")
    with proxy(config, server, tmp_path) as client:
        asked: Any = [{"role": "user", "content": "one two three"}]
        whole = client.chat.completions.create(model="kimi-k2", messages=asked, max_tokens=50)
        assert whole.choices[0].message.content == "one two three"
        stream = client.chat.completions.create(model="kimi-k2", messages=asked, max_tokens=50, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert "".join(pieces) == "one two three"
        assert len(pieces) > 2
        one: Any = {"type": "function", "function": {"name": "get_weather"}}
        called = client.chat.completions.create(
            model="kimi-k2", messages=asked, tools=TOOLS, tool_choice=one, max_tokens=200
        )
        calls = called.choices[0].message.tool_calls
        assert calls
        assert re.fullmatch(r"get_weather:\d", calls[0].id)
        turns: Any = [*asked, called.choices[0].message.model_dump(exclude_none=True)]
        turns += [{"role": "tool", "tool_call_id": call.id, "content": "22"} for call in calls]
        answer = client.chat.completions.create(model="kimi-k2", messages=turns, tools=TOOLS, max_tokens=200)
        assert answer.choices[0].finish_reason in ("stop", "tool_calls")
        streamed = client.chat.completions.create(
            model="kimi-k2", messages=asked, tools=TOOLS, tool_choice=one, max_tokens=200, stream=True
        )
        deltas = [call for chunk in streamed if chunk.choices for call in chunk.choices[0].delta.tool_calls or ()]
        assert deltas[0].function is not None
        assert deltas[0].function.name == "get_weather"
