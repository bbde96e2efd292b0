"""Responses of servers of this dialect, well-behaved and otherwise, read as events."""

import json
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.openai.head import head

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
from moonbase.dialects.errors import encode_error
from moonbase.dialects.openai.client.answer import AnswerReader, Bounds
from moonbase.dialects.openai.encode import ChunkEncoder, encode_completion
from moonbase.engines.upstream.events import EventReader
from moonbase.errors import (
    ApiError,
    ContentFiltered,
    EngineOverloaded,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
    UpstreamFailed,
)

OWN_COUNT = 50
MOST = Bounds(prompt=10**6, output=10**6)
TOOLS = ("get", "put", "look", "look_up")
TEXT = st.text(min_size=1, max_size=20)
NAMES = TEXT.filter(lambda name: all(tool == name or not tool.startswith(name) for tool in TOOLS))  # they are whole


def reader(choices: int = 1, *, most: Bounds = MOST, passed_on: str | None = None) -> AnswerReader:
    """One that leaves the ids of calls as they are."""
    return AnswerReader(choices, OWN_COUNT, lambda choice, given, name: given, most, tools=TOOLS, passed_on=passed_on)


@st.composite
def answers(draw: st.DrawFn) -> tuple[int, list[ChatEvent]]:
    """The number of choices, and all events of an answer, the choices interleaved somehow."""
    prompt = draw(st.integers(1, 10**6))
    cached = draw(st.integers(0, prompt))
    queues: list[list[ChatEvent]] = []
    choices = draw(st.integers(1, 3))
    for choice in range(choices):
        pieces = st.lists(TEXT, max_size=3)
        events: list[ChatEvent] = [ReasoningDelta(choice, text) for text in draw(pieces)]
        events += [TextDelta(choice, text) for text in draw(pieces)]
        calls = draw(st.lists(st.tuples(NAMES, pieces), max_size=3))
        for index, (name, arguments) in enumerate(calls):
            events.append(ToolCallStarted(choice, index, f"{name}:{index + 3}", name))
            events += [ArgumentsDelta(choice, index, text) for text in ("{", *arguments)]
        reasons: list[FinishReason] = ["tool_calls", "length"] if calls else ["stop", "length"]
        completion = draw(st.integers(1 if events else 0, 10**6))
        usage = Usage(prompt, completion, cached, draw(st.integers(0, completion)))
        queues.append([*events, Finished(choice, draw(st.sampled_from(reasons)), usage)])
    mixed: list[ChatEvent] = []
    while queues:
        queue = draw(st.sampled_from(queues))
        mixed.append(queue.pop(0))
        queues = [queue for queue in queues if queue]
    return choices, mixed


def stream(events: list[ChatEvent], *, include_usage: bool = True) -> bytes:
    encoder = ChunkEncoder(head(include_usage=include_usage))
    return encoder.encode(events) + encoder.done()


def decoded(choices: int, pieces: list[bytes]) -> list[ChatEvent]:
    events: list[ChatEvent] = []
    under_test, lines = reader(choices), EventReader()
    for piece in pieces:
        for data in lines.feed(piece):
            under_test.feed(data, events)
    assert under_test.complete
    return events


@given(answers(), st.booleans())
def test_what_we_encode_is_read_as_the_same_events(answer: tuple[int, list[ChatEvent]], include_usage: bool) -> None:
    choices, events = answer
    assert decoded(choices, [stream(events, include_usage=include_usage)]) == events


@given(answers(), st.lists(st.integers(0, 10**4)))
def test_the_events_are_the_same_however_the_bytes_are_cut(
    answer: tuple[int, list[ChatEvent]], places: list[int]
) -> None:
    choices, events = answer
    data = stream(events)
    cuts = sorted({0, *[place % len(data) for place in places], len(data)})
    assert decoded(choices, [data[start:end] for start, end in pairwise(cuts)]) == events


def test_the_events_are_the_same_for_every_cut_in_two() -> None:
    events: list[ChatEvent] = [
        ReasoningDelta(0, "hm 🤔"),
        TextDelta(0, "世界\n\n"),
        ToolCallStarted(0, 0, "get:0", "get"),
        ArgumentsDelta(0, 0, '{"a":"\\n"}'),
        Finished(0, "tool_calls", Usage(9, 8, 7, 6)),
    ]
    data = stream(events)
    for cut in range(len(data) + 1):
        assert decoded(1, [data[:cut], data[cut:]]) == events


@given(answers())
def test_a_whole_answer_is_read_as_what_it_was_made_of(answer: tuple[int, list[ChatEvent]]) -> None:
    choices, events = answer
    body = encode_completion(head(), events)
    under_test = reader(choices)
    found: list[ChatEvent] = []
    under_test.whole(body, found)
    assert encode_completion(head(), found) == body
    assert under_test.complete


