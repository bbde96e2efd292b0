"""The gateways that are compared, each started as its documentation says, in front of one upstream."""

import hashlib
import http.client
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from benchmarks import processes
from benchmarks.relay.upstream import MODEL

_START_SECONDS = 180
_KIMI = "kimi-k2-0905-preview"
_AMPLE = ["--concurrency", "1000000", "--rpm", "1000000000", "--tpm", "1000000000000", "--tpd", "1000000000000000"]
_ENVIRONMENTS = Path(sys.prefix) / "share" / "moonbase-benchmarks"


class Gateway(Struct):
    """One that runs: where clients reach it and how they ask, and how long its start took."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    model: str
    headers: dict[str, str]
    started: float

    @property
    def pids(self) -> list[int]:
        return processes.tree(self.process.pid)

    def cpu_seconds(self) -> float:
        return processes.cpu_seconds(*self.pids)

    def memory_mb(self) -> float:
        return processes.memory_mb(*self.pids)


class Place(Struct, frozen=True):
    """Where gateways run: a folder for what they keep, the upstream's port, the processors they may use."""

    folder: Path
    upstream: int
    processors: frozenset[int]
    vocabulary: Path | None = None


@contextmanager
def moonbase(place: Place, name: str, engine: str, redis: str | None = None) -> Iterator[Gateway]:
    """With a prepaid organization, limits of all kinds at all three scopes, metrics, and one line of log a request.

    With `redis` two gateway processes.
    """
    home = place.folder / name.replace(" ", "-")
    environ = {**os.environ, "MOONBASE_HOME": str(home / "home"), "MOONBASE_CACHE": str(home / "cache")}

    def run(*command: str) -> str:
        whole = [sys.executable, "-m", "moonbase", *command]
        return subprocess.run(whole, env=environ, check=True, capture_output=True, text=True).stdout.strip()

    if place.vocabulary is not None:
        folder = home / "cache" / "vocabularies" / "kimi-k2"
        folder.mkdir(parents=True)
        shutil.copy(place.vocabulary, folder / "tiktoken.model")
    organization = run("orgs", "create", "--name", "bench", "--region", "global", "--tier", "5", *_AMPLE)
    run("credit", "add", organization, "100000000")
    project = run("projects", "create", "--org", organization, "--name", "bench", *_AMPLE)
    key = run("keys", "create", "--name", "bench", "--project", project, *_AMPLE)
    port = _free_port()
    url = f"http://127.0.0.1:{place.upstream}{'/v1' if engine == 'openai' else ''}"
    settings = {"engine.url": url, "engine.model": MODEL, "metrics.token": "bench"}
    command = [sys.executable, "-m", "moonbase", "serve", "--port", str(port), "--engine", engine]
    if redis is not None:
        command += ["--workers", "2"]
        settings["limits.redis_url"] = redis
    command += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    headers = {"Authorization": f"Bearer {key}"}
    with _running(place, name, command, port, _KIMI, headers, environ) as gateway:
        yield gateway


@contextmanager
def floor(place: Place) -> Iterator[Gateway]:
    """No gateway, but what any in Python pays for its sockets."""
    port = _free_port()
    command = [sys.executable, "-m", "benchmarks.relay.floor", str(port), str(place.upstream)]
    with _running(place, "bytes passed on, in Python", command, port, MODEL, {}, dict(os.environ)) as gateway:
        yield gateway


@contextmanager
def router(place: Place, requirement: str, command: tuple[str, ...]) -> Iterator[Gateway]:
    """A Rust router of PyPI's, without keys; round robin, the cheapest policy of both."""
    port = _free_port()
    whole = [
        str(environment(requirement) / "bin" / command[0]),
        *command[1:],
        *("--worker-urls", f"http://127.0.0.1:{place.upstream}", "--host", "127.0.0.1", "--port", str(port)),
        *("--policy", "round_robin", "--log-level", "error", "--prometheus-port", str(_free_port())),
    ]
    with _running(place, requirement.replace("==", " "), whole, port, MODEL, {}, dict(os.environ)) as gateway:
        yield gateway


@contextmanager
def litellm(place: Place, requirement: str) -> Iterator[Gateway]:
    """LiteLLM's proxy with one model and a master key, without a database."""
    port, key = _free_port(), f"sk-{secrets.token_hex(16)}"
    config = place.folder / "litellm.yaml"
    config.write_text(
        f"model_list:\n  - model_name: {MODEL}\n    litellm_params:\n      model: openai/{MODEL}\n"
        f"      api_base: http://127.0.0.1:{place.upstream}/v1\n      api_key: none\n"
    )
    program = environment(requirement) / "bin" / "litellm"
    command = [
        str(program),
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--telemetry",
        "False",
    ]
    environ = {**os.environ, "LITELLM_MASTER_KEY": key, "HOME": str(place.folder), "LITELLM_LOG": "ERROR"}
    name = requirement.replace("[proxy]==", " proxy ")
    headers = {"Authorization": f"Bearer {key}"}
    with _running(place, name, command, port, MODEL, headers, environ) as gateway:
        yield gateway


def environment(requirement: str) -> Path:
    """A virtual environment with what is required, made once and kept in the share folder of our own."""
    name = requirement.partition("[")[0].partition("=")[0]
    folder = _ENVIRONMENTS / f"{name}-{hashlib.sha256(requirement.encode()).hexdigest()[:12]}"
    if not (folder / "installed").exists():
        print(f"Installing {requirement} ...", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", requirement], check=True)
        (folder / "installed").touch()
    return folder


@contextmanager
def _running(
    place: Place,
    name: str,
    command: list[str],
    port: int,
    model: str,
    headers: dict[str, str],
    environ: dict[str, str],
) -> Iterator[Gateway]:
    """Started, and ready once it has answered a request."""
    began = time.monotonic()
    log = place.folder / f"{name.replace(' ', '-')}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env=environ,
            stdout=out,
            stderr=out,
            preexec_fn=lambda: os.sched_setaffinity(0, place.processors),
        )
    try:
        while not _answers(port, model, headers):
            if process.poll() is not None or time.monotonic() - began > _START_SECONDS:
                raise SystemExit(f"{name} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)
        yield Gateway(name, process, port, model, headers, time.monotonic() - began)
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


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
