"""Bytes to requests: whatever comes, it is a request or a refusal."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import structs

from moonbase.chat.request import (
    ChatRequest,
    ImagePart,
    Message,
    ResponseFormat,
    Role,
    SamplingOptions,
    TextPart,
)
from moonbase.dialects.openai.decode import decode_chat, decode_estimate
from moonbase.errors import InvalidRequest, WrongType

GOOD = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}

texts = st.text(min_size=1, max_size=20)
parts = st.one_of(
    st.builds(TextPart, texts), st.builds(ImagePart, st.sampled_from(["data:image/png;base64,AA", "ms://abc"]))
)
roles = st.sampled_from(["system", "user", "assistant"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    [
        "model",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "n",
        "presence_penalty",
        "frequency_penalty",
        "stop",
        "stream",
        "stream_options",
        "response_format",
        "tools",
        "tool_choice",
        "seed",
        "logit_bias",
        "logprobs",
        "top_logprobs",
    ]
)


@st.composite
def messages(draw: st.DrawFn) -> tuple[Message, ...]:
    names = st.none() | texts
    found = [
        Message(role=draw(roles), content=tuple(draw(st.lists(parts, min_size=1, max_size=3))), name=draw(names))
        for _ in range(draw(st.integers(1, 4)))
    ]
    if draw(st.booleans()):
        role: Role = "assistant"
        found.append(Message(role=role, content=(TextPart(draw(texts)),), name=draw(names), partial=True))
    return tuple([structs.replace(message, position=place) for place, message in enumerate(found)])


requests = st.builds(
    ChatRequest,
    model=texts,
    messages=messages(),
    sampling=st.builds(
        SamplingOptions,
        temperature=st.none() | st.floats(-9, 9),
        top_p=st.none() | st.floats(-9, 9),
        n=st.none() | st.integers(-9, 9),
        presence_penalty=st.none() | st.floats(-9, 9),
        frequency_penalty=st.none() | st.floats(-9, 9),
    ),
    max_tokens=st.none() | st.integers(1, 2**31 - 1),
    stop=st.lists(st.text(min_size=1, max_size=8), max_size=5).map(tuple),
    response_format=st.sampled_from(
        [
            ResponseFormat(),
            ResponseFormat(kind="json_object"),
            ResponseFormat(kind="json_schema", schema='{"type":"object"}'),
            ResponseFormat(kind="json_schema", schema="{}", strict=False),
        ]
    ),
    stream=st.booleans(),
    include_usage=st.booleans(),
)


def wire(request: ChatRequest) -> dict[str, Any]:
    """A request as a client would write it."""

    def message(one: Message) -> dict[str, Any]:
        content = [
            {"type": "text", "text": part.text}
            if isinstance(part, TextPart)
            else {"type": "image_url", "image_url": {"url": part.url}}
            for part in one.content
        ]
        return {"role": one.role, "content": content, "name": one.name, "partial": one.partial}

    wanted = request.response_format
    given_format: dict[str, Any] = {"type": wanted.kind}
    if wanted.schema is not None:
        schema = json.loads(wanted.schema)
        given_format["json_schema"] = {"name": "x", "schema": schema, "strict": wanted.strict}
    return {
        "model": request.model,
        "messages": [message(one) for one in request.messages],
        **{name: getattr(request.sampling, name) for name in request.sampling.__struct_fields__},
        "max_tokens": request.max_tokens,
        "stop": list(request.stop),
        "response_format": given_format,
        "stream": request.stream,
        "stream_options": {"include_usage": request.include_usage},
    }


@given(st.binary())
@example(b"")
@example(b"[" * 10_000)
@example(b'{"a":' * 10_000)
@example(b'"\\ud800')
@example(b"\xff")
def test_any_bytes_are_a_request_or_a_refusal(body: bytes) -> None:
    for decode in (decode_chat, decode_estimate):
        with suppress(InvalidRequest):
            decode(body)


@given(st.dictionaries(fields, anything, max_size=5), st.booleans())
def test_any_json_is_a_request_or_a_refusal(given_fields: dict[str, Any], on_top: bool) -> None:
    body = json.dumps(GOOD | given_fields if on_top else given_fields).encode()
    with suppress(InvalidRequest):
        assert isinstance(decode_chat(body), ChatRequest)


@given(anything)
def test_any_message_is_a_message_or_a_refusal(content: Any) -> None:
    for message in (content, {"role": "user", "content": content}, {"role": "user", "content": [content]}):
        with suppress(InvalidRequest):
            decode_chat(json.dumps({"model": "m", "messages": [message]}).encode())


@given(requests)
def test_a_written_request_is_read_back_as_it_was(request: ChatRequest) -> None:
    assert decode_chat(json.dumps(wire(request)).encode()) == request


@given(st.text(st.characters(), min_size=1), st.booleans())
@example("\ud83d", True)
@example("\ude00\ud83d\ud83d\ude00\\ud83d", True)
def test_escaped_text_is_read_as_browsers_read_it(text: str, escaped: bool) -> None:
    """Pairs are one character, halves U+FFFD. Python's reader and UTF-16 decide what is what."""
    body = json.dumps(GOOD | {"messages": [{"role": "user", "content": text}]}, ensure_ascii=escaped)
    if not escaped:
        body = body.encode(errors="ignore").decode()  # lone halves exist in escapes only
        text = text.encode(errors="ignore").decode()
        if not text:
            return
    expected = json.loads(json.dumps(text)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert decode_chat(body.encode()).messages[0].text == expected


def test_null_is_absent_everywhere() -> None:
    nothing = dict.fromkeys(["max_tokens", "temperature", "n", "stop", "stream", "stream_options", "tools", "logprobs"])
    assert decode_chat(json.dumps(GOOD | nothing).encode()) == decode_chat(json.dumps(GOOD).encode())


def test_the_newer_limit_wins() -> None:
    body = json.dumps(GOOD | {"max_tokens": 1, "max_completion_tokens": 2}).encode()
    assert decode_chat(body).max_tokens == 2


def test_a_wrong_type_carries_its_path() -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]})
    with pytest.raises(WrongType) as refusal:
        decode_chat(body.encode())
    assert refusal.value.path == "messages.0.content.0.text"


