"""Keys: making, listing, changing and revoking them. The hot path is in `authentication`."""

from collections.abc import Callable, Container

from msgspec import UNSET, structs
from sqlalchemy.ext.asyncio import AsyncConnection

from moonbase.accounts import fields, ids
from moonbase.accounts.changes import Change, Changes, changed_limits, differences
from moonbase.accounts.organizations import existing_organization
from moonbase.accounts.projects import existing_project
from moonbase.accounts.requests import KeyChanges, NewKey
from moonbase.config import Currency
from moonbase.errors import Conflict, InvalidField, NotFound
from moonbase.store import keys as store
from moonbase.store.records import NO_LIMITS, Key, Organization, Project

_DEFAULT = "default"


class Keys:
    """The keys of a database. Methods raise `NotFound` for an id that there is not, and `DatabaseUnavailable`."""

    def __init__(
        self,
        changes: Changes,
        *,
        currency: Currency,
        models: Container[str],
        on_changed: Callable[[str], None] | None = None,
    ) -> None:
        """`currency` is that of the default organization, should this be the first use of the database.

        `models` are the ids that keys can be limited to. `on_changed` is called with the id of a key when its
        revocation or change is in the database.
        """
        self._changes = changes
        self._currency = currency
        self._models = models
        self._on_changed = on_changed

    async def first_start(self) -> str | None:
        """Make the default organization (post-paid, no limits), project and key where there is no key.

        Returns the key's secret, which exists nowhere else; None at every later call, in whatever process, and where
        administrators have begun otherwise. Raises `ConfigurationError` when the database refuses.
        """
        with self._changes.database.at_start():
            async with self._changes.begin() as change:
                begun = await store.is_organization_named(change.connection, _DEFAULT)
                if begun or await store.is_any_key(change.connection):
                    return None
                _, secret = await self._create(change, NewKey(name=_DEFAULT))
                return secret

    async def create(self, request: NewKey) -> tuple[Key, str]:
        """Make a key and return it with its secret. Raises `InvalidField`.

        The secret is stored as a hash only: this is the one moment it can be seen.
        """
        async with self._changes.begin() as change:
            return await self._create(change, request)

    async def list(self, *, organization_id: str | None = None, project_id: str | None = None) -> list[Key]:
        """Of one organization or project or all, the oldest first, the revoked ones too."""
        async with self._changes.database.read() as connection:
            if organization_id is not None:
                await existing_organization(connection, organization_id)
            if project_id is not None:
                await existing_project(connection, project_id)
            return await store.list_keys(connection, organization_id=organization_id, project_id=project_id)

    async def show(self, key_id: str) -> Key:
        async with self._changes.database.read() as connection:
            return await existing_key(connection, key_id)

    async def update(self, key_id: str, request: KeyChanges) -> Key:
        """Other processes notice within `authentication.KEY_TTL_MS`.

        Raises `InvalidField`, and `Conflict` for a revoked key.
        """
        async with self._changes.begin() as change:
            before = await existing_key(change.connection, key_id)
            if before.revoked_at is not None:
                raise Conflict(f"the key {key_id} is revoked")
            after = structs.replace(
                before,
                name=before.name if request.name is UNSET else fields.name(request.name),
                limits=changed_limits(before.limits, request.limits),
                **self._scopes(request, change.now),
            )
            if difference := differences(before, after):
                await store.update_key(change.connection, after)
                await change.audit("key.update", key_id, difference)
        self._notify(key_id)
        return after

    async def revoke(self, key_id: str) -> Key:
        """Revoke a key for good; again changes nothing. Other processes notice within `authentication.KEY_TTL_MS`."""
        async with self._changes.begin() as change:
            key = await existing_key(change.connection, key_id)
            if key.revoked_at is None:
                key = structs.replace(key, revoked_at=change.now)
                await store.update_key(change.connection, key)
                await change.audit("key.revoke", key_id, {"name": key.name})
        self._notify(key_id)
        return key

    async def _create(self, change: Change, request: NewKey) -> tuple[Key, str]:
        project_id = request.project_id
        if project_id is None:
            project_id = await _default_project(change.connection) or await self._create_default_project(change)
        else:
            await existing_project(change.connection, project_id)
        secret = ids.secret()
        key = Key(
            id=ids.key_id(),
            project_id=project_id,
            name=fields.name(request.name),
            hint=secret[-4:],
            created_at=change.now,
            limits=changed_limits(NO_LIMITS, request.limits),
        )
        key = structs.replace(key, **self._scopes(request, change.now))
        await store.add_key(change.connection, key, ids.secret_hash(secret))
        await change.audit("key.create", key.id, structs.replace(request, project_id=project_id))
        return key, secret

    async def _create_default_project(self, change: Change) -> str:
        """Raises `InvalidField` where it was renamed or never was."""
        if await store.is_organization_named(change.connection, _DEFAULT):
            raise InvalidField("project_id", f"must be given: the organization {_DEFAULT} has no project {_DEFAULT}")
        organization = Organization(
            id=ids.organization_id(),
            uid=ids.uid(),
            name=_DEFAULT,
            tier=5,
            currency=self._currency,
            postpaid=True,
            created_at=change.now,
        )
        project = Project(id=ids.project_id(), organization_id=organization.id, name=_DEFAULT, created_at=change.now)
        await store.add_organization(change.connection, organization)
        await change.audit("organization.create", organization.id, organization)
        await store.add_project(change.connection, project)
        await change.audit("project.create", project.id, project)
        return project.id

    def _scopes(self, request: NewKey | KeyChanges, now: int) -> dict[str, object]:
        """The fields of a key that say what it opens, and until when, of those that are not absent."""
        scopes: dict[str, object] = {}
        if request.models is not UNSET:
            for model in request.models or ():
                if model not in self._models:
                    raise InvalidField("models", f"names the model {model!r}, which there is not")
            scopes["models"] = _each_once(request.models)
        if request.endpoints is not UNSET:
            scopes["endpoints"] = _each_once(request.endpoints)
        if request.expires is not UNSET:
            expires = request.expires
            scopes["expires_at"] = None if expires is None else fields.moment("expires", expires, now)
        return scopes

    def _notify(self, key_id: str) -> None:
        if self._on_changed is not None:
            self._on_changed(key_id)


def _each_once(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(dict.fromkeys(names))


async def existing_key(connection: AsyncConnection, key_id: str) -> Key:
    """Raises `NotFound`."""
    found = await store.read_key(connection, key_id) if ids.is_id(key_id) else None
    if found is None:
        raise NotFound("key", key_id)
    return found


async def _default_project(connection: AsyncConnection) -> str | None:
    return await store.find_project(connection, organization_name=_DEFAULT, project_name=_DEFAULT)
