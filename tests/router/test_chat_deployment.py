"""A deployment over upstreams that speak chat themselves: real servers, some of which misbehave."""

import asyncio
import contextlib
import gc
import json
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from tests.engines.upstream.server import Asked, Peer, Server, nothing_left, serving

from moonbase.chat.events import ArgumentsDelta, ChatEvent, Finished, TextDelta, ToolCallStarted, Usage
from moonbase.chat.request import (
    ChatRequest,
    Conversation,
    ImagePart,
    Message,
    Sampling,
    SamplingOptions,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
)
from moonbase.config import EngineSettings
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.errors import (
    ApiError,
    ConfigurationError,
    EngineOverloaded,
    EngineUnavailable,
    GenerationTimeout,
    InvalidRequest,
    ModelNotFound,
)
from moonbase.formats.kimi_k2.format import KimiK2
from moonbase.router.chat_deployment import CallIds, ChatDeployment, Target, limit_name
from moonbase.router.chat_stream import ChatStream
from moonbase.router.deployment import EventStream
from moonbase.router.encoding import ConversationEncoder

pytestmark = pytest.mark.anyio

KEY = "sk-do-not-show"
SAMPLING = Sampling(temperature=0.6, top_p=1, n=1, presence_penalty=0, frequency_penalty=0)
MODELS = b'{"object":"list","data":[{"id":"there","max_model_len":8192,"supports_image_in":true}]}'
Answer = Callable[[Peer, Asked], Awaitable[None]]


def head(status: str = "200 OK", kind: str = "text/event-stream", *more: str) -> bytes:
    return "".join([f"{line}\r\n" for line in (f"HTTP/1.1 {status}", f"Content-Type: {kind}", *more, "")]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def frame(data: Any) -> bytes:
    return chunk(b"data: " + json.dumps(data).encode() + b"\n\n")


def text(content: str) -> bytes:
    return frame({"choices": [{"index": 0, "delta": {"content": content}}]})


def finish(prompt: int = 9, completion: int = 5) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": {"cached_tokens": 4}}
    return frame({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage})


STREAM = head("200 OK", "text/event-stream; charset=utf-8", "Transfer-Encoding: chunked")
DONE = chunk(b"data: [DONE]\n\n")
LAST = b"0\r\n\r\n"
WHOLE_BODY = json.dumps(
    {"choices": [{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}], "usage": {}}
).encode()
WHOLE = STREAM + text("Hello") + finish() + DONE + LAST
EVENTS = [TextDelta(0, "Hello"), Finished(0, "stop", Usage(9, 5, 4))]


def sized(status: str, body: bytes, kind: str = "application/json", *more: str) -> bytes:
    return head(status, kind, f"Content-Length: {len(body)}", *more) + body


def saying(*pieces: bytes, pause: float = 0.0) -> Answer:
    """Sends these, and waits for the next request."""

    async def answer(peer: Peer, asked: Asked) -> None:
        for piece in pieces:
            await peer.send(piece)
            await asyncio.sleep(pause)

    return answer


class Upstream:
    """A server with a list of models and `answer` for chats; keeps what it was asked."""

    def __init__(self, answer: Answer, models: bytes = sized("200 OK", MODELS)) -> None:
        self.answer = answer
        self.models = models
        self.asked: list[Asked] = []
        self.server: Server

    async def __call__(self, peer: Peer) -> None:
        while True:
            asked = await peer.read_request()
            if asked.line.startswith("GET /v1/models "):
                await peer.send(self.models)
            else:
                self.asked.append(asked)
                await self.answer(peer, asked)

    @property
    def body(self) -> dict[str, Any]:
        """What the latest chat asked for."""
        found: dict[str, Any] = json.loads(self.asked[-1].body)
        return found


@asynccontextmanager
async def over(
    upstream: Upstream, /, *, encoder: ConversationEncoder | None = None, **fields: Any
) -> AsyncIterator[ChatDeployment]:
    """A started deployment. When it is closed, no socket and no task may be left."""
    with nothing_left():
        async with serving(upstream) as server:
            upstream.server = server
            target = Target(**{"upstream": "openai", "url": f"{server.url}/v1", "api_key": KEY} | fields)
            deployment = ChatDeployment("a name", target, EngineSettings(), encoder)
            await deployment.start()
            try:
                yield deployment
            finally:
                await deployment.close()


def asking(*content: str | ImagePart, **fields: Any) -> ChatRequest:
    parts = tuple([TextPart(part) if isinstance(part, str) else part for part in content or ("Hi",)])
    asked = {"model": "here", "messages": (Message(role="user", content=parts),), "stream": True}
    return ChatRequest(**asked | fields)


async def opened(
    deployment: ChatDeployment,
    request: ChatRequest | None = None,
    *,
    thinking: bool = False,
    sampling: Sampling = SAMPLING,
    max_tokens: int = 100,
) -> ChatStream:
    request = request or asking()
    conversation = Conversation(messages=request.messages, tools=request.tools, thinking=thinking)
    prepared = await deployment.prepare(request, conversation, "org")
    return prepared.open("id", sampling=sampling, max_tokens=max_tokens)


async def everything(stream: EventStream) -> list[ChatEvent]:
    events: list[ChatEvent] = []
    while more := await asyncio.wait_for(stream.read(), 10):
        events += more
    return events


async def until_failure(stream: EventStream) -> tuple[list[ChatEvent], ApiError]:
    """All events, and the error that they end with."""
    events: list[ChatEvent] = []
    try:
        while more := await asyncio.wait_for(stream.read(), 10):
            events += more
    except ApiError as error:
        return events, error
    raise AssertionError("the stream did not fail")


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for is not ours to signal
            await asyncio.sleep(0.01)


async def test_an_answer_is_read_and_counted() -> None:
    upstream = Upstream(saying(WHOLE))
    async with over(upstream) as deployment:
        with await opened(deployment) as stream:
            assert stream.open
            assert await everything(stream) == EVENTS
            assert not stream.open
        assert (stream.prompt_tokens, stream.cached_tokens, stream.completion_tokens) == (9, 4, 5)
        assert (deployment.running, deployment.waiting) == (0, 0)
    asked = upstream.asked[0]
    assert asked.line == "POST /v1/chat/completions HTTP/1.1"
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert upstream.body["model"] == "here"
    assert upstream.body["max_tokens"] == 100


async def test_an_answer_that_is_no_stream_is_read_as_one() -> None:
    body = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 5, "cached_tokens": 4},
    }
    async with over(Upstream(saying(sized("200 OK", json.dumps(body).encode())))) as deployment:
        with await opened(deployment) as stream:
            assert await everything(stream) == EVENTS


