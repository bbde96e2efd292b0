"""Requests as other servers get them, and as our own decoder reads them again."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inline_snapshot import snapshot
from msgspec import structs

from moonbase.chat.request import (
    ChatRequest,
    ImagePart,
    Message,
    ResponseFormat,
    SamplingOptions,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
)
from moonbase.dialects.openai.client.request import Upstream, encode_chat, encode_wording
from moonbase.dialects.openai.decode import decode_chat

TOOL_JSON = '{"type":"function","function":{"name":"get","description":"世界","parameters":{"type":"object"}}}'
TOOL = Tool(name="get", declaration=TOOL_JSON, parameters='{"type":"object"}')
USER = Message(role="user", content=(TextPart("Hi"),))
TEXT = st.text(min_size=1, max_size=10)


def sent(
    request: ChatRequest,
    upstream: Upstream = "openai",
    *,
    sampling: SamplingOptions | None = None,
    max_tokens: int | None = 100,
    thinking: Thinking | None = None,
) -> bytes:
    return encode_chat(
        request,
        encode_wording(request),
        upstream=upstream,
        model="there",
        sampling=sampling or request.sampling,
        max_tokens=max_tokens,
        thinking=thinking,
        stream=request.stream,
    )


def fields(request: ChatRequest, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sent(request, **options))
    return found


def asking(*messages: Message, **more: Any) -> ChatRequest:
    return ChatRequest(model="here", messages=messages or (USER,), **more)


def test_a_plain_request_says_no_more_than_it_must() -> None:
    assert fields(asking(), sampling=SamplingOptions(temperature=0.6, top_p=1, n=1, presence_penalty=0)) == snapshot(
        {
            "model": "there",
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": False,
            "max_tokens": 100,
            "temperature": 0.6,
            "top_p": 1,
        }
    )


def test_a_stream_is_asked_for_with_its_usage() -> None:
    body = fields(asking(stream=True))
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})


def test_a_tool_loop_is_passed_on_as_the_client_sent_it() -> None:
    request = asking(
        USER,
        Message(role="assistant", reasoning="hm", tool_calls=(ToolCall("call_1", "get", '{"x": 1}'),)),
        Message(role="tool", tool_call_id="call_1", name="get"),
        tools=(TOOL,),
        tool_choice=ToolChoice("function", "get"),
        parallel_tool_calls=False,
    )
    body = fields(request)
    assert TOOL_JSON.encode() in sent(request)
    assert body["tool_choice"] == {"function": {"name": "get"}, "type": "function"}
    assert body["parallel_tool_calls"] is False
    assert body["messages"] == snapshot(
        [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "reasoning_content": "hm",
                "tool_calls": [
                    {"id": "call_1", "function": {"name": "get", "arguments": '{"x": 1}'}, "type": "function"}
                ],
            },
            {"role": "tool", "content": "", "name": "get", "tool_call_id": "call_1"},
        ]
    )


def test_images_are_parts_and_text_alone_is_a_string() -> None:
    parts = (TextPart("a"), ImagePart("data:image/png;base64,AAAA"), TextPart("b"))
    messages = fields(asking(Message(role="user", content=parts), Message(role="user", content=parts[::2])))["messages"]
    assert messages[0]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "text", "text": "b"},
    ]
    assert messages[1]["content"] == "ab"


def test_the_size_of_a_wording_leaves_images_out() -> None:
    image = "data:image/png;base64," + "A" * 10_000
    with_image = encode_wording(asking(Message(role="user", content=(TextPart("a"), ImagePart(image)))))
    assert (with_image.images, with_image.text_bytes < 200) == (1, True)
    with_tool = encode_wording(asking(tools=(TOOL,)))
    assert with_tool.text_bytes == encode_wording(asking()).text_bytes + len(TOOL_JSON.encode()) + 2


@pytest.mark.parametrize(
    ("upstream", "thinking", "expected"),
    [
        ("moonshot", None, {}),
        ("moonshot", Thinking(enabled=False), {"thinking": {"type": "disabled"}}),
        ("moonshot", Thinking(keep=True), {"thinking": {"type": "enabled", "keep": "all"}}),
        ("openai", None, {}),
        (
            "openai",
            Thinking(enabled=False),
            {
                "thinking": {"type": "disabled"},
                "chat_template_kwargs": {"thinking": False, "enable_thinking": False},
            },
        ),
    ],
)
def test_thinking_is_told_in_the_upstreams_way(
    upstream: Upstream, thinking: Thinking | None, expected: dict[str, Any]
) -> None:
    body = fields(asking(), upstream=upstream, thinking=thinking)
    assert {key: body[key] for key in ("thinking", "chat_template_kwargs") if key in body} == expected


def test_a_message_to_go_on_with_is_named_as_servers_of_open_models_want_it() -> None:
    request = asking(USER, Message(role="assistant", content=(TextPart("{"),), partial=True))
    ours, theirs = fields(request, upstream="moonshot"), fields(request, upstream="openai")
    assert ours["messages"][1] == {"role": "assistant", "content": "{", "partial": True}
    assert "continue_final_message" not in ours
    assert (theirs["continue_final_message"], theirs["add_generation_prompt"]) == (True, False)


def test_what_is_left_to_the_upstream_is_not_sent() -> None:
    body = fields(asking(tool_choice=ToolChoice("none"), parallel_tool_calls=False), max_tokens=None)
    assert not body.keys() & {"max_tokens", "temperature", "n", "tools", "tool_choice", "parallel_tool_calls", "stop"}


def test_a_limit_goes_by_the_name_that_the_upstream_knows() -> None:
    request = asking()
    options: dict[str, Any] = {"sampling": SamplingOptions(), "max_tokens": 7, "thinking": None, "stream": False}
    body = json.loads(
        encode_chat(
            request,
            encode_wording(request),
            upstream="openai",
            model="m",
            limit_name="max_completion_tokens",
            **options,
        )
    )
    assert (body.get("max_tokens"), body["max_completion_tokens"]) == (None, 7)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    """Turns, some of which call tools, each call answered."""
    messages: list[Message] = []
    for turn in range(draw(st.integers(1, 3))):
        messages.append(Message(role=draw(st.sampled_from(["system", "user"])), content=(TextPart(draw(TEXT)),)))
        if draw(st.booleans()):
            ids = [f"{draw(TEXT)}:{turn}:{number}" for number in range(draw(st.integers(1, 2)))]
            calls = tuple([ToolCall(id, "get", draw(TEXT)) for id in ids])
            text = draw(st.sampled_from([(), (TextPart("so"),)]))
            reasoning = draw(st.none() | TEXT | st.just(""))
            messages.append(Message(role="assistant", content=text, reasoning=reasoning, tool_calls=calls))
            results = [Message(role="tool", content=(TextPart(draw(TEXT)),), tool_call_id=id) for id in ids]
            messages += results
    return tuple([structs.replace(message, position=place) for place, message in enumerate(messages)])


@given(
    conversations(),
    st.booleans(),
    st.sampled_from(
        [
            ResponseFormat(),
            ResponseFormat(kind="json_object"),
            ResponseFormat(kind="json_schema", schema='{"type":"object"}', strict=False),
        ]
    ),
    st.sampled_from([SamplingOptions(), SamplingOptions(temperature=0.5, top_p=0.9, n=3, presence_penalty=-1)]),
    st.lists(TEXT, max_size=2),
    st.sampled_from(["openai", "moonshot"]),
    st.sampled_from([None, Thinking(), Thinking(enabled=False, keep=True)]),
)
def test_our_own_decoder_reads_the_same_request(
    messages: tuple[Message, ...],
    with_tools: bool,
    response_format: ResponseFormat,
    sampling: SamplingOptions,
    stop: list[str],
    upstream: Upstream,
    thinking: Thinking | None,
) -> None:
    request = ChatRequest(
        model="there",
        messages=messages,
        sampling=sampling,
        max_tokens=7,
        stop=tuple([text for text in stop if len(text.encode()) <= 32]),
        response_format=response_format,
        tools=(TOOL,) if with_tools else (),
        tool_choice=ToolChoice("required") if with_tools else ToolChoice(),
        parallel_tool_calls=not with_tools,
        thinking=thinking,
        stream=True,
        include_usage=True,
    )
    assert decode_chat(sent(request, upstream, max_tokens=7, thinking=thinking)) == request
