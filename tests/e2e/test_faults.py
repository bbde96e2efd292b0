"""Engines that are late, stop, break or lie: what the client is told, and what it is billed."""

import json
import time
from typing import Any

import pytest
from tests.e2e.conftest import StartServer
from tests.e2e.server import Reply, Server, chat_body

TEXT = "one two three four five six seven eight nine ten"
UNAVAILABLE = b'{"error":{"message":"The engine is not available, please try again later","type":"server_unavailable"}}'


@pytest.fixture(scope="module")
def slow_echo(start_module_server: StartServer) -> Server:
    """Token after token, so that a stream has begun before its end is known."""
    return start_module_server("--set", "echo.delay=0.01")


def timed_out(limit: str, seconds: str) -> bytes:
    message = f"The engine exceeded the {limit} time limit of {seconds} seconds"
    return f'{{"error":{{"message":"{message}","type":"server_unavailable"}}}}'.encode()


def failing(start: StartServer, fault: str, *args: str) -> Server:
    """A server on which every request meets the same fault."""
    return start("--set", f"chaos.faults={fault}", "--set", "chaos.fault_rate=1", *args, engine="chaos")


def check_broken_stream(reply: Reply, error: bytes) -> None:
    """A stream that began and broke: its last frame is the error, and there is no `[DONE]`."""
    assert reply.status == 200
    assert reply.frames[0].endswith(b'"finish_reason":null}],"system_fingerprint":"%b"}' % fingerprint(reply))
    assert reply.frames[-1] == b"data: " + error
    assert b"[DONE]" not in reply.body
    assert b'"usage"' not in reply.body


def fingerprint(reply: Reply) -> bytes:
    return str(json.loads(reply.frames[0].removeprefix(b"data: "))["system_fingerprint"]).encode()


def check_unbilled(server: Server, reply: Reply) -> None:
    record = server.usage(reply)
    assert (record["outcome"], record["cost_nano"], record["output"]) == ("failed", 0, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_no_first_token_in_time_is_a_504(start_server: StartServer, stream: bool) -> None:
    server = start_server("--set", "echo.first_delay=30", "--set", "engine.queue_timeout=0.3")
    began = time.monotonic()
    reply = server.chat(TEXT, stream=stream)
    assert time.monotonic() - began < 3
    assert (reply.status, reply.body) == (504, timed_out("first token", "0.3"))
    check_unbilled(server, reply)


def test_silence_in_the_middle_ends_the_answer(start_server: StartServer) -> None:
    server = failing(start_server, "stall", "--set", "engine.idle_timeout=0.3")
    whole = server.chat(TEXT)
    assert (whole.status, whole.body) == (504, timed_out("idle", "0.3"))
    check_unbilled(server, whole)
    streamed = server.chat(TEXT, stream=True)
    check_broken_stream(streamed, timed_out("idle", "0.3"))
    check_unbilled(server, streamed)


def test_an_answer_that_takes_too_long_is_ended(start_server: StartServer) -> None:
    server = start_server("--set", "echo.delay=0.1", "--set", "engine.total_timeout=0.5")
    whole = server.chat(TEXT)
    assert (whole.status, whole.body) == (504, timed_out("total", "0.5"))
    streamed = server.chat(TEXT, stream=True)
    check_broken_stream(streamed, timed_out("total", "0.5"))
    check_unbilled(server, streamed)
    assert server.chat("short").status == 200


def test_a_slow_first_token_is_waited_for(start_server: StartServer) -> None:
    server = failing(start_server, "slow_first_token", "--set", "chaos.slow_seconds=0.5")
    began = time.monotonic()
    assert server.chat(TEXT).json["choices"][0]["message"]["content"] == TEXT
    assert time.monotonic() - began >= 0.5


def test_a_cut_is_a_503_or_the_last_frame(start_server: StartServer) -> None:
    server = failing(start_server, "cut")
    whole = server.chat(TEXT)
    assert (whole.status, whole.body) == (503, UNAVAILABLE)
    assert whole.header("retry-after") == "1"
    check_unbilled(server, whole)
    streamed = server.chat(TEXT, stream=True)
    check_broken_stream(streamed, UNAVAILABLE)
    check_unbilled(server, streamed)


def test_after_a_death_requests_are_refused_until_the_engine_is_back(start_server: StartServer) -> None:
    server = failing(start_server, "death")
    assert server.get("/readyz").status == 200
    with server.streaming(chat_body(TEXT * 100, stream=True)) as other:
        other.read(1)
        assert server.chat(TEXT).status == 503
        assert other.read().endswith(UNAVAILABLE + b"\n\n")
    refused = server.chat(TEXT)
    assert (refused.status, refused.body) == (503, UNAVAILABLE)
    assert int(refused.header("retry-after") or 0) > 0
    assert server.get("/readyz").status == 503
    assert server.get("/healthz").status == 200
    time.sleep(1.1)
    assert server.get("/readyz").status == 200
    assert server.chat(TEXT, stream=True).status == 200


def test_malformed_output_stays_well_formed_on_the_wire(start_server: StartServer) -> None:
    server = failing(start_server, "malformed")
    whole = server.chat(TEXT)
    assert whole.status == 200
    assert whole.json["choices"][0]["message"]["content"] != TEXT
    streamed = server.chat(TEXT, stream=True)
    assert streamed.frames[-1] == b"data: [DONE]"
    for frame in streamed.frames[:-1]:
        json.loads(frame.removeprefix(b"data: ").decode("utf-8"))
    broken = server.chat(TEXT, response_format={"type": "json_object"})
    assert (broken.status, broken.json["error"]["type"]) == (500, "unexpected_output")
    check_unbilled(server, broken)


SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "person",
        "schema": {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]},
    },
}
# All of two words at least, so that a stream has begun when it turns out.
INVALID = [
    pytest.param("no JSON at all", SCHEMA, "it is not valid JSON", id="text"),
    pytest.param('{ "age":', SCHEMA, "it is not valid JSON", id="cut"),
    pytest.param('{"age":1} {"age":2}', SCHEMA, "it is not valid JSON", id="two values"),
    pytest.param("[ 1]", {"type": "json_object"}, "it is not a JSON object", id="array for json_object"),
    pytest.param(
        '{ "age":"twelve"}',
        SCHEMA,
        'it does not match `response_format.json_schema.schema`: "twelve" is not of type "integer"',
        id="wrong type",
    ),
    pytest.param(
        "{ }",
        SCHEMA,
        'it does not match `response_format.json_schema.schema`: "age" is a required property',
        id="missing property",
    ),
]


