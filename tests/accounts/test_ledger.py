"""The ledger through crashes: whatever processes do and whenever they die, the books agree and nobody pays twice."""

import asyncio
import datetime
import os
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import structs
from sqlalchemy import URL, text
from tests.accounts.money import add_rich, credit

from moonbase.accounts.changes import Changes
from moonbase.accounts.ledger import Ledger, Reservation, write_off
from moonbase.accounts.tokens import Tokens
from moonbase.catalog.prices import Price
from moonbase.errors import ConfigurationError, DatabaseUnavailable, InsufficientBalance, WriteOffRefused
from moonbase.store.database import Database
from moonbase.store.ledger import change_balance, find_imbalances, list_leases, read_balance, take_lease
from moonbase.store.migrate import migrate
from moonbase.store.records import Balance, Caller

pytestmark = pytest.mark.anyio

PRICE = Price(since=datetime.date(2025, 9, 5), miss=1_000_000, hit=500_000, write=0, output=3_000_000)
PREPAID = Caller("org-a", "proj-a", "ak-a", "u", 1, "USD", postpaid=False)
POSTPAID = structs.replace(PREPAID, postpaid=True)
ORGANIZATIONS = ("org-a", "org-b")


@dataclass
class Running:
    """Tokens of a request as its stream would tell them."""

    prompt_tokens: int = 10
    cached_tokens: int = 0
    completion_tokens: int = 0


def _ledger(database: Database, tmp_path: Path, **options: Any) -> Ledger:
    return Ledger(database, tmp_path / "spool", clock=lambda: 7, **options)


async def _reserve(
    ledger: Ledger, caller: Caller = PREPAID, request_id: str = "r", max_tokens: int = 30
) -> Reservation:
    return await ledger.reserve(
        caller,
        request_id=request_id,
        model="m",
        served_by="echo",
        price=PRICE,
        prompt_tokens=10,
        max_tokens=max_tokens,
        started_at=5,
    )


async def kill(ledger: Ledger) -> None:
    """What SIGKILL does: no more steps, and the system closes what was open."""
    tasks = [task for task in asyncio.all_tasks() if task.get_name() in ("ledger keeper", "usage recorder", "wallet")]
    mine = [task for task in tasks if _owner(task) in (ledger, ledger.recorder, ledger._wallets)]
    for task in mine:
        task.cancel()
    if mine:
        await asyncio.wait(mine)
    os.close(ledger.spool._lock)


def _owner(task: asyncio.Task[Any]) -> object:
    return next((frame.f_locals.get("self") for frame in task.get_stack(limit=1)), None)


async def _outcomes(database: Database) -> dict[str, tuple[str, int]]:
    async with database.read() as connection:
        rows = await connection.execute(text("SELECT request_id, outcome, cost_nano FROM usage"))
        return {row[0]: (row[1], row[2]) for row in rows}


async def test_a_reservation_holds_the_worst_case_and_settles_what_was_used(database: Database, tmp_path: Path) -> None:
    await add_rich(database, "org-a", cash=199)
    async with _ledger(database, tmp_path) as ledger:
        with await _reserve(ledger) as reservation:
            assert reservation.held_nano == 10 + 30 * 3
            with pytest.raises(InsufficientBalance):
                await _reserve(ledger, request_id="s")
            reservation.settle(Tokens(prompt=10, cached=4, output=1), outcome="stop")
        with await _reserve(ledger, request_id="s"):
            pass
    async with database.read() as connection:
        assert await read_balance(connection, "org-a") == Balance(199 - 6 - 2 - 3, 0)
        assert await list_leases(connection) == []


async def test_a_postpaid_organization_is_never_refused(database: Database, tmp_path: Path) -> None:
    async with _ledger(database, tmp_path) as ledger:
        with await _reserve(ledger, POSTPAID) as reservation:
            reservation.settle(Tokens(prompt=10, cached=0, output=30), outcome="stop")
    async with database.read() as connection:
        assert await read_balance(connection, "org-a") == Balance(-100, 0)


