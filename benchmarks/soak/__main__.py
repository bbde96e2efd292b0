"""Does a server stay as it is under an hour of everything that clients can do to it?

`python -m benchmarks.soak [--minutes 60] [--rate 30] [--seed 0] [--folder PATH]`

Two real servers: one is asked, with `echo` and `chaos` in it, and passes the chats of one id on to the other. `--rate`
scenes begin in a second: chats in both dialects, whole and streamed, of all lengths, with tools and schemas that are
new each time; keys and organizations that come and go; every error; clients that leave at any byte, read nothing or
slowly, drip, half-close, pipeline and flood. Beside them a few clients do everything right.

Caches with bounds are filled first. Resident memory and open files are compared between two quiet moments, one sixth
into the run and at its end. Exit status 1: memory grew by more than 5 %, or open files at all; the log has an error;
the ledger does not add up, or not with what clients were told; a choice is still at work when nobody asks; or a client
saw what it must not.
"""

import argparse
import asyncio
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.soak.background import Told, WellBehaved
from benchmarks.soak.dialects import ANTHROPIC, OPENAI, Dialect
from benchmarks.soak.hostile import HOSTILE
from benchmarks.soak.prompts import Prompts
from benchmarks.soak.report import Report
from benchmarks.soak.scenes import SCENES, Scene
from benchmarks.soak.servers import CHAOS, ECHO, FAR, Sample, Servers, running
from benchmarks.soak.stage import Administrator, Stage, expect
from benchmarks.soak.wire import connected, request

_GROWTH = 1.05
_SAMPLES = 60
_EARLY = 1 / 6  # of the run
_AT_ONCE = 300  # scenes
_PATIENCE = 90.0  # seconds in which a scene has to end
_STEADY = 6.0  # seconds without a change that make a moment quiet: longer than connections between servers are kept
_QUIET_WITHIN = 60.0
_FILLING = 300  # requests to each engine of some 90 messages and 35 tools, before memory is looked at
_FILLINGS = 12  # at most
_STILL = 1.01  # times the memory of before: the caches are full
_CENTURIES = "1000000"  # of money


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=30.0, help="scenes that begin in a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="an empty or new folder that keeps the servers' state and logs")
    options = parser.parse_args()
    report = Report()
    with running(options.folder) as servers:
        soak = Soak(servers, report, minutes=options.minutes, rate=options.rate, chance=random.Random(options.seed))
        told = asyncio.run(soak.run())
        for each in servers.end():
            report.fault(each)
    report.finish(told.seconds)
    if report.wrong:
        sys.exit(1)


