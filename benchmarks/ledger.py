"""What do a key, limits, a reservation and a settlement cost a request, and how often is the database asked for them?

`python -m benchmarks.ledger [--requests 20000] [--rounds 5] [--database URL]`

Requests of one prepaid organization with plenty of money and four limits, one after the other, without any HTTP. "On
the request's path" is what runs before its answer can end; "all" adds the task that writes the records to the database,
and leases.
"""

import argparse
import asyncio
import datetime
import statistics
import tempfile
import time
from pathlib import Path

from sqlalchemy import event

from moonbase.accounts import ids
from moonbase.accounts.accounts import Accounts
from moonbase.accounts.changes import milliseconds
from moonbase.accounts.tokens import Tokens
from moonbase.catalog.prices import Price
from moonbase.store.database import Database, database_url
from moonbase.store.keys import add_key, add_organization, add_project
from moonbase.store.ledger import change_balance
from moonbase.store.migrate import migrate
from moonbase.store.records import Entry, Key, Limits, Organization, Project

_PRICE = Price(
    since=datetime.date(2025, 9, 5), miss=600_000_000, hit=150_000_000, write=600_000_000, output=2_500_000_000
)
_USED = Tokens(prompt=700, cached=500, output=120)
_TURN = 200  # requests between two turns of the other tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--database", help="URL of an empty database; by default a SQLite file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(Path(folder), options.database, options.requests, options.rounds))


async def _measure(folder: Path, url: str | None, requests: int, rounds: int) -> None:
    address = database_url(url, folder)
    await migrate(address)
    async with Database(address) as database:
        secret = await _payer(database)
        async with Accounts(database, folder / "spool") as accounts:
            await _round(accounts, secret, "warm", 1_000)
            statements = _counted(database)
            for name in range(rounds):
                before = len(statements)
                path, everything = await _round(accounts, secret, str(name), requests)
                asked = len([one for one in statements[before:] if "lease" in one or "balance" in one])
                print(
                    f"round {name}: {path:.1f} µs on the request's path, {everything:.1f} µs with all; "
                    f"{len(statements) - before} statements for {requests} requests, {asked} on balances and leases"
                )


async def _round(accounts: Accounts, secret: str, name: str, requests: int) -> tuple[float, float]:
    """Microseconds of CPU per request: on its path, and of the whole process."""
    spent: list[float] = []
    began = time.process_time()
    for first in range(0, requests, _TURN):
        turn = time.thread_time()
        for number in range(first, first + _TURN):
            caller = await accounts.authenticate(secret)
            with accounts.admit(caller) as admission:
                await admission.charge(900)
                reservation = await accounts.ledger.reserve(
                    caller,
                    request_id=f"{name}-{number}",
                    model="kimi-k2-0905-preview",
                    served_by="echo",
                    price=_PRICE,
                    prompt_tokens=700,
                    max_tokens=200,
                    started_at=0,
                )
                with reservation:
                    reservation.settle(_USED, outcome="stop")
        spent.append((time.thread_time() - turn) / _TURN)
        await asyncio.sleep(0.01)
    await accounts.ledger.recorder.flush()
    return statistics.median(spent) * 1e6, (time.process_time() - began) / requests * 1e6


def _counted(database: Database) -> list[str]:
    """Every statement from now on."""
    statements: list[str] = []
    assert database._engine is not None
    event.listen(database._engine.sync_engine, "before_cursor_execute", lambda *call: statements.append(str(call[2])))
    return statements


async def _payer(database: Database) -> str:
    secret = ids.secret()
    organization = Organization(
        id="org-a",
        uid="u",
        name="a",
        tier=5,
        currency="USD",
        postpaid=False,
        created_at=0,
        limits=Limits(concurrency=1_000, rpm=10**9, tpm=10**12, tpd=10**12),
    )
    project = Project(id="proj-a", organization_id="org-a", name="a", created_at=0)
    key = Key(id="ak-a", project_id="proj-a", name="a", hint="", created_at=0)
    money = Entry(
        organization_id="org-a", kind="credit", cash_nano=10**15, voucher_nano=0, note="", created_at=milliseconds()
    )
    async with database.write() as connection:
        await add_organization(connection, organization)
        await add_project(connection, project)
        await add_key(connection, key, ids.secret_hash(secret))
        await change_balance(connection, money)
    return secret


if __name__ == "__main__":
    main()
