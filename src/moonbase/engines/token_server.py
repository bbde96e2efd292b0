"""An engine behind HTTP that takes token ids and streams token ids: what `vllm` and `sglang` share.

The server schedules; we count what runs and what waits for its first token, and refuse when too much waits. One
request is one exchange for all its choices. What an exchange brings goes straight to its `Generation`.
"""

import logging
import shutil
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from moonbase.config import EngineSettings
from moonbase.engines.base import UNREADABLE, Delta, EngineDescription, GenerateRequest, Generation, Tokenizer
from moonbase.engines.kept_server import ServerKeeper
from moonbase.engines.server_watch import RESTART_SECONDS, ServerWatch
from moonbase.engines.structural_tag import TokenDialect
from moonbase.engines.upstream.events import EventReader
from moonbase.engines.upstream.exchange import Exchange, Headers
from moonbase.errors import (
    ApiError,
    ConfigurationError,
    EngineOverloaded,
    EngineUnavailable,
    InvalidRequest,
    PromptTooLong,
    UpstreamFailed,
)

_log = logging.getLogger(__name__)

_MAX_ANSWER = 1024 * 1024  # bytes of an answer that is no stream
_MAX_EVENT = 64 * 1024 * 1024  # the first event of vLLM repeats the prompt
_CODE_OPTION = "--trust-remote-code"
BAN = -100
"""The bias of a token that is banned: the least that servers take. Where a grammar leaves nothing else, as at its end
for a token that ends the turn, the token comes all the same."""
LEAST_TOP_P = 1e-6  # servers refuse 0, which clients may send; this little leaves the likeliest token alone, too


class ServerFacts(Struct, frozen=True):
    """What a server says of itself. `window` is in tokens."""

    model: str
    window: int


class Refusal(Struct, frozen=True):
    """Why a server refused or ended a request: its status, and whether it says that this is for the tokens' number."""

    status: int
    too_long: bool = False


class Reader(Protocol):
    """Reads the events of one response."""

    def feed(self, event: bytes) -> list[Delta] | Refusal:
        """The deltas in an event, of which the last of a choice has its end. Raises one of `UNREADABLE`."""
        ...


class Wire(Protocol):
    """What is said to one kind of server, and what it says."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> str:
        """Where requests go."""
        ...

    @property
    def facts_path(self) -> str:
        """Where the server tells its facts. Its readiness is at `/health`."""
        ...

    def facts(self, body: bytes, wanted: str | None) -> ServerFacts:
        """What the server serves. `wanted` is the id of the model asked for, if any.

        Raises one of `UNREADABLE` when this is no such server, `ConfigurationError` when it has no such model.
        """
        ...

    def body(self, request: GenerateRequest, model: str) -> bytes: ...

    def reader(self, request: GenerateRequest) -> Reader: ...

    def refusal(self, status: int, body: bytes) -> Refusal: ...


class TokenServerEngine:
    """A server at a URL, or one that is kept running for us alone."""

    def __init__(self, settings: EngineSettings, tokenizer: Tokenizer, wire: Wire, server: str | ServerKeeper) -> None:
        """`tokenizer` is the one that requests are encoded with; `server` is a URL, or who keeps the server.

        Raises `ConfigurationError` for a bad address.
        """
        self._settings = settings
        self._wire = wire
        self.description = EngineDescription(
            name=wire.name,
            model=settings.model or "",
            window=None,
            dialect=TokenDialect(tokenizer),
            reports_cached=True,
        )
        self._watch = ServerWatch(wire.name, server, settings, facts_path=wire.facts_path, learn=self._learn)
        self._runs: set[_Run] = set()

    @property
    def ready(self) -> bool:
        return self._watch.ready

    @property
    def running(self) -> int:
        return sum([len(run.open & run.begun) for run in self._runs])

    @property
    def waiting(self) -> int:
        return sum([len(run.open - run.begun) for run in self._runs])

    @property
    def url(self) -> str:
        """Where the server is; one that is kept for us has another port in every life."""
        return self._watch.url

    @property
    def server_pid(self) -> int | None:
        """The process that holds a server kept here on its leash; None while there is none."""
        return self._watch.pid

    async def start(self) -> None:
        """Wait for the server if it is kept for us. One at a URL is looked for until `close`."""
        await self._watch.start()

    async def close(self) -> None:
        for run in list(self._runs):
            run.give_up(EngineUnavailable(RESTART_SECONDS))
        await self._watch.close()

    def generate(self, request: GenerateRequest) -> Generation:
        """Send the request.

        Raises `EngineUnavailable` while the server is away or loads its model, `EngineOverloaded` when too many
        choices wait for their first token or too many requests are under way, and `FatalRequest` for a request that
        servers kept for us died of.
        """
        self._watch.admit(request)
        suspect = self._watch.suspects.deaths(request) > 1
        if suspect and any(run.suspect for run in self._runs):  # which of them was it? One after the other will tell
            raise EngineOverloaded
        if self.waiting and self.waiting + request.sampling.n > self._settings.max_waiting:
            raise EngineOverloaded
        if len(self._runs) >= self._watch.most_requests:
            raise EngineOverloaded
        run = _Run(self, request, self._wire, suspect=suspect)
        self._runs.add(run)
        body = self._wire.body(request, self.description.model)
        headers = {"Content-Type": "application/json"}
        run.exchange = self._watch.client.stream("POST", self._wire.path, headers, body, run)
        run.kept = run.exchange.carrier is not None
        return run.generation

    def refused(self, refusal: Refusal, request: GenerateRequest) -> ApiError:
        """What a client is told. The server's own words may name its insides, so they are for no one."""
        _log.warning("the %s server refused a request with status %d", self._wire.name, refusal.status)
        match refusal.status:
            case 400 | 413 | 422 if refusal.too_long:
                return PromptTooLong(self.description.window or 0, len(request.prompt_ids) + request.max_tokens)
            case 400 | 413 | 422:
                return InvalidRequest("the engine cannot serve this combination of parameters")
            case 408 | 429:
                return EngineOverloaded()
            case _:
                self._watch.suspects.fell(request)
                self._watch.look()
                return EngineUnavailable(RESTART_SECONDS)

    def heard(self) -> None:
        self._watch.heard()

    def lost(self, error: UpstreamFailed, request: GenerateRequest, *, kept: bool) -> None:
        self._watch.lost(error, request, kept=kept)

    def ended(self, run: "_Run") -> None:
        self._runs.discard(run)

    def finished(self, request: GenerateRequest) -> None:
        """All choices came to their ends."""
        self._watch.suspects.finished(request)

    def _learn(self, body: bytes) -> None:
        try:
            facts = self._wire.facts(body, self._settings.model)
        except UNREADABLE as error:
            raise ConfigurationError(f"{self.url}: there is no {self._wire.name} server") from error
        self.description = msgspec.structs.replace(self.description, model=facts.model, window=facts.window)


