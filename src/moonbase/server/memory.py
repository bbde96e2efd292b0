"""Memory that nobody uses, given back to the system."""

import asyncio
import ctypes
import math
import os
import time
from pathlib import Path

_QUIET_S = 3.0
_LOOK_S = 1.0
_PAUSE_S = 10.0  # at least, between two trims: a server may be asked for its health every second
_GROWN = 1.25
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")


class SpareMemory:
    """Makes the C library give back what it keeps of a peak.

    glibc returns only what is freed at the end of its heap, so that a server stayed as large as its largest moment.
    It is told to return all once nobody has asked for a while, or the process has grown by a quarter. Elsewhere than
    on glibc nothing is done.
    """

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if _STATM.exists() else None
        self._answered = 0  # requests up to the last trim
        self._resident = _resident() if self._trim is not None else 0
        self._looked_at = self._asked_at = time.monotonic()
        self._trimmed_at = -math.inf

    async def look(self, *, asked: bool, answered: int) -> None:
        """To be called often: `asked` says whether a request is open, `answered` how many there were."""
        now = time.monotonic()
        if asked:
            self._asked_at = now
        if self._trim is None or now - self._looked_at < _LOOK_S or now - self._trimmed_at < _PAUSE_S:
            return
        self._looked_at = now
        quiet = answered != self._answered and now - self._asked_at >= _QUIET_S
        if quiet or _resident() > _GROWN * self._resident:
            self._answered = answered
            self._trimmed_at = now
            await asyncio.to_thread(self._trim, 0)  # some milliseconds
            self._resident = _resident()


def _resident() -> int:
    """Bytes."""
    return int(_STATM.read_text().split()[1]) * _PAGE