async def test_an_organization_may_become_postpaid_while_it_has_requests(database: Database, tmp_path: Path) -> None:
    await add_rich(database, "org-a", cash=250)
    async with _ledger(database, tmp_path) as ledger:
        held = await _reserve(ledger)
        with await _reserve(ledger, POSTPAID, "s") as reservation:
            reservation.settle(Tokens(prompt=10, cached=0, output=30), outcome="stop")
        held.settle(Tokens(prompt=10, cached=0, output=10), outcome="stop")
        await ledger.recorder.flush()
        for _ in range(2):
            await ledger._tidy()
        async with database.read() as connection:
            assert await list_leases(connection) == []
            assert await find_imbalances(connection) == []
            assert await read_balance(connection, "org-a") == Balance(250 - 100 - 40, 0)


async def test_a_request_from_when_an_organization_was_postpaid_is_a_debt_and_no_imbalance(
    database: Database, tmp_path: Path
) -> None:
    await add_rich(database, "org-a", cash=150)
    async with _ledger(database, tmp_path) as ledger, _ledger(database, tmp_path) as other:
        owing = await _reserve(ledger, POSTPAID)
        held = await _reserve(other, request_id="s")
        owing.settle(Tokens(prompt=10, cached=0, output=30), outcome="stop")
        await ledger.recorder.flush()
        async with database.read() as connection:
            assert await find_imbalances(connection) == []
        with pytest.raises(InsufficientBalance):
            await _reserve(ledger, request_id="t", max_tokens=0)
        held.settle(Tokens(prompt=10, cached=0, output=30), outcome="stop")
    async with database.read() as connection:
        assert await list_leases(connection) == []
        assert await find_imbalances(connection) == []
        assert await read_balance(connection, "org-a") == Balance(-50, 0)


async def test_an_answer_that_costs_more_than_was_held_is_charged_whole(database: Database, tmp_path: Path) -> None:
    """Only an upstream that counts otherwise than we did can do that."""
    await add_rich(database, "org-a", cash=150)
    async with _ledger(database, tmp_path) as ledger:
        with await _reserve(ledger) as reservation:
            reservation.settle(Tokens(prompt=200, cached=0, output=0), outcome="stop")
        with pytest.raises(InsufficientBalance):
            await _reserve(ledger, request_id="s")
        await ledger.recorder.flush()
        async with database.write() as connection:
            assert await read_balance(connection, "org-a") == Balance(-50, 0)
            assert await find_imbalances(connection) == []
            await change_balance(connection, credit("org-a", cash=300))
        with await _reserve(ledger, request_id="s") as reservation:
            reservation.settle(Tokens(prompt=10, cached=0, output=0), outcome="stop")
    async with database.read() as connection:
        assert await read_balance(connection, "org-a") == Balance(240, 0)
        assert await list_leases(connection) == []


async def test_nothing_is_admitted_that_could_not_be_recorded(database: Database, tmp_path: Path) -> None:
    caller = Caller("org-a", "proj-a", "ak-a", "u", 1, "USD")
    async with _ledger(database, tmp_path, pending=1) as ledger:
        with await _reserve(ledger, caller):
            pass
        with pytest.raises(DatabaseUnavailable):
            await _reserve(ledger, caller, "s")
        await ledger.recorder.flush()
        with await _reserve(ledger, caller, "s"):
            pass