async def test_an_end_without_done_is_enough() -> None:
    async with over(Upstream(saying(STREAM + text("Hello") + finish() + LAST))) as deployment:
        with await opened(deployment) as stream:
            assert await everything(stream) == EVENTS


async def test_pieces_are_delivered_as_they_come() -> None:
    async with over(Upstream(saying(STREAM, text("a"), text("b"), finish() + LAST, pause=0.05))) as deployment:
        with await opened(deployment) as stream:
            reads = []
            while events := await stream.read():
                reads.append(events)
    assert [events[0] for events in reads[:2]] == [TextDelta(0, "a"), TextDelta(0, "b")]
    assert len(reads) == 3


async def test_a_connection_is_used_again_after_a_complete_answer() -> None:
    """Also where the response ends somewhat later than the answer."""
    upstream = Upstream(saying(STREAM + text("Hello") + finish() + DONE, LAST, pause=0.05))
    async with over(upstream) as deployment:
        for _ in range(3):
            with await opened(deployment) as stream:
                assert await everything(stream) == EVENTS
            await asyncio.sleep(0.1)
        assert upstream.server.connections == 1


async def test_a_response_that_never_ends_is_cancelled_once_its_answer_has() -> None:
    gone: list[float] = []

    async def never_ending(peer: Peer, asked: Asked) -> None:
        await peer.send(STREAM + text("Hello") + finish() + DONE)
        gone.append(await peer.gone())

    async with over(Upstream(never_ending)) as deployment:
        with await opened(deployment) as stream:
            assert await everything(stream) == EVENTS
        await eventually(lambda: bool(gone))


async def test_leaving_cancels_at_once_and_counts_what_came() -> None:
    gone: list[float] = []

    async def endless(peer: Peer, asked: Asked) -> None:
        await peer.send(STREAM + text("one") + text(" two"))
        gone.append(await peer.gone())

    async with over(Upstream(endless)) as deployment:
        with await opened(deployment) as stream:
            assert deployment.waiting == 1
            assert await stream.read() == [TextDelta(0, "one"), TextDelta(0, " two")]
            assert (deployment.running, deployment.waiting) == (1, 0)
            left = time.monotonic()
        await eventually(lambda: bool(gone))
        assert gone[0] - left < 0.25
        assert stream.completion_tokens == 2
        assert stream.prompt_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("upstream", ["openai", "moonshot"])
async def test_an_answer_is_asked_for_as_the_client_wants_it(upstream: str, stream: bool) -> None:
    """But for the service itself, which is far away: what is between may cut a silent connection."""
    there = Upstream(saying(WHOLE))
    async with over(there, upstream=upstream) as deployment:
        with await opened(deployment, asking(stream=stream)) as answer:
            streams = stream or upstream == "moonshot"
            assert answer.silent != streams
            assert (deployment.running, deployment.waiting) == ((0, 1) if streams else (1, 0))
            assert await everything(answer) == EVENTS
            assert not answer.silent, "what comes is a stream, whatever was asked for"
    assert there.body["stream"] == streams
    assert there.body.get("stream_options") == ({"include_usage": True} if streams else None)


async def test_an_abort_comes_after_what_had_come() -> None:
    async with over(Upstream(saying(STREAM + text("part")))) as deployment:
        with await opened(deployment) as stream:
            await eventually(lambda: stream.last_put is not None)
            stream.abort(GenerationTimeout("idle", 1))
            assert not stream.open
            assert await stream.read() == [TextDelta(0, "part")]
            with pytest.raises(GenerationTimeout):
                await stream.read()


async def test_an_abort_wakes_who_waits() -> None:
    async with over(Upstream(saying(STREAM))) as deployment:
        with await opened(deployment) as stream:
            asyncio.get_running_loop().call_later(0.05, stream.abort, GenerationTimeout("first token", 1))
            with pytest.raises(GenerationTimeout):
                await stream.read()


async def test_signs_of_life_are_no_output() -> None:
    async with over(Upstream(saying(STREAM, chunk(b": processing\n\n"), pause=0.05))) as deployment:
        with await opened(deployment) as stream:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stream.read(), 0.2)
            assert stream.last_put is None
            assert (deployment.running, deployment.waiting) == (0, 1)


