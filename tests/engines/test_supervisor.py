"""The supervisor over a worker that needs no model."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.e2e.server import eventually

from moonbase.engines.supervisor import Supervisor
from moonbase.errors import ConfigurationError, WorkerDied

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


class Client:
    """Collects what the worker says; `busy` is for the test to set."""

    def __init__(self) -> None:
        self.busy = False
        self.worker = 0
        self.transport: asyncio.WriteTransport | None = None
        self.said = b""
        self.losses = 0

    @property
    def ready(self) -> bool:
        return self.said.startswith(b"ready")

    def connected(self, transport: asyncio.WriteTransport) -> None:
        self.transport = transport
        self.said = b""

    def received(self, data: bytes) -> None:
        self.said += data
        if b"nonsense" in data:
            raise WorkerDied("it talked nonsense")

    def lost(self) -> None:
        self.losses += self.transport is not None
        self.transport = None
        self.said = b""

    def send(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)


def supervise(folder: Path, client: Client, mode: str = "plain", **options: float) -> Supervisor:
    return Supervisor(
        "tests.engines.small_worker",
        [mode, str(folder)],
        client,
        environment={"PYTHONPATH": str(ROOT)},
        **{"hang_timeout": 0.5} | options,
    )


@asynccontextmanager
async def running(folder: Path, mode: str = "plain") -> AsyncIterator[tuple[Supervisor, Client]]:
    client = Client()
    supervisor = supervise(folder, client, mode)
    await supervisor.start()
    try:
        yield supervisor, client
    finally:
        await supervisor.close()


async def until(condition: Callable[[], object], within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - what another process does sets no event
            await asyncio.sleep(0.01)


def socket_folder(parent: Path) -> Path:
    (folder,) = parent.glob("moonbase-*")
    return folder


def process(supervisor: Supervisor) -> Path:
    return Path(f"/proc/{supervisor.pid}")


async def reborn(supervisor: Supervisor, client: Client) -> None:
    await until(lambda: supervisor.restarts == 1 and client.ready)
    client.send(b"echo")
    await until(lambda: client.said == b"readyecho")
    assert client.losses == 1


async def test_a_worker_runs_until_it_is_closed_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with running(tmp_path) as (supervisor, client):
        client.send(b"echo")
        await until(lambda: client.said == b"readyecho")
        worker = process(supervisor)
        folder = socket_folder(tmp_path)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "worker").is_socket()
        assert worker.exists()
    assert not folder.exists()
    assert not worker.exists()
    assert supervisor.pid is None
    await supervisor.close()


async def test_the_environment_holds_no_secret_and_the_worker_yields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MOONSHOT_API_KEY", "SECRET_X", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    async with running(tmp_path) as (supervisor, _):
        worker = process(supervisor)
        environ = (worker / "environ").read_text().split("\0")
        assert not [entry for entry in environ if "secret" in entry]
        assert {"OMP_NUM_THREADS=1", "PYTHONUTF8=1"} <= set(environ)
        assert os.getpriority(os.PRIO_PROCESS, supervisor.pid or 0) >= 5
        assert (worker / "oom_score_adj").read_text().strip() == "500"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_for_the_whole_group_are_left_to_the_parent(tmp_path: Path, number: int) -> None:
    async with running(tmp_path) as (supervisor, client):
        os.kill(supervisor.pid or 0, number)
        client.send(b"echo")
        await until(lambda: client.said == b"readyecho")
        assert supervisor.restarts == 0


@pytest.mark.parametrize("words", [b"hang up", b"babble"])
async def test_a_worker_whose_connection_is_of_no_use_is_replaced(tmp_path: Path, words: bytes) -> None:
    async with running(tmp_path) as (supervisor, client):
        old = process(supervisor)
        client.send(words)
        await reborn(supervisor, client)
        assert not old.exists()


async def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    async with running(tmp_path) as (supervisor, client):
        os.kill(supervisor.pid or 0, signal.SIGKILL)
        await reborn(supervisor, client)


async def test_silence_counts_only_while_there_is_work(tmp_path: Path) -> None:
    async with running(tmp_path) as (supervisor, client):
        os.kill(supervisor.pid or 0, signal.SIGSTOP)
        await asyncio.sleep(1)
        assert supervisor.restarts == 0
        client.busy = True
        await until(lambda: supervisor.restarts == 1)
        client.busy = False
        await reborn(supervisor, client)


async def test_a_new_worker_finds_no_connection_of_the_old_one(tmp_path: Path) -> None:
    """The second life ends before it accepts; the third says whether its own connection is the only one."""
    async with running(tmp_path, "unaccepting") as (supervisor, client):
        os.kill(supervisor.pid or 0, signal.SIGKILL)
        await until(lambda: client.said == b"readyalone")
        assert supervisor.restarts == 2


async def test_a_worker_that_ends_at_its_start_is_told_and_not_started_again(tmp_path: Path) -> None:
    client = Client()
    supervisor = supervise(tmp_path, client, "exit")
    with pytest.raises(WorkerDied, match="exit status 3"):
        await supervisor.start()
    assert (supervisor.pid, supervisor.restarts) == (None, 0)
    assert (tmp_path / "lives").read_text() == "."


async def test_a_worker_that_never_becomes_ready_is_told(tmp_path: Path) -> None:
    supervisor = supervise(tmp_path, Client(), "silent", load_timeout=1.0)
    with pytest.raises(WorkerDied, match="not ready within 1 s"):
        await supervisor.start()
    assert supervisor.pid is None


async def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    supervisor = supervise(tmp_path, Client(), "silent")
    start = asyncio.create_task(supervisor.start())
    await until(lambda: supervisor.pid is not None)
    worker = process(supervisor)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not worker.exists()


async def test_a_folder_whose_name_is_too_long_for_a_socket_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    supervisor = supervise(tmp_path, Client())
    with pytest.raises(ConfigurationError, match=r"TMPDIR: .*x{100}"):
        await supervisor.start()
    assert list(folder.iterdir()) == []


async def test_what_a_worker_prints_is_logged_in_lines_of_bounded_length(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(tmp_path, "chatty"):
        await until(lambda: "a last line" in caplog.text)
    assert all(len(record.getMessage()) < 2100 for record in caplog.records)


PARENT = """
import asyncio, sys
from pathlib import Path
from tests.engines.test_supervisor import Client, supervise

async def main():
    supervisor = supervise(Path(sys.argv[1]), Client(), sys.argv[2])
    start = asyncio.create_task(supervisor.start())
    while supervisor.pid is None or (sys.argv[2] == "plain" and not start.done()):
        await asyncio.sleep(0.001)
    print(supervisor.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("mode", ["plain", "silent"])
def test_a_worker_does_not_outlive_its_parent(tmp_path: Path, mode: str) -> None:
    """`silent` is killed with the worker just begun, before it can have asked to die with its parent."""
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), mode], stdout=subprocess.PIPE, env=environ
    ) as parent:
        assert parent.stdout is not None
        worker = Path("/proc") / parent.stdout.readline().decode().strip() / "cmdline"
        parent.kill()
    eventually(lambda: not worker.exists() or not worker.read_bytes())  # a zombie has no command line
