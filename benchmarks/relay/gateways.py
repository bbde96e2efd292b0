"""The gateways that are compared, each started as its documentation says, in front of one upstream."""

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from msgspec import Struct

from benchmarks.chat_server import ChatServer, running
from benchmarks.programs import LITELLM, environment, litellm_proxy
from benchmarks.relay.upstream import MODEL
from moonbase.engines.process import free_port

_KIMI = "kimi-k2-0905-preview"
_AMPLE = ["--concurrency", "1000000", "--rpm", "1000000000", "--tpm", "1000000000000", "--tpd", "1000000000000000"]
_PROCESSOR = 0  # of all gateways


class Place(Struct, frozen=True):
    """Where gateways run: a folder for what they keep, and the upstream's port."""

    folder: Path
    upstream: int
    vocabulary: Path | None = None


@contextmanager
def moonbase(place: Place, name: str, engine: str, redis: str | None = None) -> Iterator[ChatServer]:
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
    settings = {"engine.url": url, "engine.model": MODEL, "metrics.token": "bench", "engine.max_waiting": 100_000}
    command = [sys.executable, "-m", "moonbase", "serve", "--port", str(port), "--engine", engine]
    if redis is not None:
        command += ["--workers", "2"]
        settings["limits.redis_url"] = redis
    command += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    headers = {"Authorization": f"Bearer {key}"}
    with _running(place, name, command, port, _KIMI, headers, environ) as gateway:
        yield gateway


@contextmanager
def floor(place: Place) -> Iterator[ChatServer]:
    """No gateway, but what any in Python pays for its sockets."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.relay.floor", str(port), str(place.upstream)]
    with _running(place, "bytes passed on, in Python", command, port, MODEL, {}, dict(os.environ)) as gateway:
        yield gateway


@contextmanager
def router(place: Place, requirement: str, command: tuple[str, ...]) -> Iterator[ChatServer]:
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
def litellm(place: Place) -> Iterator[ChatServer]:
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


def _running(
    place: Place,
    name: str,
    command: list[str],
    port: int,
    model: str,
    headers: dict[str, str],
    environ: dict[str, str],
) -> AbstractContextManager[ChatServer]:
    log = place.folder / f"{name.replace(' ', '-')}.log"
    return running(name, command, log, port=port, model=model, headers=headers, environ=environ, processor=_PROCESSOR)
