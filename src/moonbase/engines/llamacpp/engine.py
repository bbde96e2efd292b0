"""The `llamacpp` engine, gateway side: admission, one HTTP request for each choice, and what comes back."""

import logging
import os
import sys
from collections import deque
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import msgspec

from moonbase.chat.events import EngineFinish
from moonbase.config import EngineSettings
from moonbase.engines import memory
from moonbase.engines.base import UNREADABLE, Delta, Engine, EngineDescription, GenerateRequest, Generation, Tokenizer
from moonbase.engines.gbnf import GbnfDialect
from moonbase.engines.gguf import GGUF
from moonbase.engines.kept_server import KeptServer, Program, ServerKeeper
from moonbase.engines.llamacpp import wire
from moonbase.engines.process import scrubbed
from moonbase.engines.server_watch import RESTART_SECONDS, ServerWatch
from moonbase.engines.upstream.events import EventReader
from moonbase.engines.upstream.exchange import Exchange, Headers
from moonbase.errors import (
    ApiError,
    ConfigurationError,
    EngineOverloaded,
    EngineUnavailable,
    FatalRequest,
    UpstreamFailed,
)

_log = logging.getLogger(__name__)

_NAME = "llamacpp"
_FACTS_PATH = "/props"
_MAX_ANSWER = 1024 * 1024  # bytes of an answer that is no stream
_ELEMENT_BYTES = 2  # llama.cpp keeps its cache in 16-bit floats


class LlamaCppEngine:
    """A `llama-server` at an address, or one that is kept running for us alone."""

    def __init__(self, settings: EngineSettings, tokenizer: Tokenizer, server: str | ServerKeeper) -> None:
        """`tokenizer` is the one that requests are encoded with; `server` is a URL, or who keeps the server.

        Raises `ConfigurationError` for a bad address.
        """
        self._settings = settings
        self.tokenizer = tokenizer
        self.description = EngineDescription(
            name=_NAME,
            model=settings.model or "llama-server",
            window=None,
            dialect=GbnfDialect(tokenizer),
            reports_cached=True,
        )
        self._watch = ServerWatch(
            _NAME, server, settings, facts_path=_FACTS_PATH, learn=self._learn, on_ready=self._run_next
        )
        self._slots = 1
        self._queue: deque[_Choice] = deque()
        self._running: set[_Choice] = set()
        self._suspect_runs = False

    @property
    def ready(self) -> bool:
        return self._watch.ready

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def server_pid(self) -> int | None:
        """The process that holds a server kept here on its leash; None while there is none."""
        return self._watch.pid

    async def start(self) -> None:
        """Wait for the server if it is kept for us. One at a URL is looked for until `close`."""
        await self._watch.start()

    async def close(self) -> None:
        self._slots = 0  # so that nothing that waits is started now
        for choice in [*self._running, *self._queue]:
            choice.fail(EngineUnavailable(RESTART_SECONDS))
        await self._watch.close()

    def generate(self, request: GenerateRequest) -> Generation:
        """Start the request, or queue what the server has no slots for.

        Raises `EngineUnavailable` while the server is away or loads its model, `EngineOverloaded` when the queue is
        full, and `FatalRequest` for a request that servers kept for us died of.
        """
        self._watch.admit(request)
        count = request.sampling.n
        under_way = self.running + self.waiting
        if under_way and under_way + count > self._room + self._settings.max_waiting:
            raise EngineOverloaded
        choices: list[_Choice] = []

        def cancel(number: int | None) -> None:
            for choice in choices if number is None else (choices[number],):
                self._drop(choice)

        def flow(on: bool) -> None:
            for choice in choices:
                choice.flow(on=on)

        generation = Generation(count, cancel, flow)
        choices += [_Choice(self, generation, request, number) for number in range(count)]
        self._queue += choices
        self._run_next()
        return generation

    @property
    def _room(self) -> int:
        return min(self._slots, self._settings.max_running)

    def _run_next(self) -> None:
        """Start the choices that have waited longest while there are free slots: more would block the server.

        A request that was there when a server died runs alone the next time, so that it is known whose fault it is.
        """
        suspects = self._watch.suspects
        while self._watch.ready and self._watch.sure and self._queue and len(self._running) < self._room:
            choice = self._queue[0]
            if suspects.fatal(choice.request):
                self._queue.popleft()
                choice.fail(FatalRequest())
                continue
            suspect = suspects.deaths(choice.request) > 0
            if (suspect or self._suspect_runs) and any(other.request is not choice.request for other in self._running):
                return
            self._suspect_runs = suspect
            self._queue.popleft()
            self._running.add(choice)
            choice.exchange = self._watch.client.stream(
                "POST", "/completion", {"Content-Type": "application/json"}, choice.body(), choice
            )
            choice.kept = choice.exchange.carrier is not None

    def _drop(self, choice: "_Choice") -> None:
        """Nobody waits for it any more."""
        if choice.exchange is not None:
            choice.exchange.cancel()
            self.ended(choice)
        elif choice in self._queue:
            self._queue.remove(choice)

    def ended(self, choice: "_Choice") -> None:
        """It takes no slot any more."""
        if choice in self._running:
            self._running.discard(choice)
            self._run_next()

    def heard(self) -> None:
        self._watch.heard()

    def lost(self, error: UpstreamFailed, request: GenerateRequest, *, kept: bool) -> None:
        self._watch.lost(error, request, kept=kept)

    def finished(self, request: GenerateRequest) -> None:
        """All choices came to their ends."""
        self._watch.suspects.finished(request)

    def _learn(self, body: bytes) -> None:
        try:
            found = wire.properties(body)
        except UNREADABLE as error:
            raise ConfigurationError(f"{self._watch.url}: there is no llama-server") from error
        self._slots = found.total_slots
        self.description = msgspec.structs.replace(
            self.description, window=found.window, model=PurePath(found.model_path).stem or self.description.model
        )


