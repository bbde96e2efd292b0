"""Events to bytes, and back by the reading of a strict client."""

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.openai.head import ID, MODEL, NOW, head

from moonbase.chat.events import (
    ArgumentsDelta,
    ChatEvent,
    Finished,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    ToolCallStarted,
    Usage,
)
from moonbase.dialects.errors import encode_error, encode_unknown_path
from moonbase.dialects.openai.encode import (
    ChunkEncoder,
    encode_completion,
    fingerprint,
)
from moonbase.errors import ApiError, InvalidRequest, ModelNotFound


@st.composite
def answers(draw: st.DrawFn) -> list[ChatEvent]:
    """All events of an answer of one to three choices, interleaved somehow, each choice in order."""
    prompt, cached = draw(st.integers(1, 10**6)), draw(st.integers(0, 100))
    queues: list[list[ChatEvent]] = []
    for choice in range(draw(st.integers(1, 3))):
        pieces = st.lists(st.text(min_size=1, max_size=6), max_size=4)
        events: list[ChatEvent] = [ReasoningDelta(choice, text) for text in draw(pieces)]
        events += [TextDelta(choice, text) for text in draw(pieces)]
        calls = draw(st.lists(st.tuples(st.text(max_size=6), pieces), max_size=2))
        for index, (name, arguments) in enumerate(calls):
            events.append(ToolCallStarted(choice, index, f"{name}:{index + 3}", name))
            events += [ArgumentsDelta(choice, index, text) for text in arguments]
        reasons: list[FinishReason] = ["tool_calls", "length"] if calls else ["stop", "length"]
        usage = Usage(prompt, draw(st.integers(0, 10**6)), cached, draw(st.integers(0, 100)))
        queues.append([*events, Finished(choice, draw(st.sampled_from(reasons)), usage)])
    mixed: list[ChatEvent] = []
    while queues:
        queue = draw(st.sampled_from(queues))
        mixed.append(queue.pop(0))
        queues = [queue for queue in queues if queue]
    return mixed


def read_sse(data: bytes) -> list[Any]:
    """A small strict reader of server-sent events: `data:` lines that are JSON, then `[DONE]`."""
    *frames, done, rest = data.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    for frame in frames:
        assert frame.startswith(b"data: {")
        assert b"\n" not in frame
    return [json.loads(frame[6:].decode("utf-8")) for frame in frames]


def usage_of(wire: dict[str, Any]) -> Usage:
    thought = wire.get("completion_tokens_details", {}).get("reasoning_tokens", 0)
    assert "completion_tokens_details" not in wire or thought != 0, "omitted when 0"
    usage = Usage(wire["prompt_tokens"], wire["completion_tokens"], wire.get("cached_tokens", 0), thought)
    assert wire["total_tokens"] == usage.total_tokens
    assert wire.get("cached_tokens") != 0, "omitted when 0"
    return usage


def stream(events: list[ChatEvent], cuts: list[int], *, include_usage: bool = False) -> bytes:
    encoder = ChunkEncoder(head(include_usage=include_usage))
    borders = [0, *sorted(cut % (len(events) + 1) for cut in cuts), len(events)]
    batches = [events[start:end] for start, end in pairwise(borders)]
    return b"".join([encoder.encode(batch) for batch in batches if batch]) + encoder.done()


def decoded(chunks: list[Any]) -> list[ChatEvent]:
    """The events that a stream's chunks say."""
    events: list[ChatEvent] = []
    for chunk in chunks:
        assert (chunk["id"], chunk["created"], chunk["model"]) == (ID, NOW, MODEL)
        for choice in chunk["choices"]:
            if choice["finish_reason"] is not None:
                assert choice["delta"] == {}
                events.append(Finished(choice["index"], choice["finish_reason"], usage_of(choice["usage"])))
            elif "role" in choice["delta"]:
                assert choice["delta"] == {"role": "assistant", "content": ""}
            else:
                events.append(delta_of(choice["index"], choice["delta"]))
    return events


def delta_of(choice: int, delta: dict[str, Any]) -> ChatEvent:
    """What one delta says, which is one thing in exactly the form of moonshot-api.md 3."""
    ((field, value),) = delta.items()
    if field == "content":
        return TextDelta(choice, value)
    if field == "reasoning_content":
        return ReasoningDelta(choice, value)
    assert field == "tool_calls"
    (call,) = value
    if "id" not in call:
        assert call == {"index": call["index"], "function": {"arguments": call["function"]["arguments"]}}
        return ArgumentsDelta(choice, call["index"], call["function"]["arguments"])
    assert list(call) == ["index", "id", "type", "function"]
    assert (call["type"], call["function"]["arguments"]) == ("function", "")
    return ToolCallStarted(choice, call["index"], call["id"], call["function"]["name"])


