"""Records what real engines put out, and plays it again through a server with the `echo` engine."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from msgspec import Struct

from moonbase.catalog import rules
from moonbase.catalog.catalog import load_catalog
from moonbase.chat.events import (
    ArgumentsDelta,
    ChatEvent,
    Finished,
    ReasoningDelta,
    TextDelta,
    ToolCallStarted,
)
from moonbase.chat.prompt import Control
from moonbase.config import EngineSettings
from moonbase.dialects.openai.decode import decode_chat
from moonbase.engines.base import Delta, Engine, EngineDescription, GenerateRequest, Generation, Tokenizer
from moonbase.engines.echo import Line, Script
from moonbase.errors import ApiError
from moonbase.formats.base import Format
from moonbase.formats.output import OutputDecoder
from moonbase.formats.schemas.book import SchemaBook
from moonbase.router.token_deployment import TokenDeployment, single_tokens
from moonbase.service.demand import Demand
from moonbase.verify.answers import Answer, Call, Choice, Json
from moonbase.verify.endpoint import Endpoint

_TAIL = "<|tool_calls_section_end|>", "</tool_call>"  # what is played after an output that was cut, to be cut off


class Parts(Struct, frozen=True):
    """What a deployment is made of."""

    format: Format
    tokenizer: Tokenizer
    engine: Engine


class Recording(Struct, frozen=True):
    """`body` is the request without `stream`, `output` the raw output with its markers written out, `heard` the
    answer that the gateway made of it as the engine gave it.
    """

    body: Json
    user: str
    output: str
    cut: bool
    tokens: int
    heard: Choice


class Recorder:
    """An `Engine` that keeps what the engine behind it puts out, which may be more than the gateway takes of it.

    `tapes` are the token ids of requests for one choice, by request id.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.tapes: dict[str, list[int]] = {}

    @property
    def description(self) -> EngineDescription:
        return self._engine.description

    @property
    def ready(self) -> bool:
        return self._engine.ready

    @property
    def running(self) -> int:
        return self._engine.running

    @property
    def waiting(self) -> int:
        return self._engine.waiting

    async def start(self) -> None:
        await self._engine.start()

    async def close(self) -> None:
        await self._engine.close()

    def generate(self, request: GenerateRequest) -> "_Copied":
        tape = self.tapes[request.request_id] = []
        return _Copied(self._engine.generate(request), tape)


class _Copied:
    """A `Generation` whose deltas are copied to a tape as they are read."""

    def __init__(self, generation: Generation, tape: list[int]) -> None:
        self._generation = generation
        self._tape = tape

    def __enter__(self) -> Self:
        self._generation.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._generation.__exit__(kind, error, trace)

    @property
    def open(self) -> bool:
        return self._generation.open

    @property
    def last_put(self) -> float | None:
        return self._generation.last_put

    def abort(self, error: ApiError) -> None:
        self._generation.abort(error)

    def stop(self, choice: int) -> None:
        self._generation.stop(choice)

    @property
    def over(self) -> bool:
        return self._generation.over

    def listen(self, listener: Callable[[], None]) -> None:
        self._generation.listen(listener)

    def take(self) -> list[Delta]:
        deltas = self._generation.take()
        for delta in deltas:
            self._tape += delta.token_ids
        return deltas


async def record(parts: Parts, settings: EngineSettings, bodies: list[Json], streams: int) -> list[Recording]:
    """Start the engine, ask it for each of `bodies`, which need a user message of their own, and close it."""
    recorder = Recorder(parts.engine)
    deployment = TokenDeployment("recorded", parts.format, parts.tokenizer, recorder, settings)
    await deployment.start()
    try:
        while not deployment.ready:  # noqa: ASYNC110 - an engine tells nobody
            await asyncio.sleep(0.1)
        places = asyncio.Semaphore(streams)

        async def one(number: int, body: Json) -> Recording:
            async with places:
                heard, tokens = await _ask(deployment, str(number), body)
            output = _written(recorder.tapes[str(number)][:tokens], parts.tokenizer, parts.format)
            user = body["messages"][-1]["content"]
            return Recording(body, user, output, heard.finish_reason == "length", tokens, heard)

        return await asyncio.gather(*[one(number, body) for number, body in enumerate(bodies)])
    finally:
        await deployment.close()


