"""The gateway's side of the `openvino` engine alone, told word by word what a worker might say."""

import asyncio
from itertools import count

import pytest

pytest.importorskip("openvino_genai")

from tests.engines.openvino import MODEL, collect, endless

from moonbase.config import EngineSettings
from moonbase.engines.openvino import protocol
from moonbase.engines.openvino.engine import OpenVINOEngine
from moonbase.errors import EngineUnavailable, FatalRequest

pytestmark = pytest.mark.anyio

PIDS = count(1)


class Wire(asyncio.Transport):
    """Keeps what the gateway writes."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[protocol.FromGateway] = []
        self._reader = protocol.FrameReader()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.messages += [protocol.gateway_decoder.decode(body) for body in self._reader.feed(bytes(data))]

    @property
    def started(self) -> int:
        """The number of the generation that was started last."""
        return [message for message in self.messages if isinstance(message, protocol.Start)][-1].generation


def connect(engine: OpenVINOEngine) -> Wire:
    """A new worker, ready at once."""
    wire = Wire()
    engine.connected(wire)
    engine.received(protocol.frame(protocol.Ready(protocol.VERSION, next(PIDS), 8192, 512, 0.1)))
    return wire


def tokens(*outputs: protocol.Output) -> bytes:
    return protocol.frame(protocol.Tokens(list(outputs)))


@pytest.fixture
def engine() -> OpenVINOEngine:
    return OpenVINOEngine(EngineSettings(), MODEL)


@pytest.mark.parametrize("stopped_first", [True, False])
async def test_a_choice_that_is_stopped_as_it_ends_leaves_the_others_alone(
    engine: OpenVINOEngine, stopped_first: bool
) -> None:
    wire = connect(engine)
    generation = engine.generate(endless(n=2))
    number = wire.started
    ending = tokens(protocol.Output(number, 0, [5], "length", 0), protocol.Output(number, 1, [6], None, 0))

    if stopped_first:
        generation.stop(0)
        engine.received(ending)
    else:
        engine.received(ending)
        generation.stop(0)

    assert (engine.running, engine.busy, generation.open) == (1, True, True)
    engine.received(tokens(protocol.Output(number, 1, [7], "stop", 0)))
    answer = await collect(generation)
    assert (answer.tokens[1], answer.finish[1]) == ([6, 7], "stop")
    assert 0 not in answer.finish or not stopped_first
    assert (engine.running, engine.waiting, engine.busy) == (0, 0, False)


async def test_a_choice_that_is_stopped_last_ends_the_request(engine: OpenVINOEngine) -> None:
    wire = connect(engine)
    generation = engine.generate(endless(n=2))
    number = wire.started
    engine.received(tokens(protocol.Output(number, 1, [6], "stop", 0)))
    generation.stop(0)
    assert (engine.running, engine.busy, generation.open) == (0, False, False)
    engine.received(tokens(protocol.Output(number, 0, [5], "stop", 0)))
    assert engine.running == 0


async def died(engine: OpenVINOEngine) -> Wire:
    """The worker dies while it runs the request, and a new one comes."""
    generation = engine.generate(endless())
    engine.lost()
    assert isinstance((await collect(generation)).error, EngineUnavailable)
    return connect(engine)


async def test_a_suspect_that_finishes_alone_is_acquitted(engine: OpenVINOEngine) -> None:
    connect(engine)
    wire = await died(engine)
    generation = engine.generate(endless())
    engine.received(tokens(protocol.Output(wire.started, 0, [5], "length", 0)))
    assert (await collect(generation)).finish == {0: "length"}

    wire = await died(engine)
    again = engine.generate(endless())
    engine.received(tokens(protocol.Output(wire.started, 0, [6], "length", 0)))
    assert (await collect(again)).finish == {0: "length"}


async def test_a_suspect_that_does_not_finish_is_not(engine: OpenVINOEngine) -> None:
    connect(engine)
    wire = await died(engine)
    with engine.generate(endless()):
        engine.received(tokens(protocol.Output(wire.started, 0, [5], None, 0)))
    await died(engine)
    with pytest.raises(FatalRequest):
        engine.generate(endless())
