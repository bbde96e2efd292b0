"""What was seen: a line per sample while it runs, and tables at the end."""

import statistics
import sys
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.soak.servers import Sample

_SHOWN = 20  # of what was wrong
_HEAD = "| minute | asked server, MB | open files | server behind, MB | open files | scenes | wrong |"


@dataclass
class Report:
    """`wrong` has whatever must not have been; a run is good without any."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)

    def sampled(self, minute: float, sample: Sample, mark: str = "") -> None:
        if not self.rows:
            self._row(_HEAD)
            self._row("|---" * _HEAD.count(" | ") + "|---|")
        scenes = self.outcomes.total()
        self._row(
            f"| {minute:.1f}{mark} | {sample.near_mb:.1f} | {sample.near_files} | {sample.far_mb:.1f} "
            f"| {sample.far_files} | {scenes:,} | {len(self.wrong)} |"
        )

    def fault(self, what: str) -> None:
        self.wrong.append(what)
        if len(self.wrong) <= _SHOWN:
            print(what, file=sys.stderr, flush=True)

    def compare(self, early: Sample, late: Sample, growth: float) -> None:
        """Resident memory may be `growth` times what it was, open files as many as there were."""
        for name, before, after in (
            ("asked server", early.near_mb, late.near_mb),
            ("server behind", early.far_mb, late.far_mb),
        ):
            print(f"{name}: resident memory {before:.1f} MB, then {after:.1f} MB: {after / before:.3f} times")
            if after > growth * before:
                self.fault(f"{name}: resident memory grew to {after / before:.3f} times")
        for name, files, then in (
            ("asked server", early.near_files, late.near_files),
            ("server behind", early.far_files, late.far_files),
        ):
            if then > files:
                self.fault(f"{name}: open files grew from {files} to {then}")

    def finish(self, seconds: list[float]) -> None:
        """Print the tables; `seconds` are those of the answers to clients that did everything right."""
        print("\n| scene | outcomes |\n|---|---|")
        for scene in dict.fromkeys(scene for scene, _ in sorted(self.outcomes)):
            found = [f"{what}: {count:,}" for (name, what), count in sorted(self.outcomes.items()) if name == scene]
            print(f"| {scene} | {', '.join(found)} |")
        if len(seconds) > 1:
            ranks = statistics.quantiles(seconds, n=100)
            print(
                f"\n{len(seconds):,} answers to well-behaved clients took {ranks[49] * 1000:.0f} ms (median), "
                f"{ranks[98] * 1000:.0f} ms (p99), {max(seconds) * 1000:.0f} ms (longest)"
            )
        print(f"\n{len(self.wrong)} wrong")

    def _row(self, row: str) -> None:
        self.rows.append(row)
        print(row, flush=True)