@pytest.mark.parametrize(("output", "response_format", "reason"), INVALID)
def test_output_that_breaks_its_format_is_an_explicit_error(
    echo: Server, output: str, response_format: dict[str, Any], reason: str
) -> None:
    """`echo` says what it was told, so the user's text is the output."""
    error = {"error": {"message": f"The model's output is not valid: {reason}", "type": "unexpected_output"}}
    whole = echo.chat(output, response_format=response_format)
    assert (whole.status, whole.json) == (500, error)
    check_unbilled(echo, whole)


@pytest.mark.parametrize(("output", "response_format", "reason"), INVALID)
def test_a_stream_that_breaks_its_format_ends_in_the_error(
    slow_echo: Server, output: str, response_format: dict[str, Any], reason: str
) -> None:
    error = {"error": {"message": f"The model's output is not valid: {reason}", "type": "unexpected_output"}}
    reply = slow_echo.chat(output, response_format=response_format, stream=True)
    assert reply.status == 200
    assert json.loads(reply.frames[-1].removeprefix(b"data: ")) == error
    assert b"[DONE]" not in reply.body
    check_unbilled(slow_echo, reply)


@pytest.mark.parametrize("response_format", [SCHEMA, {"type": "json_object"}, {"type": "text"}])
def test_output_that_keeps_its_format_is_an_answer(echo: Server, response_format: dict[str, Any]) -> None:
    whole = echo.chat('{"age": 12}', response_format=response_format)
    assert whole.json["choices"][0]["message"]["content"] == '{"age": 12}'
    assert echo.chat('{"age": 12}', response_format=response_format, stream=True).frames[-1] == b"data: [DONE]"


def test_output_cut_by_the_limit_is_no_error(echo: Server) -> None:
    """As with the service: `length` says why the JSON is not complete."""
    reply = echo.chat('{"age": 12}', response_format=SCHEMA, max_tokens=2)
    assert reply.status == 200
    assert reply.json["choices"][0]["finish_reason"] == "length"


def test_a_stop_string_may_cut_a_format_short(echo: Server) -> None:
    """The client asked for both, so the answer ends where it said."""
    reply = echo.chat('{"age": 12}', response_format=SCHEMA, stop="12")
    assert reply.status == 200
    assert reply.json["choices"][0]["message"]["content"] == '{"age": '
