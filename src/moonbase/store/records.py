"""The rows that leave and enter the store, as types. Times are integer milliseconds since the epoch, UTC."""

from typing import Literal

from msgspec import Struct

from moonbase.config import Currency

Outcome = Literal["stop", "length", "tool_calls", "cancelled", "failed"]


class Organization(Struct, frozen=True, kw_only=True):
    """Who pays. `granted_nano` is its credit in nano-units of `currency`; a `postpaid` one is never refused."""

    id: str
    uid: str
    name: str
    tier: int
    currency: Currency
    granted_nano: int
    postpaid: bool
    created_at: int


class Project(Struct, frozen=True, kw_only=True):
    """What groups keys and usage inside an organization."""

    id: str
    organization_id: str
    name: str
    created_at: int


class Key(Struct, frozen=True, kw_only=True):
    """What authenticates. `hint` is the secret's last four characters; the secret itself is nowhere."""

    id: str
    project_id: str
    name: str
    hint: str
    created_at: int
    revoked_at: int | None = None


class Caller(Struct, frozen=True):
    """Whom a valid key stands for. `currency` is the organization's."""

    organization_id: str
    project_id: str
    key_id: str
    uid: str
    tier: int
    currency: Currency


class UsageRecord(Struct, frozen=True, kw_only=True):
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