class _Run:
    """One request under way: takes its response. `open` are the choices that have not ended, `begun` those with
    output, and `kept` is whether it went over a connection that was there before."""

    def __init__(self, engine: TokenServerEngine, request: GenerateRequest, wire: Wire, *, suspect: bool) -> None:
        self.suspect = suspect
        self.generation = Generation(request.sampling.n, self._cancel, self._flow)
        self.exchange: Exchange | None = None
        self.kept = False
        self.asked = range(request.sampling.n)
        self.open = set(self.asked)
        self.begun: set[int] = set()
        self._engine = engine
        self._request = request
        self._wire = wire
        self._events = EventReader(_MAX_EVENT)
        self._reader = wire.reader(request)
        self._status = 200
        self._refusal = b""

    def head(self, status: int, headers: Headers) -> None:
        self._status = status

    def data(self, data: bytes) -> None:
        if self._status != 200:
            self._refusal += data[: _MAX_ANSWER - len(self._refusal)]
            return
        self._engine.heard()
        deltas: list[Delta] = []
        problem: ApiError | None = None
        try:
            for event in self._events.feed(data):
                found = self._reader.feed(event)
                if isinstance(found, Refusal):
                    problem = self._engine.refused(found, self._request)
                    break
                if any(delta.choice not in self.asked for delta in found):
                    raise UpstreamFailed("sent a choice that nobody asked for", began=True)
                deltas += found
        except (UpstreamFailed, *UNREADABLE):
            _log.warning("the %s server sent what is no event of a completion", self._wire.name)
            problem = EngineUnavailable(RESTART_SECONDS)
        if deltas:
            self._put(deltas)
        if problem is not None:
            self.give_up(problem)

    def end(self) -> None:
        if self._status != 200:
            refusal = self._wire.refusal(self._status, self._refusal)
            self.give_up(self._engine.refused(refusal, self._request))
        elif self.open:
            _log.warning("the %s server ended a response before its last event", self._wire.name)
            self.give_up(EngineUnavailable(RESTART_SECONDS))

    def failed(self, error: UpstreamFailed) -> None:
        if self.open:
            self._engine.lost(error, self._request, kept=self.kept)
            self.give_up(EngineUnavailable(RESTART_SECONDS))

    def give_up(self, error: ApiError) -> None:
        """The reader gets what has come, then `error`."""
        if self.open:
            self.generation.fail(error)
            self._cancel(None)

    def _put(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            self.begun.add(delta.choice)
            if delta.finish is not None:
                self.open.discard(delta.choice)
        if not self.open:
            self._engine.ended(self)
            self._engine.finished(self._request)
        self.generation.put(deltas)

    def _flow(self, on: bool) -> None:
        if self.exchange is not None:
            self.exchange.flow(on)

    def _cancel(self, choice: int | None) -> None:
        """Servers end whole requests only, so a choice that nobody reads runs on beside the others."""
        self.open = set() if choice is None else self.open - {choice}
        if not self.open:
            self._engine.ended(self)
            if self.exchange is not None:
                self.exchange.cancel()


def python_of(program: str) -> str:
    """The Python that a program on the PATH runs with. Raises `ConfigurationError` when it is not installed."""
    found = shutil.which(program)
    if found is None:
        raise ConfigurationError(
            f"the program {program} is not on the PATH; install it, or set a url to a running server"
        )
    with open(found, "rb") as script:
        first = script.readline()
    if not first.startswith(b"#!"):
        raise ConfigurationError(f"{found} is not a program that pip has installed; set a url to a running server")
    return first[2:].decode().strip()


def local_model(engine: str, model: Path | None) -> Path:
    """The folder that a server here loads. Raises `ConfigurationError` when there is none."""
    if model is None or not model.is_dir():
        raise ConfigurationError(f"the engine {engine} needs a model's folder, or the url of a running server")
    return model.resolve()


def warn_of_code(engine: str, model: Path, arguments: tuple[str, ...]) -> None:
    """Log that there is code in a model's folder, as Kimi's tokenizer is, when nobody has said whether it may run."""
    decided = any(_CODE_OPTION.lstrip("-") in argument.replace("_", "-") for argument in arguments)
    if not decided and any(model.glob("*.py")):
        _log.warning(
            'there is code in %s (*.py), which %s runs only if told to: if you trust it, add "%s" to the arguments of '
            "the engine (engine.arguments, or those of the deployment)",
            model,
            engine,
            _CODE_OPTION,
        )
