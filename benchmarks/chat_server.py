"""A server of chat completions, whoever made it, started for a benchmark."""

import http.client
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from benchmarks import processes

_PATIENCE = 180.0  # seconds


class ChatServer(Struct):
    """One that runs: where clients reach it and how they ask, and how long its start took."""

    name: str
    process: subprocess.Popen[bytes] | subprocess.Popen[str]
    port: int
    model: str
    headers: dict[str, str]
    started: float

    def cpu_seconds(self) -> float:
        """Of all its processes."""
        return processes.cpu_seconds(*processes.tree(self.process.pid))

    def memory_mb(self) -> float:
        """Of all its processes; what they share counts for each."""
        return processes.memory_mb(*processes.tree(self.process.pid))


@contextmanager
def running(
    name: str,
    command: list[str],
    log: Path,
    *,
    port: int,
    model: str,
    headers: dict[str, str],
    environ: dict[str, str],
    processor: int | None = None,
    patience: float = _PATIENCE,
) -> Iterator[ChatServer]:
    """Started, and ready once it has answered a request; on `processor` only, if one is given.

    Ends the program with the last of its `log` when it has not answered after `patience` seconds.
    """
    began = time.monotonic()
    pinned = None if processor is None else lambda: os.sched_setaffinity(0, {processor})
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environ, stdout=out, stderr=out, preexec_fn=pinned)
    try:
        while not _answers(port, model, headers):
            if process.poll() is not None or time.monotonic() - began > patience:
                raise SystemExit(f"{name} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)
        yield ChatServer(name, process, port, model, headers, time.monotonic() - began)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int, model: str, headers: dict[str, str]) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = f'{{"model":"{model}","max_tokens":1,"messages":[{{"role":"user","content":"Hi"}}]}}'
    try:
        connection.request("POST", "/v1/chat/completions", body, {**headers, "Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
