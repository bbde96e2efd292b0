"""The Messages API byte by byte: on every path, whole and streamed, refusals and faults (moonshot-api.md 8)."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.dialects.anthropic.events import frames, message
from tests.e2e.conftest import StartServer
from tests.e2e.prompts import prompt_tokens
from tests.e2e.server import K2, Reply, Server, fixed, user

MESSAGES = "/anthropic/v1/messages"
PATHS = [MESSAGES, "/anthropic/v1/v1/messages", "/v1/messages", "/v1/v1/messages"]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
NUMBER = {"type": "integer"}
TOOL = {"name": "get", "input_schema": SCHEMA}
USE = {"type": "tool_use", "id": "get:0", "name": "get", "input": {"city": "Oslo"}}


def body(text: str = "Hello", **fields: Any) -> bytes:
    return json.dumps({"model": K2, "max_tokens": 100, "messages": user(text)} | fields).encode()


def ask(server: Server, text: str = "Hello", *, path: str = MESSAGES, **fields: Any) -> Reply:
    return server.post(body(text, **fields), path=path)


def bad(sentence: str) -> bytes:
    return b'{"type":"error","error":{"type":"invalid_request_error","message":"Invalid request: %b"}}' % (
        sentence.encode()
    )


@pytest.mark.parametrize("path", PATHS)
def test_a_whole_answer(echo: Server, path: str) -> None:
    reply = ask(echo, "Hello there", path=f"{path}?beta=true")

    assert reply.status == 200
    tokens = prompt_tokens("Hello there")
    output = echo.chat("Hello there").json["usage"]["completion_tokens"]
    assert reply.fixed == (
        b'{"id":"ID","type":"message","role":"assistant","model":"kimi-k2-0905-preview","content":[{"type":"text",'
        b'"text":"Hello there"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":%d,'
        b'"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":%d}}' % (tokens, output)
    )
    assert reply.header("content-type") == "application/json; charset=utf-8"
    assert echo.usage(reply)["prompt_miss"] == tokens


@pytest.mark.parametrize("path", PATHS)
def test_a_stream(echo: Server, path: str) -> None:
    reply = ask(echo, "Hello there", path=path, stream=True)

    assert reply.header("content-type") == "text/event-stream"
    told = message(reply.body)
    whole = ask(echo, "Hello there").json
    assert told | {"id": whole["id"]} == whole
    assert [event["type"] for event in frames(reply.body)][:2] == ["message_start", "ping"]
    assert b"[DONE]" not in reply.body
    assert fixed(reply.body).startswith(b'event: message_start\ndata: {"type":"message_start","message":{"id":"ID",')


@pytest.mark.parametrize("path", PATHS)
def test_a_count(echo: Server, path: str) -> None:
    sent = {"model": K2, "messages": user("Hello there")}
    reply = echo.post(json.dumps(sent).encode(), path=f"{path}/count_tokens")
    assert (reply.status, reply.body) == (200, b'{"input_tokens":%d}' % prompt_tokens("Hello there"))


def test_what_counts_in_a_prompt_counts_in_a_count(echo: Server) -> None:
    """The system prompt, the tools and the history: the same number as the answer's own."""
    turns = [
        *user("Where?"),
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": ""}, USE]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "get:0", "content": "cold"}]},
    ]
    fields = {"system": "Be brief.", "tools": [TOOL], "messages": turns}
    counted = echo.post(body(**fields), path=f"{MESSAGES}/count_tokens").json["input_tokens"]
    assert counted == ask(echo, **fields).json["usage"]["input_tokens"]
    assert counted > echo.post(body(messages=turns), path=f"{MESSAGES}/count_tokens").json["input_tokens"]


def test_a_stop_sequence_is_named_and_ends_the_turn_as_any_end_does(echo: Server) -> None:
    fields: dict[str, Any] = {"stop_sequences": ["three", "four"]}
    whole = ask(echo, "one two three four", **fields).json
    told = message(ask(echo, "one two three four", stream=True, **fields).body)
    for answer in (whole, told):
        assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", "three")
        assert answer["content"] == [{"type": "text", "text": "one two "}]


def test_the_limit_ends_an_answer_as_max_tokens(echo: Server) -> None:
    assert ask(echo, "one two three", max_tokens=2).json["stop_reason"] == "max_tokens"
    assert message(ask(echo, "one two three", max_tokens=2, stream=True).body)["stop_reason"] == "max_tokens"


