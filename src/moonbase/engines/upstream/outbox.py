"""Writes of many connections, made together."""

import asyncio
from typing import Protocol


class Full(Protocol):
    """A connection with something to send."""

    def flush(self) -> None:
        """Send it. Nothing may be left to send: the connection may have been closed."""
        ...


class Outbox:
    """Has what was written in one turn of the event loop sent at its end.

    Waking a process that waits for a piece costs more than sending it. One that is awake for the first takes the others
    along, and of what one connection was written in a turn the system is told once.
    """

    __slots__ = ("_full",)

    def __init__(self) -> None:
        self._full: list[Full] = []

    def add(self, connection: Full) -> None:
        """It has something to send, and had nothing before."""
        if not self._full:
            asyncio.get_running_loop().call_soon(self._send)
        self._full.append(connection)

    def _send(self) -> None:
        full, self._full = self._full, []
        for connection in full:
            connection.flush()
