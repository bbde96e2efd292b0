"""How much of the embedded engine's own throughput arrives over HTTP?

`python -m benchmarks.engine_throughput [--rounds 5] [--streams 1,8,32] [--plain]`

The same prompts, 64 new tokens each, greedy: first the pipeline alone in this process, stepped in a
plain loop, then streams of a running server, in turn. Throughput is output tokens per second of
wall time; the ratio is taken round by round. The worker's memory has huge pages; so that this process has them,
too, start it with GLIBC_TUNABLES=glibc.malloc.hugetlb=1. With --plain there is no server: the pipeline of the model
file as it is takes turns with that of what the conversion makes of it.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import openvino as ov
import openvino_genai as genai

from benchmarks.server import Server, running
from moonbase import config
from moonbase.catalog.catalog import load_catalog
from moonbase.catalog.weights import locate
from moonbase.chat.prompt import Control
from moonbase.chat.request import Conversation, Message, TextPart
from moonbase.engines.openvino.conversion import converted
from moonbase.engines.openvino.worker import build_pipeline
from moonbase.engines.tokenizers.huggingface import HuggingFaceTokenizer
from moonbase.formats.hermes.format import Hermes

_TOKENS = 64
Throughput = Callable[[list[str]], float]
"""Tokens per second of as many streams as there are prompts."""
_MODEL = "kimi-k2-0905-preview"


class RawEngine:
    """The pipeline that the worker runs, without the worker."""

    def __init__(self, *, plain: bool = False) -> None:
        """`plain` leaves out the conversion."""
        path = locate("smollm2-135m", load_catalog({}), config.cache())
        if path is None:
            raise SystemExit("fetch the model first: moonbase models pull")
        place = path if plain else converted(path, config.cache())
        self._pipeline = build_pipeline(place, threads=0, kv_blocks=4096, max_running=32)
        self._tokenizer = HuggingFaceTokenizer.read(path)
        self._stop = {self._tokenizer.control(name) for name in Hermes.stop_controls}
        self._next = 0

    def tokens_per_second(self, prompts: list[str]) -> float:
        began = time.monotonic()
        handles = []
        for prompt in prompts:
            generation = genai.GenerationConfig()
            generation.max_new_tokens = _TOKENS
            generation.stop_token_ids = self._stop
            self._next += 1
            handles.append(self._pipeline.add_request(self._next, self._ids(prompt), generation))
        tokens = 0
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for handle in handles:
                while handle.can_read():
                    tokens += sum(len(part.generated_ids) for part in handle.read().values())
        return tokens / (time.monotonic() - began)

    def _ids(self, prompt: str) -> ov.Tensor:
        ids: list[int] = []
        asked = Conversation(messages=(Message(role="user", content=(TextPart(prompt),)),))
        for segment in Hermes().render(asked):
            if isinstance(segment, Control):
                ids.append(self._tokenizer.control(segment.name))
            else:
                ids += self._tokenizer.encode_plain(segment)
        return ov.Tensor(np.array([ids], dtype=np.int64))


async def over_http(server: Server, prompts: list[str]) -> float:
    """Tokens per second of as many streams as there are prompts."""
    began = time.monotonic()
    tokens = await asyncio.gather(*[_stream(server, prompt) for prompt in prompts])
    return sum(tokens) / (time.monotonic() - began)


async def _stream(server: Server, prompt: str) -> int:
    messages = [{"role": "user", "content": prompt}]
    body = json.dumps({"model": _MODEL, "messages": messages, "max_tokens": _TOKENS, "temperature": 0, "stream": True})
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {server.key}\r\n"
        f"Connection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(head.encode() + body.encode())
    last = b""
    while data := await reader.read(65536):
        last = last[-2000:] + data
    writer.close()
    usage = json.loads(last.rpartition(b'"usage":')[2].partition(b"}")[0] + b"}")
    stopped = b'"finish_reason":"stop"' in last  # the engine's own count includes the token that stopped it
    return int(usage["completion_tokens"]) + stopped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", default="1,8,32")
    parser.add_argument("--plain", action="store_true", help="compare with the model file as it is, not with HTTP")
    options = parser.parse_args()
    counts = [int(count) for count in options.streams.split(",")]
    if options.plain:
        first, second = RawEngine(plain=True), RawEngine()
        for streams in counts:
            _compare("plain", first.tokens_per_second, "joined", second.tokens_per_second, streams, options.rounds)
        return
    raw = RawEngine()
    with running("--engine", "openvino") as server:
        for streams in counts:
            _compare(
                "alone",
                raw.tokens_per_second,
                "over HTTP",
                lambda prompts: asyncio.run(over_http(server, prompts)),
                streams,
                options.rounds,
            )


def _compare(first: str, one: Throughput, second: str, other: Throughput, streams: int, rounds: int) -> None:
    """Print what two ways have in tokens per second, and how much more the other has than the one."""
    of_one, of_other = [], []
    for number in range(-1, rounds):
        prompts = [f"Write a long story about the moon and {streams} times {number}, part {i}." for i in range(streams)]
        figures_now = one(prompts), other(prompts)
        if number >= 0:  # the first round warms both up
            of_one.append(figures_now[0])
            of_other.append(figures_now[1])
    ratios = [more / less for more, less in zip(of_other, of_one, strict=True)]
    figures = f"{first} {statistics.median(of_one):6.1f}, {second} {statistics.median(of_other):6.1f} tokens/s"
    print(
        f"{streams:3} streams: {figures},"
        f" ratio {statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
