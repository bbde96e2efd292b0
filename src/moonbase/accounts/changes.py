"""How administrators change things: one after the other, each with its row in the audit log."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from moonbase.accounts.requests import LimitChanges
from moonbase.store.audit import add_audit
from moonbase.store.database import Database
from moonbase.store.records import Limits

S = TypeVar("S", bound=Struct)


def milliseconds() -> int:
    """Now, in milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000


class Change:
    """One transaction of an administrator, which began at `now` (milliseconds)."""

    def __init__(self, connection: AsyncConnection, actor: str, now: int) -> None:
        self.connection = connection
        self.now = now
        self._actor = actor

    async def audit(self, action: str, target: str, detail: object) -> None:
        """Write down what is being done, with `detail`: no secret is ever in it."""
        encoded = msgspec.json.encode(detail)
        await add_audit(self.connection, at=self.now, actor=self._actor, action=action, target=target, detail=encoded)


class Changes:
    """Begins transactions that no other administrator's overlaps, in whatever process: what one has read stays so."""

    def __init__(self, database: Database, actor: str, clock: Callable[[], int] = milliseconds) -> None:
        """`actor` is who will have done it: `cli:NAME`, an admin key's id, or `moonbase` for the program itself."""
        self.database = database
        self._actor = actor
        self._clock = clock

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Change]:
        """Committed on leaving without an exception. Raises `DatabaseUnavailable`."""
        async with self.database.exclusive() as connection:
            yield Change(connection, self._actor, self._clock())


def differences(before: S, after: S) -> dict[str, list[object]]:
    """What differs, by field: how it was and how it is."""
    names = before.__struct_fields__
    pairs = {name: [getattr(before, name), getattr(after, name)] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def changed_limits(limits: Limits, changes: LimitChanges) -> Limits:
    return msgspec.structs.replace(limits, **given(changes))


def given(request: Struct) -> dict[str, object]:
    """The fields of a request that are not absent."""
    return {name: value for name, value in msgspec.structs.asdict(request).items() if value is not msgspec.UNSET}
