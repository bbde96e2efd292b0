"""Requests that were under way when their engine ended, and which of them is to blame for it."""

import time
from collections.abc import Callable, Collection
from hashlib import blake2b

import msgspec
from msgspec import Struct

from moonbase.engines.base import GenerateRequest

_MEMORY = 600.0  # seconds from the last death on


class Death(Struct, frozen=True, tag=True):
    """What one gateway had under way in an engine when its life of this number ended, as fingerprints."""

    life: int
    requests: list[bytes]


class Acquittal(Struct, frozen=True, tag=True):
    """A request that was under suspicion came to its end, so it is harmless."""

    request: bytes


Testimony = Death | Acquittal


class _Record(Struct):
    lives: set[int]
    at: float
    fatal: bool = False


class Suspects:
    """Remembers for ten minutes what was under way in an engine that died.

    Copies of a request are one, and count once in a death. A request is to blame if it was under way in at least two
    deaths, and in more than any other. Engines run suspects one at a time, so that one can stand out.

    Of an engine that several gateways share each sees a part of what was under way: what `tell` is given in one has
    to reach `hear` in all others.
    """

    def __init__(self, tell: Callable[[Testimony], None] = lambda _: None) -> None:
        self._tell = tell
        self._fallen: set[bytes] = set()
        self._records: dict[bytes, _Record] = {}

    def fell(self, request: GenerateRequest) -> None:
        """It broke off; whether the engine died of it shows later, in `settle`."""
        self._fallen.add(_fingerprint(request))

    def settle(self, *, died: int | None) -> None:
        """The life of the engine that ended with what has fallen so far, or None: it is still the same."""
        fallen, self._fallen = self._fallen, set()
        if died is not None and fallen:
            self._count(died, fallen)
            self._tell(Death(died, sorted(fallen)))

    def finished(self, request: GenerateRequest) -> None:
        """It came to its end, so it is harmless."""
        if self._records and self._records.pop(fingerprint := _fingerprint(request), None) is not None:
            self._tell(Acquittal(fingerprint))

    def hear(self, testimony: Testimony) -> None:
        """What another gateway has seen."""
        match testimony:
            case Death(life, requests):
                self._count(life, requests)
            case Acquittal(request):
                self._records.pop(request, None)

    def deaths(self, request: GenerateRequest) -> int:
        """In how many deaths it was lately."""
        record = self._record(request)
        return 0 if record is None else len(record.lives)

    def fatal(self, request: GenerateRequest) -> bool:
        """Whether the engine would die of it."""
        record = self._record(request)
        return record is not None and record.fatal

    def _count(self, life: int, fallen: Collection[bytes]) -> None:
        now = time.monotonic()
        self._forget(now)
        for key in fallen:
            record = self._records.setdefault(key, _Record(set(), now))
            record.lives.add(life)
            record.at = now
        there = [record for record in self._records.values() if life in record.lives]
        most = max(len(record.lives) for record in there)
        single = most > 1 and [len(record.lives) for record in there].count(most) == 1
        for record in there:
            record.fatal = single and len(record.lives) == most

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