@pytest.mark.parametrize(
    "nothing", [b": processing\n\n", b"\n\n", b'data: {"choices": [{"index": 0, "delta": {}}]}\n\n']
)
async def test_much_that_is_no_output_does_not_pass_for_output(nothing: bytes) -> None:
    async with over(Upstream(saying(STREAM, *[chunk(nothing)] * 2_000))) as deployment:
        with await opened(deployment) as stream:
            reading = asyncio.create_task(stream.read())
            seen: set[float | None] = set()
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                seen.add(stream.last_put)
                await asyncio.sleep(0)
            assert seen == {None}
            reading.cancel()


async def test_closing_ends_what_runs() -> None:
    async with over(Upstream(saying(STREAM + text("part")))) as deployment:
        with await opened(deployment) as stream:
            assert await stream.read() == [TextDelta(0, "part")]
            await deployment.close()
            with pytest.raises(EngineUnavailable):
                await stream.read()
        assert not deployment.ready
        await deployment.close()


class Closing:
    """An answer after which the connection is closed."""

    def __init__(self, *pieces: bytes, reset: bool = False) -> None:
        self._pieces = pieces
        self._reset = reset

    async def __call__(self, peer: Peer, asked: Asked) -> None:
        for piece in self._pieces:
            await peer.send(piece)
        if self._reset:
            await asyncio.sleep(0.05)
            peer.reset()
        raise ConnectionError


REFUSAL = json.dumps({"error": {"message": "Invalid request: no", "type": "invalid_request_error"}}).encode()
OVER = json.dumps({"error": {"message": "Your account org-1<ak-2> is suspended", "type": "x"}}).encode()
HELLO: list[ChatEvent] = [TextDelta(0, "Hello")]


@pytest.mark.parametrize(
    ("answer", "delivered", "expected"),
    [
        pytest.param(Closing(), [], EngineUnavailable(), id="no answer"),
        pytest.param(Closing(b"HTTP/1.1 200"), [], EngineUnavailable(), id="half a head"),
        pytest.param(Closing(b"SSH-2.0-OpenSSH\r\n"), [], EngineUnavailable(), id="another protocol"),
        pytest.param(Closing(STREAM + text("Hello")), HELLO, EngineUnavailable(), id="cut between events"),
        pytest.param(
            Closing(STREAM + text("Hello") + chunk(b'data: {"cho')), HELLO, EngineUnavailable(), id="half an event"
        ),
        pytest.param(Closing(STREAM + text("Hello"), reset=True), HELLO, EngineUnavailable(), id="reset"),
        pytest.param(saying(STREAM + text("Hello") + DONE + LAST), HELLO, EngineUnavailable(), id="done too early"),
        pytest.param(saying(STREAM + text("Hello") + LAST), HELLO, EngineUnavailable(), id="an end without an end"),
        pytest.param(saying(STREAM + LAST), [], EngineUnavailable(), id="nothing at all"),
        pytest.param(
            saying(STREAM + text("Hello") + chunk(b"data: no\n\n")), HELLO, EngineUnavailable(), id="no chunk of ours"
        ),
        pytest.param(
            saying(STREAM + text("Hello") + chunk(b"data: " + b"x" * 5_000_000)), HELLO, EngineUnavailable(), id="huge"
        ),
        pytest.param(
            saying(STREAM + text("Hello") + frame(json.loads(REFUSAL))),
            HELLO,
            InvalidRequest("no"),
            id="an error in the stream",
        ),
        pytest.param(
            saying(sized("200 OK", b"<html>", "text/html")), [], EngineUnavailable(), id="a page instead of an answer"
        ),
        pytest.param(saying(sized("200 OK", b'{"choices":[]}')), [], EngineUnavailable(), id="an empty completion"),
        pytest.param(
            Closing(head("200 OK", "application/json", "Content-Length: 500") + b'{"choi'),
            [],
            EngineUnavailable(),
            id="half a completion",
        ),
        pytest.param(
            saying(head("200 OK", "application/json", "Content-Length: 90000000") + b" " * 17_000_000),
            [],
            EngineUnavailable(),
            id="a huge completion",
        ),
        pytest.param(saying(sized("400 Bad Request", REFUSAL)), [], InvalidRequest("no"), id="400"),
        pytest.param(
            Closing(head("400 Bad Request", "application/json", "Content-Length: 500") + REFUSAL),
            [],
            InvalidRequest("no"),
            id="400 cut short",
        ),
        pytest.param(
            saying(head("400 Bad Request", "text/html", "Content-Length: 90000000") + b"x" * 90_000),
            [],
            InvalidRequest("what answers for this model refuses it"),
            id="400 without end",
        ),
        pytest.param(saying(sized("401 Unauthorized", OVER)), [], EngineUnavailable(), id="401"),
        pytest.param(saying(sized("403 Forbidden", OVER)), [], EngineUnavailable(), id="403"),
        pytest.param(saying(sized("404 Not Found", REFUSAL)), [], ModelNotFound("here"), id="404"),
        pytest.param(saying(sized("429 Too Many", OVER)), [], EngineOverloaded(), id="429"),
        pytest.param(
            saying(sized("429 Too Many", OVER, "application/json", "Retry-After: 7")),
            [],
            EngineOverloaded(7),
            id="429 with a time",
        ),
        pytest.param(saying(sized("307 Elsewhere", b"", "x/y", "Location: /")), [], EngineUnavailable(), id="307"),
        pytest.param(saying(sized("500 Oops", b"", "x/y")), [], EngineUnavailable(), id="500"),
        pytest.param(
            saying(sized("504 Gateway Time-out", b"<html>", "text/html")), [], EngineUnavailable(), id="504 as a page"
        ),
    ],
)
async def test_what_was_delivered_stays_and_a_clear_error_follows(
    answer: Answer, delivered: list[ChatEvent], expected: ApiError
) -> None:
    upstream = Upstream(answer)
    async with over(upstream) as deployment:
        with await opened(deployment) as stream:
            events, error = await until_failure(stream)
            assert events == delivered
            assert type(error) is type(expected)
            assert (str(error), error.retry_after) == (str(expected), expected.retry_after)
            assert not stream.open
        assert (deployment.running, deployment.waiting) == (0, 0)
        upstream.answer = saying(WHOLE)
        with await opened(deployment) as stream:
            assert await everything(stream) == EVENTS


