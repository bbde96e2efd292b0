"""What does a gateway cost between clients and an engine, in CPU, in time and in memory?

`python -m benchmarks.relay --vocabulary tiktoken.model [--redis URL] [--rounds 5] [--write]`

One upstream that costs next to nothing, one driver, and in turn: Moonbase passing chats on (`openai`), Moonbase parsing
token ids (`vllm`), Moonbase with two gateway processes (where there is a Redis), sglang-router, vllm-router and the
proxy of LiteLLM. Those of PyPI are installed into environments of their own. Gateways share one processor, upstream and
driver another. CPU is that of all processes of a gateway until a second after the last answer, settlements included.

Moonbase runs with a prepaid organization, a key, limits of all kinds at three scopes, the ledger, metrics and a line of
log a request; the others with what they do by default, and the routers without keys. `--write` puts the tables into
docs/benchmarks.md.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import document
from benchmarks.chat_server import ChatServer
from benchmarks.progress import tell
from benchmarks.relay import report
from benchmarks.relay.driver import Load, Result
from benchmarks.relay.gateways import Place, floor, litellm, moonbase, router
from benchmarks.relay.upstream import MODEL

_TEXT = "Say it again, in other words, and at some length. " * 10  # a request of some 0.7 KB
_SETTLE = 1.0  # seconds after the last answer in which what it costs still counts
_STREAMS = 128
_TOKENS = 300
_PLAIN_TOKENS = 100  # an answer of some 0.7 KB
_PLAIN_CLIENTS = 64
_LATENCY_STREAMS = (1, 16, 64, 256)
_SLOW_TICK = 2.0
_MANY = 10_000

Start = Callable[[Place], AbstractContextManager[ChatServer]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path, help="the Kimi tiktoken.model; without it `vllm` is left out")
    parser.add_argument("--redis", help="URL of a Redis; without it two gateway processes are left out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of plain requests in a round")
    parser.add_argument("--only", action="append", metavar="TEXT", help="only gateways with this in their names")
    parser.add_argument("--skip", action="append", default=[], choices=["cpu", "latency", "memory"])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    options = parser.parse_args()
    many = _many_files()
    found = report.Report(options.rounds)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        port = stack.enter_context(_upstream(0.01))
        place = Place(Path(folder), port, options.vocabulary)
        starts = _starts(options.vocabulary, options.redis, options.only)
        gateways: list[ChatServer] = []
        for name, start in starts.items():
            tell(f"starting {name}, installed first if it is not yet")
            gateways.append(gateway := stack.enter_context(start(place)))
            found.start(gateway.name, gateway.started, gateway.memory_mb())
        stack.callback(lambda: tell(f"before the memory is measured:\n{found}"))
        for number in range(options.rounds + 1):
            for gateway in gateways:
                tell(f"round {number} of {options.rounds}: {gateway.name}")
                if "cpu" not in options.skip:
                    found.cpu(gateway.name, number, _per_token(gateway), *_per_request(gateway, options.seconds))
                if "latency" not in options.skip and number:
                    for streams in _LATENCY_STREAMS:
                        found.latency(gateway.name, streams, _streamed(port, streams), _streamed(gateway, streams))
    if "memory" not in options.skip:
        for name, start in starts.items():
            with tempfile.TemporaryDirectory() as folder, _upstream(_SLOW_TICK) as port:
                tell(f"{many} streams: {name}")
                with start(Place(Path(folder), port, options.vocabulary)) as gateway:
                    found.memory(gateway.name, _holding(gateway, many))
    text = str(found)
    print(text)
    if options.write:
        document.write("relay", text)


def _starts(vocabulary: Path | None, redis: str | None, only: list[str] | None) -> dict[str, Start]:
    found: dict[str, Start] = {
        "moonbase openai": partial(moonbase, name="moonbase openai", engine="openai"),
        "moonbase vllm": partial(moonbase, name="moonbase vllm", engine="vllm"),
        "moonbase openai x2": partial(moonbase, name="moonbase openai x2", engine="openai", redis=redis),
        "bytes passed on, in Python": floor,
        "sglang-router": partial(router, requirement="sglang-router==0.3.2", command=("sglang-router", "launch")),
        "vllm-router": partial(router, requirement="vllm-router==0.1.17", command=("vllm-router",)),
        "litellm": litellm,
    }
    if vocabulary is None:
        del found["moonbase vllm"]
    if redis is None:
        del found["moonbase openai x2"]
    if only:
        found = {name: start for name, start in found.items() if any(part in name for part in only)}
    return found


def _per_token(gateway: ChatServer) -> float:
    """µs of CPU per token of streams."""
    streams = _STREAMS if "litellm" not in gateway.name else _STREAMS // 16
    before = gateway.cpu_seconds()
    result = _driven(Load(port=gateway.port, clients=streams, spread=0.5, **_asking(gateway, _TOKENS, stream=True)))
    time.sleep(_SETTLE)
    _complete(result, streams * _TOKENS)
    return (gateway.cpu_seconds() - before) / (streams * _TOKENS) * 1e6


def _per_request(gateway: ChatServer, seconds: float) -> tuple[float, float]:
    """µs of CPU per plain request, and requests per second."""
    before = gateway.cpu_seconds()
    load = Load(
        port=gateway.port, clients=_PLAIN_CLIENTS, seconds=seconds, **_asking(gateway, _PLAIN_TOKENS, stream=False)
    )
    result = _driven(load)
    time.sleep(_SETTLE)
    _complete(result, 0)
    return (gateway.cpu_seconds() - before) / result.requests * 1e6, result.requests / result.seconds


def _streamed(target: ChatServer | int, streams: int) -> Result:
    """Streams of 50 tokens, one after the other; `target` is a gateway, or the upstream's port.

    Few streams run longer: of 16 of them some 250 begin, for the slowest in a hundred to be more than the slowest.
    """
    asking: dict[str, Any]
    if isinstance(target, int):
        port, asking = target, {"path": "/v1/chat/completions", "body": _body(MODEL, 50, stream=True)}
    else:
        port, asking = target.port, _asking(target, 50, stream=True)
    return _driven(Load(port=port, clients=streams, seconds=8.0 if streams <= 16 else 2.0, spread=0.2, **asking))


def _holding(gateway: ChatServer, many: int) -> tuple[int, float]:
    """How many of so many streams were open at once, and the resident memory with them, in MB."""
    load = Load(port=gateway.port, clients=many, spread=20.0, hold=True, **_asking(gateway, 100_000, stream=True))
    with _driver(load) as driver:
        streams, memory = int(driver.line()), gateway.memory_mb()
        if problem := driver.result().problem:
            tell(f"{gateway.name} with {many} streams: {problem}")
        return streams, memory


def _asking(gateway: ChatServer, tokens: int, *, stream: bool) -> dict[str, Any]:
    return {
        "path": "/v1/chat/completions",
        "headers": gateway.headers,
        "body": _body(gateway.model, tokens, stream=stream),
    }


def _body(model: str, tokens: int, *, stream: bool) -> str:
    messages = [{"role": "user", "content": _TEXT}]
    return msgspec.json.encode({"model": model, "max_tokens": tokens, "stream": stream, "messages": messages}).decode()


def _complete(result: Result, tokens: int) -> None:
    if result.problem or result.frames < tokens:
        raise SystemExit(f"{result.frames} events of {tokens} came: {result.problem}")


def _driven(load: Load) -> Result:
    with _driver(load) as driver:
        return driver.result()


class _Driver:
    """A driver at work."""

    def __init__(self, process: subprocess.Popen[str], file: Path) -> None:
        self._process = process
        self._file = file

    def line(self) -> str:
        """What it prints next."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def result(self) -> Result:
        """Let it come to its end. Ends the program when there is no result."""
        self._process.communicate()
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Result)
        except (FileNotFoundError, msgspec.DecodeError):
            raise SystemExit(f"the driver ended with {self._process.returncode} and without a result") from None


@contextmanager
def _driver(load: Load) -> Iterator[_Driver]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.relay.driver", str(file)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=_on_the_other_processor
        )
        try:
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(load).decode() + "\n")
            process.stdin.flush()
            yield _Driver(process, file)
        finally:
            process.kill()
            process.__exit__(None, None, None)


@contextmanager
def _upstream(tick: float) -> Iterator[int]:
    command = [sys.executable, "-m", "benchmarks.relay.upstream", "--tick", str(tick)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=_on_the_other_processor)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def _on_the_other_processor() -> None:
    os.sched_setaffinity(0, {1})


def _many_files() -> int:
    """As many files as may be; returns how many streams that allows, of which each is two sockets of a gateway."""
    wanted = 65_536
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    except (ValueError, PermissionError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(_MANY, (soft - 200) // 2)


if __name__ == "__main__":
    main()
