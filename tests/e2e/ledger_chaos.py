"""Live streams while what they need dies, again and again, and the comparison of what clients got with the ledger.

Three servers share a database and a folder of spools, or one server has three gateway processes. Clients keep streams
open on all of them. At random moments the victim is killed and started again: one of the servers or of the gateway
processes, their database, their Redis, or the worker of an engine. In the end every request that a client saw is looked
up in the ledger.
"""

import asyncio
import json
import os
import random
import signal
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from sqlalchemy import URL, text
from tests.e2e.payers import in_database, prepaid_key
from tests.e2e.prompts import four_bytes
from tests.e2e.server import CHAT, Server, chat_body, eventually
from tests.postgres_child import PostgresChild
from tests.redis_child import RedisChild

from moonbase import config
from moonbase.accounts.ledger import MARK_TOKENS
from moonbase.catalog.catalog import load_catalog
from moonbase.catalog.weights import DEFAULT_WEIGHTS, locate
from moonbase.engines.tokenizers.huggingface import HuggingFaceTokenizer
from moonbase.store.database import Database, database_url
from moonbase.store.ledger import find_imbalances, list_leases
from moonbase.store.migrate import migrate
from moonbase.store.records import Limits

Name = Literal["gateway", "gateway-process", "database", "redis", "redis-refusing", "engine"]
NAMES: tuple[Name, ...] = get_args(Name)

SERVERS = 3
DELAY = 0.05  # seconds per token of the echo engine
MOST_TOKENS = 100
MISS, HIT, OUTPUT = 600, 150, 2_500  # nano-dollars per token
RICH, SCANT = "org-rich", "org-scant"  # the second has too little for leases ahead: each request asks the database
CASH = 10**15
SCANT_TOKENS = 60_000  # that a request of it may have
SCANT_CASH = 95 * SCANT_TOKENS * OUTPUT
SCANT_SHARE = 0.1  # of the clients
_AMPLE = Limits(concurrency=10**6, rpm=10**9, tpm=10**12, tpd=10**12)  # so that Redis is asked and refuses nobody

Start = Callable[..., Server]


class Victim(Protocol):
    """What dies and comes back. Its methods block."""

    def kill(self) -> None: ...

    def start(self) -> None:
        """Start it again, or wait until that is done, and until it works."""
        ...


class Fleet:
    """Servers on one home; as a victim, any of them."""

    def __init__(self, start: Callable[[], Server], chance: random.Random, count: int = SERVERS) -> None:
        with ThreadPoolExecutor(SERVERS) as pool:
            self.servers = list(pool.map(lambda _: start(), range(count)))
        self.killed: set[Server] = set()
        self._start = start
        self._chance = chance
        self._number = 0

    def kill(self) -> None:
        self._number = self._chance.randrange(len(self.servers))
        victim = self.servers[self._number]
        self.killed.add(victim)
        victim.process.kill()
        victim.process.wait()

    def start(self) -> None:
        self.servers[self._number] = self._start()

    def close(self, *, but: str | None) -> None:
        """End all and hold them to a clean end."""
        with ThreadPoolExecutor(SERVERS) as pool:
            list(pool.map(lambda server: server.close(but=but), self.servers))

    def end(self) -> None:
        """Whatever has happened: leave no process behind."""
        for server in self.servers:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()


class GatewayProcesses:
    """Those of a fleet's one server, which starts them again; each time one of them dies."""

    def __init__(self, fleet: Fleet, chance: random.Random) -> None:
        (self._server,) = fleet.servers
        fleet.killed.add(self._server)
        self._chance = chance
        self._before: set[int] = set()

    def kill(self) -> None:
        self._before = self._server.gateway_pids
        os.kill(self._chance.choice(sorted(self._before)), signal.SIGKILL)

    def start(self) -> None:
        """What comes to its port waits until it serves."""
        eventually(lambda: len(self._server.gateway_pids - self._before) == 1, within=60)


class Workers:
    """The workers of a fleet's engines; each time one of them dies. Its server starts it again."""

    def __init__(self, fleet: Fleet, chance: random.Random) -> None:
        self._fleet = fleet
        self._chance = chance
        self._server = fleet.servers[0]

    def kill(self) -> None:
        self._server = self._chance.choice(self._fleet.servers)
        os.kill(self._server.worker_pid, signal.SIGKILL)
        self._until_ready_is(503)

    def start(self) -> None:
        self._until_ready_is(200)

    def _until_ready_is(self, status: int) -> None:
        eventually(lambda: self._server.get("/readyz").status == status, within=60)


