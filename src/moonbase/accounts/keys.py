"""Keys and what they belong to: making, listing and revoking them. The hot path is in `authentication`."""

import time
from collections.abc import Callable

from sqlalchemy.ext.asyncio import AsyncConnection

from moonbase.accounts import ids
from moonbase.config import Currency
from moonbase.errors import UnknownKey
from moonbase.store import keys as store
from moonbase.store.database import Database
from moonbase.store.records import Key, Organization, Project

_DEFAULT = "default"


def milliseconds() -> int:
    """Now, in milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000


class Keys:
    """The keys of a database. Methods raise `DatabaseUnavailable`."""

    def __init__(
        self,
        database: Database,
        *,
        currency: Currency,
        clock: Callable[[], int] = milliseconds,
        on_revoked: Callable[[str], None] | None = None,
    ) -> None:
        """`currency` is that of the default organization, should this be the first use of the database.

        `on_revoked` is called with the id of a key when its revocation is in the database.
        """
        self._database = database
        self._currency = currency
        self._clock = clock
        self._on_revoked = on_revoked

    async def first_start(self) -> str | None:
        """Make the default organization (post-paid, no limits), project and key where there are none.

        Returns the key's secret, which exists nowhere else; None at every later call, in whatever process.
        Raises `ConfigurationError` when the database refuses.
        """
        with self._database.at_start():
            async with self._database.exclusive() as connection:
                if await _default_project(connection) is not None:
                    return None
                project_id = await self._create_default_project(connection)
                _, secret = await self._create(connection, project_id, _DEFAULT)
                return secret

    async def create(self, name: str) -> tuple[Key, str]:
        """Make a key in the default project and return it with its secret.

        The secret is stored as a hash only: this is the one moment it can be seen.
        """
        async with self._database.exclusive() as connection:
            project_id = await _default_project(connection) or await self._create_default_project(connection)
            return await self._create(connection, project_id, name)

    async def list(self) -> list[Key]:
        """All keys, the oldest first, the revoked ones too."""
        async with self._database.read() as connection:
            return await store.list_keys(connection)

    async def revoke(self, key_id: str) -> None:
        """Revoke a key for good; again changes nothing. Other processes notice within `authentication.KEY_TTL_MS`.

        Raises `UnknownKey`.
        """
        async with self._database.write() as connection:
            if not await store.revoke_key(connection, key_id, self._clock()):
                raise UnknownKey(key_id)
        if self._on_revoked is not None:
            self._on_revoked(key_id)

    async def _create_default_project(self, connection: AsyncConnection) -> str:
        now = self._clock()
        organization = Organization(
            id=ids.organization_id(),
            uid=ids.uid(),
            name=_DEFAULT,
            tier=5,
            currency=self._currency,
            postpaid=True,
            created_at=now,
        )
        project = Project(id=ids.project_id(), organization_id=organization.id, name=_DEFAULT, created_at=now)
        await store.add_organization(connection, organization)
        await store.add_project(connection, project)
        return project.id

    async def _create(self, connection: AsyncConnection, project_id: str, name: str) -> tuple[Key, str]:
        secret = ids.secret()
        key = Key(id=ids.key_id(), project_id=project_id, name=name, hint=secret[-4:], created_at=self._clock())
        await store.add_key(connection, key, ids.secret_hash(secret))
        return key, secret


async def _default_project(connection: AsyncConnection) -> str | None:
    return await store.find_project(connection, organization_name=_DEFAULT, project_name=_DEFAULT)
