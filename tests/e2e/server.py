"""A real server in a process of its own, and what tests need to talk to it byte by byte."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from moonbase.store.database import database_url

K2 = "kimi-k2-0905-preview"
CHAT = "/v1/chat/completions"

_BANNER = re.compile(r"serves the Kimi API at (\S+).*Try it:", re.DOTALL)
_START_TIMEOUT = 120.0  # an embedded model may have to load
_STOP_TIMEOUT = 30.0
_VARIABLE = (
    (re.compile(rb"chatcmpl-[0-9a-f]{24}"), b"ID"),
    (re.compile(rb'"created":\d{10}\b'), b'"created":NOW'),
    (re.compile(rb"fpv0_[0-9a-f]{8}"), b"FP"),
)


class StartFailed(Exception):
    """The process ended before it served. `code` is its exit status, `stderr` what it said."""

    def __init__(self, code: int, stderr: str) -> None:
        super().__init__(f"exit status {code}: {stderr}")
        self.code = code
        self.stderr = stderr


@dataclass(frozen=True)
class Reply:
    """A whole HTTP answer; header names are lower-case, `body` is exact."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @classmethod
    def of(cls, response: http.client.HTTPResponse) -> "Reply":
        headers = tuple([(name.lower(), value) for name, value in response.getheaders()])
        return cls(response.status, headers, response.read())

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def frames(self) -> list[bytes]:
        """The server-sent events of a stream, without the blank lines between them."""
        assert self.body.endswith(b"\n\n"), self.body[-200:]
        return self.body[:-2].split(b"\n\n")

    @property
    def fixed(self) -> bytes:
        """The body with ids, times and fingerprints, whose form is checked, put as constants."""
        return fixed(self.body)

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name]
        assert len(values) < 2, f"{name} is sent {len(values)} times"
        return values[0] if values else None


def fixed(data: bytes) -> bytes:
    """What changes from run to run (ids, times, fingerprints) as constants. Other forms stay and so fail a test."""
    for pattern, constant in _VARIABLE:
        data = pattern.sub(constant, data)
    return data


def user(text: str) -> list[dict[str, str]]:
    """A conversation of one user message."""
    return [{"role": "user", "content": text}]


def chat_body(text: str = "Hello", **fields: Any) -> bytes:
    """A chat request as JSON; `fields` add to or replace the usual ones."""
    return json.dumps({"model": K2, "messages": user(text)} | fields).encode()


