"""A PostgreSQL server of a test's own, which it may kill and start again."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import URL


class PostgresChild:
    """`postgres` on a free port, over an empty database of its own. A context manager; skips where there is none.

    It refuses to be root's, so there it runs as the user `postgres`.
    """

    def __init__(self) -> None:
        self._initdb, self._postgres, self._ready = map(_program, ("initdb", "postgres", "pg_isready"))
        self._user = "postgres" if os.geteuid() == 0 else None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port: int = free.getsockname()[1]
        self.url = URL.create(
            "postgresql+asyncpg", username="postgres", host="127.0.0.1", port=self._port, database="postgres"
        )
        self._folder = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "PostgresChild":
        self._folder = Path(tempfile.mkdtemp(prefix="moonbase-postgres-"))
        try:
            if self._user is not None:
                shutil.chown(self._folder, self._user)
            options = ["-U", "postgres", "-A", "trust", "--locale", "C", "--no-sync"]
            command = [self._initdb, "-D", self._folder / "data", *options]
            subprocess.run(command, user=self._user, cwd=self._folder, stdout=subprocess.DEVNULL, check=True)
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start it and wait until it has recovered and lets clients in."""
        deadline = time.monotonic() + 60
        while not self._lets_in():
            assert time.monotonic() < deadline, "postgres does not answer"
            if self._process is None or self._process.poll() is not None:  # its predecessor's last child still lives
                self._process = self._begin()
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """It accepts connections and answers nothing."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        """To the server first, so that it does not replace its children."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for process in (self._process.pid, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def _begin(self) -> subprocess.Popen[bytes]:
        command = [self._postgres, "-D", self._folder / "data", "-h", "127.0.0.1", "-p", str(self._port), "-k", ""]
        return subprocess.Popen(
            command, user=self._user, cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def _lets_in(self) -> bool:
        command = [self._ready, "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        return self._process is not None and subprocess.run(command, check=False).returncode == 0


def _program(name: str) -> str:
    """Debian keeps its programs out of the PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)]))
    if found is None:
        pytest.skip(f"LEFT OUT: what needs a PostgreSQL of its own; install PostgreSQL ({name} is missing)")
    return found