class _Choice:
    """One choice of a request: an HTTP request of its own, whose response this takes.

    `kept` is whether it went over a connection that was there before.
    """

    def __init__(self, engine: LlamaCppEngine, generation: Generation, request: GenerateRequest, number: int) -> None:
        self.exchange: Exchange | None = None
        self.kept = False
        self._engine = engine
        self._generation = generation
        self.request = request
        self._number = number
        self._events = EventReader()
        self._status = 200
        self._refusal = b""
        self._held: list[int] = []
        self._predicted = 0
        self._cached: int | None = None
        self._told_cached = False
        self._finished = False

    def body(self) -> bytes:
        return wire.completion(self.request)

    def flow(self, *, on: bool) -> None:
        """Whether to go on reading what the server sends."""
        if self.exchange is not None:
            self.exchange.flow(on)

    def head(self, status: int, headers: Headers) -> None:
        self._status = status

    def data(self, data: bytes) -> None:
        if self._status != 200:
            self._refusal += data[: _MAX_ANSWER - len(self._refusal)]
            return
        self._engine.heard()
        chunks: list[wire.Chunk] = []
        try:
            for event in self._events.feed(data):
                chunks.append(wire.chunk(event))
        except (UpstreamFailed, *UNREADABLE):
            self._take(chunks)
            if not self._finished:
                _log.warning("the llamacpp engine sent what is no event of a completion")
                self.fail(EngineUnavailable(RESTART_SECONDS))
        else:
            self._take(chunks)

    def end(self) -> None:
        if self._status != 200:
            found = wire.problem(self._refusal)
            _log.warning("the llamacpp engine refused a request: status %d, %s", self._status, found.type or "no type")
            self.fail(wire.refusal(self._status, found))
        elif not self._finished:
            _log.warning("the llamacpp engine ended a response before its last chunk")
            self.fail(EngineUnavailable(RESTART_SECONDS))

    def failed(self, error: UpstreamFailed) -> None:
        if not self._finished:
            self._engine.lost(error, self.request, kept=self.kept)
            self.fail(EngineUnavailable(RESTART_SECONDS))

    def fail(self, error: ApiError) -> None:
        """The whole request fails: its other choices are of no use without this one."""
        self._finished = True
        self._generation.abort(error)

    def _take(self, chunks: list[wire.Chunk]) -> None:
        """Hand over what one wake-up brought."""
        if self._finished:  # it stopped at a token of ours; the server may not know it for one
            if chunks and not chunks[-1].stop and self.exchange is not None:
                self.exchange.cancel()
            return
        ids: list[int] = []
        finish: EngineFinish | None = None
        for chunk in chunks:
            if chunk.error is not None:
                self._put(ids, None)
                _log.warning("the llamacpp engine failed in a request: %d %s", chunk.error.code, chunk.error.type)
                self.fail(EngineUnavailable(RESTART_SECONDS))
                return
            finish = self._read(chunk, ids)
            if finish is not None:
                break
        self._put(ids, finish)
        if finish is not None:
            self._finished = True
            self._engine.ended(self)
            if not self._generation.open:
                self._engine.finished(self.request)

    def _read(self, chunk: wire.Chunk, ids: list[int]) -> EngineFinish | None:
        """Add the chunk's tokens to `ids`; how the choice ends, when it does.

        Tokens without text are held until the next chunk, which tells whether they are an end-of-turn token. Where
        the server has dropped ids, those of the same text stand in.
        """
        if chunk.prompt_progress is not None:
            self._cached = chunk.prompt_progress.cache
            return None
        if chunk.stop:
            if chunk.stop_type != "eos":
                ids += self._held
            if self._cached is None and chunk.timings is not None:
                self._cached = chunk.timings.cache_n
            return "length" if chunk.stop_type == "limit" else "stop"
        ids += self._held
        self._held = []
        new = chunk.tokens
        if chunk.tokens_predicted > self._predicted + len(new):
            new = self._engine.tokenizer.encode_plain(chunk.content).tolist()
        self._predicted = chunk.tokens_predicted
        for at, token in enumerate(new):
            if token in self.request.stop_ids:
                ids += new[:at]
                return "stop"
        if chunk.content:
            ids += new
        else:
            self._held = new
        return None

    def _put(self, ids: list[int], finish: EngineFinish | None) -> None:
        if not ids and finish is None:
            return
        cached = 0
        if not self._told_cached and self._cached is not None:
            cached, self._told_cached = self._cached, True
        self._generation.put([Delta(self._number, ids, finish, cached)])


