"""The `openvino` engine when its worker dies, hangs or is left alone."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("openvino_genai")

from tests.e2e.server import eventually
from tests.engines.openvino import MODEL, ask, collect, endless, kill, until_ready

from moonbase.config import EngineSettings
from moonbase.engines.base import Generation
from moonbase.engines.openvino.engine import OpenVINOEngine
from moonbase.errors import EngineUnavailable, FatalRequest

pytestmark = pytest.mark.anyio

MAX_RUNNING = 3
HANG_TIMEOUT = 2.0


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def shared_engine() -> AsyncIterator[OpenVINOEngine]:
    engine = OpenVINOEngine(EngineSettings(max_running=MAX_RUNNING, hang_timeout=HANG_TIMEOUT), MODEL)
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture
async def engine(shared_engine: OpenVINOEngine) -> OpenVINOEngine:
    """Ready and idle, whatever the test before did to it."""
    await until_ready(shared_engine)
    assert (shared_engine.running, shared_engine.waiting) == (0, 0)
    return shared_engine


async def begun(engine: OpenVINOEngine, text: str) -> tuple[Generation, list[int]]:
    """A generation that runs in the worker, with the tokens it has brought so far."""
    generation = engine.generate(endless(text))
    return generation, [token for delta in await generation.read() for token in delta.token_ids]


async def test_a_death_fails_what_ran_and_spares_what_waited(engine: OpenVINOEngine) -> None:
    running = [await begun(engine, f"Count from {number}.") for number in range(MAX_RUNNING)]
    waiting = [engine.generate(endless(f"Who is number {number}?", max_tokens=5)) for number in range(2)]
    readers = [asyncio.create_task(collect(generation)) for generation, _ in running]
    await asyncio.sleep(3)  # some tokens for each, on a slow machine too
    assert (engine.running, engine.waiting) == (MAX_RUNNING, 2)

    kill(engine)
    answers = await asyncio.gather(*readers)

    for answer in answers:
        assert isinstance(answer.error, EngineUnavailable)
        assert answer.error.retry_after is not None
        assert answer.error.retry_after > 0
        assert len(answer.tokens[0]) > 3, "what had come stays"
        assert not answer.finish
    assert not engine.ready
    assert (engine.running, engine.waiting) == (0, 2)
    with pytest.raises(EngineUnavailable):
        engine.generate(endless())
    for answer in await asyncio.gather(*[collect(generation) for generation in waiting]):
        assert (answer.finish, answer.error) == ({0: "length"}, None)
    assert engine.ready
    assert (await ask(engine, "Hello", max_tokens=5)).error is None


async def test_a_request_that_was_in_two_deaths_is_refused_and_others_are_not(engine: OpenVINOEngine) -> None:
    """The second death is a hang that the supervisor ends. Copies in one death are one death."""
    deadly, innocent = "Divide by zero.", "Divide by one."
    first = [await begun(engine, text) for text in (deadly, deadly, innocent)]
    kill(engine)
    for generation, _ in first:
        assert isinstance((await collect(generation)).error, EngineUnavailable)
    await until_ready(engine)

    hung, _ = await begun(engine, deadly)
    beside = engine.generate(endless("Divide by two.", max_tokens=5))
    assert (engine.running, engine.waiting) == (1, 1), "a suspect runs alone"
    kill(engine, signal.SIGSTOP)
    async with asyncio.timeout(HANG_TIMEOUT + 2):
        assert isinstance((await collect(hung)).error, EngineUnavailable)
    assert (await collect(beside)).finish == {0: "length"}

    with pytest.raises(FatalRequest):
        engine.generate(endless(deadly))
    generation, tokens = await begun(engine, innocent)
    with generation:
        assert tokens


PARENT = """
import asyncio, sys
from pathlib import Path
from moonbase.config import EngineSettings
from moonbase.engines.openvino.engine import OpenVINOEngine

async def main():
    engine = OpenVINOEngine(EngineSettings(), Path(sys.argv[1]))
    await engine.start()
    print(engine.worker_pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_the_worker_does_not_outlive_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(MODEL)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        worker = Path("/proc") / parent.stdout.readline().decode().strip() / "cmdline"
        assert worker.read_bytes()
        parent.kill()
    eventually(lambda: not worker.exists() or not worker.read_bytes())  # a zombie has no command line
