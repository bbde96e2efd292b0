"""The figures as tables."""

import statistics
from collections import defaultdict

from benchmarks.document import made, spread
from benchmarks.relay.driver import Result


class Report:
    """Figures by gateway, of several rounds; a table has their medians and ranges."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._starts: dict[str, tuple[float, float]] = {}
        self._tokens: dict[str, list[float]] = defaultdict(list)
        self._requests: dict[str, list[float]] = defaultdict(list)
        self._rates: dict[str, list[float]] = defaultdict(list)
        self._first: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        self._late: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        self._held: dict[str, tuple[int, float]] = {}

    def start(self, name: str, seconds: float, memory_mb: float) -> None:
        """From the start to the first answer, and the memory then."""
        self._starts[name] = (seconds, memory_mb)

    def cpu(self, name: str, round_number: int, per_token: float, per_request: float, rate: float) -> None:
        """In µs; the round 0 warms up."""
        if round_number:
            self._tokens[name].append(per_token)
            self._requests[name].append(per_request)
            self._rates[name].append(rate)

    def latency(self, name: str, streams: int, direct: Result, through: Result) -> None:
        """Of one pair of runs, the direct one first."""
        for found, kind in ((self._first, "first"), (self._late, "late")):
            one, other = getattr(direct, kind), getattr(through, kind)
            if one and other:
                added = (_percentile(other, p) - _percentile(one, p) for p in (50, 99))
                found[name, streams].append((next(added), next(added)))

    def memory(self, name: str, held: tuple[int, float]) -> None:
        self._held[name] = held

    def __str__(self) -> str:
        return "\n".join([f"{made(self._rounds)}\n", *self._cost(), *self._latency(), *self._size()])

    def _cost(self) -> list[str]:
        lines = [
            "| gateway | µs per streamed token | µs per plain request | plain requests per second |",
            "|---|---|---|---|",
        ]
        for name in self._tokens:
            cells = (spread(self._tokens[name]), spread(self._requests[name]), spread(self._rates[name], 0))
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return [*lines, ""]

    def _latency(self) -> list[str]:
        if not self._first:
            return []
        lines = [
            "| gateway | streams | first event later by, ms: p50 | p99 | each event later by, ms: p50 | p99 |",
            "|---|---|---|---|---|---|",
        ]
        for (name, streams), first in self._first.items():
            late = self._late.get((name, streams), [])
            cells = [_ms(pairs, place) for pairs in (first, late) for place in (0, 1)]
            lines.append(f"| {name} | {streams} | {' | '.join(cells)} |")
        return [*lines, ""]

    def _size(self) -> list[str]:
        lines = [
            "| gateway | from start to first answer, s | memory then, MB | streams held | memory with them, MB |",
            "|---|---|---|---|---|",
        ]
        for name, (seconds, memory) in self._starts.items():
            streams, held = self._held.get(name, (0, 0.0))
            cells = f"{seconds:.1f} | {memory:.0f} | {streams:,} | {f'{held:.0f}' if streams else ''}"
            lines.append(f"| {name} | {cells} |")
        return [*lines, ""]


def _percentile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _ms(pairs: list[tuple[float, float]], place: int) -> str:
    return f"{statistics.median([pair[place] for pair in pairs]) * 1000:.2f}" if pairs else ""
