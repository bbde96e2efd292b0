"""Processes that are kept running: started without our secrets, logged, started again when they end."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

from msgspec import Struct

from moonbase.errors import ConfigurationError, UpstreamFailed, WorkerDied

log = logging.getLogger(__name__)

_KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "CUDA_HOME")
_KEPT_PREFIXES = ("OMP_", "OPENBLAS_", "MKL_", "KMP_", "TBB_", "CUDA_VISIBLE_", "NVIDIA_VISIBLE_", "NCCL_")
_SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")
_LONGEST_PAUSE = 30.0
_STABLE = 60.0  # seconds of work after which an end counts as the first again
_LOG_LINE = 2000  # bytes of a line that are worth logging
_PROBE_PAUSE = 0.25
_KILLING = 5.0  # seconds that killing many processes may take
_LOOK_AGAIN = 0.25
_PARTING = 2.0  # seconds for the last words of a process; what it has left behind may hold its output open


def scrubbed(environ: Mapping[str, str], also: tuple[str, ...] = ()) -> dict[str, str]:
    """The variables that a child may see: nothing that could be a secret. `also` are more beginnings of names."""
    kept = {
        name: text
        for name, text in environ.items()
        if name in _KEPT or (name.startswith((*_KEPT_PREFIXES, *also)) and not any(word in name for word in _SECRETS))
    }
    return {"LANG": "C.UTF-8", **kept, "PYTHONUTF8": "1"}


def leashed(command: Sequence[str], grace: float) -> list[str]:
    """The command that runs `command` so that neither it nor what it starts outlives us by more than `grace` s."""
    return [sys.executable, "-m", "moonbase.engines.leash", str(grace), *command]


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def child(
    command: Sequence[str],
    *,
    name: str,
    environment: Mapping[str, str],
    pass_fds: Sequence[int] = (),
    grace: float = 0.0,
    secret: str | None = None,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a process, log what it prints, and end it on leaving.

    Its standard input is a pipe that we only ever close, which tells it that we are gone; `grace` is how many seconds
    it then has before it is killed. `secret` is left out of what is logged.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(environment),
        pass_fds=pass_fds,
    )
    logs = asyncio.create_task(_forward_log(process, name, secret.encode() if secret else None))
    try:
        yield process
    finally:
        ended = asyncio.ensure_future(_end(process, logs, grace))
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(ended)


async def exited(process: asyncio.subprocess.Process) -> None:
    """Return when it has ended. `Process.wait` may go on until all have ended that hold its output open."""
    while process.returncode is None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _LOOK_AGAIN)


async def _end(process: asyncio.subprocess.Process, logs: asyncio.Task[None], grace: float) -> None:
    if process.returncode is None and grace:
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(exited(process), grace)
    if process.returncode is None:
        process.kill()
    await exited(process)
    await asyncio.wait({logs}, timeout=_PARTING)
    logs.cancel()


async def _forward_log(process: asyncio.subprocess.Process, name: str, secret: bytes | None) -> None:
    """Log line by line; what we run prints no prompt text."""
    assert process.stdout is not None
    rest = b""
    while data := await process.stdout.read(4096):
        text = rest + data
        *lines, rest = (text.replace(secret, b"***") if secret else text).split(b"\n")
        for line in lines:
            if line.strip():
                log.info("%s: %s", name, line[:_LOG_LINE].decode(errors="replace"))
        rest = rest[: 2 * _LOG_LINE]  # the cut lies beyond what is logged, so half a secret never shows


def ending(process: asyncio.subprocess.Process) -> str:
    """How a process ended, in words."""
    code = process.returncode
    assert code is not None
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


class Keeper:
    """Lets a process live again and again, with growing pauses between lives that are short."""

    def __init__(
        self,
        name: str,
        life: Callable[[Callable[[], None]], Awaitable[None]],
        *,
        longest_pause: float = _LONGEST_PAUSE,
    ) -> None:
        """`life` is one life of the process: it calls its argument when the process can work and always raises,
        `WorkerDied` telling why it ended, `OSError`, or `ConfigurationError`. `longest_pause` is in seconds.
        """
        self._name = name
        self._life = life
        self._longest_pause = longest_pause
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self.restarts = 0

    async def start(self) -> None:
        """Begin the first life and wait until the process can work. Raises `WorkerDied` if it ends before."""
        became_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep(became_ready))
        try:
            await became_ready
        except BaseException:
            await self.close()
            raise

    async def close(self, patience: float = 0.0) -> None:
        """End the process, or wait `patience` seconds for it to end by itself first. Idempotent."""
        self._closing = True
        if self._task is not None:
            await asyncio.wait([self._task], timeout=patience)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _keep(self, became_ready: asyncio.Future[None]) -> None:
        def ready() -> None:
            if not became_ready.done():
                became_ready.set_result(None)

        ends = 0
        while not self._closing:  # a cancellation may be spent on waiting for the dead process
            started = time.monotonic()
            try:
                await self._life(ready)
            except (OSError, WorkerDied, ConfigurationError) as error:
                reason = str(error)
            except Exception as error:  # a bug; the process must live again all the same
                log.exception("the keeper of the %s failed", self._name)
                reason = str(error)
            if not became_ready.done():
                became_ready.set_exception(WorkerDied(reason))
                return
            if self._closing:
                return
            log.error("the %s ended: %s", self._name, reason)
            ends = 1 if time.monotonic() - started > _STABLE else ends + 1
            self.restarts += 1
            await asyncio.sleep(0 if ends == 1 else min(0.25 * 2**ends, self._longest_pause))


class Launch(Struct, frozen=True):
    """How a life of a server begins. It sees nothing but `environment`; `secret` is left out of what is logged."""

    command: Sequence[str]
    environment: Mapping[str, str]
    secret: str | None = None


class ServerProcess:
    """A server of somebody else's that runs for us alone, and is kept running."""

    def __init__(
        self,
        name: str,
        begin: Callable[[], Awaitable[Launch]],
        probe: Callable[[], Awaitable[bool]],
        *,
        load_timeout: float,
        grace: float = 10.0,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`begin` is asked at the beginning of each life. `probe` asks the server whether it can work; it may raise
        `UpstreamFailed` for no, and `ConfigurationError` when it is of no use.

        `load_timeout` is how many seconds it has for that, `grace` what it has to end by itself. `changed` is called
        when it can work, and when it has ended.
        """
        self._name = name
        self._begin = begin
        self._probe = probe
        self._changed = changed
        self._load_timeout = load_timeout
        self._patience = grace
        self._process: asyncio.subprocess.Process | None = None
        self._can_work = False
        self._keeper = Keeper(f"{name} server", self._life)

    @property
    def pid(self) -> int | None:
        """Of the process that holds the server on its leash; None while there is none."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def can_work(self) -> bool:
        """Whether it lives, and has said in this life that it can work."""
        return self._can_work and self.pid is not None

    @property
    def restarts(self) -> int:
        return self._keeper.restarts

    async def start(self) -> None:
        """Start the server and wait until it can work. Raises `WorkerDied` if it ends before."""
        await self._keeper.start()

    async def close(self) -> None:
        """End the server. Idempotent."""
        await self._keeper.close()

    def end_life(self) -> bool:
        """It is of no use any more: end it, with all it has started, for the next life to begin.

        False when it is being ended already.
        """
        if self._process is None or self._process.stdin is None or self._process.stdin.is_closing():
            return False
        self._process.stdin.close()
        return True

    async def _life(self, ready: Callable[[], None]) -> None:
        launch = await self._begin()
        async with child(
            leashed(launch.command, self._patience),
            name=self._name,
            environment=launch.environment,
            grace=self._patience + _KILLING,
            secret=launch.secret,
        ) as self._process:
            ended = asyncio.ensure_future(exited(self._process))
            try:
                async with asyncio.timeout(self._load_timeout):
                    while not ended.done() and not await self._answers():
                        await asyncio.wait([ended], timeout=_PROBE_PAUSE)
                if not ended.done():
                    self._can_work = True
                    self._changed()
                    ready()
                await ended
            except TimeoutError:
                raise WorkerDied(f"it was not ready within {self._load_timeout:g} s") from None
            finally:
                self._can_work = False
                self._changed()
                ended.cancel()
            raise WorkerDied(ending(self._process))

    async def _answers(self) -> bool:
        try:
            return await self._probe()
        except UpstreamFailed:
            return False