@dataclass(frozen=True, kw_only=True)
class Play:
    """What a run needs, and what its clients may meet. `lives` and `gone`: at least and at most so many seconds."""

    options: tuple[str, ...] = ("engine.max_running=1000", f"echo.delay={DELAY}")
    engine: str = "echo"
    lives: tuple[float, float] = (0.2, 1.5)
    gone: tuple[float, float] = (0, 0)
    refuses: bool = False
    """Whether requests may be answered 503."""
    fails: bool = False
    """Whether answers may end in an error."""
    late: float = 15
    """Seconds after which a client that has no answer yet says that the server hangs."""
    accident: str | None = None
    """What alone may be in the log as an error."""


PLAYS: dict[Name, Play] = {
    "gateway": Play(),
    "gateway-process": Play(accident="killed by SIGKILL"),
    "database": Play(gone=(0, 2), refuses=True),
    "redis": Play(lives=(1, 2), gone=(0, 2)),  # it is looked for once a second
    "redis-refusing": Play(lives=(1.5, 2.5), gone=(0, 2), refuses=True),
    "engine": Play(
        engine="openvino",
        options=("engine.max_running=200", f"engine.cache_bytes={1 << 30}"),
        lives=(6, 12),
        refuses=True,
        fails=True,
        late=60,
        accident="killed by SIGKILL",
    ),
}


@dataclass(eq=False)
class Stream:
    """What a client saw of one request. `kills` is the number of those that were over when it ended."""

    server: Server
    most: int
    began: float
    status: int | None = None
    request_id: str = ""
    text: str = ""
    finish: str | None = None
    usage: dict[str, int] | None = None
    failed: bool = False
    ended: float = 0.0
    kills: int = 0


@dataclass
class Charge:
    outcome: str
    miss: int
    hit: int
    output: int
    cost: int


@dataclass
class Report:
    """The result. `unsettled` has, for each kill, the tokens that its clients got and nobody is charged for."""

    kills: int
    live: list[int] = field(default_factory=list)
    """Streams that had begun and not ended, at each kill."""
    finished: int = 0
    interrupted: int = 0
    """Cut by the death of their server."""
    failed: int = 0
    """Ended by an error of the server's."""
    refused: int = 0
    """Answered 503."""
    unanswered: int = 0
    """Sent to a server that died before it answered."""
    unsettled: list[int] = field(default_factory=list)
    largest: int = 0
    """The most that one answer has unsettled."""
    slowest: float = 0.0
    """The longest that a client waited for an answer to begin, in seconds."""
    charged: int = 0
    """Answers that cost something."""
    charged_tokens: int = 0
    """Their output."""
    charged_nano: int = 0
    difference_nano: int = 0
    """What entries sum to, less what the balances are."""

    def __str__(self) -> str:
        """The rows of a table, and a line with what each kill left unsettled."""
        rows = {
            "streams that ran at a kill": _spread(self.live),
            "answers finished": f"{self.finished:,}",
            "interrupted by their server's death": f"{self.interrupted:,}",
            "not begun when their server died": f"{self.unanswered:,}",
            "ended by an error of the server's": f"{self.failed:,}",
            "answered 503": f"{self.refused:,}",
            "charged": f"{self.charged:,} answers, {self.charged_tokens:,} tokens of output",
            "unsettled tokens of a kill": _spread(self.unsettled),
            "unsettled tokens of an answer, most": str(self.largest),
            "longest wait for an answer to begin": f"{self.slowest:.1f} s",
            "entries less balances": f"{self.difference_nano} nano-dollars of {self.charged_nano:,} charged",
        }
        lines = [f"| {what} | {value} |" for what, value in rows.items()]
        return "\n".join([*lines, f"unsettled tokens of each kill: {', '.join(map(str, self.unsettled))}"])


def _spread(values: list[int]) -> str:
    return f"{statistics.median(values):g} ({min(values)} to {max(values)})"


