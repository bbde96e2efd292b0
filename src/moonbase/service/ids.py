"""Ids as the service makes them (moonshot-api.md 2 and 9.2)."""

import secrets
import uuid


class Ids:
    """Makes ids for one process."""

    def __init__(self) -> None:
        self._process = secrets.token_hex(5)
        self._counter = secrets.randbelow(1 << 24)
        # Not the machine's address, which would tell clients about the machine; the multicast bit says so (RFC 9562).
        self._node = secrets.randbits(48) | (1 << 40)

    def completion(self, arrived_at: int) -> str:
        """`chatcmpl-` and an ObjectId: unix seconds of arrival, a constant of this process, a rising counter."""
        self._counter = (self._counter + 1) & 0xFFFFFF
        return f"chatcmpl-{arrived_at:08x}{self._process}{self._counter:06x}"

    def request(self) -> str:
        """A UUID of version 1: its timestamp is the arrival."""
        return str(uuid.uuid1(self._node))

    def trace(self) -> str:
        """32 hexadecimal digits."""
        return secrets.token_hex(16)
