"""What does a 1 MB prompt cost, and how long do other streams wait for it?

`python -m benchmarks.large_prompt --vocabulary tiktoken.model [--rounds 10]`

Streams of the echo engine, one word every 10 ms, run beside the prompts. Their longest gap in a
window around each prompt is compared with that in windows without one. CPU is that of the gateway
process.
"""

import argparse
import random
import shutil
import statistics
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.server import Server, running, wait_until_idle

_MODEL = "kimi-k2-0905-preview"
_WINDOW = 1.0  # seconds observed after a prompt is sent
_STREAMS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", type=Path, help="the Kimi tiktoken.model; without it counts are bytes / 4")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.vocabulary is not None:
            target = Path(folder) / "vocabularies" / "kimi-k2"
            target.mkdir(parents=True)
            shutil.copy(options.vocabulary, target / "tiktoken.model")
        with running("--engine", "echo", "--set", "echo.delay=0.01", cache=Path(folder)) as server:
            _cost(server, options.rounds)
            _delay(server, options.rounds)


def _cost(server: Server, rounds: int) -> None:
    tiny, new, extended = [], [], []
    for _ in range(rounds):
        tiny.append(_cpu_of(server, [{"role": "user", "content": "And now?"}]))
        first = [{"role": "user", "content": _text()}]
        new.append(_cpu_of(server, first))
        more = [*first, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And now?"}]
        extended.append(_cpu_of(server, more))
    print(f"CPU of a tiny prompt:               {_spread(tiny)} ms")
    print(f"CPU of a new 1 MB prompt:           {_spread(new)} ms")
    print(f"CPU of one that extends a known one: {_spread(extended)} ms")


def _cpu_of(server: Server, messages: list[dict[str, str]]) -> float:
    wait_until_idle(server)
    before = server.cpu_seconds()
    _ask(server, messages)
    wait_until_idle(server)
    return (server.cpu_seconds() - before) * 1000


def _ask(server: Server, messages: list[dict[str, str]]) -> None:
    response = server.post({"model": _MODEL, "messages": messages, "max_tokens": 1})
    answer = response.read()
    if response.status != 200:
        raise SystemExit(answer.decode())


def _delay(server: Server, rounds: int) -> None:
    arrivals: list[list[float]] = [[] for _ in range(_STREAMS)]
    stop = threading.Event()
    threads = [threading.Thread(target=_listen, args=(server, times, stop)) for times in arrivals]
    for thread in threads:
        thread.start()
    time.sleep(1)
    quiet, busy = [], []
    for _ in range(rounds):
        messages = [{"role": "user", "content": _text()}]
        began = time.monotonic()
        time.sleep(_WINDOW)
        quiet.append(_longest_gap(arrivals, began))
        began = time.monotonic()
        _ask(server, messages)
        time.sleep(max(0.0, began + _WINDOW - time.monotonic()))
        busy.append(_longest_gap(arrivals, began))
    stop.set()
    for thread in threads:
        thread.join()
    print(f"longest gap of other streams alone:  {_spread(quiet)} ms")
    print(f"longest gap beside a new prompt:     {_spread(busy)} ms")
    print(f"difference of the medians:           {statistics.median(busy) - statistics.median(quiet):.1f} ms")


def _listen(server: Server, arrivals: list[float], stop: threading.Event) -> None:
    words: dict[str, Any] = {
        "model": _MODEL,
        "messages": [{"role": "user", "content": "word " * 100_000}],
        "max_tokens": 100_000,
        "stream": True,
    }
    response = server.post(words)
    while not stop.is_set() and response.readline():
        arrivals.append(time.monotonic())
    response.close()


def _longest_gap(arrivals: list[list[float]], began: float) -> float:
    longest = 0.0
    for times in arrivals:
        inside = [at for at in list(times) if began <= at <= began + _WINDOW]
        longest = max([longest, *[later - sooner for sooner, later in pairwise(inside)]])
    return longest * 1000


def _text() -> str:
    """About 1 MB of words, different each time."""
    words = ["moon", "base", "neighbour", "space", "月亮", "our", "nearest", "analysis", "document", "in", "the", "is"]
    picked = random.choices(words, k=185_000)
    return " ".join(picked)[:1_000_000]


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} (min {min(values):.1f}, max {max(values):.1f})"


if __name__ == "__main__":
    main()