class Server:
    """`moonbase serve` on a free port. The folder keeps its state, cache and output."""

    def __init__(
        self,
        folder: Path,
        *args: str,
        engine: str | None = "echo",
        env: Mapping[str, str] | None = None,
        cache: Path | None = None,
        port: int | None = 0,
        program: Sequence[str] = (sys.executable, "-m", "moonbase"),
    ) -> None:
        """Starts and waits for the banner. Raises `StartFailed`.

        `cache` is the models' folder, by default a new one; a real engine is given `config.cache()`.
        """
        self.home = folder / "home"
        self._stderr = folder / "stderr"
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("MOONBASE_")}
        self.environ |= {"MOONBASE_HOME": str(self.home), "MOONBASE_CACHE": str(cache or folder / "cache")}
        self.environ |= env or {}
        options = [*(["--engine", engine] if engine else []), *(["--port", str(port)] if port is not None else [])]
        command = [*program, "serve", *options, *args]
        stdout = folder / "stdout"
        with stdout.open("wb") as out, self._stderr.open("wb") as err:
            self.process = subprocess.Popen(command, stdout=out, stderr=err, env=self.environ)
        self.base_url = self._wait()
        self.port = urlsplit(self.base_url).port
        self.key = stdout.read_text().strip()

    @property
    def client_environ(self) -> dict[str, str]:
        """What programs for the Kimi API read to find it."""
        return {"MOONSHOT_API_KEY": self.key, "MOONSHOT_API_BASE": self.base_url}

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    @property
    def log(self) -> list[dict[str, Any]]:
        """The log's lines."""
        return [json.loads(line) for line in self.stderr.splitlines() if line.startswith("{")]

    @property
    def accidents(self) -> list[str]:
        """What was written that never should be: stacks and errors."""
        return [line for line in self.stderr.splitlines() if "Traceback" in line or '"level":"error"' in line]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(_STOP_TIMEOUT)

    @property
    def worker_pid(self) -> int:
        """The process id of the engine's worker, the server's only child but for gateways."""
        (child,) = self._children - self.gateway_pids
        return child

    @property
    def gateway_pids(self) -> set[int]:
        """The process ids of the gateways, where there are several."""
        return {pid for pid in self._children if b"moonbase.server.gateway" in _command_line(pid)}

    @property
    def _children(self) -> set[int]:
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return {int(word) for task in tasks for word in task.read_text().split()}

    def close(self, *, but: str | None = None) -> None:
        """End it and hold it to a clean end: status 0 and no stack nor error in the log, except those with `but`."""
        try:
            code = self.stop()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        assert code == 0, self.stderr[-2000:]
        assert [line for line in self.accidents if but is None or but not in line] == []

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        *,
        key: str | None = "",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One exchange on a connection of its own. `key` "" is the server's own, None sends none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            with suppress(ConnectionError):  # refused while we still send; then the answer is there already
                connection.request(method, path, body, self._headers(key) | dict(headers or {}))
            return Reply.of(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str, **options: Any) -> Reply:
        return self.request("GET", path, **options)

    def post(self, body: bytes, path: str = CHAT, **options: Any) -> Reply:
        return self.request("POST", path, body, **options)

    def chat(self, text: str = "Hello", **fields: Any) -> Reply:
        return self.post(chat_body(text, **fields))

    @contextmanager
    def streaming(self, body: bytes, *, key: str = "") -> Iterator[http.client.HTTPResponse]:
        """An answer whose body has not been read; leaving closes the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("POST", CHAT, body, self._headers(key))
            response = connection.getresponse()
            with response:
                yield response
        finally:
            connection.close()

    def raw(self, *pieces: bytes, pause: float = 0.0, timeout: float = 10.0) -> bytes:
        """Send bytes, `pause` seconds between the pieces, and return all that comes until the server hangs up."""
        received = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            with suppress(ConnectionError):  # refused while we still talk; then the answer is there already
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(pause)
            with suppress(ConnectionError):
                while data := connection.recv(65536):
                    received += data
        return received

    def usage(self, reply_or_id: "Reply | str") -> dict[str, Any]:
        """The usage record of a request, waiting for it for a while."""
        request_id = reply_or_id if isinstance(reply_or_id, str) else reply_or_id.header("msh-request-id")
        return self._record("SELECT * FROM usage WHERE request_id = ?", (request_id,))

    def last_usage(self) -> dict[str, Any]:
        """The latest usage record, waiting for a first one for a while."""
        return self._record("SELECT * FROM usage ORDER BY started_at DESC LIMIT 1", ())

    def usage_records(self) -> list[dict[str, Any]]:
        """All usage records there are now, the oldest request first."""
        return self._rows("SELECT * FROM usage ORDER BY started_at, rowid", ())

    def usage_count(self) -> int:
        rows = self._rows("SELECT count(*) AS records FROM usage", ())
        return int(rows[0]["records"])

    def moonbase(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run another `moonbase` command on this server's state."""
        command = [sys.executable, "-m", "moonbase", *args]
        return subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=60, check=False)

    def resident_bytes(self) -> int:
        """The memory that the process holds now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def _record(self, query: str, values: tuple[Any, ...]) -> dict[str, Any]:
        return eventually(lambda: self._rows(query, values))[0]

    def _rows(self, query: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
        file = database_url(None, self.home).database
        connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
        try:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query, values)]
        finally:
            connection.close()

    def _headers(self, key: str | None) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key or self.key}"
        return headers

    def _wait(self) -> str:
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            if (banner := _BANNER.search(self.stderr)) is not None:
                return banner[1]
            if (code := self.process.poll()) is not None:
                raise StartFailed(code, self.stderr)
            time.sleep(0.02)
        self.process.kill()
        self.process.wait()
        raise StartFailed(-signal.SIGKILL, self.stderr)


def _command_line(pid: int) -> bytes:
    with suppress(OSError):  # it may have ended meanwhile
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def eventually(read: Any, *, within: float = 5.0) -> Any:
    """What `read()` returns once it is true (not empty, not 0); fails after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        if value := read():
            return value
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def shared(*parts: str) -> Path | None:
    """A file of the reference material that may lie beside the checkout, None where it does not."""
    path = Path(__file__).parents[3].joinpath("shared", *parts)
    return path if path.exists() else None


def kimi_vocabulary() -> Path | None:
    """`tiktoken.model` of the real Kimi K2, with `tokenizer_config.json` beside it; None where it is not at hand."""
    folder = os.environ.get("KIMI_VOCABULARY")
    if folder is None:
        return shared("data", "kimi-tokenizer", "tiktoken.model")
    file = Path(folder) / "tiktoken.model"
    return file if file.is_file() else None


def cache_with_kimi_vocabulary(folder: Path) -> Path:
    """A cache folder that holds the Kimi vocabulary, so that `echo` counts as Kimi does."""
    source, target = kimi_vocabulary(), folder / "vocabularies" / "kimi-k2" / "tiktoken.model"
    assert source is not None
    target.parent.mkdir(parents=True)
    shutil.copyfile(source, target)
    return folder


def program(name: str) -> Path:
    """A program of `../shared/acceptance`; skips the test, loudly, where that folder is not."""
    path = shared("acceptance", name)
    if path is None:
        pytest.skip(f"LEFT OUT: {name}; there is no ../shared/acceptance beside the checkout")
    return path


def run_program(server: Server, name: str, *, tries: int = 1) -> None:
    """Run a Python or shell program against the server; it exits 0 when it got what a user would accept.

    One that may be out of luck with what a model samples gets several `tries`.
    """
    path = program(name)
    command = ["bash", str(path)] if name.endswith(".sh") else [sys.executable, str(path)]
    environ = os.environ | server.client_environ
    for _ in range(tries):
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode == 0:
            return
    raise AssertionError(done.stderr)