async def test_calls_without_end_are_refused_before_they_hold_up_others(caplog: pytest.LogCaptureFixture) -> None:
    function = {"name": "get", "arguments": "x" * 100}
    calls = [{"index": index, "id": str(index), "function": function} for index in range(20_000)]
    upstream = Upstream(saying(STREAM + frame({"choices": [{"index": 0, "delta": {"tool_calls": calls}}]})))
    async with over(upstream) as deployment:
        with await opened(deployment) as stream:
            assert (await until_failure(stream))[0] == []
        half = [{"choices": [{"index": 0, "delta": {"tool_calls": calls[at : at + 600]}}]} for at in (0, 600)]
        upstream.answer = saying(STREAM + frame(half[0]) + frame(half[1]))
        with await opened(deployment, max_tokens=10_000) as stream:
            events, error = await until_failure(stream)
    assert isinstance(error, EngineUnavailable)
    assert sum(isinstance(event, ToolCallStarted) for event in events) == 1024
    assert "the upstream sent more than 1024 pieces of tool calls at once" in caplog.text
    assert "the upstream made more than 1024 tool calls" in caplog.text


async def test_a_name_in_pieces_is_that_of_the_tool_that_was_declared() -> None:
    tools = tuple([Tool(name=name, declaration="{}", parameters="{}") for name in ("get", "get_weather")])
    pieces = [{"index": 0, "id": "a", "function": {"name": "get"}}, {"index": 0, "function": {"name": "_weather"}}]
    frames = [frame({"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]}) for piece in pieces]
    upstream = Upstream(saying(STREAM + b"".join(frames) + finish() + DONE + LAST))
    async with over(upstream) as deployment:
        with await opened(deployment, asking(tools=tools)) as stream:
            events = await everything(stream)
    assert events == [
        ToolCallStarted(0, 0, "get_weather:0", "get_weather"),
        ArgumentsDelta(0, 0, "{}"),
        Finished(0, "tool_calls", Usage(9, 5, 4)),
    ]


async def test_a_connection_that_misbehaved_is_not_used_again() -> None:
    upstream = Upstream(saying(STREAM + text("Hello") + chunk(b"data: no\n\n")))
    async with over(upstream) as deployment:
        with await opened(deployment) as stream:
            assert (await until_failure(stream))[0] == HELLO
        upstream.answer = saying(WHOLE)
        with await opened(deployment) as stream:
            assert await everything(stream) == EVENTS
        assert upstream.server.connections == 2


def delta(**fields: Any) -> bytes:
    return frame({"choices": [{"index": 0, "delta": fields}]})


def call(index: int, **function: str) -> dict[str, Any]:
    return {"index": index, "id": str(index), "function": function}


MISBEHAVED = {
    "garbage": text("Hello") + chunk(b"data: no\n\n"),
    "done too early": text("Hello") + DONE,
    "no finish_reason": text("Hello"),
    "2000 calls": delta(tool_calls=[call(at, name="get", arguments="{}") for at in range(2000)]),
    "a long name": delta(tool_calls=[call(0, name="x" * 300)]),
    "no name": delta(tool_calls=[call(0, arguments="{}")]) + finish(),
    "choice 7": frame({"choices": [{"index": 7, "delta": {"content": "Hello"}}]}) + finish(),
    "an unknown end": frame({"choices": [{"index": 0, "delta": {}, "finish_reason": "dreamt"}]}),
    "too much": b"".join([text("x" * 1000)] * 200) + finish(),
}


@pytest.mark.parametrize("late", [False, True], ids=["read as it comes", "read when it has come"])
@pytest.mark.parametrize("answer", MISBEHAVED.values(), ids=MISBEHAVED)
async def test_nor_is_one_whose_response_has_come_to_its_end(answer: bytes, late: bool) -> None:
    upstream = Upstream(saying(STREAM + answer + LAST))
    async with over(upstream) as deployment:
        with await opened(deployment) as stream:
            if late:
                await asyncio.sleep(0.1)
            assert isinstance((await until_failure(stream))[1], EngineUnavailable)
        upstream.answer = saying(WHOLE)
        with await opened(deployment) as stream:
            assert await everything(stream) == EVENTS
        assert upstream.server.connections == 2


@pytest.mark.parametrize("answer", [b"{}", b"no", b'{"choices":[{"index":7,"message":{"content":"Hello"}}]}'])
async def test_nor_is_one_whose_answer_is_no_completion(answer: bytes) -> None:
    upstream = Upstream(saying(sized("200 OK", answer)))
    async with over(upstream) as deployment:
        with await opened(deployment) as stream:
            assert (await until_failure(stream))[0] == []
        upstream.answer = saying(WHOLE)
        with await opened(deployment) as stream:
            assert await everything(stream) == EVENTS
        assert upstream.server.connections == 2


async def test_nobody_gets_a_connection_before_its_answer_was_read() -> None:
    upstream = Upstream(saying(WHOLE))
    async with over(upstream) as deployment:
        with await opened(deployment) as first:
            await eventually(lambda: len(upstream.asked) == 1)
            await asyncio.sleep(0.05)
            with await opened(deployment) as second:
                assert await everything(second) == EVENTS
            assert await everything(first) == EVENTS
        assert upstream.server.connections == 2


async def test_a_refusal_is_no_misbehaviour() -> None:
    upstream = Upstream(saying(sized("400 Bad Request", REFUSAL)))
    async with over(upstream) as deployment:
        for _ in range(3):
            with await opened(deployment) as stream, pytest.raises(InvalidRequest):
                await stream.read()
        assert upstream.server.connections == 1


@pytest.mark.parametrize("status", ["400 Bad Request", "429 Too Many"])
async def test_nothing_of_a_failed_answer_is_left_to_the_collector(status: str) -> None:
    """An error's stack leads to the request, which may be large, and to all that the upstream sent."""
    async with over(Upstream(saying(sized(status, REFUSAL)))) as deployment:
        gc.disable()
        try:
            stream = await opened(deployment)
            with stream, contextlib.suppress(ApiError):
                await stream.read()
            left = weakref.ref(stream)
            del stream
            await asyncio.sleep(0)
            assert left() is None
        finally:
            gc.enable()


async def test_an_upstream_that_is_busy_with_whole_answers_is_there() -> None:
    """What has just answered may be slow to list its models."""
    looks = 0
    answers = [sized("200 OK", WHOLE_BODY), sized("503 Unavailable", b"")]

    async def busy(peer: Peer) -> None:
        nonlocal looks
        while True:
            asked = await peer.read_request()
            if not asked.line.startswith("GET "):
                await peer.send(answers.pop(0))
                continue
            looks += 1
            if looks > 1:
                await asyncio.Event().wait()
            await peer.send(sized("200 OK", b'{"data":[]}'))

    async with serving(busy) as server:
        target = Target(upstream="openai", url=f"{server.url}/v1")
        deployment = ChatDeployment("a name", target, EngineSettings())
        await deployment.start()
        try:
            with await opened(deployment, asking(stream=False)) as stream:
                assert await everything(stream)
            with await opened(deployment) as stream, pytest.raises(EngineUnavailable):
                await stream.read()
            await eventually(lambda: looks == 2)
            await asyncio.sleep(5.5)  # longer than it is waited for
            assert deployment.ready
        finally:
            await deployment.close()


FIELDS = ["content", "reasoning_content", "arguments"]


@pytest.mark.parametrize("field", FIELDS)
async def test_output_without_end_is_cut_where_it_is_plainly_more_than_was_asked_for(
    field: str, caplog: pytest.LogCaptureFixture
) -> None:
    piece = delta(tool_calls=[call(0, arguments="x" * 1000)]) if field == "arguments" else delta(**{field: "x" * 1000})
    gone: list[float] = []

    async def endless(peer: Peer, asked: Asked) -> None:
        begin = delta(tool_calls=[call(0, name="get")])
        await peer.send(STREAM + (begin if field == "arguments" else b""))
        try:
            for _ in range(50_000):
                await peer.send(piece)
        except ConnectionError:
            gone.append(time.monotonic())

    async with over(Upstream(endless)) as deployment:
        for limit, most in ((10, 65_536), (1000, 128_000)):
            with await opened(deployment, max_tokens=limit) as stream:
                events, error = await until_failure(stream)
                assert not stream.open
            size = sum([len(event.text) for event in events if not isinstance(event, ToolCallStarted | Finished)])
            assert most - 1000 < size <= most
            assert type(error) is EngineUnavailable
            assert stream.completion_tokens <= limit
            assert f"the upstream sent more output than {limit} tokens can be" in caplog.text
        await eventually(lambda: len(gone) == 2)


@pytest.mark.parametrize("claimed", [5, 10, 10**9])
@pytest.mark.parametrize("whole", [False, True])
async def test_an_answer_that_is_too_long_is_no_answer_however_few_tokens_are_claimed(
    whole: bool, claimed: int
) -> None:
    if whole:
        choice = {"index": 0, "message": {"content": "x" * 100_000}, "finish_reason": "stop"}
        body = {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": claimed}}
        answer = sized("200 OK", json.dumps(body).encode())
    else:
        answer = STREAM + text("Hello") + text("x" * 100_000) + finish(9, claimed) + DONE + LAST
    async with over(Upstream(saying(answer))) as deployment:
        with await opened(deployment, max_tokens=10) as stream:
            events, error = await until_failure(stream)
        assert events == ([] if whole else HELLO)
        assert type(error) is EngineUnavailable
        assert stream.completion_tokens <= 10
        assert (deployment.running, deployment.waiting) == (0, 0)


async def test_every_choice_has_room_for_what_was_asked_for() -> None:
    n3 = msgspec.structs.replace(SAMPLING, n=3)
    long = "".join([f"{number:7} " for number in range(8000)])  # 64,000 characters
    ends = [frame({"choices": [{"index": at, "delta": {"content": long}, "finish_reason": "stop"}]}) for at in range(3)]
    async with over(Upstream(saying(STREAM + b"".join(ends) + DONE + LAST))) as deployment:
        with await opened(deployment, sampling=n3, max_tokens=10) as stream:
            events = await everything(stream)
    assert [event for event in events if isinstance(event, TextDelta)] == [TextDelta(at, long) for at in range(3)]


async def test_where_no_limit_is_sent_the_window_is_one() -> None:
    """Of 8,192 tokens."""
    upstream = Upstream(saying())
    async with over(upstream, model="there") as deployment:
        for pieces, fails in ((1_000, False), (1_100, True)):
            upstream.answer = saying(STREAM + text("x" * 1000) * pieces + finish() + DONE + LAST)
            with await opened(deployment, asking("世" * 20_000), max_tokens=1) as stream:
                if fails:
                    events, _ = await until_failure(stream)
                else:
                    events = await everything(stream)
            assert "max_tokens" not in upstream.body
            size = sum([len(event.text) for event in events if isinstance(event, TextDelta)])
            assert size == min(pieces, 1_048) * 1000


async def test_no_client_sees_the_key_or_the_address(caplog: pytest.LogCaptureFixture) -> None:
    upstream = Upstream(saying())
    async with over(upstream) as deployment:
        address = f"127.0.0.1:{upstream.server.port}"
        said = f"{KEY} is no key for http://{address}/v1 at 127.0.0.1"
        body = json.dumps({"error": {"message": said, "type": "invalid_request_error"}}).encode()
        for answer in (sized("400 Bad Request", body), STREAM + frame(json.loads(body))):
            upstream.answer = saying(answer)
            with await opened(deployment) as stream, pytest.raises(InvalidRequest) as caught:
                await stream.read()
            assert str(caught.value) == "… is no key for … at …"
        upstream.answer = saying(sized("401 Unauthorized", body))
        with await opened(deployment) as stream, pytest.raises(EngineUnavailable) as refused:
            await stream.read()
    assert KEY not in str(refused.value)
    assert KEY not in caplog.text
    assert "the upstream answered 401 invalid_request_error" in caplog.text


async def test_a_long_sentence_is_cut_after_the_key_was_taken_out() -> None:
    upstream = Upstream(saying())
    async with over(upstream) as deployment:
        for place in range(1_990, 2_001):
            body = json.dumps({"error": {"message": "x" * place + KEY, "type": "invalid_request_error"}}).encode()
            upstream.answer = saying(sized("400 Bad Request", body))
            with await opened(deployment) as stream, pytest.raises(InvalidRequest) as caught:
                await stream.read()
            assert set(str(caught.value)) <= set("x…")
            assert len(str(caught.value)) <= 2_000


async def test_a_slow_reader_holds_the_upstream_back() -> None:
    sent = 0

    async def flood(peer: Peer, asked: Asked) -> None:
        nonlocal sent
        await peer.send(STREAM)
        for _ in range(400):
            await peer.send(text("x" * 100_000))
            sent += 100_000
        await peer.send(finish() + DONE + LAST)

    async with over(Upstream(flood)) as deployment:
        with await opened(deployment, max_tokens=1_000_000) as stream:
            await asyncio.sleep(0.5)
            held = sent
            assert stream.last_put is not None
            assert time.monotonic() - stream.last_put < 0.1  # the upstream is not what is late
            events = await everything(stream)
        assert held < 20_000_000
        assert sum([len(event.text) for event in events if isinstance(event, TextDelta)]) == 40_000_000
        assert isinstance(events[-1], Finished)


async def test_an_upstream_that_is_not_there_yet_is_found_when_it_comes() -> None:
    async with serving(Upstream(saying())) as gone:
        url = f"{gone.url}/v1"
    deployment = ChatDeployment("a name", Target(upstream="openai", url=url), EngineSettings())
    try:
        await asyncio.wait_for(deployment.start(), 5)
        assert not deployment.ready
        upstream = Upstream(saying(WHOLE))

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError):
                await upstream(Peer(reader, writer))
            writer.close()

        listener = await asyncio.start_server(accept, "127.0.0.1", gone.port)
        await eventually(lambda: deployment.ready)
        with await opened(deployment) as stream:
            assert await everything(stream) == EVENTS
        listener.close()
    finally:
        await deployment.close()
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("models", "ready"),
    [
        (sized("200 OK", MODELS), True),
        (sized("200 OK", b"<html>"), True),
        (sized("404 Not Found", b""), True),
        (sized("429 Too Many", b""), True),
        (sized("200 OK", b" " * 9_000_000), True),
        (sized("401 Unauthorized", b""), False),
        (sized("503 Unavailable", b""), False),
    ],
)
async def test_ready_is_what_answers_for_its_models(models: bytes, ready: bool) -> None:
    async with over(Upstream(saying(WHOLE), models)) as deployment:
        assert deployment.ready is ready


async def test_a_failure_makes_it_look_again() -> None:
    upstream = Upstream(saying(sized("503 Unavailable", b"")))
    async with over(upstream) as deployment:
        assert deployment.ready
        upstream.models = sized("503 Unavailable", b"")
        with await opened(deployment) as stream, pytest.raises(EngineUnavailable):
            await stream.read()
        await eventually(lambda: not deployment.ready)
        upstream.models = sized("200 OK", MODELS)
        await eventually(lambda: deployment.ready)


async def test_a_failure_does_not_wait_for_the_next_look() -> None:
    """Also while the upstream is looked for, at longer and longer pauses."""
    looks: list[float] = []

    class Counting(Upstream):
        async def __call__(self, peer: Peer) -> None:
            while True:
                asked = await peer.read_request()
                if asked.line.startswith("GET "):
                    looks.append(time.monotonic())
                    await peer.send(self.models)
                else:
                    await self.answer(peer, asked)

    unavailable = sized("503 Unavailable", b"")
    upstream = Counting(saying(unavailable), unavailable)
    async with over(upstream) as deployment:
        await eventually(lambda: len(looks) == 4)  # the next look is two seconds away
        upstream.models = sized("200 OK", MODELS)
        with await opened(deployment) as stream, pytest.raises(EngineUnavailable):
            await stream.read()
        failed = time.monotonic()
        await eventually(lambda: deployment.ready)
        assert time.monotonic() - failed < 1


async def test_a_failure_during_a_look_makes_for_another() -> None:
    """The look may have been answered before whatever made the request fail."""
    looking, answered = asyncio.Event(), asyncio.Event()
    looks = 0

    async def slow(peer: Peer) -> None:
        nonlocal looks
        while True:
            asked = await peer.read_request()
            if not asked.line.startswith("GET "):
                await peer.send(sized("503 Unavailable", b""))
                continue
            looks += 1
            if looks == 5:
                looking.set()
                await answered.wait()
            await peer.send(sized("503 Unavailable", b""))

    with nothing_left():
        async with serving(slow) as server:
            target = Target(upstream="openai", url=f"{server.url}/v1")
            deployment = ChatDeployment("a name", target, EngineSettings())
            await deployment.start()
            await asyncio.wait_for(looking.wait(), 10)
            with await opened(deployment) as stream, pytest.raises(EngineUnavailable):
                await stream.read()
            answered.set()
            before = time.monotonic()
            await eventually(lambda: looks == 6)  # by itself it would be four seconds away
            assert time.monotonic() - before < 1
            await deployment.close()


async def test_window_and_abilities_are_those_of_the_model_there() -> None:
    async with over(Upstream(saying()), model="there") as deployment:
        assert deployment.own_window == 8192
        assert deployment.capabilities.image_in
        assert deployment.capabilities.tools
    async with over(Upstream(saying()), model="another") as deployment:
        assert deployment.own_window is None
        assert not deployment.capabilities.image_in
    async with over(Upstream(saying())) as deployment:
        assert deployment.own_window is None
        assert deployment.capabilities.image_in


async def test_a_model_of_the_operators_choice_is_asked_for_and_never_not_found() -> None:
    upstream = Upstream(saying(sized("404 Not Found", REFUSAL)))
    async with over(upstream, model="there") as deployment:
        with await opened(deployment) as stream, pytest.raises(EngineUnavailable):
            await stream.read()
    assert upstream.body["model"] == "there"


async def prepared_tokens(deployment: ChatDeployment, request: ChatRequest) -> int:
    conversation = Conversation(messages=request.messages)
    return (await deployment.prepare(request, conversation, "org")).tokens


async def test_prompts_are_estimated_at_four_bytes_a_token() -> None:
    async with over(Upstream(saying())) as deployment:
        short, long = asking("x"), asking("x" + "y" * 4000)
        assert await prepared_tokens(deployment, long) - await prepared_tokens(deployment, short) == 1000
        image = asking("x", ImagePart("data:image/png;base64," + "A" * 40_000))
        assert 1024 < await prepared_tokens(deployment, image) < 1100


async def test_an_estimate_refuses_no_prompt_and_limits_no_output() -> None:
    upstream = Upstream(saying(WHOLE))
    async with over(upstream, model="there") as deployment:
        long = asking("世" * 20_000)
        tokens = await prepared_tokens(deployment, long)
        assert tokens == 8191
        with await opened(deployment, long, max_tokens=8192 - tokens) as stream:
            await everything(stream)
        assert "max_tokens" not in upstream.body
        with await opened(deployment, max_tokens=8000) as stream:
            await everything(stream)
        assert upstream.body["max_tokens"] == 8000


async def test_the_clients_own_limit_is_passed_on_whatever_the_estimate_says() -> None:
    upstream = Upstream(saying(WHOLE))
    async with over(upstream, model="there") as deployment:
        for content, own, granted in ((" " * 40_000, 5, 1), ("Hi", 100_000, 8192)):
            with await opened(deployment, asking(content, max_tokens=own), max_tokens=granted) as stream:
                await everything(stream)
            assert upstream.body["max_tokens"] == own


async def test_an_image_more_is_no_estimate_beyond_the_window() -> None:
    async with over(Upstream(saying()), model="there") as deployment:
        image = asking(" " * 40_000, ImagePart("data:image/png;base64,AAAA"))
        assert await prepared_tokens(deployment, image) == 8191


async def test_only_an_encoder_does_more_than_estimate() -> None:
    encoder = ConversationEncoder(KimiK2("kimi-k2-0905"), ApproximateTokenizer())
    request = asking()
    for given, expected in ((None, True), (encoder, False)):
        async with over(Upstream(saying()), encoder=given) as deployment:
            prepared = await deployment.prepare(request, Conversation(messages=request.messages), "org")
            assert prepared.estimated is expected


@pytest.mark.parametrize("model", ["there", ""], ids=["a known window", "no window known"])
async def test_a_usage_that_cannot_be_is_an_estimate_and_logged(model: str, caplog: pytest.LogCaptureFixture) -> None:
    upstream = Upstream(saying(STREAM + text("Hello") + finish(10**30, 10**30) + DONE + LAST))
    async with over(upstream, model=model) as deployment:
        own = await prepared_tokens(deployment, asking())
        with await opened(deployment) as stream:
            assert await everything(stream) == [TextDelta(0, "Hello"), Finished(0, "stop", Usage(own, 1))]
        assert (stream.prompt_tokens, stream.cached_tokens, stream.completion_tokens) == (own, 0, 1)
    assert "a name: the upstream counted more prompt_tokens and completion_tokens than there can be" in caplog.text


async def test_output_beyond_what_was_asked_for_is_not_believed() -> None:
    for counted, expected in ((100, 100), (101, 1)):
        async with over(Upstream(saying(STREAM + text("Hello") + finish(9, counted) + DONE + LAST))) as deployment:
            with await opened(deployment, max_tokens=100) as stream:
                await everything(stream)
            assert (stream.prompt_tokens, stream.completion_tokens) == (9, expected)


async def test_an_answer_whose_usage_never_comes_ends_all_the_same() -> None:
    """Nor does what keeps coming put the end off."""
    stop = frame({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})

    async def hang(peer: Peer, asked: Asked) -> None:
        await peer.send(STREAM + text("Hello") + stop)
        with contextlib.suppress(ConnectionError):
            while True:
                await peer.send(chunk(b": still here\n\n"))
                await asyncio.sleep(1)

    async with over(Upstream(hang)) as deployment:
        own = await prepared_tokens(deployment, asking())
        with await opened(deployment) as stream:
            assert await everything(stream) == [TextDelta(0, "Hello"), Finished(0, "stop", Usage(own, 1))]


async def test_an_encoder_counts_as_the_format_does() -> None:
    encoder = ConversationEncoder(KimiK2("kimi-k2-0905"), ApproximateTokenizer())
    async with over(Upstream(saying()), encoder=encoder, upstream="moonshot") as deployment:
        short, long = asking("x" * 4), asking("x" * 4004)
        assert await prepared_tokens(deployment, long) - await prepared_tokens(deployment, short) == 1000


async def test_a_tool_result_without_its_call_is_refused_before_anything_is_sent() -> None:
    upstream = Upstream(saying(WHOLE))
    lost = Message(role="tool", tool_call_id="call_1", content=(TextPart("x"),))
    async with over(upstream) as deployment:
        with pytest.raises(InvalidRequest, match="tool_call_id call_1 is not found"):
            await opened(deployment, asking(messages=(lost,)))
    assert upstream.asked == []


async def test_moonshot_gets_the_service_defaults_of_the_id_that_was_asked_for() -> None:
    upstream = Upstream(saying(WHOLE))
    async with over(upstream, upstream="moonshot") as deployment:
        with await opened(deployment, asking(thinking=Thinking(enabled=False))) as stream:
            await everything(stream)
    assert upstream.body["temperature"] == 0.6
    assert upstream.body["thinking"] == {"type": "disabled"}


async def test_a_stand_in_at_moonshot_keeps_its_own_defaults_and_thinks_as_the_other_would() -> None:
    upstream = Upstream(saying(WHOLE))
    async with over(upstream, upstream="moonshot", model="kimi-k2.6", switches=True) as deployment:
        with await opened(deployment, asking(sampling=SamplingOptions(top_p=0.9))) as stream:
            await everything(stream)
        assert (upstream.body["model"], upstream.body["top_p"]) == ("kimi-k2.6", 0.9)
        assert "temperature" not in upstream.body
        assert upstream.body["thinking"] == {"type": "disabled"}
        with await opened(deployment, thinking=True) as stream:
            await everything(stream)
        assert upstream.body["thinking"] == {"type": "enabled"}


def calls(*ids: str | None) -> bytes:
    wire = [{"index": at, "id": id, "function": {"name": "get", "arguments": "{}"}} for at, id in enumerate(ids)]
    return STREAM + frame({"choices": [{"index": 0, "delta": {"tool_calls": wire}}]}) + finish() + DONE + LAST


HISTORY = (
    Message(role="user", content=(TextPart("Hi"),)),
    Message(role="assistant", tool_calls=(ToolCall("call_1", "get", "{}"),)),
    Message(role="tool", tool_call_id="call_1", content=(TextPart("x"),)),
)


async def test_calls_go_on_counting_over_the_conversation_and_its_ids_are_passed_on() -> None:
    upstream = Upstream(saying(calls("call_abc", None)))
    async with over(upstream) as deployment:
        with await opened(deployment, asking(messages=HISTORY)) as stream:
            events = await everything(stream)
    assert events[:4] == [
        ToolCallStarted(0, 0, "get:1", "get"),
        ArgumentsDelta(0, 0, "{}"),
        ToolCallStarted(0, 1, "get:2", "get"),
        ArgumentsDelta(0, 1, "{}"),
    ]
    assert upstream.body["messages"][1]["tool_calls"][0]["id"] == "call_1"
    assert upstream.body["messages"][2]["tool_call_id"] == "call_1"


@pytest.mark.parametrize(
    ("first", "given", "expected"),
    [
        (0, ["get:0", "get:1"], ["get:0", "get:1"]),
        (0, ["functions.get:0"], ["get:0"]),
        (3, ["get:7", "get:8"], ["get:7", "get:8"]),
        (3, ["get:0", "get:1"], ["get:3", "get:4"]),
        (0, ["get:0", "get:0"], ["get:0", "get:1"]),
        (0, ["call_x", "get:5", "call_y"], ["get:0", "get:5", "get:6"]),
        (2, ["", "put:9"], ["get:2", "get:3"]),
    ],
)
def test_ids_have_the_services_form_and_are_never_given_twice(
    first: int, given: list[str], expected: list[str]
) -> None:
    call_ids = CallIds(first)
    assert [call_ids(0, id, "get") for id in given] == expected
    assert call_ids(1, "x", "get") == f"get:{first}"


@pytest.mark.parametrize(
    ("url", "name"), [("https://api.openai.com/v1", "max_completion_tokens"), ("http://h:8000/v1", "max_tokens")]
)
def test_only_openai_itself_wants_the_newer_name_of_the_limit(url: str, name: str) -> None:
    assert limit_name(url) == name


def test_a_url_that_cannot_be_used_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError):
        ChatDeployment("a name", Target(upstream="openai", url="ftp://example.com"), EngineSettings())
