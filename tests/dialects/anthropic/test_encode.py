"""Events to the bytes of the Messages API, and back by the reading of a strict client."""

import base64
import hashlib
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.anthropic.events import frames, message

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
from moonbase.dialects.anthropic.encode import EventEncoder, encode_count, encode_error, encode_message
from moonbase.dialects.base import Head
from moonbase.errors import (
    ApiError,
    EngineOverloaded,
    EngineUnavailable,
    IncorrectApiKey,
    InvalidAuthentication,
    InvalidOutput,
    InvalidRequest,
    ModelNotFound,
    RequestTooLarge,
    ServerError,
)

HEAD = Head(
    id="chatcmpl-0123456789abcdef01234567",
    created=1_700_000_000,
    model="kimi-k2-0905-preview",
    served_by="echo",
    prompt_tokens=50,
    cached_tokens=20,
)
TEXT = st.text(min_size=1, max_size=6)
USAGE = Usage(50, 7, 20, 3)


@st.composite
def answers(draw: st.DrawFn) -> list[ChatEvent]:
    """All events of an answer; calls one after the other or by turns, text after them now and then."""
    pieces = st.lists(TEXT, max_size=3)
    events: list[ChatEvent] = [ReasoningDelta(0, text) for text in draw(pieces)]
    events += [TextDelta(0, text) for text in draw(pieces)]
    calls: list[list[ChatEvent]] = []
    for index in range(draw(st.integers(0, 3))):
        arguments = json.dumps(draw(st.dictionaries(TEXT, st.integers() | TEXT, max_size=2)))
        cut = draw(st.integers(0, len(arguments)))
        parts = [part for part in (arguments[:cut], arguments[cut:]) if part]
        calls.append([ToolCallStarted(0, index, f"get:{index}", "get"), *[ArgumentsDelta(0, index, p) for p in parts]])
    if calls and draw(st.booleans()):
        events += [call.pop(0) for call in calls]
        while calls := [call for call in calls if call]:
            events.append(draw(st.sampled_from(calls)).pop(0))
        calls = [[]]
    else:
        events += [event for call in calls for event in call]
    if calls:
        events += [TextDelta(0, text) for text in draw(pieces)]
    reasons: list[FinishReason] = ["tool_calls"] if calls else ["stop", "length"]
    return [*events, Finished(0, draw(st.sampled_from(reasons)), USAGE, stop=draw(st.none() | TEXT))]


def stream(events: list[ChatEvent], cuts: list[int]) -> bytes:
    """Encoded in as many goes as there are cuts."""
    encoder = EventEncoder(HEAD)
    places = sorted({0, *[cut % (len(events) + 1) for cut in cuts], len(events)})
    parts = [encoder.encode(events[start:end]) for start, end in pairwise(places)]
    return b"".join(parts) + encoder.done()


def folded(events: list[ChatEvent]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(encode_message(HEAD, events))
    return found


@given(answers(), st.lists(st.integers(0, 100), max_size=4))
def test_a_stream_holds_to_the_grammar_and_tells_the_whole_answer(events: list[ChatEvent], cuts: list[int]) -> None:
    told = message(stream(events, cuts))

    for block in told["content"]:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block.pop("arguments"))
    assert told == folded(events)


def test_a_stream_byte_by_byte() -> None:
    encoder = EventEncoder(HEAD)
    call = ToolCallStarted(0, 0, "get:0", "get")
    events: list[ChatEvent] = [ReasoningDelta(0, "Hm"), TextDelta(0, "So <b>"), call, ArgumentsDelta(0, 0, "{}")]
    data = encoder.encode(events) + encoder.encode([Finished(0, "tool_calls", USAGE)]) + encoder.done()

    signature = base64.b64encode(hashlib.sha256(b"Hm").digest())
    assert data == (
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"chatcmpl-0123456789abcdef01234567",'
        b'"type":"message","role":"assistant","model":"kimi-k2-0905-preview","content":[],"stop_reason":null,'
        b'"stop_sequence":null,"usage":{"input_tokens":30,"cache_creation_input_tokens":0,'
        b'"cache_read_input_tokens":20,"output_tokens":0}}}\n\n'
        b'event: ping\ndata: {"type":"ping"}\n\n'
        b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
        b'"content_block":{"type":"thinking","thinking":"","signature":""}}\n\n'
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        b'"delta":{"type":"thinking_delta","thinking":"Hm"}}\n\n'
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        b'"delta":{"type":"signature_delta","signature":"' + signature + b'"}}\n\n'
        b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
        b'event: content_block_start\ndata: {"type":"content_block_start","index":1,'
        b'"content_block":{"type":"text","text":""}}\n\n'
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":1,'
        b'"delta":{"type":"text_delta","text":"So <b>"}}\n\n'
        b'event: content_block_stop\ndata: {"type":"content_block_stop","index":1}\n\n'
        b'event: content_block_start\ndata: {"type":"content_block_start","index":2,'
        b'"content_block":{"type":"tool_use","id":"get:0","name":"get","input":{}}}\n\n'
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":2,'
        b'"delta":{"type":"input_json_delta","partial_json":"{}"}}\n\n'
        b'event: content_block_stop\ndata: {"type":"content_block_stop","index":2}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},'
        b'"usage":{"input_tokens":30,"cache_creation_input_tokens":0,"cache_read_input_tokens":20,"output_tokens":7,'
        b'"output_tokens_details":{"thinking_tokens":3}}}\n\n'
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    )


