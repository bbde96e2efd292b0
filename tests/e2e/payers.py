"""Organizations with money of their own, made in a server's database, and many requests at once."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from sqlalchemy import URL
from tests.accounts.money import add_rich
from tests.e2e.server import CHAT

from moonbase.accounts import ids
from moonbase.store.database import Database
from moonbase.store.keys import add_key, add_project
from moonbase.store.ledger import find_imbalances, list_leases, read_balance
from moonbase.store.records import NO_LIMITS, Balance, Key, Lease, Limits, Project

T = TypeVar("T")


def in_database(url: URL, use: Callable[[Database], Awaitable[T]]) -> T:
    """What `use` makes of a database that servers may be using."""

    async def run() -> T:
        async with Database(url) as database:
            return await use(database)

    return asyncio.run(run())


def prepaid_key(
    url: URL,
    name: str,
    *,
    cash: int = 10**15,
    limits: Limits = NO_LIMITS,
    project_limits: Limits = NO_LIMITS,
    key_limits: Limits = NO_LIMITS,
) -> str:
    """The secret of a key of a new prepaid organization, whose id is `name`, with `cash` nano-units.

    The limits are its own, its project's and its key's.
    """
    secret = ids.secret()

    async def make(database: Database) -> None:
        await add_rich(database, name, cash=cash, limits=limits)
        project = Project(
            id=ids.project_id(), organization_id=name, name="default", created_at=0, limits=project_limits
        )
        key = Key(
            id=ids.key_id(),
            project_id=project.id,
            name="default",
            hint=secret[-4:],
            created_at=0,
            limits=key_limits,
        )
        async with database.write() as connection:
            await add_project(connection, project)
            await add_key(connection, key, ids.secret_hash(secret))

    in_database(url, make)
    return secret


def books(url: URL, organization_id: str) -> tuple[Balance, list[Lease]]:
    """The balance and the leases of all; everything adds up."""

    async def read(database: Database) -> tuple[Balance, list[Lease]]:
        async with database.snapshot() as connection:
            assert await find_imbalances(connection) == []
            return await read_balance(connection, organization_id), await list_leases(connection)

    return in_database(url, read)


def ask_at_once(ports: Sequence[int], body: bytes, key: str, count: int) -> Counter[tuple[int, str]]:
    """How many of `count` requests at once, spread over the servers, ended with which status and error type."""
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )

    async def ask(port: int) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + body)
        answer, _, content = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        status = int(answer.split(b" ", 2)[1])
        return status, "" if status == 200 else json.loads(content)["error"]["type"]

    async def run() -> Counter[tuple[int, str]]:
        return Counter(await asyncio.gather(*(ask(ports[number % len(ports)]) for number in range(count))))

    return asyncio.run(run())