def out_of_range(key: str, text: str = "") -> str:
    """What is said of a body with a number out of range under this key in a tool, and a message with this text."""
    message = json.dumps({"role": "user", "content": text})
    body = f'{{"model":"m","messages":[{message}],"tools":[{{{json.dumps(key)}:1e309}}]}}'
    with pytest.raises(InvalidRequest) as refusal:
        decode_chat(body.encode())
    return str(refusal.value)


def test_the_key_of_a_number_out_of_range_is_looked_for_in_no_large_body() -> None:
    said = "Invalid request: the `{}` field in the request is illegal: Number out of range"
    assert out_of_range("a", "x" * 250_000) == said.format("tools.0.a")
    assert out_of_range("a", "x" * 262_144) == said.format("tools.0.*")


def test_a_long_path_is_cut() -> None:
    said = "Invalid request: the `{}…` field in the request is illegal: Number out of range"
    assert out_of_range("k" * 250_000) == said.format("tools.0." + "k" * 192)


def test_the_path_of_a_deep_number_is_cut() -> None:
    body = f'{{"model":"m","messages":[{{"tools":{"[" * 400}1e309{"]" * 400}}}]}}'
    with pytest.raises(InvalidRequest) as refusal:
        decode_chat(body.encode())
    assert "`messages.0.tools.0.0." in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_an_estimate_needs_only_model_and_messages() -> None:
    found = decode_estimate(json.dumps(GOOD | {"temperature": "ignored here"}).encode())
    assert found.model == "m"
    assert [message.text for message in found.messages] == ["Hi"]
