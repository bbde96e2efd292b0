"""The servers that are compared, each with the settings that suit it best on a machine of few processors."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path

from msgspec import Struct

from benchmarks import server
from benchmarks.chat_server import ChatServer, running
from benchmarks.embedded import checkpoint
from benchmarks.programs import LLAMA_CPP, VLLM, kept, llama_server, vllm_version
from benchmarks.progress import tell
from moonbase import config
from moonbase.catalog.catalog import load_catalog
from moonbase.catalog.weights import DEFAULT_WEIGHTS, locate
from moonbase.engines.process import free_port

MOONBASE, LLAMA_SERVER, VLLM_CPU = "moonbase", "llama-server", "vllm"
NAMES = (MOONBASE, LLAMA_SERVER, VLLM_CPU)
_KIMI = "kimi-k2-0905-preview"
_SERVED = "served"
_VLLM_PATIENCE = 900.0  # seconds: it compiles the model when it starts
_VLLM_STREAMS, _VLLM_WINDOW = 32, 8192  # it would compile the model again for others
_VLLM_ENVIRON = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}


class Contender(Struct, frozen=True):
    """A server that is started with a number of places for streams, a window of tokens for each, and a folder for logs.

    `command` is how, for the reader: N stands for the places, W for the window.
    """

    name: str
    version: str
    command: str
    start: Callable[[int, int, Path], AbstractContextManager[ChatServer]]


def weights() -> Path:
    """The default model's file; ends the program when it is not there."""
    path = locate(DEFAULT_WEIGHTS, load_catalog({}), config.cache())
    if path is None:
        raise SystemExit("fetch the model first: moonbase models pull")
    return path


def contenders(names: list[str]) -> list[Contender]:
    """Those of that name, ready to start: llama-server is compiled and vLLM's weights are written if they are not yet.

    Without vLLM there is a word on standard error in its place.
    """
    file = weights()
    found: list[Contender] = []
    if MOONBASE in names:
        found.append(_moonbase())
    if LLAMA_SERVER in names:
        tell("compiling llama-server, if it is not yet")
        found.append(_llama_server(llama_server(), file))
    if VLLM_CPU in names and VLLM.exists():
        tell("writing the weights for vLLM, if they are not yet")
        found.append(_vllm(_checkpoint(file), file.stem))
    elif VLLM_CPU in names:
        tell("without vLLM, which scripts/install-vllm installs")
    return found


def _checkpoint(file: Path) -> Path:
    """Kept, since vLLM compiles the model again for every new path."""
    folder = kept(file.stem, str(file.stat().st_size))
    if not (folder / "written").exists():
        checkpoint.write(file, folder)
        (folder / "written").touch()
    return folder


def _moonbase() -> Contender:
    options = ("--engine", "openvino")

    @contextmanager
    def start(places: int, window: int, logs: Path) -> Iterator[ChatServer]:
        began = time.monotonic()
        with server.running(*options) as run:
            headers = {"Authorization": f"Bearer {run.key}"}
            yield ChatServer(MOONBASE, run.process, run.port, _KIMI, headers, time.monotonic() - began)

    engine = f"openvino-genai {version('openvino-genai')}"
    return Contender(MOONBASE, engine, f"moonbase serve {' '.join(options)}", start)


def _llama_server(program: Path, file: Path) -> Contender:
    """With a slot for each stream and a thread for each processor; the rest is as it is by default."""

    def options(model: str, places: str, context: str) -> list[str]:
        threads = str(len(os.sched_getaffinity(0)))
        return ["--model", model, "--threads", threads, "--parallel", places, "--ctx-size", context]

    def start(places: int, window: int, logs: Path) -> AbstractContextManager[ChatServer]:
        port = free_port()
        asked = options(str(file), str(places), str(places * window))
        return running(
            LLAMA_SERVER,
            [str(program), *asked, "--host", "127.0.0.1", "--port", str(port)],
            logs / "llama-server.log",
            port=port,
            model=_SERVED,
            headers={},
            environ=dict(os.environ),
        )

    command = f"llama-server {' '.join(options(file.name, 'N', 'N*W'))}"
    return Contender(LLAMA_SERVER, f"llama.cpp of {LLAMA_CPP.replace('==', ' ')}", command, start)


def _vllm(folder: Path, name: str) -> Contender:
    """With a thread for each processor, of which it would leave one alone."""

    def options(model: str) -> list[str]:
        size = ("--max-num-seqs", str(_VLLM_STREAMS), "--max-model-len", str(_VLLM_WINDOW))
        return ["--model", model, "--dtype", "bfloat16", *size, "--enable-prompt-tokens-details"]

    environ = {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_CPU_KVCACHE_SPACE": "2"}
    program = ("-m", "vllm.entrypoints.openai.api_server")

    def start(places: int, window: int, logs: Path) -> AbstractContextManager[ChatServer]:
        port = free_port()
        asked = [*options(str(folder)), "--served-model-name", _SERVED]
        return running(
            VLLM_CPU,
            [str(VLLM / "python"), *program, *asked, "--host", "127.0.0.1", "--port", str(port)],
            logs / "vllm.log",
            port=port,
            model=_SERVED,
            headers={},
            environ={**os.environ, **_VLLM_ENVIRON, **environ},
            patience=_VLLM_PATIENCE,
        )

    shown = [f"{name}={value}" for name, value in environ.items()]
    command = " ".join([*shown, "python", *program, *options(name)])
    return Contender(VLLM_CPU, vllm_version(), command, start)
