"""Administrators: the keys that open the admin API, and nothing else."""

from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest

from msgspec import structs

from moonbase.accounts import fields, ids
from moonbase.accounts.changes import Changes
from moonbase.accounts.requests import NewAdminKey
from moonbase.errors import Conflict, InvalidAuthentication, NotFound
from moonbase.store import admin_keys as store
from moonbase.store.database import Database
from moonbase.store.records import AdminKey

_TTL_MS = 1_000  # how long a key that another process revoked may still work here


class Admins:
    """Methods raise `DatabaseUnavailable`."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    async def create(self, request: NewAdminKey) -> tuple[AdminKey, str]:
        """Make a key and return it with its secret, which is stored as a hash only.

        Raises `Conflict` for the name of a valid key, and `InvalidField`.
        """
        name = fields.name(request.name)
        secret = ids.admin_secret()
        async with self._changes.begin() as change:
            known = await store.list_admin_keys(change.connection)
            if any(key.name == name and key.revoked_at is None for key in known):
                raise Conflict(f"`name` is taken: there is an admin key {name!r}")
            key = AdminKey(id=ids.admin_key_id(), name=name, hint=secret[-4:], created_at=change.now)
            await store.add_admin_key(change.connection, key, ids.secret_hash(secret))
            await change.audit("admin_key.create", key.id, request)
        return key, secret

    async def list(self) -> list[AdminKey]:
        """The oldest first, the revoked ones too."""
        async with self._changes.database.read() as connection:
            return await store.list_admin_keys(connection)

    async def revoke(self, key_id: str) -> AdminKey:
        """Revoke a key for good; again changes nothing. Raises `NotFound`."""
        async with self._changes.begin() as change:
            key = next((key for key in await store.list_admin_keys(change.connection) if key.id == key_id), None)
            if key is None:
                raise NotFound("admin key", key_id)
            if key.revoked_at is None:
                key = structs.replace(key, revoked_at=change.now)
                await store.revoke_admin_key(change.connection, key_id, change.now)
                await change.audit("admin_key.revoke", key_id, {"name": key.name})
        return key


class AdminAuthenticator:
    """Finds the administrator of a secret. The few keys there are, are read at most once a second."""

    def __init__(self, database: Database, clock: Callable[[], int]) -> None:
        """`clock` gives milliseconds."""
        self._database = database
        self._clock = clock
        self._valid: dict[str, str] = {}
        self._read_at: int | None = None

    async def enabled(self) -> bool:
        """Whether there is any administrator. Raises `DatabaseUnavailable`."""
        return bool(await self._keys())

    async def find(self, secret: str) -> str:
        """The id of the admin key. Raises `InvalidAuthentication`, and `DatabaseUnavailable`."""
        digest = sha256(secret.encode(errors="replace")).hexdigest()
        found = [key_id for known, key_id in (await self._keys()).items() if compare_digest(known, digest)]
        if not found:
            raise InvalidAuthentication
        return found[0]

    async def _keys(self) -> dict[str, str]:
        now = self._clock()
        if self._read_at is None or not 0 <= now - self._read_at < _TTL_MS:
            async with self._database.read() as connection:
                self._valid = await store.valid_admin_keys(connection)
            self._read_at = now
        return self._valid
