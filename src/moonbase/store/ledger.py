"""Statements on balances, entries and leases. Each runs in the transaction of the given connection.

What always holds, whoever stops when: the entries of an organization sum to its balance, its leases sum to
`leased_nano`, and `leased_nano` is never more than what is available. So whoever spends inside a lease
overdraws nothing. What is spent beyond leases, by post-paid requests that ran when their organization became prepaid or
where an upstream counts more than was foreseen, can leave less than what is leased: `excess_nano` says how much less.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import and_, bindparam, delete, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from moonbase.errors import BalanceTooLow
from moonbase.store.records import Balance, BookedEntry, Entry, EntryKind, Lease, Settlement
from moonbase.store.rollups import ROLLUP_CHECKS, add_to_rollups
from moonbase.store.tables import balance, booking, entry, lease
from moonbase.store.usage import add_usage, recorded

_PLENTY = 100  # worst-case requests; a balance with less is leased one reservation at a time
_SHARE = 20  # else a lease takes this part of what is free, for many requests to come

_ACCOUNTS = (
    select(
        balance.c.organization_id,
        balance.c.cash_nano,
        balance.c.voucher_nano,
        balance.c.leased_nano,
        balance.c.excess_nano,
    )
    .where(balance.c.organization_id.in_(bindparam("organization_ids", expanding=True)))
    .order_by(balance.c.organization_id)  # one order for all, so that no two wait for each other
    .with_for_update()
)
_HELD = select(lease.c.organization_id, lease.c.amount_nano).where(
    lease.c.organization_id.in_(bindparam("organization_ids", expanding=True)),
    lease.c.process_id == bindparam("process"),
)
_SET_BALANCE = (
    update(balance)
    .where(balance.c.organization_id == bindparam("organization"))
    .values(
        cash_nano=bindparam("cash"),
        voucher_nano=bindparam("voucher"),
        leased_nano=bindparam("leased"),
        excess_nano=bindparam("excess"),
    )
)
_MINE = and_(lease.c.organization_id == bindparam("organization"), lease.c.process_id == bindparam("process"))
_SET_LEASE = update(lease).where(_MINE).values(amount_nano=bindparam("held"), updated_at=bindparam("now"))
_ADD_LEASE = insert(lease).values(
    organization_id=bindparam("organization"),
    process_id=bindparam("process"),
    amount_nano=bindparam("held"),
    updated_at=bindparam("now"),
)
_ADD_ENTRY = insert(entry).returning(entry.c.id, sort_by_parameter_order=True)
_ADD_BALANCE = insert(balance)

_SUMS = """
    SELECT b.organization_id, b.{column}, COALESCE(s.total, 0) FROM balance b
    LEFT JOIN (SELECT organization_id, SUM({column}) AS total FROM entry GROUP BY organization_id) s
           ON s.organization_id = b.organization_id
    WHERE b.{column} <> COALESCE(s.total, 0)
