"""What was used, summed by what is asked for; and what one request used."""

import datetime
from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from moonbase.accounts import fields, ids
from moonbase.accounts.keys import existing_key
from moonbase.accounts.organizations import existing_organization
from moonbase.accounts.projects import existing_project
from moonbase.errors import InvalidField, NotFound
from moonbase.store.database import Database
from moonbase.store.records import UsageRecord, UsageSums
from moonbase.store.rollups import DAY_MS, Group, UsageQuery, sum_usage
from moonbase.store.usage import read_usage

_MOST_ROWS = 5_000
_MOST_HOURS_DAYS = 7
_DEFAULT_DAYS = 30


class UsageReports:
    """Sums come from rollups, so they take some milliseconds however many requests there were.

    With an `organization_id`, what is somebody else's does not exist. Methods raise `DatabaseUnavailable`.
    """

    def __init__(self, database: Database, organization_id: str | None = None) -> None:
        self._database = database
        self._organization_id = organization_id

    async def sums(
        self,
        group_by: Sequence[Group],
        *,
        first: datetime.date | None = None,
        last: datetime.date | None = None,
        now: int,
        organization_id: str | None = None,
        project_id: str | None = None,
        key_id: str | None = None,
        model: str | None = None,
    ) -> list[UsageSums]:
        """The usage of the days `first` to `last` (UTC, both included), of those given only.

        By default of the thirty days until `now` (milliseconds). An `organization_id` is for those who see all.
        Raises `InvalidField`, and `NotFound` for an id that there is not.
        """
        end = (now - now % DAY_MS if last is None else fields.day("to", last)) + DAY_MS
        start = end - _DEFAULT_DAYS * DAY_MS if first is None else fields.day("from", first)
        if start >= end:
            raise InvalidField("from", "must not be after `to`")
        _check_groups(group_by, start, end)
        query = UsageQuery(
            group_by=tuple(group_by),
            start=start,
            end=end,
            organization_id=self._organization_id or organization_id,
            project_id=project_id,
            key_id=key_id,
            model=None if model is None else fields.printable("model", model),
        )
        async with self._database.read() as connection:
            await _check_ids(connection, query)
            sums = await sum_usage(connection, query, limit=_MOST_ROWS + 1)
        if len(sums) > _MOST_ROWS:
            raise InvalidField("group_by", f"gives more than {_MOST_ROWS} rows; ask for fewer days or for less")
        return sums

    async def request(self, request_id: str) -> UsageRecord:
        """What one request used. Raises `NotFound`, also for one that runs."""
        async with self._database.read() as connection:
            if ids.is_id(request_id):
                record = await read_usage(connection, request_id, self._organization_id)
                if record is not None:
                    return record
        raise NotFound("usage record of a request", request_id)


async def _check_ids(connection: AsyncConnection, query: UsageQuery) -> None:
    """Raises `NotFound` for what there is not, or not in the organization that is asked about."""
    owner = query.organization_id
    if owner is not None:
        await existing_organization(connection, owner)
    if query.project_id is not None:
        project = await existing_project(connection, query.project_id)
        if owner not in (None, project.organization_id):
            raise NotFound("project", query.project_id)
    if query.key_id is not None:
        key = await existing_key(connection, query.key_id)
        project = await existing_project(connection, key.project_id)
        if owner not in (None, project.organization_id):
            raise NotFound("key", query.key_id)


def _check_groups(group_by: Sequence[Group], start: int, end: int) -> None:
    if len(set(group_by)) < len(group_by):
        raise InvalidField("group_by", "must name each of its parts once")
    if "hour" in group_by:
        if "day" in group_by:
            raise InvalidField("group_by", "must not have both `day` and `hour`")
        if end - start > _MOST_HOURS_DAYS * DAY_MS:
            raise InvalidField("group_by", f"can have `hour` for at most {_MOST_HOURS_DAYS} days; name `from` and `to`")