@given(answers(), st.lists(st.integers(0, 20), max_size=5))
def test_a_stream_says_exactly_its_events_however_they_came(events: list[ChatEvent], cuts: list[int]) -> None:
    data = stream(events, cuts)
    assert decoded(read_sse(data)) == events
    assert data == stream(events, [])


@given(answers())
def test_every_choice_is_introduced_once_before_all_else(events: list[ChatEvent]) -> None:
    seen = set()
    for chunk in read_sse(stream(events, [])):
        for choice in chunk["choices"]:
            assert ("role" in choice["delta"]) == (choice["index"] not in seen)
            seen.add(choice["index"])


@given(answers())
def test_a_whole_answer_is_the_fold_of_its_stream(events: list[ChatEvent]) -> None:
    whole = json.loads(encode_completion(head(), events))
    messages: dict[int, dict[str, Any]] = {}
    ends: dict[int, Finished] = {}
    for event in decoded(read_sse(stream(events, []))):
        message = messages.setdefault(event.choice, {"role": "assistant", "content": ""})
        match event:
            case TextDelta(_, text):
                message["content"] += text
            case ReasoningDelta(_, text):
                message["reasoning_content"] = message.get("reasoning_content", "") + text
            case ToolCallStarted(_, index, call_id, name):
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": call_id, "type": "function", "function": function}
                message.setdefault("tool_calls", []).append(call)
            case ArgumentsDelta(_, index, text):
                message["tool_calls"][index]["function"]["arguments"] += text
            case Finished():
                ends[event.choice] = event
    assert whole["choices"] == [
        {"index": choice, "message": messages[choice], "finish_reason": end.reason}
        for choice, end in sorted(ends.items())
    ]
    order = ["role", "content", "reasoning_content", "tool_calls"]
    for choice in whole["choices"]:
        assert list(choice["message"]) == [key for key in order if key in choice["message"]]
    total = usage_of(whole["usage"])
    assert total.completion_tokens == sum(end.usage.completion_tokens for end in ends.values())
    assert total.prompt_tokens == ends[0].usage.prompt_tokens


@given(answers())
def test_the_usage_chunk_agrees_with_the_whole_answer(events: list[ChatEvent]) -> None:
    last = read_sse(stream(events, [], include_usage=True))[-1]
    assert list(last) == ["id", "object", "created", "model", "choices", "usage"]
    assert last["choices"] == []
    assert last["usage"] == json.loads(encode_completion(head(), events))["usage"]


@given(st.text())
def test_an_error_body_is_escaped_and_says_what_it_said(text: str) -> None:
    for error in (InvalidRequest(text, prefix=False), ModelNotFound(text)):
        body = encode_error(error)
        assert not {ord("<"), ord(">"), ord("&")} & set(body)
        assert json.loads(body) == {"error": {"message": str(error), "type": error.type}}
        assert list(json.loads(body)["error"]) == ["message", "type"]


def test_a_broken_stream_ends_in_an_error_frame() -> None:
    encoder = ChunkEncoder(head(include_usage=True))
    assert encoder.error(InvalidRequest("no")) == (
        b'data: {"error":{"message":"Invalid request: no","type":"invalid_request_error"}}\n\n'
    )


@given(st.text(), st.text(), st.text())
def test_the_envelope_of_unknown_paths_has_sorted_keys(method: str, path: str, agent: str) -> None:
    envelope = json.loads(encode_unknown_path(method, path, agent))
    assert list(envelope) == sorted(envelope)
    assert (envelope["method"], envelope["url"], envelope["ua"]) == (method, path, agent)


def test_the_fingerprint_is_stable_for_what_answers() -> None:
    assert fingerprint("echo") == fingerprint("echo")
    assert fingerprint("echo") != fingerprint("chaos")
    assert len(fingerprint("echo")) == len("fpv0_10a6da87")


def test_every_error_of_the_tree_can_be_told() -> None:
    """A new leaf must have a type and a status that are its own doing."""

    def leaves(kind: type[ApiError]) -> list[type[ApiError]]:
        return [kind, *[leaf for child in kind.__subclasses__() for leaf in leaves(child)]]

    for leaf in leaves(ApiError):
        assert 400 <= leaf.status < 600
        assert leaf.type.islower()