class Soak:
    """One run."""

    def __init__(self, servers: Servers, report: Report, *, minutes: float, rate: float, chance: random.Random) -> None:
        self._servers = servers
        self._report = report
        self._seconds = minutes * 60
        self._rate = rate
        self._chance = chance
        self._began = 0.0

    async def run(self) -> Told:
        """What well-behaved clients were told."""
        stage = await self._stage()
        project = await stage.administrator.project("well-behaved")
        _, secret = await stage.administrator.key(project)
        clients = WellBehaved(stage, secret)
        await self._fill(stage)
        self._began = time.monotonic()
        early = await self._phase(stage, clients, self._seconds * _EARLY)
        late = await self._phase(stage, clients, self._seconds * (1 - _EARLY))
        self._report.compare(early, late, _GROWTH)
        await self._compare_usage(stage, project, clients.told)
        return clients.told

    async def _stage(self) -> Stage:
        near = self._servers.near
        secret = near.moonbase("admin", "create", "--name", "soak").stdout.strip()
        assert near.port is not None
        administrator = Administrator(near.port, secret)
        rich = await administrator.project("rich", money=_CENTURIES, tier=5)
        poor = await administrator.project("poor", money="0.000001", tier=5)
        return Stage(near.port, near.key, administrator, rich, poor, Prompts(self._chance), self._chance)

    async def _fill(self, stage: Stage) -> None:
        """Put into the caches of all engines as much as they hold, in pieces of the sizes of those to come.

        What `chaos` is asked for is only counted: it would take its time. Of connections to the database, too, there
        are as many as are ever kept.
        """
        with ThreadPoolExecutor(16) as threads:
            for server in (self._servers.near, self._servers.far) * 3:
                ask = partial(server.get, "/v1/usage?group_by=day", key=server.key)
                await asyncio.gather(*[asyncio.get_running_loop().run_in_executor(threads, ask) for _ in range(50)])
        asked: tuple[tuple[Dialect, str, str], ...] = (
            (OPENAI, OPENAI.path, ECHO),
            (OPENAI, OPENAI.path, FAR),
            (ANTHROPIC, f"{ANTHROPIC.path}/count_tokens", CHAOS),
        )
        prompts, before, now = stage.prompts, 0.0, 1.0
        for _ in range(_FILLINGS):
            if now < _STILL * before:
                break
            for dialect, path, model in asked * _FILLING:
                turns = [turn for _ in range(50) for turn in prompts.conversation(prompts.last())]
                tools = [tool for _ in range(10) for tool in prompts.tools()]
                body = dialect.body(model, turns, limit=1, stream=False, tools=tools)
                async with connected(stage.port) as connection:
                    expect(await connection.ask(request(path, stage.key, body)), 200)
            sample = self._servers.sample()
            before, now = now, sample.near_mb + sample.far_mb

    async def _phase(self, stage: Stage, clients: WellBehaved, seconds: float) -> Sample:
        """Load for so long, and then a quiet moment and what the servers have in it."""
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._load(stage, until))
            tasks.create_task(self._sampling(until))
            tasks.create_task(self._well_behaved(clients, until))
        return await self._quiet()

    async def _load(self, stage: Stage, until: float) -> None:
        scenes = SCENES | HOSTILE
        room = asyncio.Semaphore(_AT_ONCE)
        due = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            while (due := due + self._chance.expovariate(self._rate)) < until:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await room.acquire()
                (scene,) = self._chance.choices(list(scenes), list(scenes.values()))
                tasks.create_task(self._play(scene, stage)).add_done_callback(lambda _: room.release())

    async def _play(self, scene: Scene, stage: Stage) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                outcome = await scene(stage)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on and reports it
            outcome = "wrong"
            self._tell(scene.__name__, error)
        self._report.outcomes[scene.__name__, outcome] += 1

    async def _well_behaved(self, clients: WellBehaved, until: float) -> None:
        while time.monotonic() < until:
            try:
                await clients.run(until)
            except* Exception as group:  # noqa: BLE001 - as in `_play`
                for error in group.exceptions:
                    self._tell("a well-behaved client", error)

    def _tell(self, who: str, error: Exception) -> None:
        minute = (time.monotonic() - self._began) / 60
        self._report.fault(f"minute {minute:.1f}: {who}: {type(error).__name__}: {error}")

    async def _sampling(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, self._seconds / _SAMPLES))
            self._report.sampled((time.monotonic() - self._began) / 60, self._servers.sample())

    async def _quiet(self) -> Sample:
        """A sample once no client is connected, nothing is at work, and open files have not changed for a while."""
        began = steady = time.monotonic()
        before = self._servers.sample()
        while time.monotonic() - steady < _STEADY:
            await asyncio.sleep(0.5)
            now = self._servers.sample()
            if (now.near_files, now.far_files) != (before.near_files, before.far_files):
                steady = time.monotonic()
            before = now
            if time.monotonic() - began > _QUIET_WITHIN:
                self._report.fault(f"not quiet after {_QUIET_WITHIN:g} s: {now}")
                break
        if at_work := await asyncio.to_thread(self._servers.at_work):
            self._report.fault(f"{at_work} choices at work, and nobody asks")
        sample = self._servers.sample()
        self._report.sampled((time.monotonic() - self._began) / 60, sample, ", quiet")
        return sample

    async def _compare_usage(self, stage: Stage, project: str, told: Told) -> None:
        """What the ledger has of the well-behaved clients, whose requests have all been recorded by now."""
        path = f"usage?group_by=project&project_id={project}"
        (sums,) = (await stage.administrator.call("GET", path))["data"]
        prompt = sums["prompt_miss"] + sums["prompt_hit"] + sums["prompt_write"]
        charged = (sums["requests"], prompt, sums["output"])
        wanted = (told.requests, told.prompt, told.output)
        if charged != wanted:
            self._report.fault(f"charged are {charged} requests, prompt and output tokens, told were {wanted}")


if __name__ == "__main__":
    main()