class Chaos:
    """One run; `victim` may be the fleet."""

    def __init__(
        self, url: URL, fleet: Fleet, victim: Victim, play: Play, *, streams: int, kills: int, chance: random.Random
    ) -> None:
        self._url = url
        self._fleet = fleet
        self._victim = victim
        self._play = play
        self._streams = streams
        self._kills = kills
        self._chance = chance
        self._echo = play.engine == "echo"
        self._keys = {
            RICH: prepaid_key(url, RICH, cash=CASH, limits=_AMPLE),
            SCANT: prepaid_key(url, SCANT, cash=SCANT_CASH, limits=_AMPLE),
        }
        self._seen: list[Stream] = []
        self._live = 0
        self._over = 0
        self._stopping = False
        self._report = Report(kills)

    def run(self) -> Report:
        """Raises `AssertionError` for whatever the ledger has wrong, and for an answer that no client may get."""
        asyncio.run(self._load())
        self._fleet.close(but=self._play.accident)
        self._compare()
        return self._report

    async def _load(self) -> None:
        scant = round(self._streams * SCANT_SHARE) if self._echo else 0
        async with asyncio.TaskGroup() as clients:
            for number in range(self._streams):
                clients.create_task(self._client(SCANT if number < scant else RICH))
            await asyncio.sleep(1)
            for _ in range(self._kills):
                await asyncio.sleep(self._chance.uniform(*self._play.lives))
                self._report.live.append(self._live)
                await asyncio.to_thread(self._victim.kill)
                await asyncio.sleep(self._chance.uniform(*self._play.gone))
                await asyncio.to_thread(self._victim.start)
                self._over += 1
                await asyncio.to_thread(in_database, self._url, _balanced)
            self._stopping = True

    async def _client(self, organization: str) -> None:
        while not self._stopping:
            server = self._chance.choice(self._fleet.servers)
            most = self._chance.randint(10, MOST_TOKENS)
            seen = Stream(server, most, time.monotonic())
            async with AsyncExitStack() as stack:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                    stack.push_async_callback(_closed, writer)
                    self._seen.append(seen)
                    await self._ask(reader, writer, self._request(organization, most), seen)
                except (ConnectionError, asyncio.IncompleteReadError):
                    assert server in self._fleet.killed, "a connection broke of which no server died"
            seen.ended = time.monotonic()
            seen.kills = self._over
            if seen.status != 200:
                await asyncio.sleep(0.1)

    def _request(self, organization: str, most: int) -> bytes:
        """A request for `most` tokens of output: at most so many of a real model, exactly so many of `echo`."""
        if not self._echo:  # each its own text: what was in a worker that died runs alone when it comes again
            wanted = f"Tell me a long story about the number {self._chance.randrange(10**9)}."
            limit = most
        elif organization == SCANT:
            wanted, limit = _words(most), SCANT_TOKENS
        else:
            wanted, limit = _words(MOST_TOKENS + 1), most
        body = chat_body(wanted, stream=True, max_tokens=limit, stream_options={"include_usage": True})
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._keys[organization]}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + body

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, seen: Stream
    ) -> None:
        writer.write(request)
        async with asyncio.timeout(self._play.late):
            head = await reader.readuntil(b"\r\n\r\n")
        self._report.slowest = max(self._report.slowest, time.monotonic() - seen.began)
        seen.status = int(head.split(b" ", 2)[1])
        seen.request_id = _header(head, "msh-request-id")
        if seen.status != 200:
            assert (seen.status, self._play.refuses) == (503, True), head + await reader.read()
            assert int(_header(head, "retry-after")) > 0
            return
        self._live += 1
        try:
            while (line := await self._line(reader)).endswith(b"\n"):
                if line.startswith(b"data: {"):
                    _read(json.loads(line.removeprefix(b"data: ")), seen)
                elif line.startswith(b"data: [DONE]"):
                    return
            assert seen.failed or seen.server in self._fleet.killed, "an answer broke off and nobody said why"
        finally:
            self._live -= 1

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        async with asyncio.timeout(self._play.late):
            return await reader.readline()

    def _compare(self) -> None:
        charges = in_database(self._url, _charges)
        report = self._report
        report.unsettled = [0] * self._kills
        report.charged = sum(charge.cost > 0 for charge in charges.values())
        report.charged_tokens = sum(charge.output for charge in charges.values())
        report.charged_nano = sum(charge.cost for charge in charges.values())
        count = four_bytes if self._echo else _model_tokens()
        for charge in charges.values():
            assert charge.cost == charge.miss * MISS + charge.hit * HIT + charge.output * OUTPUT, charge
        for seen in self._seen:
            charge = charges.pop(seen.request_id, Charge("", 0, 0, 0, 0))
            if seen.usage is not None:
                self._compare_finished(seen, charge)
                report.finished += 1
                continue
            if seen.status is None:
                assert seen.server in self._fleet.killed
                report.unanswered += 1
                continue
            if seen.status == 503:
                assert charge.cost == 0, (seen, charge)
                report.refused += 1
                continue
            received = count(seen.text)
            if seen.failed:
                assert self._play.fails, (seen, charge)
                assert (charge.outcome, charge.cost) == ("failed", 0), (seen, charge)
                report.failed += 1
            else:
                self._compare_interrupted(seen, charge, received)
                report.interrupted += 1
            unsettled = max(received - charge.output, 0)
            report.unsettled[min(seen.kills, self._kills - 1)] += unsettled
            report.largest = max(report.largest, unsettled)
        assert len(charges) <= report.unanswered
        for charge in charges.values():
            assert charge.outcome in ("interrupted", "length", "stop"), charge
        entries, balances = in_database(self._url, _sums)
        assert balances == CASH + SCANT_CASH - report.charged_nano
        report.difference_nano = entries - balances
        assert report.difference_nano == 0

    def _compare_finished(self, seen: Stream, charge: Charge) -> None:
        assert seen.usage is not None
        told = seen.usage["prompt_tokens"], seen.usage.get("cached_tokens", 0), seen.usage["completion_tokens"]
        assert told == (charge.miss + charge.hit, charge.hit, charge.output), (seen, charge)
        assert charge.outcome == seen.finish, (seen, charge)
        if self._echo:
            assert charge.output == four_bytes(seen.text) == seen.most, (seen, charge)

    def _compare_interrupted(self, seen: Stream, charge: Charge, received: int) -> None:
        """Of the echo engine only: a server that dies takes its own workers with it."""
        assert seen.server in self._fleet.killed
        assert self._echo
        assert charge.outcome in ("", "interrupted", "length", "stop"), (seen, charge)
        generated = min((seen.ended - seen.began) / DELAY + 2, seen.most)
        assert charge.output <= generated, (seen, charge)
        assert received - charge.output <= MARK_TOKENS, (seen, charge)