@pytest.fixture(scope="module")
def chaos(start_module_server: StartServer) -> Server:
    """Calls tools when it is told to, without a fault."""
    return start_module_server("--set", "chaos.fault_rate=0", engine="chaos")


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get"}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_demanded_call_comes(chaos: Server, choice: Any, stream: bool) -> None:
    reply = ask(chaos, tools=[TOOL], tool_choice=choice | {"disable_parallel_tool_use": True}, stream=stream)
    answer = message(reply.body) if stream else reply.json
    (block,) = [block for block in answer["content"] if block["type"] == "tool_use"]
    given = json.loads(block["arguments"]) if stream else block["input"]
    assert (block["name"], block["id"], answer["stop_reason"]) == ("get", "get:0", "tool_use")
    assert set(given) <= {"city"}


def test_a_tool_loop_goes_on_counting(chaos: Server) -> None:
    turns: list[Any] = user("Where is it cold?")
    for number in range(3):
        answer = ask(chaos, messages=turns, tools=[TOOL], tool_choice={"type": "any"}).json
        uses = [block for block in answer["content"] if block["type"] == "tool_use"]
        assert uses[0]["id"].startswith("get:")
        if number == 0:
            assert uses[0]["id"] == "get:0"
        results = [{"type": "tool_result", "tool_use_id": use["id"], "content": "cold"} for use in uses]
        turns += [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": results}]
    ids = [block["id"] for turn in turns[1::2] for block in turn["content"] if block["type"] == "tool_use"]
    assert [int(id.rpartition(":")[2]) for id in ids] == list(range(len(ids)))


def test_thinking_comes_in_a_block_of_its_own_and_may_come_back(start_server: StartServer, tmp_path: Path) -> None:
    script = tmp_path / "raw.txt"
    script.write_text("Hm, well.</think>Cold.")
    server = start_server("--set", f"echo.script={script}", "--set", "engine.format=kimi-k2.6")
    model = {"model": "kimi-k2.6"}
    on = ask(server, thinking={"type": "enabled", "budget_tokens": 1024}, temperature=1, **model).json
    told = message(ask(server, stream=True, **model).body)
    for answer in (on, told):
        assert [block["type"] for block in answer["content"]] == ["thinking", "text"]
        assert answer["content"][0]["thinking"] == "Hm, well."
        assert answer["content"][0]["signature"]
        assert answer["usage"]["output_tokens_details"]["thinking_tokens"] > 0
    back = [*user("Hi"), {"role": "assistant", "content": on["content"]}, *user("And?")]
    assert ask(server, messages=back, **model).status == 200


class Upstream(BaseHTTPRequestHandler):
    """Keeps what it is asked for, and refuses it."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        self._answer(200, {"object": "list", "data": []})

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(400, {"error": {"message": "no", "type": "invalid_request_error"}})

    def _answer(self, status: int, told: Any) -> None:
        data = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Tests are quiet."""


@pytest.mark.parametrize(
    ("model", "given", "sent"),
    [(K2, 1.0, 0.6), (K2, 0.5, 0.3), ("kimi-k2-thinking", 1.0, 0.6), ("moonshot-v1-8k", 0.5, 0.5), (K2, None, 0.6)],
)
def test_the_temperature_is_scaled_for_the_models_of_the_k2_era_only(
    start_server: StartServer, model: str, given: float | None, sent: float
) -> None:
    """An upstream is asked for the real one (moonshot-api.md 8.1)."""
    Upstream.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as upstream:
        threading.Thread(target=upstream.serve_forever, args=(0.01,)).start()
        try:
            url = f"engine.url=http://127.0.0.1:{upstream.server_port}/v1"
            assert ask(start_server("--set", url, engine="openai"), model=model, temperature=given).status == 400
        finally:
            upstream.shutdown()
    assert Upstream.asked[0]["temperature"] == pytest.approx(sent)


class Talkative(Upstream):
    """Calls a tool, and then says more, each in a write of its own."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        call = {"index": 0, "id": "a", "function": {"name": "get", "arguments": '{"city": "Oslo"}'}}
        for delta in ({"content": "I look."}, {"tool_calls": [call]}, {"content": "So far."}, None):
            choice = {"index": 0, "delta": delta or {}, "finish_reason": None if delta else "tool_calls"}
            self.wfile.write(b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode())
            time.sleep(0.05)
        self.wfile.write(b"data: [DONE]\n\n")


def test_what_waits_for_its_block_ends_no_stream(start_server: StartServer) -> None:
    """Text behind a call makes no event before the end."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Talkative) as upstream:
        threading.Thread(target=upstream.serve_forever, args=(0.01,)).start()
        try:
            url = f"engine.url=http://127.0.0.1:{upstream.server_port}/v1"
            told = message(ask(start_server("--set", url, engine="openai"), tools=[TOOL], stream=True).body)
        finally:
            upstream.shutdown()
    assert [(block["type"], block.get("text")) for block in told["content"]] == [
        ("text", "I look."),
        ("tool_use", None),
        ("text", "So far."),
    ]
    assert told["stop_reason"] == "tool_use"


def test_a_temperature_out_of_range_is_refused(echo: Server) -> None:
    for given in (1.5, -0.1):
        reply = ask(echo, temperature=given)
        sentence = "invalid temperature: must be between 0 and 1"
        assert (reply.status, reply.json["error"]["message"]) == (400, sentence)


def test_a_parameter_that_the_model_fixes_gives_way_in_lenient_mode(start_server: StartServer) -> None:
    fields: dict[str, Any] = {"model": "kimi-k2.6", "temperature": 0.3, "top_p": 0.5, "thinking": {"type": "disabled"}}
    lenient = ask(start_server(), **fields)
    assert (lenient.status, lenient.header("moonbase-adapted")) == (200, "temperature=0.6, top_p=0.95")
    strict = ask(start_server("--set", "mode=strict"), **fields)
    assert (strict.status, strict.json["error"]["message"]) == (
        400,
        "invalid temperature: only 0.6 is allowed for this model",
    )


def test_a_model_that_always_thinks_does_so_in_lenient_mode(start_server: StartServer) -> None:
    fields: dict[str, Any] = {"model": "kimi-k2-thinking", "thinking": {"type": "disabled"}}
    lenient = ask(start_server(), **fields)
    assert (lenient.status, lenient.header("moonbase-adapted")) == (200, "thinking=enabled")
    strict = ask(start_server("--set", "mode=strict"), **fields)
    sentence = "invalid thinking: only type=enabled is allowed for this model"
    assert (strict.status, strict.json["error"]["message"]) == (400, sentence)


def test_calls_without_their_thinking_are_refused_in_strict_mode_in_the_words_of_this_dialect(
    echo: Server, start_server: StartServer
) -> None:
    result = {"type": "tool_result", "tool_use_id": "get:0", "content": "cold"}
    turns = [*user("Where?"), {"role": "assistant", "content": [USE]}, {"role": "user", "content": [result]}]
    fields: dict[str, Any] = {"model": "kimi-k2.6", "tools": [TOOL], "messages": turns}
    assert ask(echo, **fields).status == 200
    strict = ask(start_server("--set", "mode=strict"), **fields)
    sentence = "thinking is enabled but a thinking block is missing in assistant tool call message at index 1"
    assert (strict.status, strict.json["error"]["message"]) == (400, sentence)


def test_arguments_that_are_no_object_are_an_error_of_a_stream_too(start_server: StartServer, tmp_path: Path) -> None:
    """Where nothing is enforced; neither way is it billed."""
    script = tmp_path / "raw.txt"
    call = "<|tool_call_begin|>functions.get:0<|tool_call_argument_begin|>[1]<|tool_call_end|>"
    script.write_text(f"<|tool_calls_section_begin|>{call}<|tool_calls_section_end|>")
    server = start_server("--set", f"echo.script={script}", "--set", "engine.enforce=false")
    whole = ask(server, tools=[TOOL])
    stream = ask(server, tools=[TOOL], stream=True)
    error = {"type": "unexpected_output"}
    error["message"] = "The model's output is not valid: the arguments for get: it is not a JSON object"
    assert (whole.status, whole.json["error"]) == (500, error)
    *before, last = frames(stream.body)
    assert last == {"type": "error", "error": error}
    assert before[0]["type"] == "message_start"
    assert [server.usage(reply)["cost_nano"] for reply in (whole, stream)] == [0, 0]


@pytest.mark.parametrize("fields", [{"max_tokens": 10**30}, {"max_tokens": int("9" * 4300)}])
def test_a_limit_beyond_all_sense_is_a_limit(start_server: StartServer, echo: Server, fields: Any) -> None:
    assert ask(echo, **fields).status == 200
    refused = ask(start_server("--set", "mode=strict"), **fields)
    assert (refused.status, refused.json["error"]["type"]) == (400, "invalid_request_error")


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
REFUSED: dict[str, tuple[bytes, bytes]] = {
    "no limit": (body(max_tokens=None), bad("max_tokens is required")),
    "an image": (
        body(system="Look.", messages=[*user("Hi"), {"role": "user", "content": [IMAGE]}]),
        bad("the message at position 1 has an image, which echo cannot see"),
    ),
    "a result without a call": (
        body(messages=[{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": "y"}]}]),
        bad("tool_call_id x is not found"),
    ),
    "a result without an id": (
        body(messages=[{"role": "user", "content": [{"type": "tool_result", "content": "y"}]}]),
        bad("tool_call_id  is not found"),
    ),
    "a call without a result": (
        body(messages=[*user("Hi"), {"role": "assistant", "content": [USE]}, *user("So?")]),
        bad(
            "an assistant message with 'tool_calls' must be followed by tool messages responding to each "
            "'tool_call_id'. The following tool_call_ids did not have response messages: get:0"
        ),
    ),
    "no JSON": (b"{", bad("the request body is not valid JSON: Input data was truncated")),
    "an array": (b"[]", bad("the request body must be a JSON object, and array is not acceptable")),
    "no UTF-8": (body().replace(b"Hello", b"\xff"), bad("the request body is not valid UTF-8")),
    "a format that is no schema": (
        body(output_config={"format": {"type": "json_schema", "schema": {"properties": 5}}}),
        bad("`output_config.format.schema`: At path 'properties': properties must be an object"),
    ),
    "a schema that cannot be enforced": (
        body(tools=[{"name": "get", "input_schema": {**SCHEMA, "properties": {"a": {**NUMBER, "minimum": 10**20}}}}]),
        bad(
            "tools[get].input_schema cannot be enforced, details: \\u003cAt path 'properties.a': only numbers of up to "
            "15 digits are supported\\u003e"
        ),
    ),
    "a schema of another root": (
        body(tools=[{"name": "get", "input_schema": {"type": "string"}}]),
        bad('tools.input_schema.type is required and must be \\"object\\"'),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_request_gets_exactly_this_error(echo: Server, case: str) -> None:
    sent, expected = REFUSED[case]
    for each in (sent, sent.replace(b'{"model"', b'{"stream":true,"model"')):
        reply = echo.post(each, path=MESSAGES)
        assert (reply.status, reply.body) == (400, expected)


def test_an_unknown_model_keeps_the_shape_of_the_other_dialect(echo: Server) -> None:
    reply = ask(echo, model="claude-9")
    assert (reply.status, reply.body) == (
        404,
        b'{"error":{"message":"Not found the model claude-9 or Permission denied","type":"resource_not_found_error"}}',
    )


def test_a_fault_in_a_stream_is_an_event_and_no_end(start_server: StartServer) -> None:
    server = start_server("--set", "chaos.fault_rate=1", "--set", "chaos.faults=cut", engine="chaos")
    reply = ask(server, "one two three four five six", stream=True)
    events = frames(reply.body)
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "server_unavailable"
    assert "message_stop" not in [event["type"] for event in events]
    assert server.usage(reply)["cost_nano"] == 0


def test_another_method_is_an_unknown_path(echo: Server) -> None:
    reply = echo.get(MESSAGES)
    assert (reply.status, reply.json["error"], reply.json["url"]) == (404, "url.not_found", MESSAGES)


BILLING = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.332.1ce; cch=0a1b2;"}
BRIEF = {"type": "text", "text": "Be brief."}


def test_a_line_that_changes_with_every_request_is_left_out_named_and_counted(start_server: StartServer) -> None:
    server = start_server("--set", "metrics.token=secret")
    plain = ask(server, system=[BRIEF])
    billed = ask(server, system=[BILLING, BRIEF])
    assert plain.json["usage"] == billed.json["usage"]
    assert (plain.header("moonbase-adapted"), billed.header("moonbase-adapted")) == (None, "system.removed_lines=1")
    counted = server.post(body(system=[BILLING, BRIEF]), path=f"{MESSAGES}/count_tokens").json["input_tokens"]
    assert counted == plain.json["usage"]["input_tokens"]
    metrics = server.get("/metrics", key="secret").body.decode()
    assert f'moonbase_removed_lines_total{{model="{K2}"}} 1.0' in metrics


def test_that_line_stays_where_it_is_wanted(start_server: StartServer) -> None:
    server = start_server("--set", "engine.stable_prefix=false")
    plain, billed = ask(server, system=[BRIEF]), ask(server, system=[BILLING, BRIEF])
    assert billed.json["usage"]["input_tokens"] > plain.json["usage"]["input_tokens"]
    assert billed.header("moonbase-adapted") is None
