"""Servers of others that are kept running: ended with all they have started, and started again."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.engines.token_server import until

from moonbase.engines.process import Launch, ServerProcess, child, exited, leashed, scrubbed
from moonbase.errors import WorkerDied

pytestmark = pytest.mark.anyio

FAMILY = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import os, signal, time\\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\nos.setsid()\\n"
    "open(%r, 'a').write(f'{os.getpid()} ')\\ntime.sleep(600)" % sys.argv[1]])
open(sys.argv[1], "a").write(f"{os.getpid()} ")
time.sleep(600)
"""


def members(file: Path) -> list[int]:
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def always(*command: str) -> Callable[[], Awaitable[Launch]]:
    """The same command in every life."""

    async def begin() -> Launch:
        return Launch(command, scrubbed(os.environ))

    return begin


def server(file: Path, lives: int = 1) -> ServerProcess:
    """One that is ready when as many processes as in `lives` lives have told their ids."""

    async def probe() -> bool:
        return len(members(file)) >= 2 * lives

    command = always(sys.executable, "-c", FAMILY, str(file))
    return ServerProcess("family", command, probe, load_timeout=20, grace=1)


async def test_a_server_is_ended_with_what_it_has_started(tmp_path: Path):
    file = tmp_path / "pids"
    process = server(file)
    await process.start()
    assert all(map(alive, members(file)))
    os.kill(members(file)[0], signal.SIGSTOP)  # it does not end by itself
    await process.close()
    assert not any(map(alive, members(file)))
    assert process.pid is None


async def test_a_server_that_dies_is_started_again_and_leaves_nothing(tmp_path: Path):
    file = tmp_path / "pids"
    process = server(file)
    await process.start()
    try:
        first = members(file)
        os.kill(max(first, key=_parent_of(process)), signal.SIGKILL)
        await until(lambda: len(members(file)) == 4, seconds=20)
        assert process.restarts == 1
        assert not any(map(alive, first))
    finally:
        await process.close()


def _parent_of(process: ServerProcess):
    """Sorts the child of the leash last."""
    return lambda pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] == str(process.pid)


def test_a_server_does_not_outlive_us(tmp_path: Path):
    file = tmp_path / "pids"
    holder = subprocess.Popen(leashed([sys.executable, "-c", FAMILY, str(file)], 1), stdin=subprocess.PIPE)
    while len(members(file)) < 2:
        time.sleep(0.05)
    assert holder.stdin is not None
    holder.stdin.close()  # what the system does when we die
    holder.wait(30)
    assert not any(map(alive, members(file)))


async def test_a_server_that_ends_at_its_start_is_told():
    async def never() -> bool:
        return False

    process = ServerProcess("brief", always("/bin/sh", "-c", "exit 7"), never, load_timeout=20)
    with pytest.raises(WorkerDied, match="exit status 7"):
        await process.start()


async def test_a_server_that_never_becomes_ready_is_told():
    async def never() -> bool:
        return False

    process = ServerProcess("slow", always("/bin/sleep", "600"), never, load_timeout=0.5)
    with pytest.raises(WorkerDied, match=r"not ready within 0\.5 s"):
        await process.start()
    assert process.pid is None


async def test_each_life_has_a_command_an_environment_and_a_secret_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    file = tmp_path / "lives"
    lives = 0

    async def begin() -> Launch:
        nonlocal lives
        lives += 1
        command = ["/bin/sh", "-c", f"echo {lives} $KEY >> {file}; echo life {lives}: $KEY; sleep 0.2"]
        return Launch(command, {"KEY": f"secret-{lives}"}, f"secret-{lives}")

    async def there() -> bool:
        return file.exists()

    process = ServerProcess("changing", begin, there, load_timeout=20)
    await process.start()
    await until(lambda: file.read_text().startswith("1 secret-1\n2 secret-2\n"), seconds=20)
    await process.close()
    told = [record.getMessage() for record in caplog.records]
    assert {"changing: life 1: ***", "changing: life 2: ***"} <= set(told)


async def test_the_end_of_a_process_is_seen_though_another_holds_its_output_open():
    environment = {"PATH": os.environ["PATH"]}
    async with asyncio.timeout(4):
        async with child(["/bin/sh", "-c", "sleep 5 & echo $!"], name="parent", environment=environment) as process:
            await exited(process)
    assert process.returncode == 0
    assert process.stdout is not None
    await until(process.stdout.at_eof, seconds=10)  # so that the other has ended, too


async def test_a_secret_is_left_out_of_the_log(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    lines = "echo args: key=s3cret-of-ours; head -c 1990 /dev/zero | tr '\\0' x; echo s3cret-of-ours"
    async with child(["/bin/sh", "-c", lines], name="talker", environment={}, secret="s3cret-of-ours") as process:
        await process.wait()
    told = [record.getMessage() for record in caplog.records]
    assert "talker: args: key=***" in told
    assert any("x" * 1990 in line for line in told)
    assert not any("s3c" in line for line in told)


@pytest.mark.parametrize("line", ["s3cret-of-ours" * 400, "…" * 1331 + "s3cret-of-ours" + "x" * 9000])
async def test_no_part_of_a_secret_is_logged_where_a_long_line_is_cut(line: str, caplog: pytest.LogCaptureFixture):
    """In bytes or in what is left of them, the cut is sooner or later than in the line as it is shown."""
    caplog.set_level("INFO")
    script = f"import sys; sys.stdout.buffer.write({line!r}.encode() + b'\\n')"
    async with child([sys.executable, "-c", script], name="talker", environment={}, secret="s3cret-of-ours") as process:
        await process.wait()
    (told,) = [record.getMessage() for record in caplog.records if record.name.endswith("process")]
    assert len(told) > 600
    assert "s3c" not in told


def test_children_see_nothing_that_could_be_a_secret():
    environ = {
        "PATH": "/bin",
        "VLLM_API_KEY": "k",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "AWS_SECRET": "s",
        "OMP_NUM_THREADS": "2",
    }

    assert scrubbed(environ, ("VLLM_",)) == {
        "LANG": "C.UTF-8",
        "PATH": "/bin",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "2",
        "PYTHONUTF8": "1",
    }
