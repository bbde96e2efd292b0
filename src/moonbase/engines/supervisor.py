"""A worker process that is kept running, and connections to it.

The worker is a Python module. It is started with `--socket FD --parent PID` after its own arguments: a
listening Unix socket that outlives its crashes, and the process it must not survive. It speaks first. What is
said on a connection is the business of the worker and of the client that is given here.
"""

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from moonbase.engines.process import Keeper, child, ending, exited, scrubbed
from moonbase.engines.suspects import Suspects
from moonbase.engines.worker_link import Connection, Silence, WorkerClient
from moonbase.errors import ConfigurationError, WorkerDied

_PR_SET_PDEATHSIG = 1
_NICENESS = 5
_OOM_SCORE = 500
_END_S = 1.0  # for which an end is waited for after that of the connection
_SOCKET = "worker"


class Supervisor:
    """Starts, watches, restarts and ends one worker process. Implements `WorkerKeeper`."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        client: WorkerClient,
        *,
        hang_timeout: float,
        load_timeout: float = 600.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`environment` is added to the few variables that the worker gets; times are in seconds."""
        self._command = [sys.executable, "-m", module, *arguments]
        self._name = module.rsplit(".", 1)[0].rsplit(".", 1)[-1]
        self.suspects = Suspects()
        self._client = client
        self._silence = Silence(client, hang_timeout)
        self._load_timeout = load_timeout
        self._environment = scrubbed(os.environ) | dict(environment or {})
        self._folder: Path | None = None
        self._listener: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper = Keeper(f"{self._name} worker", self._life)
        self._given_up: WorkerDied | None = None

    @property
    def address(self) -> Path:
        """The socket that the worker listens at, in all its lives. There is one from `start` to `close`."""
        assert self._folder is not None
        return self._folder / _SOCKET

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def restarts(self) -> int:
        return self._keeper.restarts

    async def start(self) -> None:
        """Start the worker and wait until its client is ready.

        Raises `WorkerDied` if it ends before, `ConfigurationError` if there is no place for its socket.
        """
        try:
            self._listen()
            await self._keeper.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the worker. Idempotent."""
        await self._keeper.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _listen(self) -> None:
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="moonbase-"))  # mode 0700
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(self.address))
            self._listener.listen()
        except OSError as error:
            raise ConfigurationError(f"TMPDIR: a socket cannot be made in {tempfile.gettempdir()} ({error})") from error

    async def _life(self, ready: Callable[[], None]) -> None:
        """One life of the worker. Always raises, `WorkerDied` telling why it ended."""
        assert self._listener is not None
        assert self._folder is not None
        self._given_up = None
        self._discard_pending()
        descriptor = self._listener.fileno()
        command = [*self._command, *("--socket", str(descriptor), "--parent", str(os.getpid()))]
        async with child(
            command, name=f"{self._name} worker", environment=self._environment, pass_fds=(descriptor,)
        ) as process:
            self._process = process
            transport: asyncio.Transport | None = None
            try:
                transport, _ = await asyncio.get_running_loop().create_unix_connection(
                    lambda: Connection(self, self._client), str(self.address)
                )
                raise WorkerDied(await self._watch(process, transport, ready))
            finally:
                if process.returncode is None:
                    process.kill()
                if transport is not None:
                    transport.abort()
                self._client.lost()

    def _discard_pending(self) -> None:
        """Close what a worker that died did not accept: such connections would fill the queue in the end."""
        assert self._listener is not None
        self._listener.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._listener.accept()[0].close()
        self._listener.setblocking(True)  # as the next worker expects it

    async def _watch(
        self, process: asyncio.subprocess.Process, transport: asyncio.Transport, ready: Callable[[], None]
    ) -> str:
        """Wait for the end of the worker, of its connection, or for its silence; return the reason in words."""
        started = time.monotonic()
        self._silence.broken()
        ended = asyncio.ensure_future(exited(process))
        try:
            while not (await asyncio.wait([ended], timeout=self._silence.look))[0]:
                if transport.is_closing():
                    # One that is killed closes it a moment before its end is known.
                    if self._given_up is None and not (await asyncio.wait([ended], timeout=_END_S))[0]:
                        return "it closed its connection"
                    break
                if self._client.ready:
                    ready()
                    if self._silence.too_long():
                        return self._silence.reason
                elif time.monotonic() - started > self._load_timeout:
                    return f"it was not ready within {self._load_timeout:g} s"
        finally:
            ended.cancel()
        if self._given_up is not None:
            return str(self._given_up)
        return ending(process)

    def end(self, pid: int) -> None:
        """The worker of this process id is of no use to one of its clients: end it, if it still lives."""
        if pid == self.pid:
            self.hang_up(WorkerDied(self._silence.reason))

    def heard(self) -> None:
        self._silence.broken()

    def hang_up(self, error: WorkerDied) -> None:
        """What came over the connection shows that the process is of no use: end it."""
        self._given_up = error
        if self._process is not None and self._process.returncode is None:
            self._process.kill()


def enter_worker(parent: int) -> None:
    """First thing in a worker: die with `parent`, yield to it, and be the one that the kernel ends for memory.

    A limit that the system does not let us set is left as it is.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    if os.getppid() != parent:
        raise SystemExit(1)
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    for number in (signal.SIGINT, signal.SIGTERM):  # terminals and service managers tell the whole group;
        signal.signal(number, signal.SIG_IGN)  # the parent finishes its answers first and then ends us
