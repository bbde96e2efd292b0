"""Moonbase in front of Moonbase: chats that another server answers, driven by the openai package."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionToolParam
from tests.e2e.conftest import StartServer
from tests.e2e.server import K2, Server, StartFailed, chat_body, eventually, user

GONE = "kimi-k2-turbo-preview"
WINDOW = 2000
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def called(*arguments: str, first: int = 0) -> str:
    """Raw output of a Kimi model that calls `get_weather`."""
    calls = [
        f"<|tool_call_begin|>functions.get_weather:{number}<|tool_call_argument_begin|>{text}<|tool_call_end|>"
        for number, text in enumerate(arguments, first)
    ]
    return f"<|tool_calls_section_begin|>{''.join(calls)}<|tool_calls_section_end|>"


SCRIPT = {
    "one": "I look." + called('{"city": "Paris"}'),
    "two": called('{"city": "世界"}', '{"city": "Rome"}'),
    "later": called('{"city": "Oslo"}', first=1),
    "wrong": called('{"town": 7}'),
}


@pytest.fixture(scope="module")
def far(start_module_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """What answers: plays the script and echoes the rest, with a small window, lacking an id, and without enforcing."""
    script = tmp_path_factory.mktemp("script") / "script.jsonl"
    script.write_text("".join([json.dumps({"user": a, "output": b}) + "\n" for a, b in SCRIPT.items()]))
    settings = [f"echo.script={script}", "engine.enforce=false", f"models.{K2}.window={WINDOW}"]
    return start_module_server(
        *[arg for each in (*settings, f"models.{GONE}.disabled=true") for arg in ("--set", each)]
    )


@pytest.fixture(scope="module")
def near(start_module_server: StartServer, far: Server, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """What is asked: one id is answered by the far server, the others here."""
    config = tmp_path_factory.mktemp("config") / "moonbase.toml"
    config.write_text(
        f"""
        [engine]
        name = "echo"
        [metrics]
        token = "metrics-secret"
        [deployments.far]
        name = "openai"
        url = "{far.base_url}"
        api_key = "{far.key}"
        [models.{K2}]
        deployment = "far"
        [models.{GONE}]
        deployment = "far"
        """
    )
    return start_module_server("--config", str(config), engine=None)


@pytest.fixture
def client(near: Server) -> Iterator[OpenAI]:
    with OpenAI(api_key=near.key, base_url=near.base_url, max_retries=0) as client:
        yield client


def test_a_chat_is_answered_there_and_billed_here(client: OpenAI, near: Server, far: Server) -> None:
    raw = client.chat.completions.with_raw_response.create(model=K2, messages=user("Hello there"), max_tokens=64)
    answer = raw.parse()
    assert answer.choices[0].message.content == "Hello there"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert raw.headers["moonbase-served-by"] == "far"
    here = near.usage(raw.headers["msh-request-id"])
    assert (here["served_by"], here["outcome"]) == ("far", "stop")
    assert (here["prompt_miss"], here["output"]) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert here["cost_nano"] > 0
    there = far.last_usage()
    assert (there["prompt_miss"], there["output"]) == (here["prompt_miss"], here["output"])


def test_other_ids_are_answered_here(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="kimi-k2-0711-preview", messages=user("Hi"))
    assert raw.headers["moonbase-served-by"] == "echo"


def test_streams_and_whole_answers_are_as_they_are_there(near: Server, far: Server) -> None:
    for fields in ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}, "n": 2}, {"n": 3}):
        body = chat_body("one two 世界", max_tokens=64, **fields)
        here, there = near.post(body), far.post(body)
        assert (here.status, here.fixed) == (there.status, there.fixed)


def test_a_limit_cuts_there(near: Server) -> None:
    reply = near.chat("one two three four", max_tokens=3)
    assert reply.json["choices"][0]["finish_reason"] == "length"
    record = near.usage(reply)
    assert (record["outcome"], record["output"]) == ("length", 3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_loop(client: OpenAI, stream: bool) -> None:
    messages: list[Any] = user("one")
    with client.chat.completions.stream(model=K2, messages=messages, tools=[WEATHER]) as events:
        answer = events.get_final_completion() if stream else None
    if answer is None:
        answer = client.chat.completions.create(model=K2, messages=messages, tools=[WEATHER])  # type: ignore[assignment]
    assert answer is not None
    message = answer.choices[0].message
    assert (message.content, answer.choices[0].finish_reason) == ("I look.", "tool_calls")
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert (call.id, call.function.name) == ("get_weather:0", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}

    messages += [
        message.to_dict(),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        {"role": "user", "content": "later"},
    ]
    again = client.chat.completions.create(model=K2, messages=messages, tools=[WEATHER])
    assert again.choices[0].message.tool_calls is not None
    assert [call.id for call in again.choices[0].message.tool_calls] == ["get_weather:1"]


def test_parallel_calls(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=K2, messages=user("two"), tools=[WEATHER])
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert [(call.id, json.loads(call.function.arguments)["city"]) for call in calls] == [
        ("get_weather:0", "世界"),
        ("get_weather:1", "Rome"),
    ]


def test_invalid_calls_are_passed_on_and_counted(client: OpenAI, near: Server) -> None:
    """Nothing here holds an upstream to a schema; the number says how well it does."""
    answer = client.chat.completions.create(model=K2, messages=user("wrong"), tools=[WEATHER])
    assert answer.choices[0].message.tool_calls is not None
    assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments) == {"town": 7}
    text = near.get("/metrics", key="metrics-secret").body.decode()
    assert re.search(rf'^moonbase_invalid_outputs_total\{{model="{K2}"\}} [1-9]', text, re.MULTILINE)


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_there_is_refused_here_in_its_words(near: Server, stream: bool) -> None:
    reply = near.chat("x" * 4 * WINDOW, stream=stream, max_tokens=10)
    assert reply.status == 400
    assert f"exceeded model token limit: {WINDOW} (requested: " in reply.json["error"]["message"]
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert near.usage(reply)["outcome"] == "failed"
    assert near.usage(reply)["cost_nano"] == 0


@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_a_limit_is_the_clients_whatever_the_prompt_is_estimated_at(
    start_server: StartServer, far: Server, mode: str
) -> None:
    """The estimate of this prompt is over the window there, which is known here; the prompt is not."""
    settings = (f"engine.url={far.base_url}", f"engine.api_key={far.key}", f"engine.model={K2}", f"mode={mode}")
    near = start_server(*[arg for each in settings for arg in ("--set", each)], engine="openai")
    reply = near.chat("\n" * 6000, max_tokens=5)
    assert reply.status == 200
    assert reply.header("moonbase-adapted") is None
    assert reply.json["choices"][0]["finish_reason"] == "length"
    record = near.usage(reply)
    assert (record["outcome"], record["output"]) == ("length", 5)
    assert 1500 < record["prompt_miss"] == reply.json["usage"]["prompt_tokens"] < WINDOW


def test_an_id_that_is_unknown_there_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=f"Not found the model {GONE} or Permission denied"):
        client.chat.completions.create(model=GONE, messages=user("Hi"))


def test_a_refused_key_is_not_the_clients_matter(start_server: StartServer, far: Server) -> None:
    server = start_server(
        *("--set", f"engine.url={far.base_url}", "--set", "engine.api_key=sk-wrong-and-secret"), engine="openai"
    )
    reply = server.chat()
    assert reply.status == 503
    assert reply.json["error"]["type"] == "server_unavailable"
    assert server.get("/readyz", key=None).status == 503
    assert any("answers 401 to /models" in line["message"] for line in server.log)
    assert "sk-wrong-and-secret" not in server.stderr


def test_the_cloud_is_counted_for_as_it_counts(start_server: StartServer, kimi_cache: Path) -> None:
    cloud = start_server(cache=kimi_cache)
    near = start_server(
        *("--set", f"engine.url={cloud.base_url}", "--set", f"engine.api_key={cloud.key}"),
        engine="moonshot",
        cache=kimi_cache,
    )
    for text in ("Hello", "你好，世界 " * 50):
        body = chat_body(text)
        counts = [server.post(body, "/v1/tokenizers/estimate-token-count").json for server in (cloud, near)]
        assert counts[0] == counts[1]
        reply = near.post(body)
        assert reply.header("moonbase-served-by") == "moonshot"
        assert reply.json["usage"]["prompt_tokens"] == counts[0]["data"]["total_tokens"]


def running(server: Server, model: str) -> int:
    text = server.get("/metrics", key="metrics-secret").body.decode()
    found = re.search(rf'^moonbase_running\{{model="{model}"\}} (\d+)', text, re.MULTILINE)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_noticed_on_the_far_side(start_server: StartServer, stream: bool) -> None:
    metrics = ("--set", "metrics.token=metrics-secret")
    stalling = start_server(*metrics, "--set", "chaos.faults=stall", "--set", "chaos.fault_rate=1", engine="chaos")
    asked = start_server(
        *(*metrics, "--set", f"engine.url={stalling.base_url}", "--set", f"engine.api_key={stalling.key}"),
        engine="openai",
    )
    body = chat_body("word " * 200, stream=stream, max_tokens=1000)
    if stream:
        with asked.streaming(body) as response:
            assert response.read(10)
            eventually(lambda: running(stalling, "chaos") == 1)
            time.sleep(0.2)
            left = time.monotonic()
    else:
        with (
            OpenAI(api_key=asked.key, base_url=asked.base_url, max_retries=0, timeout=0.7) as client,
            pytest.raises(openai.APITimeoutError),
        ):
            client.chat.completions.create(model=K2, messages=user("word " * 200), max_tokens=1000)
        left = time.monotonic()
    eventually(lambda: running(stalling, "chaos") == 0)
    assert time.monotonic() - left < 0.5
    record = asked.last_usage()
    assert record["outcome"] == "cancelled"
    assert record["output"] in (range(1, 400) if stream else [0]), "nobody can say how much of a whole answer there was"
    assert record["cost_nano"] > 0
    assert running(asked, "openai") == 0


def test_a_whole_answer_may_take_longer_than_a_first_token(start_server: StartServer) -> None:
    """Nothing is heard of it before its end, so only the limit of the whole time ends it."""
    slow = start_server("--set", "echo.first_delay=1.5")
    where = ("--set", f"engine.url={slow.base_url}", "--set", f"engine.api_key={slow.key}")
    limits = ("--set", "engine.queue_timeout=0.5", "--set", "engine.idle_timeout=0.5")
    patient = start_server(*where, *limits, engine="openai")
    assert patient.chat("Hello there").json["choices"][0]["message"]["content"] == "Hello there"
    assert patient.chat("Hello there", stream=True).status == 504
    hurried = start_server(*where, "--set", "engine.total_timeout=0.5", engine="openai")
    assert hurried.chat("Hello there").status == 504


def test_an_upstream_that_dies_is_an_error_after_what_came_and_is_found_again(start_server: StartServer) -> None:
    far = start_server("--set", "echo.delay=0.05")
    near = start_server("--set", f"engine.url={far.base_url}", "--set", f"engine.api_key={far.key}", engine="openai")
    with near.streaming(chat_body("word " * 200, stream=True, max_tokens=1000)) as response:
        assert response.status == 200
        first = response.read(300)
        far.process.kill()
        far.process.wait()
        rest = first + response.read()
    assert b'"content":"word "' in rest
    assert rest.endswith(b'"type":"server_unavailable"}}\n\n')
    assert b"[DONE]" not in rest
    assert near.last_usage()["outcome"] == "failed"
    eventually(lambda: near.get("/readyz", key=None).status == 503)


def test_a_start_does_not_wait_for_an_upstream_and_says_that_it_is_not_there(start_server: StartServer) -> None:
    began = time.monotonic()
    server = start_server("--set", "engine.url=http://127.0.0.1:9/v1", engine="openai")
    assert time.monotonic() - began < 10
    assert server.chat().status == 503
    assert "openai cannot be reached yet: requests get a 503 until it can. See the log." in server.stderr


def test_the_cloud_wants_a_key(start_server: StartServer) -> None:
    with pytest.raises(StartFailed) as failed:
        start_server(engine="moonshot")
    assert failed.value.code == 2
    assert "engine.api_key: must be set for the engine moonshot" in failed.value.stderr


def test_the_log_does_not_show_the_key(near: Server, far: Server) -> None:
    assert near.chat().status == 200
    assert far.key not in near.stderr
