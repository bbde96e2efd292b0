"""Gateways that die under live streams, again and again, and the comparison of what clients got with what was charged.

Three servers share a database and a folder of spools. Clients keep streams open on all of them. At random moments one
server is killed and started again. In the end every request that a client saw is looked up in the ledger.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from sqlalchemy import URL, text
from tests.e2e.payers import in_database, prepaid_key
from tests.e2e.prompts import four_bytes
from tests.e2e.server import CHAT, Server, chat_body

from moonbase.accounts.ledger import MARK_TOKENS
from moonbase.store.database import Database
from moonbase.store.ledger import find_imbalances, list_leases, read_balance

ORGANIZATION = "org-chaos"
CASH = 10**15
DELAY = 0.05  # seconds per token
MOST_TOKENS = 120
SERVERS = 3
_WORDS = "abc " * MOST_TOKENS * 2  # a token is four bytes, where no vocabulary is
_RESTART_S = 30.0

Start = Callable[[int], Server]


@dataclass
class Stream:
    """What a client saw of one answer. `killed` is the number of the kill that ended it."""

    request_id: str
    max_tokens: int
    began: float
    received: int = 0
    told: int | None = None
    ended: float = 0.0
    killed: int | None = None


@dataclass
class Charge:
    outcome: str
    prompt: int
    output: int
    cost: int


@dataclass
class Report:
    """The result, in tokens. `unsettled` has, for each kill, what its clients got and nobody is charged for."""

    kills: int
    finished: int
    interrupted: int
    unsettled: list[int] = field(default_factory=list)
    largest: int = 0
    """The most that one interrupted answer has unsettled."""
    charged_nano: int = 0


class Chaos:
    """A run. `start(number)` starts server `number`, always on the same home."""

    def __init__(self, url: URL, start: Start, *, streams: int, kills: int, seed: int = 0) -> None:
        self._url = url
        self._start = start
        self._streams = streams
        self._kills = kills
        self._random = random.Random(seed)
        self._servers: list[Server] = []
        self._key = prepaid_key(url, ORGANIZATION, cash=CASH)
        self._seen: list[Stream] = []
        self._killed: dict[int, int] = {}
        self._stopping = False

    def run(self) -> Report:
        """Raises `AssertionError` for whatever the ledger has wrong."""
        self._servers = [self._start(number) for number in range(SERVERS)]
        asyncio.run(self._load())
        for server in self._servers:
            server.close()
        return self._compare()

    async def _load(self) -> None:
        clients = [asyncio.create_task(self._client()) for _ in range(self._streams)]
        await asyncio.sleep(2)
        for kill in range(self._kills):
            await asyncio.sleep(self._random.uniform(0.2, 1.0))
            number = self._random.randrange(SERVERS)
            victim = self._servers[number]
            self._killed[victim.process.pid] = kill
            victim.process.kill()
            victim.process.wait()
            self._servers[number] = await asyncio.to_thread(self._start, number)
        self._stopping = True
        async with asyncio.timeout(120):
            await asyncio.gather(*clients)

    async def _client(self) -> None:
        while not self._stopping:
            server = self._random.choice(self._servers)
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            except OSError:
                await asyncio.sleep(0.1)
                continue
            try:
                await self._stream(reader, writer, server)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: Server) -> None:
        max_tokens = self._random.randint(10, MOST_TOKENS)
        body = chat_body(_WORDS, stream=True, max_tokens=max_tokens, stream_options={"include_usage": True})
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        began = time.monotonic()
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        seen = Stream(_header(answer, "msh-request-id"), max_tokens, began)
        self._seen.append(seen)
        try:
            while line := await reader.readline():
                if line.startswith(b"data: {"):
                    _read(line, seen)
                elif line.startswith(b"data: [DONE]"):
                    break
        finally:
            seen.ended = time.monotonic()
            seen.killed = self._killed.get(server.process.pid)

    def _compare(self) -> Report:
        charges, cash = in_database(self._url, _ledger)
        finished = [seen for seen in self._seen if seen.told is not None]
        interrupted = [seen for seen in self._seen if seen.told is None]
        report = Report(self._kills, len(finished), len(interrupted), [0] * self._kills)
        for seen in finished:
            charge = charges.pop(seen.request_id)
            assert (charge.outcome, charge.output) == ("length", seen.told), (seen, charge)
            assert charge.output == seen.received == seen.max_tokens
            report.charged_nano += charge.cost
        for seen in interrupted:
            assert seen.killed is not None, f"nobody killed the server of {seen}"
            charge = charges.pop(seen.request_id, Charge("", 0, 0, 0))
            generated = min((seen.ended - seen.began) / DELAY + 2, seen.max_tokens)
            assert charge.output <= generated, (seen, charge)
            assert charge.outcome in ("", "interrupted", "length"), (seen, charge)
            unsettled = max(seen.received - charge.output, 0)
            assert unsettled <= MARK_TOKENS, (seen, charge)
            report.unsettled[seen.killed] += unsettled
            report.largest = max(report.largest, unsettled)
            report.charged_nano += charge.cost
        for charge in charges.values():  # their clients had not seen the head of the answer yet
            assert charge.outcome in ("interrupted", "length"), charge
            report.charged_nano += charge.cost
        assert cash == CASH - report.charged_nano
        return report


def _header(head: bytes, name: str) -> str:
    for line in head.decode("latin-1").split("\r\n"):
        key, _, value = line.partition(": ")
        if key.lower() == name:
            return value
    raise AssertionError(head)


def _read(line: bytes, seen: Stream) -> None:
    chunk = json.loads(line.removeprefix(b"data: "))
    assert "error" not in chunk, chunk
    for choice in chunk["choices"]:
        seen.received += four_bytes(choice["delta"].get("content") or "")
    if chunk.get("usage"):
        seen.told = chunk["usage"]["completion_tokens"]


async def _ledger(database: Database) -> tuple[dict[str, Charge], int]:
    """All charges by request, and the balance; everything adds up and no lease is lost."""
    async with database.snapshot() as connection:
        assert await find_imbalances(connection) == []
        assert await list_leases(connection) == []
        rows = await connection.execute(
            text("SELECT request_id, outcome, prompt_miss + prompt_hit, output, cost_nano FROM usage")
        )
        charges = {row[0]: Charge(*row[1:]) for row in rows}
        return charges, (await read_balance(connection, ORGANIZATION)).cash_nano