def run(
    name: Name, folder: Path, start: Start, *, url: URL | None = None, streams: int, kills: int, seed: int = 0
) -> Report:
    """Kill `name` under so many streams; `start` is called as `Server` is, but for the folder.

    `url` is where the database is to be, by default in `folder`; one that is to be killed is its own. Raises
    `AssertionError` for whatever is not as it must be.
    """
    play, chance = PLAYS[name], random.Random(seed)
    with ExitStack() as stack:
        options = list(play.options)
        own: PostgresChild | RedisChild | None = None
        count = 1 if name == "gateway-process" else SERVERS
        if name == "database":
            own = stack.enter_context(PostgresChild())
            url = own.url
        elif name in ("redis", "redis-refusing"):
            own = stack.enter_context(RedisChild())
            without = "refuse" if name == "redis-refusing" else "local"
            options += [f"limits.redis_url={own.url}", f"limits.without_redis={without}"]
        elif name == "gateway-process":
            shared = stack.enter_context(RedisChild())
            options += [f"limits.redis_url={shared.url}", f"server.workers={SERVERS}"]
        url = url or database_url(None, folder)
        asyncio.run(migrate(url))
        options.append(f"database.url={url.render_as_string(hide_password=False)}")
        arguments = [argument for option in options for argument in ("--set", option)]
        given: dict[str, Any] = {"engine": play.engine, "env": {"MOONBASE_HOME": str(folder)}}
        if play.engine != "echo":
            given["cache"] = config.cache()
        fleet = Fleet(lambda: start(*arguments, **given), chance, count)
        stack.callback(fleet.end)
        victim: Victim = own or fleet
        if name == "engine":
            victim = Workers(fleet, chance)
        elif name == "gateway-process":
            victim = GatewayProcesses(fleet, chance)
        return Chaos(url, fleet, victim, play, streams=streams, kills=kills, chance=chance).run()


def _words(tokens: int) -> str:
    """A text of so many tokens, which are four bytes each where no vocabulary is."""
    return "abc " * (tokens - 1) + "end."


def _model_tokens() -> Callable[[str], int]:
    """Tokens of a text, as the default model would read it."""
    path = locate(DEFAULT_WEIGHTS, load_catalog({}), config.cache())
    assert path is not None
    tokenizer = HuggingFaceTokenizer.read(path)
    return lambda written: len(tokenizer.encode_plain(written))


def _header(head: bytes, name: str) -> str:
    for line in head.decode("latin-1").split("\r\n"):
        key, _, value = line.partition(": ")
        if key.lower() == name:
            return value
    raise AssertionError(head)


def _read(chunk: dict[str, Any], seen: Stream) -> None:
    if "error" in chunk:
        assert chunk["error"]["type"] == "server_unavailable", chunk
        seen.failed = True
        return
    for choice in chunk["choices"]:
        seen.text += choice["delta"].get("content") or ""
        seen.finish = choice["finish_reason"] or seen.finish
    seen.usage = chunk.get("usage") or seen.usage


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def _balanced(database: Database) -> None:
    """Everything adds up, whatever runs."""
    async with database.snapshot() as connection:
        assert await find_imbalances(connection) == []


async def _charges(database: Database) -> dict[str, Charge]:
    """All charges by request. Everything adds up and no lease is lost."""
    await _balanced(database)
    async with database.read() as connection:
        assert await list_leases(connection) == []
        rows = await connection.execute(
            text("SELECT request_id, outcome, prompt_miss, prompt_hit, output, cost_nano FROM usage")
        )
        return {row[0]: Charge(*row[1:]) for row in rows}


async def _sums(database: Database) -> tuple[int, int]:
    """Of all entries, and of all balances."""
    async with database.read() as connection:
        entries = await connection.execute(text("SELECT SUM(cash_nano + voucher_nano) FROM entry"))
        balances = await connection.execute(text("SELECT SUM(cash_nano + voucher_nano) FROM balance"))
        return int(entries.scalar_one()), int(balances.scalar_one())