@given(answers())
def test_the_usage_of_an_answer_is_that_of_its_choices_together(answer: tuple[int, list[ChatEvent]]) -> None:
    choices, events = answer
    under_test = reader(choices)
    for data in EventReader().feed(stream(events)):
        under_test.feed(data, [])
    ends = [event.usage for event in events if isinstance(event, Finished)]
    assert under_test.completion_tokens == sum([usage.completion_tokens for usage in ends])
    assert under_test.prompt_tokens == ends[0].prompt_tokens
    assert under_test.cached_tokens == ends[0].cached_tokens


# What other servers send: a list of chunks, each a delta, a finish_reason, or a whole chunk.


def delta(choice: int = 0, /, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": choice, "delta": fields, "finish_reason": None}]}


def finish(reason: str = "stop", choice: int = 0, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": choice, "delta": {}, "finish_reason": reason} | fields]}


def usage(prompt: int = 9, completion: int = 5, **fields: Any) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion} | fields}


def call(index: int | None = None, id: str | None = None, name: str | None = None, arguments: Any = None) -> Any:
    """A delta of one tool call; what is None is not sent."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    wire = {"index": index, "id": id, "function": function}
    return delta(tool_calls=[{key: value for key, value in wire.items() if value is not None}])


def chunks(*frames: dict[str, Any]) -> list[bytes]:
    return [json.dumps(frame, ensure_ascii=False).encode() for frame in frames]


def read(
    frames: list[bytes], choices: int = 1, *, passed_on: str | None = None
) -> tuple[list[ChatEvent], AnswerReader]:
    """The events of a stream that ends with `[DONE]`."""
    events: list[ChatEvent] = []
    under_test = reader(choices, passed_on=passed_on)
    for frame in [*frames, b"[DONE]"]:
        under_test.feed(frame, events)
    return events, under_test


END = Finished(0, "stop", Usage(9, 5))
CALLED = Finished(0, "tool_calls", Usage(9, 5))
LOST = Finished(0, "stop", Usage(9, 5), broken_calls=1)
GET, PUT = ToolCallStarted(0, 0, "a", "get"), ToolCallStarted(0, 1, "b", "put")
LOOK_UP = ToolCallStarted(0, 0, "a", "look_up")


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        pytest.param([delta(content="x"), finish(), usage()], [TextDelta(0, "x"), END], id="usage-only chunk"),
        pytest.param(
            [delta(content="x"), finish(usage={"prompt_tokens": 9}), usage()],
            [TextDelta(0, "x"), END],
            id="the output counted later than the prompt",
        ),
        pytest.param(
            [delta(content="x"), delta(content="y"), finish(), {"choices": [], "usage": {"prompt_tokens": 9}}],
            [TextDelta(0, "x"), TextDelta(0, "y"), Finished(0, "stop", Usage(9, 2))],
            id="the output never counted",
        ),
        pytest.param([delta(content="x"), finish() | {"usage": usage()["usage"]}], [TextDelta(0, "x"), END], id="top"),
        pytest.param(
            [delta(content="x"), finish(usage=usage()["usage"])], [TextDelta(0, "x"), END], id="in the choice"
        ),
        pytest.param(
            [finish(usage=usage()["usage"]), usage(9, 5, prompt_tokens_details={"cached_tokens": 3})],
            [END],
            id="both: the first that ends the choice",
        ),
        pytest.param(
            [finish(), usage(9, 5, prompt_tokens_details={"cached_tokens": 3})],
            [Finished(0, "stop", Usage(9, 5, 3))],
            id="cached tokens in the details",
        ),
        pytest.param(
            [finish(), usage(9, 5, cached_tokens=3, completion_tokens_details={"reasoning_tokens": 2})],
            [Finished(0, "stop", Usage(9, 5, 3, 2))],
            id="cached tokens flat, reasoning tokens",
        ),
        pytest.param(
            [finish(), usage(9, 5, cached_tokens=99, completion_tokens_details={"reasoning_tokens": 99})],
            [Finished(0, "stop", Usage(9, 5, 9, 5))],
            id="parts larger than the whole",
        ),
        pytest.param(
            [delta(content="x") | {"usage": None}, finish() | {"usage": None}, usage() | {"choices": None}],
            [TextDelta(0, "x"), END],
            id="nulls",
        ),
        pytest.param(
            [delta(content="x") | usage(9, 1)["usage"], finish(), usage()], [TextDelta(0, "x"), END], id="foreign keys"
        ),
        pytest.param(
            [{**delta(content="x"), "usage": usage(9, 1)["usage"]}, {**finish(), "usage": usage()["usage"]}],
            [TextDelta(0, "x"), END],
            id="usage in every chunk",
        ),
        pytest.param(
            [delta(role="assistant", content=""), delta(content=None), delta(), finish(delta=None), usage()],
            [END],
            id="empty deltas",
        ),
        pytest.param([finish(delta={"content": "x"}), usage()], [TextDelta(0, "x"), END], id="text in the last delta"),
        pytest.param(
            [delta(reasoning="hm", reasoning_content="hm"), finish(), usage()],
            [ReasoningDelta(0, "hm"), END],
            id="both",
        ),
        pytest.param([delta(reasoning="hm"), finish(), usage()], [ReasoningDelta(0, "hm"), END], id="reasoning"),
        pytest.param([delta(refusal="no"), finish(), usage()], [TextDelta(0, "no"), END], id="refusal"),
        pytest.param(
            [{"choices": [{"delta": {"content": "x"}}]}, finish(), usage()], [TextDelta(0, "x"), END], id="no index"
        ),
        pytest.param(
            [{"choices": [], "prompt_filter_results": []}, {}, finish(), usage()], [END], id="chunks that say nothing"
        ),
        pytest.param(
            [{"choices": [{"index": None, "delta": {"content": "x"}, "finish_reason": ""}]}, finish(), usage()],
            [TextDelta(0, "x"), END],
            id="an empty finish_reason and no index",
        ),
        pytest.param(
            [finish(), usage(9, 5, cached_tokens=-5)], [Finished(0, "stop", Usage(9, 5))], id="a number below nothing"
        ),
        pytest.param(
            [delta(content=[{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]), finish(), usage()],
            [TextDelta(0, "xy"), END],
            id="text in parts",
        ),
        pytest.param([delta(content=[]), finish(), usage()], [END], id="no parts"),
        pytest.param(
            [
                delta(content="x"),
                finish(),
                delta(content="\n"),
                delta(reasoning_content=" ", content=""),
                call(0, arguments=""),
                usage(),
            ],
            [TextDelta(0, "x"), END],
            id="white space after the end",
        ),
        pytest.param(
            [call(0, "a", "get", "{}"), finish("tool_calls"), call(0, "a", "get", "\n"), usage()],
            [GET, ArgumentsDelta(0, 0, "{}"), CALLED],
            id="an empty delta of a call after the end",
        ),
        pytest.param(
            [
                call(0, "a", "get", ""),
                call(1, "b", "put", ""),
                call(0, arguments='{"x"'),
                call(1, arguments="{"),
                call(0, arguments=":1}"),
                call(1, arguments="}"),
                finish("tool_calls"),
                usage(),
            ],
            [
                GET,
                PUT,
                ArgumentsDelta(0, 0, '{"x"'),
                ArgumentsDelta(0, 1, "{"),
                ArgumentsDelta(0, 0, ":1}"),
                ArgumentsDelta(0, 1, "}"),
                CALLED,
            ],
            id="arguments of calls by turns",
        ),
        pytest.param([finish("eos"), usage()], [END], id="another word for stop"),
        pytest.param([finish("max_tokens"), usage()], [Finished(0, "length", Usage(9, 5))], id="and for length"),
        pytest.param([finish("tool_calls"), usage()], [LOST], id="tool_calls without calls"),
        pytest.param([finish("function_call"), usage()], [LOST], id="the calls of old"),
        pytest.param(
            [delta(content="x"), finish(), usage(9, 0)],
            [TextDelta(0, "x"), Finished(0, "stop", Usage(9, 1))],
            id="output that costs nothing",
        ),
        pytest.param(
            [delta(content="x"), finish(usage={"prompt_tokens": 9, "completion_tokens": 0})],
            [TextDelta(0, "x"), Finished(0, "stop", Usage(9, 1))],
            id="output of a choice that costs nothing",
        ),
        *[
            pytest.param(
                [delta(content="x"), finish(), {"choices": [], "usage": unreadable}],
                [TextDelta(0, "x"), Finished(0, "stop", Usage(OWN_COUNT, 1))],
                id=f"a usage of {json.dumps(unreadable)}",
            )
            for unreadable in ([], "5", 5, {"prompt_tokens": 2.5}, {"prompt_tokens": "5", "completion_tokens": []})
        ],
        pytest.param(
            [delta(content="x"), finish(), {"choices": None, "usage": {"prompt_tokens": "5"}}],
            [TextDelta(0, "x"), Finished(0, "stop", Usage(OWN_COUNT, 1))],
            id="a usage that nobody can read, and null choices",
        ),
        pytest.param(
            [delta(content="x"), finish(usage=7), usage()],
            [TextDelta(0, "x"), END],
            id="a usage of a choice that is none",
        ),
        pytest.param(
            [call(0, "a", "get", "{}"), finish("stop"), usage()],
            [GET, ArgumentsDelta(0, 0, "{}"), CALLED],
            id="stop with calls, a whole call in one delta",
        ),
        pytest.param(
            [
                call(0, "a", "get", ""),
                call(0, arguments='{"x"'),
                call(0, arguments=":1}"),
                finish("tool_calls"),
                usage(),
            ],
            [GET, ArgumentsDelta(0, 0, '{"x"'), ArgumentsDelta(0, 0, ":1}"), CALLED],
            id="fragments",
        ),
        pytest.param(
            [call(0, "a", "get", "{"), call(0, "a", "get", "}"), call(0, "", "", ""), finish("tool_calls"), usage()],
            [GET, ArgumentsDelta(0, 0, "{"), ArgumentsDelta(0, 0, "}"), CALLED],
            id="name and id repeated",
        ),
        pytest.param(
            [call(0, "a", "get", "{"), call(0, "other", arguments="}"), finish("tool_calls"), usage()],
            [GET, ArgumentsDelta(0, 0, "{"), ArgumentsDelta(0, 0, "}"), CALLED],
            id="a new id for every delta",
        ),
        pytest.param(
            [call(None, "a", "get", "{"), call(None, None, None, "}"), call(None, "b", "put", "{}"), finish(), usage()],
            [GET, ArgumentsDelta(0, 0, "{"), ArgumentsDelta(0, 0, "}"), PUT, ArgumentsDelta(0, 1, "{}"), CALLED],
            id="no index",
        ),
        pytest.param(
            [call(0, "a", "get", "{}"), call(0, "b", "put", "{}"), finish(), usage()],
            [GET, ArgumentsDelta(0, 0, "{}"), PUT, ArgumentsDelta(0, 1, "{}"), CALLED],
            id="the same index for all",
        ),
        pytest.param(
            [call(None, None, "get", "{}"), call(None, None, "get", "{}"), finish(), usage()],
            [
                ToolCallStarted(0, 0, "", "get"),
                ArgumentsDelta(0, 0, "{}"),
                ToolCallStarted(0, 1, "", "get"),
                ArgumentsDelta(0, 1, "{}"),
                CALLED,
            ],
            id="neither index nor id",
        ),
        pytest.param(
            [call(3, "a", "get", "{}"), call(7, "b", "put", "{}"), finish(), usage()],
            [GET, ArgumentsDelta(0, 0, "{}"), PUT, ArgumentsDelta(0, 1, "{}"), CALLED],
            id="indexes from somewhere",
        ),
        pytest.param(
            [call(0, "a"), call(0, None, None, "{"), call(0, None, "get", "}"), finish(), usage()],
            [GET, ArgumentsDelta(0, 0, "{}"), CALLED],
            id="the name later",
        ),
        pytest.param(
            [call(0, "a", "get", {"x": [1]}), finish(), usage()],
            [GET, ArgumentsDelta(0, 0, '{"x":[1]}'), CALLED],
            id="arguments as an object",
        ),
        pytest.param(
            [delta(tool_calls=[{"index": 0, "id": "a", "function": None}]), call(0, "a", "get"), finish(), usage()],
            [GET, ArgumentsDelta(0, 0, "{}"), CALLED],
            id="a call without arguments, its function late",
        ),
        pytest.param(
            [call(0, "a", "get", ""), call(0, arguments=" "), call(1, "b", "put", "\n"), finish(), usage()],
            [GET, PUT, ArgumentsDelta(0, 0, "{}"), ArgumentsDelta(0, 1, "{}"), CALLED],
            id="blank arguments",
        ),
        pytest.param(
            [call(0, "a", "get", " "), call(0, arguments="\n{"), call(0, arguments="}"), finish(), usage()],
            [GET, ArgumentsDelta(0, 0, " \n{"), ArgumentsDelta(0, 0, "}"), CALLED],
            id="arguments that begin with white space",
        ),
        pytest.param(
            [call(0, "a", "get", ""), call(1, "b", "put", ""), finish("length"), usage()],
            [GET, PUT, ArgumentsDelta(0, 0, "{}"), Finished(0, "length", Usage(9, 5))],
            id="a call cut by the limit before its arguments",
        ),
        pytest.param(
            [
                call(0, "a", "look"),
                call(0, "a", "_", ""),
                call(0, None, "up"),
                call(0, arguments="{}"),
                finish(),
                usage(),
            ],
            [LOOK_UP, ArgumentsDelta(0, 0, "{}"), CALLED],
            id="a name in pieces",
        ),
        pytest.param(
            [call(0, "a", "look"), call(0, "a", "look"), call(0, "a", "look", "{}"), finish(), usage()],
            [ToolCallStarted(0, 0, "a", "look"), ArgumentsDelta(0, 0, "{}"), CALLED],
            id="a name repeated that another begins with",
        ),
        pytest.param(
            [call(0, "a", "look"), call(1, "b", "put", "{}"), finish(), usage()],
            [
                ToolCallStarted(0, 0, "a", "look"),
                PUT,
                ArgumentsDelta(0, 1, "{}"),
                ArgumentsDelta(0, 0, "{}"),
                CALLED,
            ],
            id="a name that another begins with, and no arguments",
        ),
        pytest.param(
            [
                call(0, "a", "look"),
                call(0, "b", "put"),
                call(0, arguments="{"),
                call(0, arguments="}"),
                finish(),
                usage(),
            ],
            [
                ToolCallStarted(0, 0, "a", "look"),
                PUT,
                ArgumentsDelta(0, 1, "{"),
                ArgumentsDelta(0, 1, "}"),
                ArgumentsDelta(0, 0, "{}"),
                CALLED,
            ],
            id="a name that another begins with, then a call of the same index",
        ),
        pytest.param(
            [
                call(0, None, None, "{"),
                call(0, "a", "look"),
                call(1, "b", "put"),
                call(0, arguments="}"),
                finish(),
                usage(),
            ],
            [ToolCallStarted(0, 0, "a", "look"), PUT, ArgumentsDelta(0, 0, "{}"), ArgumentsDelta(0, 1, "{}"), CALLED],
            id="a name that another begins with, after its first arguments",
        ),
        pytest.param(
            [call(0, "a", "get", " " * 1024), call(0, arguments="{}"), finish(), usage()],
            [GET, ArgumentsDelta(0, 0, " " * 1024 + "{}"), CALLED],
            id="as much white space as is allowed",
        ),
        pytest.param(
            [call(0, "a", "no such\tool", "{}"), finish(), usage()],
            [ToolCallStarted(0, 0, "a", "no such\tool"), ArgumentsDelta(0, 0, "{}"), CALLED],
            id="a name that no tool has",
        ),
        pytest.param(
            [call(0), call(0, "a", "get", "{}"), finish(), usage()],
            [GET, ArgumentsDelta(0, 0, "{}"), CALLED],
            id="the id late",
        ),
        pytest.param(
            [call(0, "a", "get", '{"x'), finish("length"), usage()],
            [GET, ArgumentsDelta(0, 0, '{"x'), Finished(0, "length", Usage(9, 5))],
            id="a call cut by the limit",
        ),
    ],
)
def test_the_habits_of_servers_are_understood(frames: list[dict[str, Any]], expected: list[ChatEvent]) -> None:
    events, under_test = read(chunks(*frames))
    assert events == expected
    assert under_test.complete


def failure(under_test: AnswerReader, frames: list[bytes], events: list[ChatEvent]) -> ApiError | None:
    try:
        for frame in frames:
            under_test.feed(frame, events)
    except ApiError as error:
        return error
    return None


UNAVAILABLE = EngineUnavailable


@pytest.mark.parametrize(
    ("frames", "kind", "reason"),
    [
        pytest.param([], UNAVAILABLE, "finish_reason", id="done before the end"),
        pytest.param([b"{"], UNAVAILABLE, "no chunk", id="no JSON"),
        pytest.param([b'{"choices":[{"delta":{"content":7}}]}'], UNAVAILABLE, "no chunk", id="a wrong type"),
        pytest.param([b'{"choices":[{"delta":{"content":"\xff"}}]}'], UNAVAILABLE, "no chunk", id="no UTF-8"),
        pytest.param([b"[" * 100_000], UNAVAILABLE, "no chunk", id="endless nesting"),
        pytest.param(chunks(delta(1, content="x")), UNAVAILABLE, "choice 1 of 1", id="a choice nobody asked for"),
        pytest.param(chunks(delta(-1, content="x")), UNAVAILABLE, "choice -1 of 1", id="a negative choice"),
        pytest.param(chunks(finish("weather")), UNAVAILABLE, "finish_reason", id="an unknown finish_reason"),
        pytest.param(chunks(finish("content_filter")), ContentFiltered, None, id="filtered"),
        pytest.param(chunks(call(0, "a"), finish()), UNAVAILABLE, "without a name", id="a call without a name"),
        pytest.param(
            chunks(call(0, "a", "g" * 257, "{}"), finish()), UNAVAILABLE, "256 characters", id="an endless name"
        ),
        pytest.param(
            chunks(*[call(each, str(each), "get", "{}") for each in range(1025)]),
            UNAVAILABLE,
            "more than 1024 tool calls",
            id="endless calls",
        ),
        pytest.param(
            chunks(call(0, "a", "get", ""), *[call(0, arguments=" \n\t\r" * 4)] * 65),
            UNAVAILABLE,
            "1024 characters of white space",
            id="endless white space",
        ),
        pytest.param(
            chunks(call(0, "a", "get", " " * 1025)),
            UNAVAILABLE,
            "1024 characters of white space",
            id="much white space at once",
        ),
        pytest.param(
            chunks(call(0, "a", None, " " * 1025)),
            UNAVAILABLE,
            "1024 characters of white space",
            id="much white space before the name",
        ),
        pytest.param(
            chunks(call(0, "a", None, '{"a":"'), *[call(0, arguments="b" * 4_096)] * 16),
            UNAVAILABLE,
            "65536 characters of arguments",
            id="endless arguments before the name",
        ),
        pytest.param(
            chunks(delta(tool_calls=[{"index": 0, "function": {"arguments": "x"}}] * 1025)),
            UNAVAILABLE,
            "more than 1024 pieces",
            id="a call in too many pieces at once",
        ),
        pytest.param(
            chunks({"choices": [{"delta": {"content": "x"}}] * 17}),
            UNAVAILABLE,
            "more than 16 choices",
            id="endless choices",
        ),
        pytest.param(
            chunks({"choices": [{"delta": {"content": "x"}}] * 17, "usage": "what nobody can read"}),
            UNAVAILABLE,
            "more than 16 choices",
            id="endless choices, and a usage that is none",
        ),
        pytest.param(chunks(finish(), delta(content="x")), UNAVAILABLE, "went on", id="text after the end"),
        pytest.param(chunks(finish(), call(0, "a", "get", "")), UNAVAILABLE, "went on", id="a call after the end"),
        pytest.param(
            chunks(call(0, "a", "get", "{}"), finish(), call(0, arguments="}")),
            UNAVAILABLE,
            "went on",
            id="arguments after the end",
        ),
        pytest.param(
            chunks(delta(content=[{"type": "image_url"}])), UNAVAILABLE, "no text", id="a part that is no text"
        ),
        pytest.param(
            chunks({"error": {"message": "m", "type": "server_error"}}), UNAVAILABLE, "500 server_error", id="error"
        ),
        pytest.param(chunks({"error": "it failed"}), UNAVAILABLE, "500", id="error as text"),
        pytest.param(
            chunks({"object": "error", "message": "m", "type": "BadRequestError", "code": 400}),
            InvalidRequest,
            "400 BadRequestError",
            id="error as the frame itself",
        ),
        pytest.param(
            chunks({"error": {"message": "m", "code": 429}}), EngineOverloaded, "429", id="error with a status code"
        ),
        pytest.param(
            chunks({"error": {"message": "m", "type": "engine_overloaded_error"}}), EngineOverloaded, "429", id="busy"
        ),
        pytest.param(
            chunks({"error": {"message": "m", "type": "content_filter"}}), ContentFiltered, "400", id="filtered frame"
        ),
    ],
)
def test_what_was_delivered_stays_and_a_clear_error_follows(
    frames: list[bytes], kind: type[ApiError], reason: str | None
) -> None:
    events: list[ChatEvent] = []
    under_test = reader()
    under_test.feed(chunks(delta(content="before"))[0], events)
    error = failure(under_test, [*frames, b"[DONE]"], events)
    assert type(error) is kind
    cause = error.__cause__
    assert (reason is None) == (cause is None)
    if reason is not None:
        assert isinstance(cause, UpstreamFailed)
        assert reason in cause.reason
    assert events[0] == TextDelta(0, "before")
    assert not any(isinstance(event, Finished) for event in events)
    assert not under_test.complete


@given(st.sampled_from(TOOLS), st.sets(st.integers(1, 6)), st.booleans())
def test_the_name_of_a_tool_is_whole_however_it_is_cut(name: str, places: set[int], ids: bool) -> None:
    cuts = sorted({0, *[place for place in places if place < len(name)], len(name)})
    pieces = [name[start:end] for start, end in pairwise(cuts)]
    frames = [call(0, "a" if ids or not number else None, piece) for number, piece in enumerate(pieces)]
    events, _ = read(chunks(*frames, call(0, arguments="{}"), finish(), usage()))
    assert events == [ToolCallStarted(0, 0, "a", name), ArgumentsDelta(0, 0, "{}"), CALLED]


@given(st.lists(st.tuples(st.sampled_from(TOOLS), st.sampled_from(["", " ", "{}"])), min_size=1, max_size=6))
def test_calls_start_in_the_order_of_the_server(calls: list[tuple[str, str]]) -> None:
    frames = [call(index, str(index), name, arguments) for index, (name, arguments) in enumerate(calls)]
    events, _ = read(chunks(*frames, finish(), usage()))
    assert [event for event in events if isinstance(event, ToolCallStarted)] == [
        ToolCallStarted(0, index, str(index), name) for index, (name, _) in enumerate(calls)
    ]


def test_empty_pieces_of_arguments_are_not_kept() -> None:
    under_test = reader()
    under_test.feed(chunks(call(0, "a", "get", ""))[0], [])
    frame = chunks(call(0, arguments=""))[0]
    tracemalloc.start()
    try:
        for _ in range(20_000):
            under_test.feed(frame, [])
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 20_000


def test_as_many_calls_as_are_allowed() -> None:
    events, under_test = read(chunks(*[call(each, str(each), "get") for each in range(1024)], finish()))
    assert [event for event in events if isinstance(event, ArgumentsDelta)] == [
        ArgumentsDelta(0, index, "{}") for index in range(1024)
    ]
    assert under_test.complete


def test_our_own_error_frames_are_understood() -> None:
    for error in (InvalidRequest("no"), EngineOverloaded(), EngineUnavailable(), ContentFiltered()):
        with pytest.raises(type(error)) as caught:
            reader().feed(encode_error(error), [])
        assert str(caught.value) == str(error)


def test_an_unknown_model_is_the_clients_matter_only_when_it_chose_the_id() -> None:
    frame = encode_error(ModelNotFound("kimi-k9"))
    with pytest.raises(ModelNotFound):
        reader(passed_on="kimi-k9").feed(frame, [])
    with pytest.raises(EngineUnavailable):
        reader().feed(frame, [])


def test_without_usage_tokens_are_estimated_from_below() -> None:
    frames = chunks(
        delta(reasoning_content="hm"), delta(content="one"), call(0, "a", "get", '{"x":"' + "y" * 393 + '"}'), finish()
    )
    events, under_test = read(frames)
    end = events[-1]
    assert end == Finished(0, "tool_calls", Usage(OWN_COUNT, 1 + 1 + 1 + 50, 0, 1))
    assert (under_test.prompt_tokens, under_test.completion_tokens) == (OWN_COUNT, 53)


def test_tokens_are_counted_while_they_come() -> None:
    under_test = reader()
    for number, frame in enumerate(chunks(*[delta(content="x")] * 3), 1):
        under_test.feed(frame, [])
        assert under_test.completion_tokens == number
    under_test.feed(chunks({**delta(content="x"), "usage": usage(9, 40)["usage"]})[0], [])
    assert under_test.completion_tokens == 40
    assert under_test.prompt_tokens == 9


def test_a_usage_of_the_prompt_alone_does_not_hide_the_output() -> None:
    events, under_test = read(chunks(usage(9, 0), delta(content="x"), delta(content="y"), finish()))
    assert events[-1] == Finished(0, "stop", Usage(9, 2))
    assert under_test.completion_tokens == 2


def test_a_usage_that_comes_before_the_end_is_better_than_an_estimate() -> None:
    events, _ = read(chunks({**delta(content="x"), "usage": usage(9, 40)["usage"]}, finish()))
    assert events[-1] == Finished(0, "stop", Usage(9, 40))


@pytest.mark.parametrize("place", ["own chunk", "choice", "every chunk"])
@pytest.mark.parametrize(
    ("counted", "expected", "unbelieved"),
    [
        ((10**30, 5), Usage(OWN_COUNT, 5), ["prompt_tokens"]),
        ((101, 5), Usage(OWN_COUNT, 5), ["prompt_tokens"]),
        ((100, 10), Usage(100, 10), []),
        ((9, 11), Usage(9, 3, 0, 1), ["completion_tokens"]),
        ((10**30, 10**30), Usage(OWN_COUNT, 3, 0, 1), ["prompt_tokens", "completion_tokens"]),
    ],
)
def test_a_count_that_cannot_be_is_an_estimate(
    counted: tuple[int, int], expected: Usage, unbelieved: list[str], place: str
) -> None:
    details = {
        "completion_tokens_details": {"reasoning_tokens": 10**30 if unbelieved[-1:] == ["completion_tokens"] else 0}
    }
    counts = usage(*counted, **details)["usage"]
    pieces = [delta(reasoning_content="hm"), delta(content="x"), delta(content="y")]
    match place:
        case "own chunk":
            frames = [*pieces, finish(), usage(*counted, **details)]
        case "choice":
            frames = [*pieces, finish(usage=counts)]
        case _:
            frames = [piece | {"usage": counts} for piece in [*pieces, finish()]]
    under_test = reader(most=Bounds(prompt=100, output=10))
    events: list[ChatEvent] = []
    for frame in [*chunks(*frames), b"[DONE]"]:
        under_test.feed(frame, events)
    assert events[-1] == Finished(0, "stop", expected)
    assert (under_test.prompt_tokens, under_test.completion_tokens) == (
        expected.prompt_tokens,
        expected.completion_tokens,
    )
    assert under_test.unbelieved == unbelieved


def test_each_choice_may_have_as_many_tokens() -> None:
    for counted, expected in ((20, 20), (21, 2)):
        under_test = reader(2, most=Bounds(prompt=100, output=10))
        events: list[ChatEvent] = []
        frames = [delta(0, content="x"), delta(1, content="y"), finish(), finish(choice=1), usage(9, counted)]
        for frame in chunks(*frames):
            under_test.feed(frame, events)
        assert under_test.completion_tokens == expected


def test_a_usage_of_the_whole_answer_is_shared_out() -> None:
    frames = chunks(
        *[delta(0, content="x")] * 3, delta(1, content="y"), finish(choice=0), finish(choice=1), usage(9, 10)
    )
    events, under_test = read(frames, choices=2)
    assert events[-2:] == [Finished(0, "stop", Usage(9, 7)), Finished(1, "stop", Usage(9, 3))]
    assert under_test.completion_tokens == 10


def test_what_was_cached_is_never_more_than_the_prompt() -> None:
    frames = chunks(finish(usage=usage(5, 1)["usage"]), finish(choice=1, usage=usage(9, 1, cached_tokens=9)["usage"]))
    _, under_test = read(frames, choices=2)
    assert under_test.cached_tokens <= under_test.prompt_tokens == 5


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(1, 1000), st.integers(0, 1000))
def test_nothing_is_lost_in_sharing_out(lengths: list[int], completion: int, reasoning: int) -> None:
    frames = [delta(choice, content="x") for choice, length in enumerate(lengths) for _ in range(length)]
    frames += [finish(choice=choice) for choice in range(len(lengths))]
    frames.append(usage(9, completion, completion_tokens_details={"reasoning_tokens": reasoning}))
    events, _ = read(chunks(*frames), choices=len(lengths))
    ends = [event.usage for event in events if isinstance(event, Finished)]
    assert len(ends) == len(lengths)
    assert sum([end.completion_tokens for end in ends]) == completion
    assert sum([end.reasoning_tokens for end in ends]) == min(reasoning, completion)
    assert all(end.reasoning_tokens <= end.completion_tokens for end in ends)


def test_half_a_surrogate_pair_is_no_end_of_an_answer() -> None:
    frames = [rb'{"choices":[{"delta":{"content":"a\ud83d"}}]}', rb'{"choices":[{"delta":{"content":"\\ud83d"}}]}']
    events, _ = read([*frames, *chunks(finish(), usage())])
    assert events == [TextDelta(0, "a\N{REPLACEMENT CHARACTER}"), TextDelta(0, r"\ud83d"), END]


def test_half_a_pair_beside_a_usage_that_nobody_can_read_is_no_end_of_an_answer() -> None:
    frame = rb'{"usage":{"prompt_tokens":"5"},"choices":[{"delta":{"content":"a\ud83d"}}]}'
    events, _ = read([frame, *chunks(finish(), usage())])
    assert events == [TextDelta(0, "a\N{REPLACEMENT CHARACTER}"), END]


def test_a_chunk_that_is_no_utf_8_is_a_clear_error() -> None:
    with pytest.raises(EngineUnavailable):
        read([b'{"usage":{"prompt_tokens":"5"},"choices":[{"delta":{"content":"\xff"}}]}'])


def test_a_stream_cut_after_its_finish_reason_is_complete() -> None:
    events: list[ChatEvent] = []
    under_test = reader()
    for frame in chunks(delta(content="x"), finish()):
        under_test.feed(frame, events)
    assert not under_test.complete
    under_test.end(events)
    assert events == [TextDelta(0, "x"), Finished(0, "stop", Usage(OWN_COUNT, 1))]


def test_nothing_counts_after_the_answer_is_complete() -> None:
    events, under_test = read(chunks(finish(usage=usage()["usage"]), usage(9, 999), delta(content="x")))
    assert events == [END]
    assert under_test.completion_tokens == 5


def test_ids_are_asked_for_with_what_the_server_gave() -> None:
    asked: list[tuple[int, str, str]] = []

    def call_ids(choice: int, given: str, name: str) -> str:
        asked.append((choice, given, name))
        return f"{name}:{len(asked)}"

    under_test = AnswerReader(1, OWN_COUNT, call_ids, MOST)
    events: list[ChatEvent] = []
    for frame in chunks(call(0, "call_1", "get", ""), call(1, None, "put", "")):
        under_test.feed(frame, events)
    assert asked == [(0, "call_1", "get"), (0, "", "put")]
    assert events == [ToolCallStarted(0, 0, "get:1", "get"), ToolCallStarted(0, 1, "put:2", "put")]


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_garbage_never_raises_anything_else(frames: list[bytes]) -> None:
    error = failure(reader(), frames, [])
    assert error is None or isinstance(error.__cause__, UpstreamFailed)


KEYS = ["choices", "index", "delta", "content", "tool_calls", "id", "function", "name", "arguments", "usage", "error"]
KEYS += ["finish_reason", "message", "type", "code", "prompt_tokens", "completion_tokens"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(JSON, max_size=5))
def test_neither_does_strange_json(frames: list[Any]) -> None:
    error = failure(reader(2), [*chunks(*frames), b"[DONE]"], [])
    assert error is None or isinstance(error.__cause__, UpstreamFailed)
