"""Ids as the service makes them (moonshot-api.md 2 and 9.2)."""

import secrets
import time

_GREGORIAN = 0x01B21DD213814000  # the unix epoch in UUIDs' hundreds of nanoseconds


class Ids:
    """Makes ids for one process."""

    def __init__(self) -> None:
        self._process = secrets.token_hex(5)
        self._counter = secrets.randbelow(1 << 24)
        # Not the machine's address, which would tell clients about the machine; the multicast bit says so (RFC 9562).
        node = secrets.randbits(48) | (1 << 40)
        self._process_uuid = f"{secrets.randbits(14) | 0x8000:04x}-{node:012x}"
        self._latest = 0  # timestamp of a UUID

    def completion(self, arrived_at: int) -> str:
        """`chatcmpl-` and an ObjectId: unix seconds of arrival, a constant of this process, a rising counter."""
        self._counter = (self._counter + 1) & 0xFFFFFF
        return f"chatcmpl-{arrived_at:08x}{self._process}{self._counter:06x}"

    def request(self) -> str:
        """A UUID of version 1: its timestamp is the arrival. Python's own asks the system for each."""
        self._latest = at = max(time.time_ns() // 100 + _GREGORIAN, self._latest + 1)
        return f"{at & 0xFFFFFFFF:08x}-{at >> 32 & 0xFFFF:04x}-1{at >> 48 & 0xFFF:03x}-{self._process_uuid}"

    def trace(self) -> str:
        """32 hexadecimal digits."""
        return secrets.token_hex(16)
