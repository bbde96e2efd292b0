"""The figures as tables."""

import statistics
from collections.abc import Callable

from benchmarks.document import machine, made, spread
from benchmarks.embedded.contenders import LLAMA_SERVER, MOONBASE, Contender
from benchmarks.embedded.workloads import AGENTS, STORY_TOKENS, TURN_TOKENS, TURNS, History, Run

MUST = {1: 1.1, 8: 2.2, 32: 3.0}
STRETCH = {1: 1.3, 8: 2.5, 32: 4.0}
"""How many times the tokens of llama-server, by streams."""
_HISTORIES: tuple[History, ...] = ("kept", "fresh")


def report(contenders: list[Contender], runs: list[Run], rounds: int, model: str) -> str:
    """All tables that there are figures for, as Markdown, with what they were measured with."""
    counted = [run for run in runs if run.round]
    names = [each.name for each in contenders]
    lines = [f"{model}; {machine()}; {made(rounds)}", "", *_servers(contenders)]
    if stories := [run for run in counted if run.history is None]:
        lines += ["", *_streams(names, stories)]
    if agents := [run for run in counted if run.history is not None]:
        lines += ["", *_agents(names, agents)]
    return "\n".join(lines) + "\n"


def _servers(contenders: list[Contender]) -> list[str]:
    rows = [f"| {each.name} | {each.version} | `{each.command}` |" for each in contenders]
    return ["| server | version | command |", "|---|---|---|", *rows]


def _streams(names: list[str], runs: list[Run]) -> list[str]:
    others = [name for name in names if name != MOONBASE]
    head = ["streams", *[f"{name}, tokens/s" for name in names]]
    compared = MOONBASE in names
    if compared:
        head += [f"times {name}" for name in others]
    if compared and LLAMA_SERVER in others:
        head += [f"times {LLAMA_SERVER}: must, stretch"]
    lines = [f"Stories of {STORY_TOKENS} tokens:", "", *_head(head)]
    for streams in sorted({run.streams for run in runs}):
        found = {name: _by_round(runs, name, streams) for name in names}
        cells = [str(streams), *[spread(list(each.values()), 0) for each in found.values()]]
        if compared:
            for name in others:
                times = _ratios(found[MOONBASE], found[name])
                least = MUST.get(streams, 0.0) if name == LLAMA_SERVER else 0.0
                missed = bool(times) and statistics.median(times) < least
                cells.append(f"**{spread(times, 2)}, missed**" if missed else spread(times, 2))
        if compared and LLAMA_SERVER in others:
            cells.append(f"{MUST[streams]}, {STRETCH[streams]}" if streams in MUST else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _by_round(runs: list[Run], name: str, streams: int) -> dict[int, float]:
    """Tokens per second."""
    return {run.round: run.tokens / run.seconds for run in runs if (run.server, run.streams) == (name, streams)}


def _ratios(ours: dict[int, float], others: dict[int, float]) -> list[float]:
    return [ours[number] / others[number] for number in ours if number in others]


def _agents(names: list[str], runs: list[Run]) -> list[str]:
    lines = [
        f"{AGENTS} agents at once, {TURNS} turns each, {TURN_TOKENS} tokens a turn, with the history as it was (kept), "
        "or a first line in every turn that is new, so that no beginning is known (fresh):",
        "",
        *_head(
            [
                *("server", "history", "prompt tokens a turn", "of these known", "CPU s a turn"),
                *("seconds a turn, as the agent sees it", "CPU, kept by fresh"),
            ]
        ),
    ]
    for name in names:
        found = {kind: [run for run in runs if (run.server, run.history) == (name, kind)] for kind in _HISTORIES}
        cpu = {kind: {run.round: run.cpu / run.answers for run in found[kind]} for kind in _HISTORIES}
        saved = spread(_ratios(cpu["kept"], cpu["fresh"]), 2)
        for kind, each in found.items():
            cells = [
                *(name, kind, _mean(each, lambda run: run.prompt / run.answers, 0)),
                _mean(each, lambda run: 100 * run.cached / run.prompt, 0) + " %",
                spread(list(cpu[kind].values()), 2),
                spread([run.latency for run in each], 2),
                saved if kind == "kept" else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean(runs: list[Run], of: Callable[[Run], float], digits: int) -> str:
    return f"{statistics.fmean(map(of, runs)):,.{digits}f}" if runs else ""


def _head(names: list[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
