"""The rows that leave and enter the store, as types. Times are integer milliseconds since the epoch, UTC."""

import datetime
from typing import Literal

from msgspec import Raw, Struct

from moonbase.config import Currency

Outcome = Literal["stop", "length", "tool_calls", "cancelled", "failed", "interrupted"]
EntryKind = Literal["credit", "usage", "correction"]
Endpoint = Literal["chat", "messages", "models", "tokens", "balance", "usage"]


class Limits(Struct, frozen=True, gc=False):
    """Caps: requests open at once, requests a minute, tokens a minute, tokens a day. None is no cap."""

    concurrency: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    tpd: int | None = None


NO_LIMITS = Limits()


class Organization(Struct, frozen=True, kw_only=True):
    """Who pays, in `currency`. A `postpaid` one is never refused for its balance and has no limits of a tier."""

    id: str
    uid: str
    name: str
    tier: int
    currency: Currency
    postpaid: bool
    created_at: int
    limits: Limits = NO_LIMITS


class Project(Struct, frozen=True, kw_only=True):
    """What groups keys and usage inside an organization."""

    id: str
    organization_id: str
    name: str
    created_at: int
    limits: Limits = NO_LIMITS


class Key(Struct, frozen=True, kw_only=True):
    """What authenticates. `hint` is the secret's last four characters; the secret itself is nowhere.

    `models` and `endpoints` are what it opens, None: all. It is refused from `expires_at` on.
    """

    id: str
    project_id: str
    name: str
    hint: str
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    models: tuple[str, ...] | None = None
    endpoints: tuple[str, ...] | None = None
    limits: Limits = NO_LIMITS


class Caller(Struct, frozen=True, gc=False):
    """Whom a valid key stands for, and what holds for it. `currency` and `postpaid` are the organization's."""

    organization_id: str
    project_id: str
    key_id: str
    uid: str
    tier: int
    currency: Currency
    postpaid: bool = True
    expires_at: int | None = None
    models: tuple[str, ...] | None = None
    endpoints: tuple[str, ...] | None = None
    organization_limits: Limits = NO_LIMITS
    project_limits: Limits = NO_LIMITS
    key_limits: Limits = NO_LIMITS


class Balance(Struct, frozen=True):
    """Money of an organization in nano-units of its currency. A debt is negative cash."""

    cash_nano: int
    voucher_nano: int

    @property
    def available_nano(self) -> int:
        """The service's rule: a debt does not reduce what vouchers pay (moonshot-api.md 5.2)."""
        return self.voucher_nano + max(self.cash_nano, 0)


class Entry(Struct, frozen=True, kw_only=True):
    """One change of a balance. Entries are never changed; a mistake is mended by a `correction`."""

    organization_id: str
    kind: EntryKind
    cash_nano: int
    voucher_nano: int
    note: str
    created_at: int


class BookedEntry(Entry, frozen=True, kw_only=True):
    """An entry as it is in the books; later ones have larger ids."""

    id: int


class Lease(Struct, frozen=True, kw_only=True):
    """What a gateway process may still spend of an organization's money."""

    organization_id: str
    process_id: str
    amount_nano: int
    updated_at: int


class UsageRecord(Struct, frozen=True, kw_only=True, gc=False):
    """What one request used and cost.

    The prompt's tokens are `prompt_miss` + `prompt_hit` + `prompt_write`. Prices are nano-units of
    `currency` per 1M tokens. `first_token_at` is None when no token was produced.
    """

    request_id: str
    organization_id: str
    project_id: str
    key_id: str
    model: str
    served_by: str
    prompt_miss: int
    prompt_hit: int
    prompt_write: int
    output: int
    price_miss: int
    price_hit: int
    price_write: int
    price_output: int
    cost_nano: int
    currency: Currency
    outcome: Outcome
    started_at: int
    first_token_at: int | None
    finished_at: int


class Settlement(UsageRecord, frozen=True, kw_only=True, gc=False):
    """A usage record on its way into the books: `leased_nano` of its cost, at most, is in the lease of its process."""

    leased_nano: int = 0


class PriceRow(Struct, frozen=True, kw_only=True):
    """What tokens of a model cost from the day `since` on: nano-units of `currency` per 1M tokens."""

    model: str
    currency: Currency
    since: datetime.date
    miss: int
    hit: int
    write: int
    output: int
    created_at: int


class AdminKey(Struct, frozen=True, kw_only=True):
    """What opens the admin API. `hint` is the secret's last four characters; the secret itself is nowhere."""

    id: str
    name: str
    hint: str
    created_at: int
    revoked_at: int | None = None


class AuditRow(Struct, frozen=True, kw_only=True):
    """Who changed what: `actor` did `action` to `target`. `detail` is a JSON object; later rows have larger ids."""

    id: int
    at: int
    actor: str
    action: str
    target: str
    detail: Raw


class UsageSums(Struct, frozen=True, kw_only=True):
    """Sums of usage records in one currency. What they were not grouped by is None.

    `day` and `hour` are when the span begins, in milliseconds.
    """

    day: int | None = None
    hour: int | None = None
    organization_id: str | None = None
    project_id: str | None = None
    key_id: str | None = None
    model: str | None = None
    currency: Currency
    requests: int
    failed: int
    prompt_miss: int
    prompt_hit: int
    prompt_write: int
    output: int
    cost_nano: int
