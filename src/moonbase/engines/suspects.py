"""Requests that were under way when their engine ended, and which of them is to blame for it."""

import time
from hashlib import blake2b

import msgspec
from msgspec import Struct

from moonbase.engines.base import GenerateRequest

_MEMORY = 600.0  # seconds from the last death on


class _Record(Struct, frozen=True):
    deaths: int
    at: float
    fatal: bool


class Suspects:
    """Remembers for ten minutes what was under way in an engine that died.

    Copies of a request are one, and count once in a death. A request is to blame if it was under way in at least two
    deaths, and in more than any other. Engines run suspects one at a time, so that one can stand out.
    """

    def __init__(self) -> None:
        self._fallen: set[bytes] = set()
        self._records: dict[bytes, _Record] = {}

    def fell(self, request: GenerateRequest) -> None:
        """It broke off; whether the engine died of it shows later, in `settle`."""
        self._fallen.add(_fingerprint(request))

    def settle(self, *, died: bool) -> None:
        """Whether the engine died of what has fallen so far, or is still the same."""
        fallen, self._fallen = self._fallen, set()
        if not died or not fallen:
            return
        now = time.monotonic()
        self._forget(now)
        deaths = {key: self._records[key].deaths + 1 if key in self._records else 1 for key in fallen}
        most = max(deaths.values())
        single = most > 1 and list(deaths.values()).count(most) == 1
        for key, count in deaths.items():
            self._records[key] = _Record(count, now, fatal=single and count == most)

    def finished(self, request: GenerateRequest) -> None:
        """It came to its end, so it is harmless."""
        if self._records:
            self._records.pop(_fingerprint(request), None)

    def deaths(self, request: GenerateRequest) -> int:
        """In how many deaths it was lately."""
        record = self._record(request)
        return 0 if record is None else record.deaths

    def fatal(self, request: GenerateRequest) -> bool:
        """Whether the engine would die of it."""
        record = self._record(request)
        return record is not None and record.fatal

    def _record(self, request: GenerateRequest) -> _Record | None:
        if not self._records:
            return None
        self._forget(time.monotonic())
        return self._records.get(_fingerprint(request))

    def _forget(self, now: float) -> None:
        self._records = {key: record for key, record in self._records.items() if now - record.at < _MEMORY}


def _fingerprint(request: GenerateRequest) -> bytes:
    """What makes two requests of an organization the same to an engine."""
    digest = blake2b(request.prompt_ids.tobytes(), digest_size=16)
    digest.update(msgspec.msgpack.encode((request.sampling, request.constraint, request.cache_scope)))
    return digest.digest()