"""
_CHECKS = {
    "cash of the balance against its entries": _SUMS.format(column="cash_nano"),
    "vouchers of the balance against its entries": _SUMS.format(column="voucher_nano"),
    "entries of an organization without a balance": """
        SELECT e.organization_id, 0, SUM(e.cash_nano + e.voucher_nano) FROM entry e
        WHERE NOT EXISTS (SELECT 1 FROM balance b WHERE b.organization_id = e.organization_id)
        GROUP BY e.organization_id
    """,
    "leased money against the leases": """
        SELECT b.organization_id, b.leased_nano, COALESCE(s.total, 0) FROM balance b
        LEFT JOIN (SELECT organization_id, SUM(amount_nano) AS total FROM lease GROUP BY organization_id) s
               ON s.organization_id = b.organization_id
        WHERE b.leased_nano <> COALESCE(s.total, 0)
    """,
    "leased money against what is available": """
        SELECT organization_id, leased_nano, available FROM (
            SELECT *, voucher_nano + CASE WHEN cash_nano > 0 THEN cash_nano ELSE 0 END AS available FROM balance
        ) AS b WHERE leased_nano > available + excess_nano
    """,
    "an entry of usage against its records": """
        SELECT e.organization_id, -(e.cash_nano + e.voucher_nano), COALESCE(u.total, 0) FROM entry e
        LEFT JOIN (SELECT entry_id, SUM(cost_nano) AS total FROM usage GROUP BY entry_id) u ON u.entry_id = e.id
        WHERE e.kind = 'usage' AND -(e.cash_nano + e.voucher_nano) <> COALESCE(u.total, 0)
    """,
    "usage that no entry charges": """
        SELECT organization_id, SUM(cost_nano), 0 FROM usage
        WHERE cost_nano <> 0 AND (entry_id IS NULL OR NOT EXISTS (SELECT 1 FROM entry e WHERE e.id = entry_id))
        GROUP BY organization_id
    """,
    **ROLLUP_CHECKS,
}


class Imbalance(Struct, frozen=True, kw_only=True):
    """Something in the ledger that does not add up: `stored` is what is there, `computed` what should be.

    Of money in nano-units; of rollups in what the name says.
    """

    organization_id: str
    what: str
    stored: int
    computed: int


class _Account(Struct):
    """An organization's money, locked: nobody else changes it until the transaction ends.

    `held` is what one process has leased of `leased`; None where it has no lease. `existed` tells whether that was so.
    """

    balance: Balance
    leased: int
    excess: int
    held: int | None
    existed: bool

    def lease(self, amount: int) -> None:
        """Add to what the process has leased, or take from it."""
        self.held = (self.held or 0) + amount
        self.leased += amount

    def debit(self, cost: "_Cost") -> Balance:
        """Spend, vouchers first; returns the change."""
        voucher = min(max(self.balance.voucher_nano, 0), cost.whole)
        change = Balance(voucher - cost.whole, -voucher)
        self.balance = _sum(self.balance, change)
        if inside := min(self.held or 0, cost.leased):
            self.lease(-inside)
        if inside < cost.whole:
            self.excess = max(self.excess, self.shortage)
        return change

    @property
    def shortage(self) -> int:
        """How much more is leased than is available."""
        return max(0, self.leased - self.balance.available_nano)


class _Cost(Struct):
    """What an organization's requests cost, and how much of it is in the lease of their process."""

    whole: int = 0
    leased: int = 0


async def charge(
    connection: AsyncConnection, process_id: str, records: Sequence[Settlement], now: int
) -> Sequence[Settlement]:
    """Append usage records, count them in the rollups and charge their organizations.

    What of a cost is in a lease of the process is taken out of it, as far as it reaches.

    A record whose request is recorded already changes nothing, so a batch may be repeated. Returns what was new. The
    number of statements does not depend on how many records and organizations there are.
    """
    known = await recorded(connection, [record.request_id for record in records])
    new = list({record.request_id: record for record in reversed(records) if record.request_id not in known}.values())
    costs: dict[str, _Cost] = {}
    for record in new:
        if record.cost_nano:
            cost = costs.setdefault(record.organization_id, _Cost())
            cost.whole += record.cost_nano
            cost.leased += min(record.cost_nano, record.leased_nano)
    entries: dict[str, int] = {}
    if costs:
        accounts = await _accounts(connection, process_id, list(costs))
        changes = [
            _usage_entry(organization_id, accounts[organization_id].debit(cost), process_id, now)
            for organization_id, cost in costs.items()
        ]
        await _store(connection, process_id, accounts, now)
        entries = await _enter(connection, changes)
    if new:
        await add_usage(
            connection, [(record, entries[record.organization_id] if record.cost_nano else None) for record in new]
        )
        await add_to_rollups(connection, new)
    return new


