"""What was found: one result a check, and the figures behind those that count."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, Literal

from msgspec import Struct

_ONE_VALUE = re.compile(r"invalid (temperature|n): only (\d+(?:\.\d+)?) is allowed for this model")

Status = Literal["passed", "warned", "failed", "skipped"]


class Result(Struct, frozen=True):
    """`expected` is the rule; `seen` what broke it, or why it could not be looked at."""

    name: str
    status: Status
    expected: str
    seen: tuple[str, ...] = ()


class Report(Struct, frozen=True, kw_only=True):
    """`figures` are the counts of the sections that ran, by section. An interrupted run found only this much."""

    url: str
    model: str
    requests: int
    seconds: float
    results: tuple[Result, ...]
    figures: dict[str, Any]
    interrupted: bool = False

    @property
    def passed(self) -> bool:
        return not self.interrupted and not any(result.status == "failed" for result in self.results)

    @property
    def fixed_values(self) -> dict[str, str]:
        """The values of `temperature` and `n` that a model takes, where it refused another; empty where it did not.

        A model with one temperature gives one answer, but refuses the temperature first.
        """
        refusals = [_ONE_VALUE.findall(seen) for result in self.results for seen in result.seen]
        found = dict([pair for pairs in refusals for pair in pairs])
        return found | {"n": "1"} if found else {}

    def count(self, status: Status) -> int:
        return sum([result.status == status for result in self.results])


class Selection(Struct, frozen=True):
    """Which checks run: those that match one of `only`, all when it is empty, and none of `skip`."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def wants(self, name: str) -> bool:
        chosen = not self.only or any(fnmatchcase(name, pattern) for pattern in self.only)
        return chosen and not any(fnmatchcase(name, pattern) for pattern in self.skip)

    def unmatched(self, names: Iterable[str]) -> list[str]:
        """The patterns that match none of `names`."""
        names = tuple(names)
        return [
            pattern for pattern in (*self.only, *self.skip) if not any(fnmatchcase(name, pattern) for name in names)
        ]

    def wants_any(self, names: Iterable[str]) -> bool:
        return any(self.wants(name) for name in names)


class Findings:
    """What one check finds while it looks."""

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._warnings: list[str] = []
        self._skipped: str | None = None

    def fail(self, seen: str) -> None:
        self._problems.append(seen)

    def warn(self, seen: str) -> None:
        self._warnings.append(seen)

    def skip(self, reason: str) -> None:
        """There was nothing to look at."""
        self._skipped = reason

    def result(self, name: str, expected: str) -> Result:
        if self._problems:
            return Result(name, "failed", expected, tuple(dict.fromkeys(self._problems)))
        if self._warnings:
            return Result(name, "warned", expected, tuple(dict.fromkeys(self._warnings)))
        if self._skipped is not None:
            return Result(name, "skipped", expected, (self._skipped,))
        return Result(name, "passed", expected)
