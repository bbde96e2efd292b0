"""Projects: what groups keys and usage inside an organization."""

from msgspec import structs
from sqlalchemy.ext.asyncio import AsyncConnection

from moonbase.accounts import fields, ids
from moonbase.accounts.changes import Changes, changed_limits, differences, given
from moonbase.accounts.organizations import existing_organization
from moonbase.accounts.requests import NewProject, ProjectChanges
from moonbase.errors import Conflict, NotFound
from moonbase.store import keys as store
from moonbase.store.records import NO_LIMITS, Project


class Projects:
    """Methods raise `NotFound` for an id that there is not, and `DatabaseUnavailable`."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    async def create(self, request: NewProject) -> Project:
        """Raises `Conflict` for a name that the organization has already, and `InvalidField`."""
        async with self._changes.begin() as change:
            organization = await existing_organization(change.connection, request.organization_id)
            project = Project(
                id=ids.project_id(),
                organization_id=organization.id,
                name=await _free_name(change.connection, organization.id, request.name),
                created_at=change.now,
                limits=changed_limits(NO_LIMITS, request.limits),
            )
            await store.add_project(change.connection, project)
            await change.audit("project.create", project.id, request)
        return project

    async def list(self, organization_id: str | None = None) -> list[Project]:
        """Of one organization or of all, the oldest first."""
        async with self._changes.database.read() as connection:
            if organization_id is not None:
                await existing_organization(connection, organization_id)
            return await store.list_projects(connection, organization_id)

    async def show(self, project_id: str) -> Project:
        async with self._changes.database.read() as connection:
            return await existing_project(connection, project_id)

    async def update(self, project_id: str, request: ProjectChanges) -> Project:
        """Raises `Conflict` for a name that the organization has already, and `InvalidField`."""
        async with self._changes.begin() as change:
            before = await existing_project(change.connection, project_id)
            values = given(request) | {"limits": changed_limits(before.limits, request.limits)}
            after = structs.replace(before, **values)
            if after.name != before.name:
                await _free_name(change.connection, after.organization_id, after.name)
            if difference := differences(before, after):
                await store.update_project(change.connection, after)
                await change.audit("project.update", project_id, difference)
        return after

    async def delete(self, project_id: str) -> None:
        """Raises `Conflict` while it has keys, and so whenever it may have usage."""
        async with self._changes.begin() as change:
            project = await existing_project(change.connection, project_id)
            if keys := await store.count_keys(change.connection, project_id):
                raise Conflict(f"the project {project_id} is in use: it has {keys} keys, the revoked ones counted")
            await store.delete_project(change.connection, project_id)
            await change.audit("project.delete", project_id, {"name": project.name})


async def existing_project(connection: AsyncConnection, project_id: str) -> Project:
    """Raises `NotFound`."""
    found = await store.read_project(connection, project_id) if ids.is_id(project_id) else None
    if found is None:
        raise NotFound("project", project_id)
    return found


async def _free_name(connection: AsyncConnection, organization_id: str, name: str) -> str:
    if await store.is_project_named(connection, organization_id, fields.name(name)):
        raise Conflict(f"`name` is taken: the organization has a project {name!r}")
    return name
