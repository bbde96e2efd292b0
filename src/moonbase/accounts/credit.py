"""Money that organizations get, and the entries that it makes."""

from itertools import takewhile

import msgspec
from msgspec import Struct, structs
from sqlalchemy.ext.asyncio import AsyncConnection

from moonbase.accounts import fields
from moonbase.accounts.changes import Change, Changes
from moonbase.accounts.organizations import existing_organization
from moonbase.accounts.requests import NewCorrection, NewCredit
from moonbase.catalog.prices import NANO
from moonbase.config import Currency
from moonbase.errors import Conflict, InvalidField
from moonbase.store import ledger as store
from moonbase.store.keys import update_organization
from moonbase.store.records import Balance, BookedEntry, Entry, EntryKind, Organization

_KEY_LENGTH = 255
_MOST = 10**18  # nano-units of a balance: sums of some stay in 64 bits

# Cash credited until now, in whole units, from which on an organization has the tier (moonshot-api.md 11.1).
_RECHARGED: dict[Currency, tuple[int, ...]] = {
    "USD": (1, 10, 20, 100, 1_000, 3_000),
    "CNY": (0, 50, 100, 500, 5_000, 20_000),
}


def tier_of(recharged_nano: int, currency: Currency) -> int:
    """The tier that so much cash, credited since ever, gives."""
    reached = list(takewhile(lambda units: recharged_nano >= units * NANO, _RECHARGED[currency]))
    return max(0, len(reached) - 1)


class Standing(Struct, frozen=True):
    """An organization and its money."""

    organization: Organization
    balance: Balance


class Credit:
    """Methods raise `NotFound` for an organization that there is not, and `DatabaseUnavailable`."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    async def add(self, organization_id: str, request: NewCredit, *, once: str | None = None) -> Standing:
        """Credit an organization and return how it stands then. Cash may raise its tier, nothing lowers it.

        `once` is a key of idempotency: the same request again changes nothing. Raises `InvalidField`, and `Conflict`
        for another request with a key that was used.
        """
        nano = fields.amount("amount", request.amount)
        if nano == 0:
            raise InvalidField("amount", "must not be 0")
        async with self._changes.begin() as change:
            organization = await existing_organization(change.connection, organization_id)
            if not await _claim(change, organization_id, "credit", request, once):
                return await _standing(change.connection, organization_id)
            entry = _entry(organization, "credit", nano, request, change.now)
            await _book(change, entry)
            await change.audit("credit.add", organization_id, request)
            if request.kind == "cash":
                await _raise_tier(change, organization)
            return await _standing(change.connection, organization_id)

    async def correct(self, organization_id: str, request: NewCorrection, *, once: str | None = None) -> Standing:
        """Mend a mistake and return how it stands then; `once` is as in `add`.

        Raises as that, and `BalanceTooLow` for what would take away what requests that run now may cost.
        """
        negative = request.amount.startswith("-")
        nano = fields.amount("amount", request.amount.removeprefix("-"))
        if nano == 0:
            raise InvalidField("amount", "must not be 0")
        fields.reason(request.note)
        async with self._changes.begin() as change:
            organization = await existing_organization(change.connection, organization_id)
            if not await _claim(change, organization_id, "correction", request, once):
                return await _standing(change.connection, organization_id)
            entry = _entry(organization, "correction", -nano if negative else nano, request, change.now)
            await _book(change, entry)
            await change.audit("credit.correct", organization_id, request)
            return await _standing(change.connection, organization_id)

    async def balance(self, organization_id: str) -> Standing:
        async with self._changes.database.read() as connection:
            return await _standing(connection, organization_id)

    async def entries(
        self, organization_id: str, *, kind: EntryKind | None = None, before: int | None = None, limit: int = 100
    ) -> list[BookedEntry]:
        """The newest first; further ones with the last id as `before`."""
        async with self._changes.database.read() as connection:
            await existing_organization(connection, organization_id)
            return await store.list_entries(connection, organization_id, kind=kind, before=before, limit=limit)


async def _standing(connection: AsyncConnection, organization_id: str) -> Standing:
    organization = await existing_organization(connection, organization_id)
    return Standing(organization, await store.read_balance(connection, organization_id))


def _entry(
    organization: Organization, kind: EntryKind, nano: int, request: NewCredit | NewCorrection, now: int
) -> Entry:
    if request.currency not in (None, organization.currency):
        raise InvalidField("currency", f"must be {organization.currency}, in which the organization pays")
    return Entry(
        organization_id=organization.id,
        kind=kind,
        cash_nano=nano if request.kind == "cash" else 0,
        voucher_nano=nano if request.kind == "voucher" else 0,
        note=fields.printable("note", request.note),
        created_at=now,
    )


async def _claim(
    change: Change, organization_id: str, kind: EntryKind, request: NewCredit | NewCorrection, once: str | None
) -> bool:
    """Whether to carry the request out: it was not yet under its key, which is its own from now on.

    Raises `InvalidField`, and `Conflict` for a key of another request.
    """
    if once is None:
        return True
    if not (0 < len(once) <= _KEY_LENGTH and once.isascii() and once.isprintable()):
        raise InvalidField("Idempotency-Key", f"must be at most {_KEY_LENGTH} printable ASCII characters")
    wanted = msgspec.json.encode((kind, request)).decode()
    before = await store.find_booking(change.connection, organization_id, once)
    if before is None:
        await store.add_booking(change.connection, organization_id, once, wanted, change.now)
    elif before != wanted:
        raise Conflict(f"the Idempotency-Key {once} was used for another request")
    return before is None


async def _book(change: Change, entry: Entry) -> None:
    balance = await store.change_balance(change.connection, entry)
    if max(abs(balance.cash_nano), balance.voucher_nano) > _MOST:
        raise InvalidField("amount", f"would bring the balance over {_MOST // NANO}")


async def _raise_tier(change: Change, organization: Organization) -> None:
    tier = tier_of(await store.recharged(change.connection, organization.id), organization.currency)
    if tier > organization.tier:
        await update_organization(change.connection, structs.replace(organization, tier=tier))
        await change.audit("organization.update", organization.id, {"tier": [organization.tier, tier]})
