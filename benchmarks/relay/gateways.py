"""The gateways that are compared, each started as its documentation says, in front of one upstream."""

import http.client
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from benchmarks import processes
from benchmarks.programs import LITELLM, environment, litellm_proxy
from benchmarks.relay.upstream import MODEL
from moonbase.engines.process import free_port

_START_SECONDS = 180
_KIMI = "kimi-k2-0905-preview"
_AMPLE = ["--concurrency", "1000000", "--rpm", "1000000000", "--tpm", "1000000000000", "--tpd", "1000000000000000"]
_PROCESSOR = 0  # of all gateways


class Gateway(Struct):
    """One that runs: where clients reach it and how they ask, and how long its start took."""

    name: str
    process: subprocess.Popen[bytes]
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


class Place(Struct, frozen=True):
    """Where gateways run: a folder for what they keep, and the upstream's port."""

    folder: Path
    upstream: int
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
    port = free_port()
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
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.relay.floor", str(port), str(place.upstream)]
    with _running(place, "bytes passed on, in Python", command, port, MODEL, {}, dict(os.environ)) as gateway:
        yield gateway


@contextmanager
def router(place: Place, requirement: str, command: tuple[str, ...]) -> Iterator[Gateway]:
    """A Rust router of PyPI's, without keys; round robin, the cheapest policy of both."""
    port = free_port()
    whole = [
        str(environment(requirement) / "bin" / command[0]),
        *command[1:],
        *("--worker-urls", f"http://127.0.0.1:{place.upstream}", "--host", "127.0.0.1", "--port", str(port)),
        *("--policy", "round_robin", "--log-level", "error", "--prometheus-port", str(free_port())),
    ]
    with _running(place, requirement.replace("==", " "), whole, port, MODEL, {}, dict(os.environ)) as gateway:
        yield gateway


@contextmanager
def litellm(place: Place) -> Iterator[Gateway]:
    """LiteLLM's proxy with one model and a master key, without a database."""
    port, key = free_port(), f"sk-{secrets.token_hex(16)}"
    config = place.folder / "litellm.yaml"
    config.write_text(
        f"model_list:\n  - model_name: {MODEL}\n    litellm_params:\n      model: openai/{MODEL}\n"
        f"      api_base: http://127.0.0.1:{place.upstream}/v1\n      api_key: none\n"
    )
    environ = {**os.environ, "LITELLM_MASTER_KEY": key, "HOME": str(place.folder), "LITELLM_LOG": "ERROR"}
    name = LITELLM.replace("[proxy]==", " proxy ")
    headers = {"Authorization": f"Bearer {key}"}
    with _running(place, name, litellm_proxy(config, port), port, MODEL, headers, environ) as gateway:
        yield gateway


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
            preexec_fn=lambda: os.sched_setaffinity(0, {_PROCESSOR}),
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
