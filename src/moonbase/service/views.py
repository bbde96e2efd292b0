"""What administrators are shown, on the command line and over HTTP.

Amounts and prices are decimals as text, exact; times are milliseconds since the epoch, UTC.
"""

import datetime

from msgspec import UNSET, Struct, UnsetType

from moonbase.accounts.credit import Standing
from moonbase.accounts.organizations import region
from moonbase.accounts.requests import Region
from moonbase.accounts.tiers import effective_limits
from moonbase.catalog.prices import decimal
from moonbase.config import Currency
from moonbase.store.records import (
    BookedEntry,
    EntryKind,
    Lease,
    Limits,
    Organization,
    Outcome,
    PriceRow,
    UsageRecord,
    UsageSums,
)


class OrganizationView(Struct, frozen=True, kw_only=True):
    id: str
    uid: str
    name: str
    region: Region
    currency: Currency
    tier: int
    postpaid: bool
    limits: Limits
    """Its own; where it has none, those of its tier hold."""
    effective_limits: Limits
    created_at: int

    @classmethod
    def of(cls, row: Organization) -> "OrganizationView":
        return cls(
            id=row.id,
            uid=row.uid,
            name=row.name,
            region=region(row.currency),
            currency=row.currency,
            tier=row.tier,
            postpaid=row.postpaid,
            limits=row.limits,
            effective_limits=effective_limits(row.limits, tier=row.tier, postpaid=row.postpaid),
            created_at=row.created_at,
        )


class BalanceView(Struct, frozen=True, kw_only=True):
    """`available` is what requests may spend: a debt does not reduce what vouchers pay."""

    available: str
    voucher: str
    cash: str
    currency: Currency

    @classmethod
    def of(cls, standing: Standing) -> "BalanceView":
        return cls(
            available=amount(standing.balance.available_nano),
            voucher=amount(standing.balance.voucher_nano),
            cash=amount(standing.balance.cash_nano),
            currency=standing.organization.currency,
        )


class EntryView(Struct, frozen=True, kw_only=True):
    id: int
    organization_id: str
    kind: EntryKind
    cash: str
    voucher: str
    note: str
    created_at: int

    @classmethod
    def of(cls, entry: BookedEntry) -> "EntryView":
        return cls(
            id=entry.id,
            organization_id=entry.organization_id,
            kind=entry.kind,
            cash=amount(entry.cash_nano),
            voucher=amount(entry.voucher_nano),
            note=entry.note,
            created_at=entry.created_at,
        )


class LeaseView(Struct, frozen=True, kw_only=True):
    """What a process may still spend of an organization's money, and when that last changed."""

    organization_id: str
    process_id: str
    amount: str
    changed_at: int

    @classmethod
    def of(cls, lease: Lease) -> "LeaseView":
        return cls(
            organization_id=lease.organization_id,
            process_id=lease.process_id,
            amount=amount(lease.amount_nano),
            changed_at=lease.updated_at,
        )


class PriceView(Struct, frozen=True, kw_only=True):
    """What 1M tokens cost from the day `since` on."""

    model: str
    currency: Currency
    since: datetime.date
    miss: str
    hit: str
    write: str
    output: str
    created_at: int

    @classmethod
    def of(cls, row: PriceRow) -> "PriceView":
        return cls(
            model=row.model,
            currency=row.currency,
            since=row.since,
            miss=amount(row.miss),
            hit=amount(row.hit),
            write=amount(row.write),
            output=amount(row.output),
            created_at=row.created_at,
        )


class UsageView(Struct, frozen=True, kw_only=True):
    """Sums of requests that began in a span of time. What they are not grouped by is absent.

    `day` is a date, `hour` the time it begins, both UTC; prompt tokens are `prompt_miss` + `prompt_hit` +
    `prompt_write`.
    """

    day: str | UnsetType = UNSET
    hour: str | UnsetType = UNSET
    organization_id: str | UnsetType = UNSET
    project_id: str | UnsetType = UNSET
    key_id: str | UnsetType = UNSET
    model: str | UnsetType = UNSET
    currency: Currency
    requests: int
    failed: int
    prompt_miss: int
    prompt_hit: int
    prompt_write: int
    output: int
    cost: str

    @classmethod
    def of(cls, sums: UsageSums) -> "UsageView":
        return cls(
            day=UNSET if sums.day is None else _utc(sums.day).date().isoformat(),
            hour=UNSET if sums.hour is None else _utc(sums.hour).strftime("%Y-%m-%dT%H:%MZ"),
            organization_id=sums.organization_id or UNSET,
            project_id=sums.project_id or UNSET,
            key_id=sums.key_id or UNSET,
            model=sums.model or UNSET,
            currency=sums.currency,
            requests=sums.requests,
            failed=sums.failed,
            prompt_miss=sums.prompt_miss,
            prompt_hit=sums.prompt_hit,
            prompt_write=sums.prompt_write,
            output=sums.output,
            cost=amount(sums.cost_nano),
        )


class RequestUsageView(Struct, frozen=True, kw_only=True):
    """What one request used, at which prices per 1M tokens, and what it cost."""

    request_id: str
    organization_id: str
    project_id: str
    key_id: str
    model: str
    served_by: str
    outcome: Outcome
    currency: Currency
    prompt_miss: int
    prompt_hit: int
    prompt_write: int
    output: int
    price_miss: str
    price_hit: str
    price_write: str
    price_output: str
    cost: str
    started_at: int
    first_token_at: int | None
    finished_at: int

    @classmethod
    def of(cls, record: UsageRecord) -> "RequestUsageView":
        return cls(
            request_id=record.request_id,
            organization_id=record.organization_id,
            project_id=record.project_id,
            key_id=record.key_id,
            model=record.model,
            served_by=record.served_by,
            outcome=record.outcome,
            currency=record.currency,
            prompt_miss=record.prompt_miss,
            prompt_hit=record.prompt_hit,
            prompt_write=record.prompt_write,
            output=record.output,
            price_miss=amount(record.price_miss),
            price_hit=amount(record.price_hit),
            price_write=amount(record.price_write),
            price_output=amount(record.price_output),
            cost=amount(record.cost_nano),
            started_at=record.started_at,
            first_token_at=record.first_token_at,
            finished_at=record.finished_at,
        )


def amount(nano: int) -> str:
    """Nano-units as a decimal, exact, with its sign."""
    return f"-{decimal(-nano)}" if nano < 0 else decimal(nano)


def _utc(milliseconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