async def take_lease(
    connection: AsyncConnection, organization_id: str, process_id: str, needs: Sequence[int], *, have: int, now: int
) -> tuple[int, bool]:
    """Set money aside for a process that has `have` left: for all of `needs`, or as many as there is money for.

    Returns how much was added to its lease, and whether that is for further needs too: with plenty of money it is more,
    so that the process need not ask again soon.
    """
    accounts = await _accounts(connection, process_id, [organization_id])
    account = accounts[organization_id]
    free = account.balance.available_nano - account.leased
    ahead = free // _SHARE if free >= _PLENTY * max(needs) else 0
    amount = max(_covered(needs, free + have) - have, ahead)
    if amount > 0:
        account.lease(amount)
        await _store(connection, process_id, accounts, now)
    return max(amount, 0), ahead > 0


async def return_lease(
    connection: AsyncConnection, organization_id: str, process_id: str, amount: int | None, now: int
) -> None:
    """Give money of a lease back, None for all of it. More than it holds is a bug and an `AssertionError`."""
    accounts = await _accounts(connection, process_id, [organization_id])
    account = accounts[organization_id]
    held = account.held or 0
    amount = held if amount is None else amount
    assert amount <= held, f"{process_id} gives back {amount} of {held}"
    account.lease(-amount)
    await _store(connection, process_id, accounts, now)


async def return_leases(connection: AsyncConnection, process_id: str, now: int) -> list[Lease]:
    """Give back all leases of a process that ends, or has ended; returns what they were."""
    leases = await list_leases(connection, process_id)
    if leases:
        accounts = await _accounts(connection, process_id, [each.organization_id for each in leases])
        for account in accounts.values():
            account.lease(-(account.held or 0))
        await _store(connection, process_id, accounts, now)
    await connection.execute(delete(lease).where(lease.c.process_id == process_id))
    return leases


async def change_balance(connection: AsyncConnection, change: Entry) -> Balance:
    """Add an entry that is no usage; returns the balance after it.

    Raises `BalanceTooLow` for what would take away what requests that run now may cost.
    """
    accounts = await _accounts(connection, "", [change.organization_id])
    account = accounts[change.organization_id]
    before, after = account.balance, _sum(account.balance, Balance(change.cash_nano, change.voucher_nano))
    if after.available_nano < min(before.available_nano, account.leased) or after.voucher_nano < 0:
        free = before.available_nano - account.leased
        raise BalanceTooLow(max(0, min(free, before.voucher_nano) if change.voucher_nano else free))
    account.balance = after
    await _store(connection, "", accounts, change.created_at)
    await _enter(connection, [change])
    return after


async def find_booking(connection: AsyncConnection, organization_id: str, key: str) -> str | None:
    """The request that changed the balance under this key of idempotency."""
    query = select(booking.c.request).where(booking.c.organization_id == organization_id, booking.c.key == key)
    return (await connection.execute(query)).scalar_one_or_none()


async def add_booking(connection: AsyncConnection, organization_id: str, key: str, request: str, now: int) -> None:
    values = {"organization_id": organization_id, "key": key, "request": request, "created_at": now}
    await connection.execute(insert(booking).values(values))


async def read_balance(connection: AsyncConnection, organization_id: str) -> Balance:
    """What is in the database now. Raises `NoResultFound` for an organization that there is not."""
    columns = (balance.c.cash_nano, balance.c.voucher_nano)
    query = select(*columns).where(balance.c.organization_id == organization_id)
    return Balance(*(await connection.execute(query)).one())


async def list_entries(
    connection: AsyncConnection, organization_id: str, *, kind: EntryKind | None, before: int | None, limit: int
) -> list[BookedEntry]:
    """At most `limit` entries, the newest first: those with ids under `before`, all for None."""
    query = select(entry).where(entry.c.organization_id == organization_id).order_by(entry.c.id.desc()).limit(limit)
    if kind is not None:
        query = query.where(entry.c.kind == kind)
    if before is not None:
        query = query.where(entry.c.id < before)
    return [BookedEntry(**row) for row in (await connection.execute(query)).mappings()]


async def recharged(connection: AsyncConnection, organization_id: str) -> int:
    """All cash that was ever credited, in nano-units."""
    query = select(entry.c.cash_nano).where(entry.c.organization_id == organization_id, entry.c.kind == "credit")
    return sum((await connection.execute(query)).scalars())


