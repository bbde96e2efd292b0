"""Tools, the choice among them, calls and results of the history: as requests have them."""

import json
from typing import Any

import pytest

from moonbase.chat.request import Message, TextPart, Thinking, ToolCall, ToolChoice
from moonbase.dialects.openai.decode import decode_chat
from moonbase.errors import InvalidRequest, WrongType

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str | None = "get_weather", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": PARAMETERS} | fields}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi"}]} | fields).encode()


def refusal(**fields: Any) -> str:
    with pytest.raises(InvalidRequest) as refused:
        decode_chat(body(**fields))
    return str(refused.value).removeprefix("Invalid request: ")


def test_a_tool_keeps_its_declaration_as_the_client_sent_it_and_its_schema() -> None:
    sent = tool(description="Wetter für dich", extra=[1.5, None])
    (decoded,) = decode_chat(body(tools=[sent])).tools
    assert (decoded.name, decoded.strict) == ("get_weather", True)
    assert json.loads(decoded.declaration) == sent
    assert list(json.loads(decoded.declaration)["function"]) == list(sent["function"])
    assert json.loads(decoded.parameters) == PARAMETERS


@pytest.mark.parametrize(("strict", "expected"), [(True, True), (False, False), (None, True)])
def test_strict_is_the_default(strict: bool | None, expected: bool) -> None:
    assert decode_chat(body(tools=[tool(strict=strict)])).tools[0].strict is expected


def test_a_tool_without_parameters_has_an_empty_schema() -> None:
    assert decode_chat(body(tools=[tool(parameters=None)])).tools[0].parameters == "{}"


BAD_NAME = (
    "function name is invalid, must start with a letter and can contain letters, numbers, underscores, and dashes"
)


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        (
            [{"type": "plugin", "function": {"name": "x"}}],
            "unknown tool type: plugin, currently only function and plugin are supported",
        ),
        (
            [{"function": {"name": "x"}}],
            "unknown tool type: , currently only function and plugin are supported",
        ),
        (
            [{"type": "builtin_function", "function": {"name": "$web_search"}}],
            "tools.0: the builtin_function $web_search is not available on this server",
        ),
        ([tool(), {"type": "function"}], "tools.1.function is required"),
        ([tool(), tool("a"), tool()], "function name get_weather is duplicated"),
        *[([tool(name)], BAD_NAME) for name in (None, "", "_x", "1x", "a b", "a.b", "ü", "$x", "a" * 257, "x\n")],
        (
            [tool(f"f{number}") for number in range(129)],
            "tools array too long. Expected an array with maximum length 128, but got 129",
        ),
    ],
)
def test_what_is_wrong_with_tools_is_named(tools: Any, expected: str) -> None:
    assert refusal(tools=tools) == expected


@pytest.mark.parametrize("name", ["a", "A9", "mcp__fs-read_file", "a" * 256])
def test_good_names(name: str) -> None:
    assert decode_chat(body(tools=[tool(name)])).tools[0].name == name


def test_128_tools_are_enough_for_anybody() -> None:
    assert len(decode_chat(body(tools=[tool(f"f{number}") for number in range(128)])).tools) == 128


@pytest.mark.parametrize(
    ("tools", "path"),
    [
        ([5], "tools.0"),
        ([tool(), {"type": "function", "function": []}], "tools.1.function"),
        ([{"type": "function", "function": {"name": "x", "parameters": "{}"}}], "tools.0.function.parameters"),
        ([{"type": "function", "function": {"name": 5}}], "tools.0.function.name"),
        ([{"type": 7}], "tools.0.type"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_path(tools: Any, path: str) -> None:
    with pytest.raises(WrongType) as refused:
        decode_chat(body(tools=tools))
    assert refused.value.path == path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ToolChoice()),
        ("auto", ToolChoice()),
        ("none", ToolChoice("none")),
        ("required", ToolChoice("required")),
        ({"type": "function", "function": {"name": "get_weather"}}, ToolChoice("function", "get_weather")),
    ],
)
def test_tool_choices(given: Any, expected: ToolChoice) -> None:
    assert decode_chat(body(tools=[tool()], tool_choice=given)).tool_choice == expected


