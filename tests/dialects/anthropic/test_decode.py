"""Bytes of the Messages API to requests (moonshot-api.md 8.1)."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonbase.chat.request import (
    ChatRequest,
    ImagePart,
    Message,
    ResponseFormat,
    TextPart,
    Thinking,
    ToolCall,
    ToolChoice,
)
from moonbase.dialects.anthropic.decode import decode_count, decode_messages
from moonbase.dialects.openai.decode import decode_chat
from moonbase.errors import InvalidRequest

HI = {"role": "user", "content": "Hi"}
GOOD: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [HI]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "get", "description": "Gets.", "input_schema": SCHEMA}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


def decoded(**fields: Any) -> ChatRequest:
    return decode_messages(json.dumps(GOOD | fields).encode())


def refusal(**fields: Any) -> str:
    with pytest.raises(InvalidRequest) as refused:
        decoded(**fields)
    return str(refused.value).removeprefix("Invalid request: ")


def turns(*messages: Any) -> tuple[Message, ...]:
    return decoded(messages=messages).messages


def test_the_least_request() -> None:
    request = decoded()
    assert request.messages == (Message(role="user", content=(TextPart("Hi"),)),)
    assert (request.model, request.max_tokens, request.stream) == ("m", 9, False)
    assert request.messages_api
    assert request.thinking is None


def test_every_field_that_counts() -> None:
    request = decoded(
        model="kimi-k2-0905-preview[1m]",
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        stop_sequences=["a", ""],
        stream=True,
        thinking={"type": "enabled", "budget_tokens": 1024},
        tools=[TOOL, {**TOOL, "name": "_put", "type": "custom", "cache_control": {"type": "ephemeral"}}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        output_config={"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        metadata={"user_id": "u"},
        unknown=[1],
    )
    assert request.model == "kimi-k2-0905-preview"
    assert (request.sampling.temperature, request.sampling.top_p) == (0.5, 0.9)
    assert request.stop == ("a",)
    assert request.stream
    assert request.thinking == Thinking(enabled=True)
    assert [tool.name for tool in request.tools] == ["get", "_put"]
    assert (request.tool_choice, request.parallel_tool_calls) == (ToolChoice("required"), False)
    assert request.response_format == ResponseFormat(
        kind="json_schema", schema='{"type":"object"}', field="output_config.format.schema"
    )


def test_a_tool_is_shown_to_the_model_as_the_other_dialect_shows_it() -> None:
    function = {"name": "get", "description": "Gets.", "parameters": SCHEMA}
    other = {"model": "m", "messages": [HI], "tools": [{"type": "function", "function": function}]}
    (here,), (there,) = decoded(tools=[TOOL]).tools, decode_chat(json.dumps(other).encode()).tools
    assert (here.declaration, here.parameters) == (there.declaration, there.parameters)


@pytest.mark.parametrize(
    ("system", "parts"),
    [
        ("Be.", ("Be.",)),
        ([{"type": "text", "text": "Be."}, {"type": "text", "text": "So.", "cache_control": {}}], ("Be.", "So.")),
    ],
)
def test_a_system_prompt_goes_first(system: Any, parts: tuple[str, ...]) -> None:
    first, second = decoded(system=system).messages
    assert (first.role, first.content) == ("system", tuple(map(TextPart, parts)))
    assert second.role == "user"
    for nothing in (None, "", []):
        assert len(decoded(system=nothing).messages) == 1


def test_a_tool_loop_becomes_messages_of_their_own() -> None:
    use = {"type": "tool_use", "id": "get:0", "name": "get", "input": {"city": "世界"}}
    results = [
        {"type": "tool_result", "tool_use_id": "get:0", "content": [{"type": "text", "text": "22"}, IMAGE]},
        {"type": "tool_result", "tool_use_id": "get:1", "is_error": True, "content": "no"},
        {"type": "tool_result", "tool_use_id": "get:2"},
    ]
    thought = [{"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "redacted_thinking", "data": "x"}]
    answer = [*thought, {"type": "text", "text": "So."}, use]
    asked = {"role": "user", "content": [{"type": "text", "text": "And"}, *results, {"type": "text", "text": " now?"}]}

    assert turns(HI, {"role": "assistant", "content": answer}, asked) == (
        Message(role="user", content=(TextPart("Hi"),)),
        Message(
            role="assistant",
            content=(TextPart("So."),),
            reasoning="Hm.",
            tool_calls=(ToolCall("get:0", "get", '{"city": "世界"}'),),
            position=1,
        ),
        Message(
            role="tool",
            tool_call_id="get:0",
            content=(TextPart("22"), ImagePart("data:image/png;base64,AAAA")),
            position=2,
        ),
        Message(role="tool", tool_call_id="get:1", content=(TextPart("no"),), position=2),
        Message(role="tool", tool_call_id="get:2", position=2),
        Message(role="user", content=(TextPart("And"), TextPart(" now?")), position=2),
    )


@pytest.mark.parametrize(
    "content", [[], [{"type": "text", "text": ""}], [{"type": "thinking", "thinking": "Hm.", "signature": "s"}]]
)
def test_an_answer_that_said_nothing_may_come_back(content: Any) -> None:
    assert [message.role for message in turns(HI, {"role": "assistant", "content": content}, HI)] == ["user", "user"]


def test_what_is_redacted_is_thinking_all_the_same() -> None:
    use = {"type": "tool_use", "id": "get:0", "name": "get", "input": {}}
    blocks = [{"type": "redacted_thinking", "data": "x"}, use]
    assert turns(HI, {"role": "assistant", "content": blocks})[1].reasoning == ""


def test_a_tool_that_is_not_strict_takes_any_object() -> None:
    assert [tool.strict for tool in decoded(tools=[TOOL, {**TOOL, "name": "b", "strict": False}]).tools] == [
        True,
        False,
    ]


def test_a_last_answer_is_to_be_continued() -> None:
    begun = {"role": "assistant", "content": "One, two"}
    assert [message.partial for message in turns(HI, begun)] == [False, True]
    assert [message.partial for message in turns(HI, begun, HI)] == [False, False, False]
    use = {"type": "tool_use", "id": "get:0", "name": "get", "input": {}}
    assert [message.partial for message in turns(HI, {"role": "assistant", "content": [use]})] == [False, False]


def test_instructions_may_come_between_turns() -> None:
    assert turns(HI, {"role": "system", "content": "Be brief."})[1] == Message(
        role="system", content=(TextPart("Be brief."),), position=1
    )


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ToolChoice()),
        ({"type": "auto"}, ToolChoice()),
        ({"type": "none"}, ToolChoice("none")),
        ({"type": "any"}, ToolChoice("required")),
        ({"type": "tool", "name": "get"}, ToolChoice("function", "get")),
    ],
)
def test_tool_choices(choice: Any, expected: ToolChoice) -> None:
    request = decoded(tools=[TOOL], tool_choice=choice)
    assert (request.tool_choice, request.parallel_tool_calls) == (expected, True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "enabled", "budget_tokens": 9}, Thinking()),
        ({"type": "adaptive"}, Thinking()),
        ({"type": "disabled"}, Thinking(enabled=False)),
    ],
)
def test_switches_of_thinking(given: Any, expected: Thinking) -> None:
    assert decoded(thinking=given).thinking == expected


def test_a_count_needs_no_limit() -> None:
    body = {name: value for name, value in GOOD.items() if name != "max_tokens"}
    request = decode_count(json.dumps(body | {"system": "Be.", "tools": [TOOL]}).encode())
    assert [message.role for message in request.messages] == ["system", "user"]
    assert [tool.name for tool in request.tools] == ["get"]


def block(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


NAME = (
    "`tools.0.name` is invalid, must start with a letter or an underscore and can contain letters, numbers, "
    "underscores, and dashes, up to 128"
)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": None}, "model must not be empty"),
    "no messages": ({"messages": []}, "messages must not be empty"),
    "no limit": ({"max_tokens": None}, "max_tokens is required"),
    "a limit of nothing": ({"max_tokens": 0}, "invalid max_tokens: must be at least 1"),
    "unknown role": (
        {"messages": [HI, {"role": "tool", "content": "x"}]},
        "the message at position 1 has an unknown role: tool",
    ),
    "no role": ({"messages": [{"content": "x"}]}, "the message at position 0 has an unknown role: "),
    "no content": ({"messages": [{"role": "user"}]}, "the message at position 0 with role 'user' must not be empty"),
    "no blocks": (block(role="assistant"), "the message at position 0 with role 'assistant' must not be empty"),
    "thinking only": (
        block({"type": "thinking", "thinking": "Hm."}, role="assistant"),
        "the message at position 0 with role 'assistant' must not be empty",
    ),
    "empty text": (block({"type": "text", "text": ""}), "`messages.0.content.0`: text content is empty"),
    "unknown block": (
        block({"type": "document"}),
        "the message at position 0 has an unsupported content type: document",
    ),
    "block without type": (block({"text": "x"}), "the message at position 0 has an unsupported content type: "),
    "a call of the user": (
        block({"type": "tool_use", "id": "a", "name": "b"}),
        "the message at position 0 has an unsupported content type: tool_use",
    ),
    "a result of the assistant": (
        block({"type": "tool_result"}, role="assistant"),
        "the message at position 0 has an unsupported content type: tool_result",
    ),
    "a call without id": (
        block({"type": "tool_use", "name": "b"}, role="assistant"),
        "`messages.0.content.0.id` is required",
    ),
    "a call without name": (
        block({"type": "tool_use", "id": "b"}, role="assistant"),
        "`messages.0.content.0.name` is required",
    ),
    "an image elsewhere": (
        block({"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}}),
        "unsupported image url: it must be base64 content or ms://<file_id>",
    ),
    "an image of another kind": (
        block({"type": "image", "source": {"type": "base64", "media_type": "image/tiff", "data": "A"}}),
        "`messages.0.content.0.source.media_type` must be one of image/jpeg, image/png, image/gif, image/webp",
    ),
    "an image without data": (
        block({"type": "image", "source": {"type": "base64", "media_type": "image/png"}}),
        "`messages.0.content.0.source.data` must not be empty",
    ),
    "an image without source": (
        block({"type": "image"}),
        "`messages.0.content.0.source.type` must be base64 or url",
    ),
    "a system prompt with an image": ({"system": [IMAGE]}, "`system.0` has an unsupported content type: image"),
    "an empty system block": (
        {"system": [{"type": "text", "text": ""}]},
        "`system.0`: text content is empty",
    ),
    "a tool of the vendor": (
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        "`tools.0`: unknown tool type: web_search_20250305, currently only custom is supported",
    ),
    "a bad name": ({"tools": [{**TOOL, "name": "1a"}]}, NAME),
    "no name": ({"tools": [{"input_schema": {}}]}, NAME),
    "a long name": ({"tools": [{**TOOL, "name": "a" * 129}]}, NAME),
    "a name twice": ({"tools": [TOOL, TOOL]}, "function name get is duplicated"),
    "no schema": ({"tools": [{"name": "get"}]}, "`tools.0.input_schema` is required"),
    "too many tools": (
        {"tools": [{**TOOL, "name": f"t{number}"} for number in range(129)]},
        "tools array too long. Expected an array with maximum length 128, but got 129",
    ),
    "a choice without tools": ({"tool_choice": {"type": "any"}}, "tool_choice 'any' needs tools to choose from"),
    "a choice of an undeclared tool": (
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "put"}},
        "tool_choice.name: there is no tool put in tools",
    ),
    "a choice of no tool": ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name is required"),
    "an unknown choice": ({"tool_choice": {"type": "some"}}, "unknown tool_choice.type: some"),
    "unknown thinking": ({"thinking": {"type": "deep"}}, "unknown thinking.type: deep"),
    "too many stops": (
        {"stop_sequences": ["a"] * 6},
        "stop array too long. Expected an array with maximum length 5, but got 6",
    ),
    "a long stop": (
        {"stop_sequences": ["a" * 33]},
        "stop string too long. Expected a string with maximum length 32, but got 33",
    ),
    "an unknown format": (
        {"output_config": {"format": {"type": "xml"}}},
        "unknown output_config.format.type: xml",
    ),
    "a format without schema": (
        {"output_config": {"format": {"type": "json_schema"}}},
        "output_config.format.schema is required",
    ),
    "a model of a suffix alone": ({"model": "[1m]"}, "model must not be empty"),
    "a result of a search": (
        block({"type": "search_result", "source": "https://a.example", "content": []}),
        "the message at position 0 has an unsupported content type: search_result",
    ),
    "a wrong source": (
        block({"type": "image", "source": {"type": 5}}),
        "the `messages.0.content.0.source.type` field in the request (expected type string) is illegal, and number is "
        "not acceptable",
    ),
    "a wrong type": (
        {"max_tokens": "x"},
        "the `max_tokens` field in the request (expected type int) is illegal, and string is not acceptable",
    ),
    "a wrong type deep inside": (
        block({"type": "text", "text": 5}),
        "the `messages.0.content.0.text` field in the request (expected type string) is illegal, and number is not "
        "acceptable",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_request_is_refused_in_these_words(case: str) -> None:
    fields, sentence = REFUSED[case]
    assert refusal(**fields) == sentence


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
_FIELDS = st.sampled_from(["messages", "system", "tools", "tool_choice", "thinking", "stop_sequences", "output_config"])


@given(st.dictionaries(_FIELDS, _ANYTHING, max_size=4), _ANYTHING)
def test_any_json_is_a_request_or_a_refusal(fields: dict[str, Any], content: Any) -> None:
    for given_fields in (fields, {"messages": [{"role": "user", "content": [content]}]}):
        with suppress(InvalidRequest):
            assert isinstance(decoded(**given_fields), ChatRequest)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_request_or_a_refusal(body: bytes) -> None:
    for decode in (decode_messages, decode_count):
        with suppress(InvalidRequest):
            decode(body)
