"""What does holding an answer to a schema cost on an engine, and what do other streams notice?

`python -m benchmarks.constraints [ENGINE] [--rounds 5] [--streams 8,32] [--tokens 96] [--vocabulary DIR]`

ENGINE is one of `benchmarks.acid_test`, by default `openvino`; those with Kimi's vocabulary find it in DIR.
Throughput: the same prompts and as many tokens, free and held to an array of tool-like objects, in turn; the ratio is
taken round by round. Delay: one stream runs while a request with 30 tools that nobody has sent before comes in, and
then the same request again; the longest pause between two of its tokens, beside the longest without any newcomer.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from array import array
from pathlib import Path

from benchmarks.acid_test import ENGINES, subject
from benchmarks.replay import Parts
from moonbase.chat.constraint import Constraint, JsonSchema
from moonbase.chat.prompt import Control
from moonbase.chat.request import Conversation, Message, Sampling, TextPart, Tool, ToolChoice
from moonbase.engines.base import GenerateRequest, TokenIds
from moonbase.engines.grammar import Grammar, Grammars
from moonbase.router.token_deployment import single_tokens

_TOOLS = 30
_LONG = 400  # tokens of the stream that newcomers may disturb
_PLACE = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer"},
        "detailed": {"type": "boolean"},
    },
    "required": ["city", "unit", "days"],
}
_PLACES = JsonSchema(json.dumps({"type": "array", "items": _PLACE, "minItems": 100}), spaced=True)


class Bench:
    """An engine of one's own, asked directly."""

    def __init__(self, parts: Parts) -> None:
        dialect = parts.engine.description.dialect
        assert dialect is not None
        self.engine = parts.engine
        self._tokenizer = parts.tokenizer
        self._format = parts.format
        self._grammars = Grammars(dialect)
        self._stops = tuple(single_tokens(parts.tokenizer, parts.format.stop_controls).values())
        self._number = 0

    def request(self, text: str, tokens: int, grammar: Grammar | None, *, ends: bool = True) -> GenerateRequest:
        """Without `ends` the answer repeats itself to its limit."""
        self._number += 1
        temperature, repeating = (0.6, 0.0) if ends else (0.01, -2.0)
        return GenerateRequest(
            request_id=str(self._number),
            prompt_ids=self._ids(Conversation(messages=(Message(role="user", content=(TextPart(text),)),))),
            sampling=Sampling(temperature=temperature, top_p=1, n=1, presence_penalty=0, frequency_penalty=repeating),
            max_tokens=tokens,
            stop_ids=self._stops,
            grammar=grammar,
        )

    def _ids(self, asked: Conversation) -> TokenIds:
        ids = array("I")
        for segment in self._format.render(asked):
            if isinstance(segment, Control):
                ids.append(self._tokenizer.control(segment.name))
            else:
                ids += self._tokenizer.encode_plain(segment)
        return ids

    async def tokens_per_second(self, streams: int, tokens: int, constraint: Constraint | None) -> float:
        began = time.monotonic()
        counts = await asyncio.gather(
            *[self._count(f"List places, part {self._number}.", tokens, constraint) for _ in range(streams)]
        )
        return sum(counts) / (time.monotonic() - began)

    async def _count(self, text: str, tokens: int, constraint: Constraint | None) -> int:
        count = 0
        grammar = None if constraint is None else await self._grammars.prepare(constraint)
        with self.engine.generate(self.request(text, tokens, grammar, ends=grammar is not None)) as generation:
            while deltas := await generation.read():
                count += sum(len(delta.token_ids) for delta in deltas)
        return count

    async def longest_pause(self, newcomer: Constraint | None) -> float:
        """Seconds between two tokens of a running stream, at most, while a request held to `newcomer` comes in."""
        longest = 0.0
        joined = asyncio.Event()
        joining = asyncio.create_task(self._join(joined, newcomer))
        with self.engine.generate(
            self.request(
                "Write a very long story about a fox and a goose, with many chapters.", _LONG, None, ends=False
            )
        ) as generation:
            seen, last = 0, time.monotonic()
            while deltas := await generation.read():
                now = time.monotonic()
                if seen > 20:  # the prompt's own step is over
                    longest = max(longest, now - last)
                    joined.set()
                last = now
                seen += sum(len(delta.token_ids) for delta in deltas)
        if seen < _LONG:
            raise SystemExit(f"the stream to be disturbed ended after {seen} tokens")
        await joining
        return longest

    async def _join(self, joined: asyncio.Event, newcomer: Constraint | None) -> None:
        await joined.wait()
        if newcomer is not None:
            await self._count("Call a tool.", 16, newcomer)

    def calls(self, round_number: int) -> Constraint | None:
        """What an answer with 30 tools must be; the tools of a round are new."""
        names = [f"tool_{round_number}_{number}" for number in range(_TOOLS)]
        schemas = [json.dumps(_tool_schema(round_number, number)) for number in range(_TOOLS)]
        tools = tuple(
            [Tool(name=name, declaration="{}", parameters=schema) for name, schema in zip(names, schemas, strict=True)]
        )
        asked = Conversation(
            messages=(Message(role="user", content=(TextPart("Call a tool."),)),),
            tools=tools,
            tool_choice=ToolChoice("required"),
            arguments=tuple([JsonSchema(schema, spaced=True) for schema in schemas]),
        )
        return self._format.constraint(asked)


