"""The `openvino` engine, gateway side: admission, the worker's frames, and what happens when it dies."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path

from moonbase.config import EngineSettings
from moonbase.engines import memory
from moonbase.engines.base import Delta, EngineDescription, GenerateRequest, Generation
from moonbase.engines.openvino import protocol
from moonbase.engines.openvino.model import ModelFacts
from moonbase.engines.structural_tag import OpenVINODialect
from moonbase.engines.supervisor import Supervisor
from moonbase.engines.worker_link import WorkerClient, WorkerKeeper
from moonbase.errors import (
    EngineOverloaded,
    EngineUnavailable,
    FatalRequest,
    InvalidRequest,
    ModelFileError,
    WorkerDied,
)

_log = logging.getLogger(__name__)

_RESTART_SECONDS = 5
# Each token reads all weights: with pages of 4 KB an eighth of the time is looking up addresses (docs/benchmarks.md).
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


class _Job:
    """An accepted request, waiting or running. `open` are the choices that have not ended."""

    def __init__(self, number: int, request: GenerateRequest) -> None:
        self.number = number
        self.request = request
        self.open = set(range(request.sampling.n))
        self.generation: Generation


class OpenVINOEngine:
    """A GGUF file or an OpenVINO folder, run in a supervised worker process."""

    def __init__(
        self,
        settings: EngineSettings,
        model: Path,
        keeper: Callable[[WorkerClient], WorkerKeeper] | None = None,
        cache: Path | None = None,
    ) -> None:
        """Reads the model's facts. `keeper` makes what keeps the worker for its client, which is this engine; by
        default that is this process, and `cache` is for `openvino_worker`.

        Raises `ModelFileError` for a file that is missing, damaged or of another kind.
        """
        self._max_running = settings.max_running
        self._max_waiting = settings.max_waiting
        self._model = model
        facts = ModelFacts.read(model)
        self.description = EngineDescription(
            name="openvino",
            model=model.stem,
            window=min(facts.window, _kv_blocks(settings, facts) * protocol.BLOCK),
            dialect=OpenVINODialect(),
            reports_cached=True,
            spells_markers=True,
        )
        self.worker = 0
        self._keeper = keeper(self) if keeper is not None else openvino_worker(settings, model, self, cache)
        self._transport: asyncio.WriteTransport | None = None
        self._reader = protocol.FrameReader()
        self._jobs: dict[int, _Job] = {}
        self._queue: deque[_Job] = deque()
        self._last_number = 0
        self._suspects = self._keeper.suspects
        self._suspect_runs = False
        self.ready = False
        self.running = 0

    @property
    def waiting(self) -> int:
        return sum([len(job.open) for job in list(self._queue)])

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id, None while it is being started again."""
        return self._keeper.pid

    async def start(self) -> None:
        try:
            await self._keeper.start()
        except WorkerDied as error:
            raise ModelFileError(f"{self._model}: cannot be loaded ({error})") from error

    async def close(self) -> None:
        await self._keeper.close()
        while self._queue:
            self._queue.popleft().generation.fail(EngineUnavailable(_RESTART_SECONDS))

    def generate(self, request: GenerateRequest) -> Generation:
        """Start the request, or queue it while `max_running` choices run.

        Raises `EngineUnavailable` while the worker restarts, `EngineOverloaded` when the queue is full,
        and `FatalRequest` for a request that was running when two workers died.
        """
        if not self.ready:
            raise EngineUnavailable(_RESTART_SECONDS)
        if self._suspects.fatal(request):
            raise FatalRequest
        if not self._has_room(request.sampling.n) and self.waiting + request.sampling.n > self._max_waiting:
            raise EngineOverloaded
        self._last_number += 1
        job = _Job(self._last_number, request)
        job.generation = Generation(len(job.open), lambda choice: self._cancel(job, choice))
        self._queue.append(job)
        self._run_next()
        return job.generation

    def connected(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._reader = protocol.FrameReader()

    def received(self, data: bytes) -> None:
        """Take everything that one wake-up brought. Raises `WorkerDied` for what no sane worker says."""
        deltas: dict[_Job, list[Delta]] = {}
        for message in protocol.read(self._reader, data):
            match message:
                case protocol.Tokens(outputs):
                    for output in outputs:
                        self._collect(output, deltas)
                case protocol.Failed(number, kind, reason):
                    self._fail(number, EngineOverloaded() if kind == "overloaded" else _refusal(reason))
                case protocol.Ready(_, pid):
                    self.worker = pid
                    self.ready = True
        for job, collected in deltas.items():
            job.generation.put(collected)
        self._run_next()

    def lost(self) -> None:
        """What was in the worker fails; what still waits is for the next one."""
        self._transport = None
        self.ready = False
        self.running = 0
        fallen, self._jobs = self._jobs, {}
        for job in fallen.values():
            self._suspects.fell(job.request)
            job.generation.fail(EngineUnavailable(_RESTART_SECONDS))
        self._suspects.settle(died=self.worker)

    def _collect(self, output: protocol.Output, deltas: dict[_Job, list[Delta]]) -> None:
        job = self._jobs.get(output.generation)
        if job is None or output.choice not in job.open:
            return  # cancelled while this was on its way
        deltas.setdefault(job, []).append(Delta(output.choice, output.token_ids, output.finish, output.cached_tokens))
        if output.finish is not None:
            self._ended(job, {output.choice})
            if not job.open:
                self._suspects.finished(job.request)

    def _fail(self, number: int, error: EngineOverloaded | InvalidRequest) -> None:
        job = self._jobs.get(number)
        if job is not None:
            self._ended(job, job.open)
            job.generation.fail(error)

    def _ended(self, job: _Job, choices: set[int]) -> None:
        """These choices of a running job take no room any more."""
        ended = job.open & choices
        job.open -= ended
        self.running -= len(ended)
        if not job.open:
            self._jobs.pop(job.number, None)

    def _cancel(self, job: _Job, choice: int | None) -> None:
        if job.number in self._jobs:
            self._write(protocol.Cancel(job.number, choice))
            self._ended(job, job.open if choice is None else {choice})
            self._run_next()
        elif job in self._queue:
            self._queue.remove(job)

    def _has_room(self, choices: int) -> bool:
        return not self._queue and (self.running + choices <= self._max_running or not self.running)

    def _run_next(self) -> None:
        """Start the longest waiting requests for which there is room.

        A request that was there when a worker died runs alone the next time: so it is known afterwards
        whether it was to blame, and nobody else falls with it.
        """
        while self._queue and self.ready:
            job = self._queue[0]
            suspect = self._suspects.deaths(job.request) > 0
            if self._suspects.fatal(job.request):
                self._queue.popleft()
                job.generation.fail(FatalRequest())
                continue
            if self.running and (suspect or self._suspect_runs or self.running + len(job.open) > self._max_running):
                return
            self._queue.popleft()
            self._suspect_runs = suspect
            self._jobs[job.number] = job
            self.running += len(job.open)
            request = job.request
            self._write(
                protocol.Start(
                    generation=job.number,
                    prompt=request.prompt_ids.tobytes(),
                    sampling=request.sampling,
                    max_tokens=request.max_tokens,
                    stop_ids=request.stop_ids,
                    grammar=None if request.grammar is None else request.grammar.text,
                    cache_scope=request.cache_scope,
                )
            )

    def _write(self, message: protocol.FromGateway) -> None:
        if self._transport is not None:
            self._transport.write(protocol.frame(message))


class Witness:
    """A client that asks nothing of a worker and sees whether it can work, for who keeps it for others. Implements
    `WorkerClient`.
    """

    busy = False

    def __init__(self) -> None:
        self.ready = False
        self.worker = 0
        self._reader = protocol.FrameReader()

    def connected(self, transport: asyncio.WriteTransport) -> None:
        self._reader = protocol.FrameReader()

    def received(self, data: bytes) -> None:
        for message in protocol.read(self._reader, data):
            if isinstance(message, protocol.Ready):
                self.worker = message.pid
                self.ready = True

    def lost(self) -> None:
        self.ready = False


def openvino_worker(
    settings: EngineSettings, model: Path, client: WorkerClient, cache: Path | None = None
) -> Supervisor:
    """The worker for a model, kept by this process. Raises `ModelFileError` as the engine does.

    `cache` is where the model is put as it runs fastest; without one it is run as it is.
    """
    kv_blocks = _kv_blocks(settings, ModelFacts.read(model))
    arguments = [
        *("--model", str(model), "--threads", str(settings.threads)),
        *("--kv-blocks", str(kv_blocks), "--max-running", str(settings.max_running)),
    ]
    if cache is not None:
        arguments += ["--cache", str(cache)]
    return Supervisor(
        "moonbase.engines.openvino.worker",
        arguments,
        client,
        hang_timeout=settings.hang_timeout,
        environment=_HUGE_PAGES,
    )


def _kv_blocks(settings: EngineSettings, facts: ModelFacts) -> int:
    budget = settings.cache_bytes or memory.limit() // 4
    return max(1, budget // (protocol.BLOCK * facts.cache_bytes_per_token))


def _refusal(reason: str) -> InvalidRequest:
    """OpenVINO's reason names its own source files, so it is for the log only."""
    _log.warning("the worker refused a request: %s", reason)
    return InvalidRequest("the engine cannot serve this combination of parameters")
