"""Query strings to types: the parameters of GET and DELETE requests."""

import datetime
from typing import Annotated, TypeVar, cast, get_args
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta, Struct, field

from moonbase.accounts.requests import Id, ModelId
from moonbase.config import Currency
from moonbase.errors import InvalidField, InvalidRequest
from moonbase.server.exchange import Exchange
from moonbase.store.records import EntryKind
from moonbase.store.rollups import Group

T = TypeVar("T", bound=Struct)

_MOST_PARAMETERS = 50

Limit = Annotated[int, Meta(ge=1, le=1000)]
RowId = Annotated[int, Meta(ge=0, le=2**53)]


class Query(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Unknown parameters are mistakes."""


class UsageParameters(Query, frozen=True):
    """`from` and `to` are days (UTC), both included; `group_by` names what to sum by, several with commas."""

    group_by: str = "day"
    first: datetime.date | None = field(default=None, name="from")
    last: datetime.date | None = field(default=None, name="to")
    project_id: Id | None = None
    key_id: Id | None = None
    model: ModelId | None = None

    @property
    def groups(self) -> list[Group]:
        """Raises `InvalidField`."""
        names = self.group_by.split(",") if self.group_by else []
        for name in names:
            if name not in get_args(Group):
                raise InvalidField("group_by", f"must be of {', '.join(get_args(Group))}, with commas between them")
        return cast("list[Group]", names)


class AdminUsageParameters(UsageParameters, frozen=True):
    organization_id: Id | None = None


class ProjectsParameters(Query, frozen=True):
    organization_id: Id | None = None


class KeysParameters(Query, frozen=True):
    organization_id: Id | None = None
    project_id: Id | None = None


class EntriesParameters(Query, frozen=True):
    """Entries with ids under `before`, the newest first."""

    kind: EntryKind | None = None
    before: RowId | None = None
    limit: Limit = 100


class AuditParameters(Query, frozen=True):
    """Rows with ids under `before`, the newest first."""

    target: ModelId | None = None
    before: RowId | None = None
    limit: Limit = 100


class PriceParameters(Query, frozen=True):
    model: ModelId
    currency: Currency
    since: datetime.date


def decode_query(kind: type[T], exchange: Exchange) -> T:
    """The parameters of a request. Raises `InvalidRequest` naming the one that is wrong, unknown or given twice."""
    try:
        text = exchange.scope["query_string"].decode("latin-1")
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
    except ValueError as error:
        raise InvalidRequest(f"there are more than {_MOST_PARAMETERS} query parameters") from error
    parameters = dict(pairs)
    for name, _ in pairs:
        if [each for each, _ in pairs].count(name) > 1:
            raise InvalidField(name, "must be given once")
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    for name in parameters:
        if name not in known:
            there = ", ".join(known) or "none"
            raise InvalidRequest(f"The query contains unknown parameter `{name}`; there are: {there}")
    try:
        return msgspec.convert(parameters, kind, strict=False)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$.")
        what = f"the query parameter `{path.rstrip('`')}`" if path else "the query"
        raise InvalidRequest(f"{what} is illegal: {reason}") from error