def llamacpp_engine(
    settings: EngineSettings, tokenizer: Tokenizer, model: Path | None = None, keeper: ServerKeeper | None = None
) -> LlamaCppEngine:
    """A `llama-server` at `settings.url`, or without one that of `keeper`, by default one kept here for the GGUF file
    `model`.

    Raises `ConfigurationError` for a bad address and when there is no server, `ModelFileError` for a file that is
    missing or damaged.
    """
    server = settings.url or keeper or KeptServer(llamacpp_program(settings, model))
    return LlamaCppEngine(settings, tokenizer, server)


def llamacpp_program(settings: EngineSettings, model: Path | None, gateways: int = 1) -> Program:
    """The server for the GGUF file `model`, which so many `gateways` will talk to.

    Raises `ConfigurationError` when there is no file or xllamacpp is not installed, `ModelFileError` for a file that is
    missing or damaged.
    """
    if model is None or model.is_dir():
        raise ConfigurationError("the engine llamacpp needs a GGUF file, or the url of a running server")
    if find_spec("xllamacpp") is None:
        raise ConfigurationError(
            "the engine llamacpp needs the package xllamacpp; "
            f"install it with: {sys.executable} -m pip install 'moonbase[llamacpp]'"
        )
    command = partial(_command, settings, model, GGUF.read(model), gateways)
    return Program(_NAME, _FACTS_PATH, command, wire.KEY_VARIABLE, scrubbed(os.environ))


def _command(settings: EngineSettings, model: Path, header: GGUF, gateways: int, port: int) -> list[str]:
    """As many slots of the model's whole window as the memory for the cache has room for; at least one, of less."""
    room = (settings.cache_bytes or memory.limit() // 4) // (header.cache_elements * _ELEMENT_BYTES)
    window = max(1, min(header.window, room))
    slots = max(1, min(settings.max_running, room // window))
    return [
        *(sys.executable, "-m", "moonbase.engines.llamacpp.server", "--model", str(model), "--port", str(port)),
        *("--window", str(window), "--slots", str(slots), "--gateways", str(gateways)),
        *("--threads", str(settings.threads), *settings.arguments),
    ]


if TYPE_CHECKING:

    def _conforms(engine: LlamaCppEngine) -> Engine:
        return engine
