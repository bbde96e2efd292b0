"""What does reading a model's output cost, from token ids to events?

`python -m benchmarks.parser --vocabulary tiktoken.model [--tokens 20000] [--runs 7]`

CPU per token of decoding and parsing, for reasoning, text and arguments, in deltas of one token and of eight, with
the markers that the format looks for. The least of all runs counts: the rest is what else the machine did.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from moonbase.chat.prompt import Control, Segment
from moonbase.engines.tokenizers.kimi import KimiTokenizer
from moonbase.formats.base import Parser
from moonbase.formats.hermes.format import Hermes
from moonbase.formats.hermes.parser import HermesParser
from moonbase.formats.kimi_k2.parser import MISSPELT, KimiK2Parser
from moonbase.formats.kimi_k2.prompt import CALLS, THINK
from moonbase.formats.output import OutputDecoder

_PROSE = "The moon is our nearest neighbour in space; it keeps one face to us. 月亮是离我们最近的邻居。 🌕 "
_JSON = '{"city": "Beijing", "unit": "c", "days": [1, 2, 3], "note": "say \\"hello\\", 世界", "deep": {"a": null}}, '
_HTML = '<div class="moon"><a href="https://example.com/?a=1&b=2">phase &lt; 5</a></div>\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path, required=True, help="the Kimi tiktoken.model")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    bench = _Bench(KimiTokenizer(options.vocabulary), options.tokens, options.runs)
    call = [Control(CALLS[2]), "functions.f:0", Control(CALLS[3]), "["]
    print(f"µs per token of {options.tokens:,}: in deltas of one, of eight")
    bench.run("kimi_k2 reasoning", _kimi, [], _PROSE)
    bench.run("kimi_k2 text", _kimi, [Control(THINK[1])], _PROSE)
    bench.run("kimi_k2 text, HTML", _kimi, [Control(THINK[1])], _HTML)
    bench.run("kimi_k2 arguments", _kimi, call, _JSON)
    begun: list[Segment] = [Control("<tool_call>"), '\n{"name": "f", "arguments": [']
    bench.run("hermes reasoning", _hermes, [Control("<think>")], _PROSE)
    bench.run("hermes text", _hermes, [], _PROSE)
    bench.run("hermes text, HTML", _hermes, [], _HTML)
    bench.run("hermes arguments", _hermes, begun, _JSON)


class _Made(NamedTuple):
    """A parser, and the markers that are found in text in this vocabulary."""

    parser: Parser
    text_markers: tuple[str, ...]


def _kimi() -> _Made:
    return _Made(KimiK2Parser(0, 0, reasoning=True, calls=True), MISSPELT)


def _hermes() -> _Made:
    return _Made(HermesParser(0, 0, calls=True, tokens=frozenset()), Hermes(thinks=True).markers)


class _Bench:
    def __init__(self, tokenizer: KimiTokenizer, tokens: int, runs: int) -> None:
        self._tokenizer = tokenizer
        self._ids = {tokenizer.control(literal): literal for literal in CALLS + THINK}
        self._tokens = tokens
        self._runs = runs

    def run(self, title: str, make: Callable[[], _Made], begun: list[Segment], text: str) -> None:
        once = self._tokenizer.encode_plain(text).tolist()
        ids = (once * (self._tokens // len(once) + 1))[: self._tokens]
        found = [self._microseconds(make, begun, ids, size) for size in (1, 8)]
        print(f"{title:20} {found[0]:.2f} {found[1]:.2f}")

    def _microseconds(self, make: Callable[[], _Made], begun: list[Segment], ids: list[int], size: int) -> float:
        deltas = [ids[at : at + size] for at in range(0, len(ids), size)]
        least = float("inf")
        for _ in range(self._runs):
            parser, text_markers = make()
            decoder = OutputDecoder(self._tokenizer.decode, self._ids, text_markers)
            parser.feed(begun)
            began = time.process_time()
            for delta in deltas:
                parser.feed(decoder.feed(delta))
            least = min(least, time.process_time() - began)
        return least / len(ids) * 1e6


if __name__ == "__main__":
    main()