def test_a_whole_answer_byte_by_byte() -> None:
    events: list[ChatEvent] = [TextDelta(0, "Hello"), Finished(0, "stop", Usage(9, 2), stop="END")]
    assert encode_message(HEAD, events) == (
        b'{"id":"chatcmpl-0123456789abcdef01234567","type":"message","role":"assistant","model":"kimi-k2-0905-preview",'
        b'"content":[{"type":"text","text":"Hello"}],"stop_reason":"end_turn","stop_sequence":"END",'
        b'"usage":{"input_tokens":9,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":2}}'
    )


def test_an_answer_of_nothing_has_no_blocks() -> None:
    events: list[ChatEvent] = [Finished(0, "stop", Usage(9, 0))]
    assert message(stream(events, []))["content"] == folded(events)["content"] == []


CUT: list[ChatEvent] = [
    ToolCallStarted(0, 0, "get:0", "get"),
    ArgumentsDelta(0, 0, "{}"),
    ToolCallStarted(0, 1, "get:1", "get"),
    ArgumentsDelta(0, 1, '{"a'),
]


def test_a_call_that_the_limit_cut_is_told_as_far_as_it_came_and_left_out_of_a_whole_answer() -> None:
    events = [*CUT, Finished(0, "length", USAGE)]
    told = message(stream(events, []))
    assert [block["arguments"] for block in told["content"]] == ["{}", '{"a']
    whole = folded(events)
    assert [block["id"] for block in whole["content"]] == ["get:0"]
    assert told["stop_reason"] == whole["stop_reason"] == "max_tokens"


@pytest.mark.parametrize("arguments", ['{"a', "[]", "5", ""])
def test_arguments_that_are_no_object_are_an_error_either_way(arguments: str) -> None:
    events: list[ChatEvent] = [ToolCallStarted(0, 0, "get:0", "get"), Finished(0, "tool_calls", USAGE)]
    events[1:1] = [ArgumentsDelta(0, 0, arguments)] if arguments else []
    for encode in (lambda: encode_message(HEAD, events), lambda: EventEncoder(HEAD).encode(events)):
        with pytest.raises(InvalidOutput, match="the arguments for get: it is not a JSON object"):
            encode()


def test_the_limit_excuses_the_last_call_only() -> None:
    events: list[ChatEvent] = [ToolCallStarted(0, 0, "get:0", "get"), ArgumentsDelta(0, 0, "[1]"), *CUT[2:]]
    with pytest.raises(InvalidOutput):
        encode_message(HEAD, [*events, Finished(0, "length", USAGE)])


def test_what_waits_is_not_looked_at_again_and_again() -> None:
    """A first call without arguments, and a long one behind it: work that grows with its square would take hours."""
    pieces: list[ChatEvent] = [ArgumentsDelta(0, 1, "1") for _ in range(100_000)]
    events: list[ChatEvent] = [CUT[0], CUT[2], ArgumentsDelta(0, 1, '{"a":"'), *pieces, ArgumentsDelta(0, 1, '"}')]
    events += [ArgumentsDelta(0, 0, "{}"), Finished(0, "tool_calls", USAGE)]
    told = message(stream(events, []))
    assert len(told["content"][1]["arguments"]) == 100_008


def test_white_space_that_comes_to_a_call_that_is_complete_is_passed_over() -> None:
    late = ArgumentsDelta(0, 0, " ")
    events: list[ChatEvent] = [*CUT[:3], late, ArgumentsDelta(0, 1, "{}"), Finished(0, "tool_calls", USAGE)]
    assert [block["arguments"] for block in message(stream(events, []))["content"]] == ["{}", "{}"]


@pytest.mark.parametrize(
    ("error", "body"),
    [
        (
            InvalidRequest("<b>"),
            b'{"type":"error","error":{"type":"invalid_request_error","message":"Invalid request: \\u003cb\\u003e"}}',
        ),
        (
            ServerError(),
            b'{"type":"error","error":{"type":"server_error","message":"Internal server error"}}',
        ),
        (
            EngineUnavailable(),
            b'{"type":"error","error":{"type":"server_unavailable","message":"The engine is not available, please try '
            b'again later"}}',
        ),
        (
            RequestTooLarge(5),
            b'{"type":"error","error":{"type":"invalid_request_error","message":"Request exceeds the maximum size of '
            b'5 bytes"}}',
        ),
        (IncorrectApiKey(), b'{"error":{"message":"Incorrect API key provided","type":"incorrect_api_key_error"}}'),
        (
            InvalidAuthentication(),
            b'{"error":{"message":"Invalid Authentication","type":"invalid_authentication_error"}}',
        ),
        (
            EngineOverloaded(),
            b'{"error":{"message":"The engine is currently overloaded, please try again later",'
            b'"type":"engine_overloaded_error"}}',
        ),
        (
            ModelNotFound("m"),
            b'{"error":{"message":"Not found the model m or Permission denied","type":"resource_not_found_error"}}',
        ),
    ],
)
def test_errors_have_the_shape_that_the_service_gives_each(error: ApiError, body: bytes) -> None:
    """401, 429 and unknown models are those of the other dialect (moonshot-api.md 8.4)."""
    assert encode_error(error) == body


def test_an_error_in_a_stream_is_an_event_of_this_dialect_whatever_its_status() -> None:
    (told,) = frames(EventEncoder(HEAD).error(EngineOverloaded()))
    assert told["error"]["type"] == "engine_overloaded_error"


def test_a_count() -> None:
    assert encode_count(7) == b'{"input_tokens":7}'
