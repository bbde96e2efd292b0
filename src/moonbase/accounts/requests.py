"""What an administrator asks for, as types that the command line and the admin API decode into.

A field's type says what it may be; what that cannot say is checked where the request is carried out. In a request
that changes something, what is absent stays as it is. Amounts and prices are decimals with at most nine places.
"""

import datetime
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from moonbase.config import Currency
from moonbase.store.records import Endpoint

Region = Literal["global", "china"]
Money = Literal["cash", "voucher"]

Name = Annotated[str, Meta(min_length=1, max_length=100)]
Id = Annotated[str, Meta(min_length=1, max_length=64)]
ModelId = Annotated[str, Meta(min_length=1, max_length=200)]
Models = Annotated[tuple[ModelId, ...], Meta(min_length=1, max_length=1000)]
Endpoints = Annotated[tuple[Endpoint, ...], Meta(min_length=1, max_length=6)]
Tier = Annotated[int, Meta(ge=0, le=5)]
Cap = Annotated[int, Meta(ge=1, le=2**53)]
Amount = Annotated[str, Meta(min_length=1, max_length=40)]
NOTE_LENGTH = 500
Note = Annotated[str, Meta(max_length=NOTE_LENGTH)]
Moment = Annotated[str, Meta(min_length=1, max_length=40)]


class _Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Unknown fields are mistakes."""


class LimitChanges(_Request, frozen=True):
    """Caps of requests open at once, requests a minute, tokens a minute and tokens a day. None takes a cap away."""

    concurrency: Cap | UnsetType | None = UNSET
    rpm: Cap | UnsetType | None = UNSET
    tpm: Cap | UnsetType | None = UNSET
    tpd: Cap | UnsetType | None = UNSET


class NewOrganization(_Request, frozen=True):
    """Its region decides its currency, for good: `global` pays in USD, `china` in CNY."""

    name: Name
    region: Region
    tier: Tier = 0
    postpaid: bool = False
    limits: LimitChanges = LimitChanges()


class OrganizationChanges(_Request, frozen=True):
    name: Name | UnsetType = UNSET
    tier: Tier | UnsetType = UNSET
    postpaid: bool | UnsetType = UNSET
    limits: LimitChanges = LimitChanges()


class NewProject(_Request, frozen=True):
    organization_id: Id
    name: Name
    limits: LimitChanges = LimitChanges()


class ProjectChanges(_Request, frozen=True):
    name: Name | UnsetType = UNSET
    limits: LimitChanges = LimitChanges()


class NewKey(_Request, frozen=True):
    """A key of the default project, where none is named. `models` and `endpoints` are what it opens, None: all.

    `expires` is a day or a time of RFC 3339, or how long from now: `30d`, `12h`, `90m`.
    """

    name: Name
    project_id: Id | None = None
    models: Models | None = None
    endpoints: Endpoints | None = None
    expires: Moment | None = None
    limits: LimitChanges = LimitChanges()


class KeyChanges(_Request, frozen=True):
    name: Name | UnsetType = UNSET
    models: Models | UnsetType | None = UNSET
    endpoints: Endpoints | UnsetType | None = UNSET
    expires: Moment | UnsetType | None = UNSET
    limits: LimitChanges = LimitChanges()


class NewCredit(_Request, frozen=True):
    """Money that an organization gets. A `currency`, where given, must be the organization's."""

    amount: Amount
    kind: Money = "cash"
    currency: Currency | None = None
    note: Note = ""


class NewCorrection(_Request, frozen=True, kw_only=True):
    """Mends a mistake: the amount is added, a negative one taken away, as long as it is free."""

    amount: Amount
    kind: Money = "cash"
    currency: Currency | None = None
    note: Note


class NewPrice(_Request, frozen=True):
    """What 1M tokens of a model cost from the beginning of the day `since` (UTC) on.

    `hit` and `write` cost what `miss` does, where they are absent.
    """

    model: ModelId
    currency: Currency
    since: datetime.date
    miss: Amount
    output: Amount
    hit: Amount | None = None
    write: Amount | None = None


class NewAdminKey(_Request, frozen=True):
    name: Name
