"""What benchmarks say in docs/benchmarks.md, and how they say it."""

import datetime
import os
import platform
import statistics
import subprocess
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_DOCUMENT = _ROOT / "docs" / "benchmarks.md"


def write(name: str, text: str) -> None:
    """Put `text` between the marks of that name; ends the program where the document has none."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, found, rest = _DOCUMENT.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{_DOCUMENT} has no place for this: {begin.strip()} and {end.strip()}")
    _DOCUMENT.write_text(f"{before}{begin}{text}{end}{after}", encoding="utf-8")


def made(rounds: int) -> str:
    """When, from what, in how many rounds, and what the figures in brackets are."""
    today = datetime.datetime.now(datetime.UTC).date()
    return (
        f"{today}, commit {_commit()}, Python {platform.python_version()}, "
        f"{rounds} rounds; medians, and ranges in brackets."
    )


def machine() -> str:
    """Its processor and how many of those we may use."""
    found = Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0]
    return f"{found or platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def spread(values: list[float], digits: int = 1) -> str:
    """Median and range; empty without values."""
    if not values:
        return ""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def _commit() -> str:
    command = ["git", "-C", str(_ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