@pytest.mark.parametrize(
    ("given", "tools", "expected"),
    [
        ("required", None, "tool_choice 'required' needs tools to choose from"),
        ("required", [], "tool_choice 'required' needs tools to choose from"),
        ("maybe", [tool()], "unknown tool_choice: maybe"),
        ("", [tool()], "unknown tool_choice: "),
        ({"type": "tool"}, [tool()], "unknown tool_choice.type: tool"),
        ({}, [tool()], "unknown tool_choice.type: "),
        ({"type": "function"}, [tool()], "tool_choice.function.name is required"),
        (
            {"type": "function", "function": {"name": "x"}},
            [tool()],
            "tool_choice.function.name: there is no function x in tools",
        ),
    ],
)
def test_choices_that_cannot_be_met_are_refused(given: Any, tools: Any, expected: str) -> None:
    assert refusal(tool_choice=given, tools=tools) == expected


CALL = {"id": "get_weather:0", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "X"}'}}


def test_calls_and_results_of_the_history() -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "get_weather:0", "name": "get_weather", "content": ""},
    ]
    decoded = decode_chat(body(messages=messages)).messages
    assert decoded[1:] == (
        Message(
            role="assistant",
            reasoning="Hm.",
            tool_calls=(ToolCall("get_weather:0", "get_weather", '{"city": "X"}'),),
            position=1,
        ),
        Message(role="tool", tool_call_id="get_weather:0", name="get_weather", position=2),
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("{}", "{}"),
        ('{"a":"ü"}', '{"a":"ü"}'),
        ({"a": "ü", "b": 1}, '{"a": "ü", "b": 1}'),
        ({}, "{}"),
        (None, ""),
        ("", ""),
    ],
)
def test_arguments_stay_as_they_are_and_objects_become_text(arguments: Any, expected: str) -> None:
    call = {"id": "x", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    assert decode_chat(body(messages=messages)).messages[0].tool_calls[0].arguments == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            {"role": "assistant", "tool_calls": [CALL, {"function": {"name": "f"}}]},
            "the message at position 0 has no `tool_calls.1.id`",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {}}]},
            "the message at position 0 has no `tool_calls.0.function.name`",
        ),
        (
            {"role": "user", "content": "x", "tool_calls": [CALL]},
            "the message at position 0 has tool_calls, but role 'user'",
        ),
        ({"role": "function", "content": "x"}, "the message at position 0 has an unknown role: function"),
    ],
)
def test_what_is_wrong_with_calls_of_the_history_is_named(message: Any, expected: str) -> None:
    assert refusal(messages=[message]) == expected


def test_reasoning_that_is_null_counts_as_missing_and_that_is_empty_does_not() -> None:
    for given, expected in ((None, None), ("", ""), (" ", " ")):
        messages = [{"role": "assistant", "content": "x", "reasoning_content": given}]
        assert decode_chat(body(messages=messages)).messages[0].reasoning == expected
    messages = [{"role": "user", "content": "x", "reasoning_content": "not mine"}]
    assert decode_chat(body(messages=messages)).messages[0] == Message(role="user", content=(TextPart("x"),))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"thinking": None}, None),
        ({"thinking": {"type": "enabled"}}, Thinking()),
        ({"thinking": {"type": "disabled"}}, Thinking(enabled=False)),
        ({"thinking": {"type": "enabled", "keep": "all", "budget_tokens": 5}}, Thinking(keep=True)),
        ({"thinking": {"type": "enabled", "keep": None}}, Thinking()),
        ({"chat_template_kwargs": {"thinking": False}}, Thinking(enabled=False)),
        ({"chat_template_kwargs": {"enable_thinking": False}}, Thinking(enabled=False)),
        ({"chat_template_kwargs": {"thinking": True, "enable_thinking": False}}, Thinking()),
        ({"chat_template_kwargs": {"preserve_thinking": True}}, Thinking(keep=True)),
        ({"chat_template_kwargs": {"add_generation_prompt": True}}, None),
        ({"thinking": {"type": "enabled"}, "chat_template_kwargs": {"thinking": False}}, Thinking()),
    ],
)
def test_every_spelling_of_the_switch_for_thinking(fields: dict[str, Any], expected: Thinking | None) -> None:
    assert decode_chat(body(**fields)).thinking == expected


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        ({}, "unknown thinking.type: "),
        ({"type": "maybe"}, "unknown thinking.type: maybe"),
        ({"type": "enabled", "keep": "some"}, "unknown thinking.keep: some"),
    ],
)
def test_a_switch_for_thinking_that_means_nothing_is_refused(thinking: Any, expected: str) -> None:
    assert refusal(thinking=thinking) == expected


def test_parallel_calls_are_allowed_unless_refused() -> None:
    assert [decode_chat(body(parallel_tool_calls=given)).parallel_tool_calls for given in (None, True, False)] == [
        True,
        True,
        False,
    ]
