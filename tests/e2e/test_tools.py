"""Tool calls on the wire: raw output of the Kimi format, played by `echo`, as moonshot-api.md 2 and 3 have it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import StartServer
from tests.e2e.server import Reply, Server, chat_body, user

SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"


def raw_call(name: str, number: int, arguments: str) -> str:
    begin, separator = f"<|tool_call_begin|>functions.{name}:{number}", "<|tool_call_argument_begin|>"
    return f"{begin}{separator}{arguments}<|tool_call_end|>"


def section(*calls: str) -> str:
    return SECTION + "".join(calls) + SECTION_END


def tool(name: str, schema: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    parameters = schema or {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "parameters": parameters} | fields}


WEATHER = tool("get_weather")
SEARCH = tool("search")
OUTPUTS = {
    "one": section(raw_call("get_weather", 0, '{"city": "北京"}')),
    "two": "I look." + section(raw_call("get_weather", 0, '{"city":"A"}'), raw_call("search", 1, '{"city": "B"}')),
    "empty": section(raw_call("ping", 0, "")),
    "no json": section(raw_call("get_weather", 0, '{"city": Beijing}')),
    "invalid": section(raw_call("get_weather", 0, '{"city": 5}')),
    "undeclared": section(raw_call("rm_rf", 0, "{}")),
    "text": "Just text.",
    "nameless": "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_end|>",
}


@pytest.fixture(scope="module")
def server(start_module_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    return scripted(start_module_server, tmp_path_factory.mktemp("script"))


@pytest.fixture(scope="module")
def unenforced(start_module_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    return scripted(start_module_server, tmp_path_factory.mktemp("script"), "--set", "engine.enforce=false")


@pytest.fixture(scope="module")
def slow(start_module_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    return scripted(start_module_server, tmp_path_factory.mktemp("script"), "--set", "echo.delay=0.001")


def scripted(start: StartServer, folder: Path, *args: str) -> Server:
    script = folder / "script.jsonl"
    lines = [json.dumps({"user": said, "output": output}) for said, output in OUTPUTS.items()]
    script.write_text("\n".join(lines))
    return start("--set", f"echo.script={script}", "--set", "metrics.token=metrics-secret", *args)


def ask(server: Server, said: str, **fields: Any) -> Reply:
    return server.chat(said, **{"tools": [WEATHER, SEARCH], **fields})


def test_a_call_in_a_whole_answer_has_exactly_this_message(server: Server) -> None:
    choice = ask(server, "one").json["choices"][0]
    assert json.dumps(choice, ensure_ascii=False, separators=(",", ":")) == (
        '{"index":0,"message":{"role":"assistant","content":"","tool_calls":[{"index":0,"id":"get_weather:0",'
        '"type":"function","function":{"name":"get_weather","arguments":"{\\"city\\": \\"北京\\"}"}}]},'
        '"finish_reason":"tool_calls"}'
    )


def test_calls_in_a_stream_have_exactly_these_deltas(server: Server) -> None:
    *chunks, done = ask(server, "two", stream=True).frames
    assert done == b"data: [DONE]"
    deltas = [json.loads(chunk[6:])["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {}
    started = [delta["tool_calls"][0] for delta in deltas if "id" in delta.get("tool_calls", [{}])[0]]
    assert started == [
        {"index": 0, "id": "get_weather:0", "type": "function", "function": {"name": "get_weather", "arguments": ""}},
        {"index": 1, "id": "search:1", "type": "function", "function": {"name": "search", "arguments": ""}},
    ]
    fragments: dict[int, str] = {}
    for delta in deltas:
        for call in delta.get("tool_calls", []):
            if "id" not in call:
                assert call == {"index": call["index"], "function": {"arguments": call["function"]["arguments"]}}
                assert call["function"]["arguments"]
                fragments[call["index"]] = fragments.get(call["index"], "") + call["function"]["arguments"]
    assert fragments == {0: '{"city":"A"}', 1: '{"city": "B"}'}
    assert "".join([delta.get("content", "") for delta in deltas]) == "I look."
    assert json.loads(chunks[-1][6:])["choices"][0]["finish_reason"] == "tool_calls"


def folded(reply: Reply) -> tuple[str, list[tuple[str, str, str]], str]:
    """Content, calls (id, name, arguments) and finish reason of a stream or a whole answer."""
    if reply.body.startswith(b"{"):
        choice = reply.json["choices"][0]
        calls = choice["message"].get("tool_calls", [])
        whole = [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls]
        return choice["message"]["content"], whole, choice["finish_reason"]
    content, streamed, reason = "", [], ""
    for frame in reply.frames[:-1]:
        choice = json.loads(frame[6:])["choices"][0]
        content += choice["delta"].get("content", "")
        for call in choice["delta"].get("tool_calls", []):
            if "id" in call:
                streamed.append([call["id"], call["function"]["name"], ""])
            streamed[call["index"]][2] += call["function"]["arguments"]
        reason = choice["finish_reason"] or reason
    return content, [(call[0], call[1], call[2]) for call in streamed], reason


@pytest.mark.parametrize("said", ["one", "two", "empty", "text"])
def test_a_stream_says_what_a_whole_answer_says(server: Server, said: str) -> None:
    tools = [WEATHER, SEARCH, tool("ping", {"type": "object", "properties": {}})]
    assert folded(ask(server, said, tools=tools, stream=True)) == folded(ask(server, said, tools=tools))


def test_a_call_without_arguments_has_an_empty_object(server: Server) -> None:
    tools = [tool("ping", {"type": "object", "properties": {}})]
    assert folded(ask(server, "empty", tools=tools)) == ("", [("ping:0", "ping", "{}")], "tool_calls")


BROKEN = {
    "no json": ("the arguments for get_weather: it is not valid JSON", {}),
    "undeclared": ("it calls rm_rf, which is not among the tools that it may call", {}),
    "nameless": ("it begins a tool call and does not say which, or with what", {}),
    "text": ("it calls no tool although tool_choice demands it", {"tool_choice": "required"}),
    "two": (
        "it calls several tools at once although parallel_tool_calls is false",
        {"parallel_tool_calls": False},
    ),
    "one": (
        "it calls get_weather, which is not among the tools that it may call",
        {"tool_choice": {"type": "function", "function": {"name": "search"}}},
    ),
}


@pytest.mark.parametrize("said", BROKEN)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_breaks_the_request_is_an_explicit_error_never_a_silent_200(
    server: Server, said: str, stream: bool
) -> None:
    reason, fields = BROKEN[said]
    reply = ask(server, said, stream=stream, **fields)
    expected = {"error": {"message": f"The model's output is not valid: {reason}", "type": "unexpected_output"}}
    assert (reply.status, reply.json) == (500, expected)


def test_a_stream_that_has_begun_ends_in_the_error(slow: Server) -> None:
    reply = ask(slow, "no json", stream=True)
    assert reply.status == 200
    assert json.loads(reply.frames[-1].removeprefix(b"data: "))["error"]["type"] == "unexpected_output"


def test_arguments_that_break_their_schema_are_an_explicit_error(server: Server) -> None:
    reply = ask(server, "invalid")
    assert reply.status == 500
    assert (
        "the arguments for get_weather: it does not match `tools.function.parameters`" in reply.json["error"]["message"]
    )


@pytest.mark.parametrize("said", [*BROKEN, "invalid"])
def test_where_nothing_is_enforced_calls_are_passed_on_as_they_are_and_counted(unenforced: Server, said: str) -> None:
    before = invalid_outputs(unenforced)
    fields = BROKEN[said][1] if said in BROKEN else {}
    reply = ask(unenforced, said, **fields)
    assert reply.status == 200
    assert invalid_outputs(unenforced) == before + 1
    if said == "no json":
        assert folded(reply)[1] == [("get_weather:0", "get_weather", '{"city": Beijing}')]


def invalid_outputs(server: Server) -> float:
    text = server.get("/metrics", key="metrics-secret").body.decode()
    lines = [line for line in text.splitlines() if line.startswith("moonbase_invalid_outputs_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_invalid_output_is_counted_where_it_is_refused_too(server: Server) -> None:
    before = invalid_outputs(server)
    ask(server, "no json")
    assert invalid_outputs(server) == before + 1


def test_without_tools_and_with_none_markers_never_reach_a_client(server: Server) -> None:
    for fields in ({"tools": None}, {"tools": []}, {"tool_choice": "none"}):
        reply = server.chat("one", **{"tools": [WEATHER], **fields})
        assert b"<|" not in reply.body
        assert b"\\u003c|" not in reply.body
        assert folded(reply)[1:] == ([], "stop")


def test_numbers_count_over_the_conversation(server: Server) -> None:
    first = folded(ask(server, "two"))
    history = [
        *user("two"),
        {"role": "assistant", "content": first[0], "tool_calls": [wire(call) for call in first[1]]},
        {"role": "tool", "tool_call_id": first[1][1][0], "content": "B"},
        {"role": "tool", "tool_call_id": first[1][0][0], "content": "A"},
        *user("one"),
    ]
    assert folded(server.post(chat_body(messages=history, tools=[WEATHER])))[1][0][0] == "get_weather:2"


def wire(call: tuple[str, str, str]) -> dict[str, Any]:
    return {"id": call[0], "type": "function", "function": {"name": call[1], "arguments": call[2]}}


CALLED = {"role": "assistant", "content": "", "tool_calls": [wire(("read_file:180", "read_file", "{}"))]}


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        (
            [*user("x"), CALLED, *user("y")],
            "an assistant message with 'tool_calls' must be followed by tool messages responding to each "
            "'tool_call_id'. The following tool_call_ids did not have response messages: read_file:180",
        ),
        ([*user("x"), CALLED, {"role": "tool", "content": "r"}], "tool_call_id  is not found"),
        (
            [*user("x"), CALLED, {"role": "tool", "tool_call_id": "other", "content": "r"}],
            "tool_call_id other is not found",
        ),
        ([*user("x"), {"role": "tool", "tool_call_id": "a:0", "content": "r"}], "tool_call_id a:0 is not found"),
    ],
)
def test_calls_and_results_that_do_not_pair_are_refused_in_the_words_of_the_service(
    server: Server, messages: Any, sentence: str
) -> None:
    reply = server.post(chat_body(messages=messages))
    assert reply.status == 400
    assert reply.json["error"] == {"message": f"Invalid request: {sentence}", "type": "invalid_request_error"}


def test_a_schema_that_is_no_moonshot_flavored_one_is_refused_with_its_path(server: Server) -> None:
    schema = {"type": "object", "properties": {"x": {"enum": [1]}, "y": {"$ref": "#/definitions/y"}}}
    reply = ask(server, "one", tools=[tool("f", schema)])
    assert reply.status == 400
    prefix = (
        "Invalid request: tools.function.parameters is not a valid moonshot flavored json schema, details: <At path"
    )
    assert reply.json["error"]["message"].startswith(prefix)


@pytest.mark.parametrize("schema", [{}, {"properties": {}}, {"type": "string"}, {"type": ["object", "null"]}])
def test_the_root_of_parameters_must_be_an_object(server: Server, schema: Any) -> None:
    reply = ask(server, "one", tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}])
    assert reply.json["error"]["message"] == (
        'Invalid request: tools.function.parameters.type is required and must be "object"'
    )


def test_soft_findings_are_a_warning_header_and_what_is_left_out_is_named(server: Server) -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {"city": {"type": "string", "format": "city"}},
    }
    reply = ask(server, "one", tools=[tool("get_weather", schema)])
    assert reply.status == 200
    warning = reply.header("msh-schema-warning")
    assert warning is not None
    assert warning.startswith(
        "tools.function[get_weather].parameters is not a valid moonshot flavored json schema, details: <At path"
    )
    assert reply.header("moonbase-adapted") == "tools.left_out=format"


def test_a_property_name_cannot_forge_a_header(server: Server) -> None:
    schema = {"type": "object", "properties": {"a\r\nX-Evil: 1\x00ü": {"type": "string", "oneOf": []}}}
    reply = ask(server, "text", tools=[tool("f", schema)])
    assert reply.status == 200
    assert reply.header("x-evil") is None


def test_a_tool_that_is_not_strict_takes_any_object(server: Server) -> None:
    assert ask(server, "invalid", tools=[tool("get_weather", strict=False)]).status == 200
    assert ask(server, "no json", tools=[tool("get_weather", strict=False)]).status == 500


@pytest.mark.parametrize("arguments", ['"text"', "[1]", "5", "null", "", "no json", '{"a":', '"\\ud800"', {"a": 1}])
@pytest.mark.parametrize("format", ["hermes", "kimi-k2-0905"])
def test_calls_of_before_may_have_any_arguments(servers: dict[str, Server], format: str, arguments: Any) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [
        *user("one"),
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "sunny"},
        *user("Thanks"),
    ]
    reply = servers[format].post(chat_body(messages=messages, tools=[WEATHER]))
    assert reply.json["choices"][0]["message"]["content"] == "Thanks"


@pytest.mark.parametrize("format", ["hermes", "kimi-k2-0905"])
def test_a_tool_that_is_nested_too_deeply_is_refused(servers: dict[str, Server], format: str) -> None:
    """At every depth: what reads the declaration again has more or less of the stack than what read the request."""
    statuses = set()
    for depth in range(900, 1000):
        nested = f'{{"x":{"[" * depth}{"]" * depth},{json.dumps(WEATHER)[1:]}'
        reply = servers[format].post(chat_body()[:-1] + f',"tools":[{nested}]}}'.encode())
        statuses.add(reply.status)
    assert statuses == {200, 400}


@pytest.fixture(scope="module")
def servers(start_module_server: StartServer) -> dict[str, Server]:
    """By format, repeating what they are told."""
    return {format: start_module_server("--set", f"engine.format={format}") for format in ("hermes", "kimi-k2-0905")}
