"""What does the Messages API cost beside the other dialect, and what a request of an agent's size?

`python -m benchmarks.messages --vocabulary tiktoken.model [--rounds 7] [--streams 64]`

Streams of the echo engine, one word every 10 ms, in one dialect and then in the other, in turn; the CPU is that of the
gateway process. Then requests of 200 KB as Claude Code makes them (30 tools, a long system prompt, a tool loop), the
last message new each time, with one token of output: all that a request costs from its first byte on.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import threading
from pathlib import Path
from typing import Any

from benchmarks.server import Server, running, wait_until_idle

_MODEL = "kimi-k2-0905-preview"
_WORDS = 300  # of each stream
_DIALECTS = {"chat completions": "/v1/chat/completions", "messages": "/anthropic/v1/messages"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path, required=True, help="the Kimi tiktoken.model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "vocabularies" / "kimi-k2"
        target.mkdir(parents=True)
        shutil.copy(options.vocabulary, target / "tiktoken.model")
        with running("--engine", "echo", "--set", "echo.delay=0.01", cache=Path(folder)) as server:
            _streams(server, options.rounds, options.streams)
            _agent(server, options.rounds)


def _streams(server: Server, rounds: int, streams: int) -> None:
    costs: dict[str, list[float]] = {name: [] for name in _DIALECTS}
    for round_number in range(rounds + 1):
        for name, path in _DIALECTS.items():
            cost = _cost_per_token(server, path, streams)
            if round_number:  # the first warms up
                costs[name].append(cost)
    ratios = [other / one for one, other in zip(costs["chat completions"], costs["messages"], strict=True)]
    for name, found in costs.items():
        print(f"{name:18} {statistics.median(found):6.2f} µs per token ({min(found):.2f} to {max(found):.2f})")
    print(f"ratio              {statistics.median(ratios):6.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def _cost_per_token(server: Server, path: str, streams: int) -> float:
    """In µs of CPU of the gateway, over all that `streams` streams cost."""
    body = {
        "model": _MODEL,
        "max_tokens": 10_000,
        "stream": True,
        "messages": [{"role": "user", "content": "word " * _WORDS}],
    }
    wait_until_idle(server)
    before = server.cpu_seconds()
    threads = [threading.Thread(target=lambda: server.post(body, path).read()) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until_idle(server)
    return (server.cpu_seconds() - before) / (streams * _WORDS) * 1e6


def _agent(server: Server, rounds: int) -> None:
    costs = []
    size = 0
    for number in range(rounds + 1):
        body = _agent_request(number)
        size = len(json.dumps(body))
        wait_until_idle(server)
        before = server.cpu_seconds()
        response = server.post(body, "/anthropic/v1/messages")
        assert response.status == 200, response.read()
        response.read()
        wait_until_idle(server)
        if number:  # the first fills the caches
            costs.append((server.cpu_seconds() - before) * 1e3)
    print(
        f"a request of {size / 1000:.0f} KB, warm: {statistics.median(costs):.1f} ms of CPU "
        f"({min(costs):.1f} to {max(costs):.1f})"
    )


def _agent_request(number: int) -> dict[str, Any]:
    """About 200 KB: tools 90, system 80, a tool loop of ten calls 30."""
    sentence = "Use this when the user asks for it, and say what was done, with every path absolute. "
    tools = [
        {
            "name": f"Tool{index}",
            "description": sentence * 28,
            "input_schema": {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "properties": {
                    f"field{place}": {"type": "string", "description": f"What to do with part {place}."}
                    for place in range(8)
                },
                "required": ["field0"],
                "additionalProperties": False,
            },
        }
        for index in range(30)
    ]
    system = [{"type": "text", "text": f"x-anthropic-billing-header: cc_version=1; cch={number};"}]
    system += [{"type": "text", "text": sentence * 470, "cache_control": {"type": "ephemeral"}} for _ in range(2)]
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "Mend the build."}]}]
    for call in range(10):
        use = {"type": "tool_use", "id": f"Tool0:{call}", "name": "Tool0", "input": {"field0": f"file {call}"}}
        messages.append({"role": "assistant", "content": [{"type": "text", "text": "I look."}, use]})
        result = {"type": "tool_result", "tool_use_id": f"Tool0:{call}", "content": f"{call} " + sentence * 32}
        messages.append({"role": "user", "content": [result]})
    messages.append({"role": "user", "content": f"And now number {number}?"})
    return {"model": _MODEL, "max_tokens": 1, "system": system, "tools": tools, "messages": messages}


if __name__ == "__main__":
    main()
