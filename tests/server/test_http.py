"""What a connection of a client does with its transport where no real socket can be made to show it."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from moonbase.config import ServerSettings
from moonbase.engines.upstream.outbox import Outbox
from moonbase.server.http import HttpConnection

pytestmark = pytest.mark.anyio


class Unread(asyncio.Transport):
    """Of what it was given, its client takes nothing; too little for a pause."""

    closing = aborted = False

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 0 if self.aborted else 100


async def test_what_is_never_read_does_not_hold_a_connection_that_is_to_be_closed() -> None:
    config: Any = SimpleNamespace(loaded_app=None, timeout_keep_alive=75)
    state: Any = SimpleNamespace(connections=set(), tasks=set(), default_headers=[], total_requests=0)
    connection, transport = HttpConnection(ServerSettings(write_timeout=0.05), Outbox(), config, state, {}), Unread()
    connection.connection_made(transport)
    connection.close()
    assert (transport.closing, transport.aborted) == (True, False)
    await asyncio.sleep(0.2)
    assert transport.aborted
    connection.connection_lost(None)
