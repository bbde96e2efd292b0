"""Who calls: secrets to callers, remembered for two seconds."""

import asyncio
import logging
from collections.abc import Callable
from hashlib import sha256
from typing import TypeVar

from msgspec import Struct, field

from moonbase.errors import DatabaseUnavailable, InvalidAuthentication
from moonbase.store.database import Database
from moonbase.store.keys import find_callers
from moonbase.store.records import Caller

log = logging.getLogger(__name__)

KEY_TTL_MS = 2_000  # how long a key that another process revoked may still work here
_REFRESH_S = 1.0

V = TypeVar("V")


class _Known(Struct):
    """A key that was valid at `checked_at`; `used` since the last refresh."""

    caller: Caller
    checked_at: int
    used: bool = True


class _Group(Struct):
    """Digests that one query asks for; `callers` is its answer."""

    digests: set[bytes] = field(default_factory=set)
    callers: dict[bytes, Caller] | None = None
    error: DatabaseUnavailable | None = None


class Authenticator:
    """Finds the caller of a secret.

    An async context manager that owns a task: each second it asks the database once about all keys
    used since, so that a key in use never waits for the database and a revoked one is refused
    within `KEY_TTL_MS`, in this process (`forget`) at once. While the database is away, where nobody
    can revoke a key either, those that were valid stay so for a while. What is remembered is bounded, wrong
    guesses apart from keys, so that guessing neither fills the memory nor pushes out keys; what is too old to count
    is forgotten.
    """

    def __init__(
        self, database: Database, *, clock: Callable[[], int], grace: float = 60.0, remembered: int = 16_384
    ) -> None:
        """`clock` gives milliseconds. `grace` is the seconds that keys stay valid while the database is away.

        `remembered` bounds the keys, and as many guesses, in memory.
        """
        self._database = database
        self._clock = clock
        self._grace_ms = round(grace * 1000)
        self._away = False
        self._remembered = remembered
        self._known: dict[bytes, _Known] = {}
        self._guesses: dict[bytes, int] = {}
        self._group = _Group()
        self._asking = asyncio.Lock()
        self._revocations = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Authenticator":
        self._task = asyncio.create_task(self._run(), name="key refresher")
        return self

    @property
    def in_memory(self) -> int:
        """Keys and wrong guesses."""
        return len(self._known) + len(self._guesses)

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    async def find(self, secret: str) -> Caller:
        """The caller; for a key in use without suspending.

        Raises `InvalidAuthentication` for an unknown, revoked or expired key, `DatabaseUnavailable` when nobody can
        say.
        """
        # Whatever its shape: an answer that came sooner would tell what a secret looks like.
        caller = await self._find(sha256(secret.encode(errors="replace")).digest())
        if caller.expires_at is not None and caller.expires_at <= self._clock():
            raise InvalidAuthentication
        return caller

    async def _find(self, digest: bytes) -> Caller:
        known = self._known.get(digest)
        if known is not None and self._is_recent(known.checked_at, self._grace_ms if self._away else KEY_TTL_MS):
            known.used = True
            return known.caller
        guessed_at = self._guesses.get(digest)
        if guessed_at is not None and self._is_recent(guessed_at):
            raise InvalidAuthentication
        try:
            return await self._look_up(digest)
        except DatabaseUnavailable:
            known = self._known.get(digest)
            if known is None or not self._is_recent(known.checked_at, self._grace_ms):
                raise
            return known.caller

    def forget(self, key_id: str) -> None:
        """Ask the database again before this key is let in."""
        self._revocations += 1
        self._known = {digest: known for digest, known in self._known.items() if known.caller.key_id != key_id}

    async def refresh(self) -> None:
        """Check the keys used since the last refresh. Raises `DatabaseUnavailable`, and then they age on."""
        used = {digest for digest, known in self._known.items() if known.used}
        if not used:
            return
        asked_at = self._clock()
        callers = await self._ask(used)
        for digest in used:
            known = self._known.get(digest)
            if known is None:
                continue
            if digest in callers:
                known.caller, known.checked_at, known.used = callers[digest], asked_at, False
            else:
                del self._known[digest]

    def tidy(self) -> None:
        """Forget what is too old to count, wherever the database is."""
        known, guesses = self._known.items(), self._guesses.items()
        self._known = {digest: key for digest, key in known if self._is_recent(key.checked_at, self._grace_ms)}
        self._guesses = {digest: at for digest, at in guesses if self._is_recent(at)}

    async def _run(self) -> None:
        tidied = self._clock()
        while True:
            await asyncio.sleep(_REFRESH_S)
            if not self._is_recent(tidied, self._grace_ms):
                self.tidy()
                tidied = self._clock()
            try:
                await self.refresh()
            except DatabaseUnavailable:
                continue  # keys that grow too old meanwhile are looked up on use, which tells the caller
            except Exception:  # a bug; without the task every use of a key would ask the database
                log.exception("keys cannot be read")

    def _is_recent(self, then: int, lifetime: int = KEY_TTL_MS) -> bool:
        return 0 <= self._clock() - then < lifetime  # 0: a clock set back makes everything old

    async def _look_up(self, digest: bytes) -> Caller:
        """Ask the database, once for all that come while it is being asked."""
        group = self._group
        group.digests.add(digest)
        async with self._asking:
            if group.error is not None:
                raise group.error
            if group.callers is None:  # the first of its group
                if self._group is group:
                    self._group = _Group()
                asked_at, revocations = self._clock(), self._revocations
                try:
                    group.callers = await self._ask(group.digests)
                except DatabaseUnavailable as error:
                    group.error = error  # for all who wait: asking again for each would take as long each time
                    raise
                self._remember(group, asked_at, fresh=revocations == self._revocations)
        caller = group.callers.get(digest)
        if caller is None:
            raise InvalidAuthentication
        return caller

    async def _ask(self, digests: set[bytes]) -> dict[bytes, Caller]:
        try:
            async with self._database.read() as connection:
                found = await find_callers(connection, [digest.hex() for digest in digests])
        except DatabaseUnavailable:
            self._away = True
            raise
        self._away = False
        return {bytes.fromhex(secret_hash): caller for secret_hash, caller in found.items()}

    def _remember(self, group: _Group, asked_at: int, *, fresh: bool) -> None:
        assert group.callers is not None
        for digest in group.digests:
            caller = group.callers.get(digest)
            if caller is None:
                _put(self._guesses, digest, asked_at, self._remembered)
            elif fresh:
                _put(self._known, digest, _Known(caller, asked_at), self._remembered)


def _put(entries: dict[bytes, V], digest: bytes, value: V, limit: int) -> None:
    """The oldest entry gives way when there are too many."""
    entries.pop(digest, None)
    if len(entries) >= limit:
        del entries[next(iter(entries))]
    entries[digest] = value