def _tool_schema(round_number: int, number: int) -> object:
    return {
        "type": "object",
        "properties": {
            f"query_{round_number}_{number}": {"type": "string"},
            "limit": {"type": "integer", "minimum": 1, "maximum": 50 + number},
            "kind": {"enum": ["one", "two", f"three_{number}"]},
            "options": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
        },
        "required": [f"query_{round_number}_{number}"],
    }


async def _run(parts: Parts, rounds: int, streams: list[int], tokens: int) -> None:
    bench = Bench(parts)
    await bench.engine.start()
    try:
        for number in streams:
            await _throughput(bench, number, tokens, rounds)
        await _delay(bench, rounds)
    finally:
        await bench.engine.close()


async def _throughput(bench: Bench, streams: int, tokens: int, rounds: int) -> None:
    free, held = [], []
    for number in range(-1, rounds):
        without = await bench.tokens_per_second(streams, tokens, None)
        constrained = await bench.tokens_per_second(streams, tokens, _PLACES)
        if number >= 0:  # the first round warms both up
            free.append(without)
            held.append(constrained)
    ratios = [one / other for one, other in zip(held, free, strict=True)]
    print(
        f"{streams:3} streams: free {statistics.median(free):6.1f}, held {statistics.median(held):6.1f} tokens/s,"
        f" ratio {statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f})"
    )


async def _delay(bench: Bench, rounds: int) -> None:
    alone, new, known = [], [], []
    for number in range(rounds):
        constraint = bench.calls(number)
        alone.append(await bench.longest_pause(None))
        new.append(await bench.longest_pause(constraint))
        known.append(await bench.longest_pause(constraint))
    for name, pauses in (("nobody", alone), (f"{_TOOLS} new tools", new), (f"{_TOOLS} known tools", known)):
        print(
            f"longest pause of a stream when {name:14} come in:"
            f" median {statistics.median(pauses) * 1e3:.0f} ms, worst {max(pauses) * 1e3:.0f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", nargs="?", default="openvino", choices=ENGINES)
    parser.add_argument("--vocabulary", type=Path, default=Path(), help="folder with Kimi's tiktoken.model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", default="8,32")
    parser.add_argument("--tokens", type=int, default=96)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parts = subject(options.engine, options.vocabulary.resolve(), Path(folder), uniform=True).parts()
        streams = [int(number) for number in filter(None, options.streams.split(","))]
        asyncio.run(_run(parts, options.rounds, streams, options.tokens))


if __name__ == "__main__":
    main()