async def _ask(deployment: TokenDeployment, request_id: str, body: Json) -> tuple[Choice, int]:
    """What the gateway does for a request, without a server: the answer, and how many tokens it had."""
    request = decode_chat(msgspec.json.encode(body))
    model = load_catalog({}).resolve(request.model)
    demand = Demand(request, model, "lenient", SchemaBook())
    prompt = await deployment.prepare(request, demand.conversation, "")
    sampling = rules.sampling(model, request.sampling, thinks=demand.thinks)
    events: list[ChatEvent] = []
    with prompt.open(request_id, sampling=sampling, max_tokens=request.max_tokens or 2000) as stream:
        while found := await stream.read():
            events += found
        return folded(events), stream.completion_tokens


def folded(events: Iterable[ChatEvent]) -> Choice:
    """The whole answer of one choice."""
    content = reasoning = ""
    calls: list[Call] = []
    reason: str | None = None
    for event in events:
        match event:
            case TextDelta(_, text):
                content += text
            case ReasoningDelta(_, text):
                reasoning += text
            case ToolCallStarted(_, _, id, name):
                calls.append(Call(id, name, ""))
            case ArgumentsDelta(_, _, text):
                calls[-1] = msgspec.structs.replace(calls[-1], arguments=calls[-1].arguments + text)
            case Finished(_, finish):
                reason = finish
    return Choice(0, content, reasoning, tuple(calls), reason)


def _written(ids: list[int], tokenizer: Tokenizer, format: Format) -> str:
    markers = {number: literal for literal, number in single_tokens(tokenizer, format.markers).items()}
    decoder = OutputDecoder(tokenizer.decode, markers)
    segments = [*decoder.feed(ids), *decoder.flush()]
    return "".join([part.name if isinstance(part, Control) else part for part in segments])


def write_script(recordings: list[Recording], file: Path, tokenizer: Tokenizer, markers: tuple[str, ...]) -> list[Json]:
    """Write what `echo` is to play, and return the requests for it.

    What was cut must be cut again at the same place, whatever its number of tokens in `tokenizer`, which is echo's:
    a marker is played after it, and the limit ends the answer before that marker.
    """
    tail = next(literal for literal in _TAIL if literal in markers)
    file.write_bytes(_lines(recordings, ""))
    script = Script(file, tokenizer, markers)
    bodies: list[Json] = []
    for recording in recordings:
        pieces = script.output(recording.user, 0) or []
        limit = sum(map(len, pieces))
        bodies.append(recording.body | {"max_tokens": limit if recording.cut else limit + 1})
    file.write_bytes(_lines(recordings, tail))
    return bodies


def _lines(recordings: list[Recording], tail: str) -> bytes:
    lines = [Line(one.user, one.output + (tail if one.cut else "")) for one in recordings]
    return msgspec.json.Encoder().encode_lines(lines)


async def differences(endpoint: Endpoint, recordings: list[Recording], bodies: list[Json]) -> list[str]:
    """Ask for every recording as a stream and in one piece: what is not what was recorded."""

    async def both(recording: Recording, body: Json) -> list[str]:
        whole, streamed = await asyncio.gather(endpoint.chat(body), endpoint.chat(body | {"stream": True}))
        return [*_differs(recording, whole, "in one piece"), *_differs(recording, streamed, "streamed")]

    found = await asyncio.gather(*[both(*pair) for pair in zip(recordings, bodies, strict=True)])
    return [one for several in found for one in several]


def _differs(recording: Recording, answer: Answer, how: str) -> Iterator[str]:
    if not answer.whole:
        yield f"{recording.user} {how}: {answer.failure}"
        return
    heard = msgspec.structs.replace(answer.first, usage=None)
    if heard != recording.heard:
        yield f"{recording.user} {how}: {heard} is not {recording.heard}"