async def list_leases(connection: AsyncConnection, process_id: str | None = None) -> list[Lease]:
    """The leases that hold money, of one process or of all, the oldest change first."""
    query = (
        select(lease)
        .where(lease.c.amount_nano > 0)
        .order_by(lease.c.updated_at, lease.c.process_id, lease.c.organization_id)
    )
    if process_id is not None:
        query = query.where(lease.c.process_id == process_id)
    return [Lease(**row) for row in (await connection.execute(query)).mappings()]


async def find_imbalances(connection: AsyncConnection) -> list[Imbalance]:
    """Recompute every balance, lease total, charge and rollup from what they are made of."""
    return [
        Imbalance(organization_id=row[0], what=what, stored=int(row[1]), computed=int(row[2]))
        for what, query in _CHECKS.items()
        for row in await connection.execute(text(query))
    ]


async def count_checked(connection: AsyncConnection) -> tuple[int, int]:
    """How many organizations and usage records `find_imbalances` looks at."""
    row = (
        await connection.execute(text("SELECT (SELECT count(*) FROM organization), (SELECT count(*) FROM usage)"))
    ).one()
    return int(row[0]), int(row[1])


def _covered(needs: Sequence[int], money: int) -> int:
    """The sum of those of `needs`, taken in order, that `money` is enough for."""
    taken = 0
    for need in needs:
        if taken + need <= money:
            taken += need
    return taken


def _usage_entry(organization_id: str, change: Balance, process_id: str, now: int) -> Entry:
    return Entry(
        organization_id=organization_id,
        kind="usage",
        cash_nano=change.cash_nano,
        voucher_nano=change.voucher_nano,
        note=process_id,
        created_at=now,
    )


async def _accounts(connection: AsyncConnection, process_id: str, organization_ids: list[str]) -> dict[str, _Account]:
    """The accounts with those ids, as they are once nobody else can change them.

    A balance that is missing is made: a charge is never lost for it.
    """
    ids = {"organization_ids": organization_ids, "process": process_id}
    rows = (await connection.execute(_ACCOUNTS, ids)).all()
    held = {row[0]: row[1] for row in await connection.execute(_HELD, ids)}
    accounts = {
        row[0]: _Account(Balance(row[1], row[2]), row[3], row[4], held.get(row[0]), row[0] in held) for row in rows
    }
    missing = [organization_id for organization_id in organization_ids if organization_id not in accounts]
    if missing:
        zeros = {"cash_nano": 0, "voucher_nano": 0, "leased_nano": 0}
        await connection.execute(_ADD_BALANCE, [{"organization_id": each, **zeros} for each in missing])
        accounts |= {each: _Account(Balance(0, 0), 0, 0, None, False) for each in missing}
    return accounts


async def _store(connection: AsyncConnection, process_id: str, accounts: Mapping[str, _Account], now: int) -> None:
    """Write accounts back."""
    balances = [
        {
            "organization": organization_id,
            "cash": account.balance.cash_nano,
            "voucher": account.balance.voucher_nano,
            "leased": account.leased,
            "excess": min(account.excess, account.shortage),
        }
        for organization_id, account in accounts.items()
    ]
    await connection.execute(_SET_BALANCE, balances)
    for statement, existed in ((_SET_LEASE, True), (_ADD_LEASE, False)):
        leases = [
            {"organization": organization_id, "process": process_id, "held": account.held, "now": now}
            for organization_id, account in accounts.items()
            if account.held is not None and account.existed == existed
        ]
        if leases:
            await connection.execute(statement, leases)


async def _enter(connection: AsyncConnection, changes: Sequence[Entry]) -> dict[str, int]:
    """Add entries, at most one for each organization, and return their ids by organization."""
    added = await connection.execute(_ADD_ENTRY, [asdict(change) for change in changes])
    return dict(zip([change.organization_id for change in changes], added.scalars(), strict=True))


def _sum(before: Balance, change: Balance) -> Balance:
    return Balance(before.cash_nano + change.cash_nano, before.voucher_nano + change.voucher_nano)