async def test_a_spool_that_cannot_be_made_stops_the_start(database: Database, tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file")
    with pytest.raises(ConfigurationError, match=r"spool cannot be used \(.*\); make it writable or set MOONBASE_HOME"):
        async with _ledger(database, tmp_path):
            pass


async def test_to_be_safe_on_the_disk_many_wait_for_few_syncs(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda file: (syncs.append(file), real(file)))
    async with _ledger(database, tmp_path, durability="disk") as ledger:
        await asyncio.gather(*(ledger.durable() for _ in range(100)))
        assert len(syncs) == 1
        await ledger.durable()
        assert len(syncs) == 2
    async with _ledger(database, tmp_path) as ledger:
        await ledger.durable()
    assert len(syncs) == 2


async def test_a_running_answer_leaves_marks_in_time_and_every_64_tokens(database: Database, tmp_path: Path) -> None:
    await add_rich(database, "org-a", cash=1_000)
    ledger = await _ledger(database, tmp_path).__aenter__()
    early, late = [await _reserve(ledger, request_id=name) for name in ("early", "late")]
    early_progress, late_progress = Running(), Running()
    early.follow(early_progress)
    late.follow(late_progress)
    late_progress.completion_tokens = 64
    late.mark(64)
    assert (early.marked, late.marked) == (0, 64)
    early_progress.completion_tokens = 1
    await asyncio.sleep(0.4)  # also the first mark comes after a quarter of a second
    assert (early.marked, late.marked) == (1, 64)
    await kill(ledger)
    async with _ledger(database, tmp_path):
        pass
    assert await _outcomes(database) == {"early": ("interrupted", 13), "late": ("interrupted", 202)}


async def test_of_many_answers_each_that_runs_leaves_marks_and_none_that_ended_meanwhile(
    database: Database, tmp_path: Path
) -> None:
    await add_rich(database, "org-a", cash=100_000)
    used = Tokens(prompt=10, cached=0, output=2)
    async with _ledger(database, tmp_path) as ledger:
        reservations = [await _reserve(ledger, request_id=f"r-{number}") for number in range(300)]
        for reservation in reservations:
            reservation.follow(Running(completion_tokens=1))
        for ending in reservations[150:]:
            await asyncio.sleep(0.003)  # marks are made between these
            ending.settle(used, outcome="stop")
        await asyncio.sleep(0.6)
        assert all(running.marked for running in reservations[:150])
        for running in reservations[:150]:
            running.settle(used, outcome="stop")
    assert set((await _outcomes(database)).values()) == {("stop", 16)}
    assert list((tmp_path / "spool").iterdir()) == []  # no mark of a request that was over


async def test_what_a_lost_machine_had_leased_can_be_written_off_and_the_entries_say_so(
    database: Database, tmp_path: Path
) -> None:
    await add_rich(database, "org-a", cash=1_000)
    async with database.write() as connection:
        await take_lease(connection, "org-a", "lost", [600], have=0, now=5)
    with pytest.raises(WriteOffRefused, match="lost changed its leases 59 seconds ago: it seems to run; they can be"):
        await write_off(Changes(database, "cli:me", lambda: 60_004), tmp_path / "spool", "lost", "fire")
    changes = Changes(database, "cli:me", lambda: 60_005)
    with pytest.raises(WriteOffRefused, match=r"no money is leased to 'other'; `moonbase ledger leases` shows"):
        await write_off(changes, tmp_path / "spool", "other", "fire")
    (lease,) = await write_off(changes, tmp_path / "spool", "lost", "fire")
    assert lease.amount_nano == 600
    async with database.read() as connection:
        assert await list_leases(connection) == []
        assert await read_balance(connection, "org-a") == Balance(1_000, 0)
        assert await find_imbalances(connection) == []
        notes = (await connection.execute(text("SELECT note FROM entry WHERE kind = 'correction'"))).scalars().all()
        audit = (await connection.execute(text("SELECT actor, action, target, at FROM audit"))).all()
    assert notes == ["write-off of 600 leased to lost: fire"]
    assert [tuple(row) for row in audit] == [("cli:me", "ledger.write_off", "lost", 60_005)]


async def test_what_a_process_that_lives_has_leased_cannot_be_written_off(database: Database, tmp_path: Path) -> None:
    await add_rich(database, "org-a", cash=1_000)
    async with _ledger(database, tmp_path) as ledger:
        await _reserve(ledger)
        with pytest.raises(WriteOffRefused, match="the process runs, or a server on this host takes over from it"):
            await write_off(Changes(database, "cli:me"), tmp_path / "spool", ledger.spool.process_id, "haste")


@dataclass
class Request:
    """What a request did, to be compared with what it was charged. `died` once its process did."""

    reservation: Reservation
    running: Running
    process: int
    max_tokens: int
    cost: int | None = None
    died: bool = False


class Books(RuleBasedStateMachine):
    """Two processes that serve, settle, tidy, end and die in any order, on one database.

    Their organizations become post-paid and prepaid again at any time, and some answers cost more than was held.
    """

    url: URL
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.ledgers: dict[int, Ledger] = {}
        self.requests: dict[str, Request] = {}
        self.credited = dict.fromkeys(ORGANIZATIONS, 0)
        self.unheld = dict.fromkeys(ORGANIZATIONS, 0)
        self.postpaid = dict.fromkeys(ORGANIZATIONS, False)
        self.spools = Path(tempfile.mkdtemp(dir=self.folder))

    @initialize()
    def open(self) -> None:
        async def run() -> Database:
            database = Database(self.url)
            await database.open()
            async with database.write() as connection:
                for table in ("usage", "usage_hour", "usage_day", "entry", "balance", "lease", "organization"):
                    await connection.execute(text(f"DELETE FROM {table}"))
            for organization_id in ORGANIZATIONS:
                await add_rich(database, organization_id)
            return database

        self.database = self.runner.run(run())

    @rule(organization_id=st.sampled_from(ORGANIZATIONS), amount=st.integers(1, 20_000), voucher=st.booleans())
    def recharge(self, organization_id: str, amount: int, voucher: bool) -> None:
        async def run() -> None:
            async with self.database.write() as connection:
                kind = {"voucher": amount} if voucher else {"cash": amount}
                await change_balance(connection, credit(organization_id, **kind))

        self.runner.run(run())
        self.credited[organization_id] += amount

    @rule(organization_id=st.sampled_from(ORGANIZATIONS))
    def switch(self, organization_id: str) -> None:
        self.postpaid[organization_id] = not self.postpaid[organization_id]

    @rule(process=st.integers(0, 1))
    def start(self, process: int) -> None:
        if process not in self.ledgers:
            ledger = Ledger(self.database, self.spools, clock=lambda: 7)
            self.runner.run(ledger.__aenter__())
            self.ledgers[process] = ledger

    @precondition(lambda self: self.ledgers)
    @rule(
        process=st.integers(0, 1),
        organization_id=st.sampled_from(ORGANIZATIONS),
        max_tokens=st.lists(st.integers(0, 300), min_size=1, max_size=5),
    )
    def ask(self, process: int, organization_id: str, max_tokens: list[int]) -> None:
        ledger = self.ledgers.get(process)
        if ledger is None:
            return
        postpaid = self.postpaid[organization_id]
        caller = structs.replace(PREPAID, organization_id=organization_id, postpaid=postpaid)

        async def run() -> None:
            names = [uuid.uuid4().hex for _ in max_tokens]
            holds = [_reserve(ledger, caller, name, most) for name, most in zip(names, max_tokens, strict=True)]
            answers = await asyncio.gather(*holds, return_exceptions=True)
            for name, most, found in zip(names, max_tokens, answers, strict=True):
                if isinstance(found, InsufficientBalance) and not postpaid:
                    continue
                assert isinstance(found, Reservation), found
                self.requests[name] = Request(found, Running(), process, most)
                self.unheld[organization_id] += 10 + 3 * most - found.held_nano
                found.follow(self.requests[name].running)

        self.runner.run(run())

    @precondition(lambda self: self.open_requests())
    @rule(data=st.data(), tokens=st.integers(0, 100))
    def produce(self, data: st.DataObject, tokens: int) -> None:
        request = data.draw(st.sampled_from(self.open_requests()))
        request.running.completion_tokens = min(request.running.completion_tokens + tokens, request.max_tokens)
        request.reservation.mark(request.running.completion_tokens)

    @precondition(lambda self: self.open_requests())
    @rule(data=st.data())
    def mark(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.open_requests()))
        if request.running.completion_tokens > request.reservation.marked:
            request.reservation.ledger.mark(request.reservation)

    @precondition(lambda self: self.open_requests())
    @rule(data=st.data(), cached=st.integers(0, 10), beyond=st.sampled_from([0, 0, 0, 200]))
    def finish(self, data: st.DataObject, cached: int, beyond: int) -> None:
        request = data.draw(st.sampled_from(self.open_requests()))
        request.running.completion_tokens += beyond
        self.unheld[request.reservation.caller.organization_id] += 3 * beyond
        used = Tokens(prompt=10, cached=cached, output=request.running.completion_tokens)
        request.reservation.settle(used, outcome="stop")
        request.cost = -(-(used.uncached * 2 + used.cached + used.output * 6) // 2)

    @rule(process=st.integers(0, 1))
    def write(self, process: int) -> None:
        if process in self.ledgers:
            self.runner.run(self.ledgers[process].recorder.flush())

    @rule(process=st.integers(0, 1))
    def tidy(self, process: int) -> None:
        if process in self.ledgers:
            self.runner.run(self.ledgers[process]._tidy())

    @rule(process=st.integers(0, 1))
    def die(self, process: int) -> None:
        if process in self.ledgers:
            self.runner.run(kill(self.ledgers.pop(process)))
            for request in self.requests.values():
                request.died = request.died or (request.process == process and request.cost is None)

    @rule(process=st.integers(0, 1))
    def end(self, process: int) -> None:
        if process in self.ledgers:
            for request in self.open_requests():
                if request.process == process:
                    request.reservation.__exit__()
                    request.cost = 0
            self.runner.run(self.ledgers.pop(process).__aexit__())

    @invariant()
    def the_books_agree_and_nobody_is_overdrawn_but_by_what_was_not_held(self) -> None:
        async def run() -> None:
            async with self.database.snapshot() as connection:
                assert await find_imbalances(connection) == []
                for organization_id in ORGANIZATIONS:
                    balance = await read_balance(connection, organization_id)
                    assert balance.cash_nano >= -self.unheld[organization_id]
                    assert balance.voucher_nano >= 0

        self.runner.run(run())

    def teardown(self) -> None:
        try:
            for process in (0, 1):
                self.end(process)
            self.start(0)  # takes over from those that died
            self.end(0)
            self.runner.run(self._compare())
        finally:
            self.runner.run(self.database.close())
            self.runner.close()

    def open_requests(self) -> list[Request]:
        return [request for request in self.requests.values() if request.cost is None and not request.died]

    async def _compare(self) -> None:
        """Charged once, exactly what was used; where the process died, between the last mark and what there was."""
        charged = await _outcomes(self.database)
        for name, request in self.requests.items():
            if request.cost is not None:
                assert charged.pop(name)[1] == request.cost
            elif request.reservation.marked:
                outcome, cost = charged.pop(name)
                assert outcome == "interrupted"
                assert 10 + 3 * request.reservation.marked <= cost <= 10 + 3 * request.running.completion_tokens
        assert charged == {}
        async with self.database.read() as connection:
            assert await list_leases(connection) == []
            totals = {row[0]: int(row[1]) for row in await connection.execute(_SPENT)}
            for organization_id in ORGANIZATIONS:
                balance = await read_balance(connection, organization_id)
                spent = totals.get(organization_id, 0)
                assert balance.cash_nano + balance.voucher_nano == self.credited[organization_id] - spent
        assert list(self.spools.glob("*")) == []


_SPENT = text("SELECT organization_id, SUM(cost_nano) FROM usage GROUP BY organization_id")


def test_whoever_dies_when_the_books_agree(url: URL, tmp_path: Path) -> None:
    asyncio.run(migrate(url))
    Books.url, Books.folder = url, tmp_path
    run_state_machine_as_test(Books, settings=settings(max_examples=40, stateful_step_count=30, deadline=None))
