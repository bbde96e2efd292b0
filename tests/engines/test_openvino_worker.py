"""The worker process by itself: what it says to those who connect to its socket."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("openvino_genai")

from tests.engines.openvino import MODEL, endless

from moonbase.engines.openvino import protocol


class Worker:
    """A worker process that a test talks to directly."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.path = folder / "worker"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.path))
            listener.listen()
            options = {
                "--model": str(model),
                "--kv-blocks": "256",
                "--max-running": "8",
                "--socket": str(listener.fileno()),
                "--parent": str(os.getpid()),
            }
            arguments = [word for option in options.items() for word in option]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moonbase.engines.openvino.worker", *arguments],
                stdin=subprocess.PIPE,
                pass_fds=(listener.fileno(),),
            )

    def close(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(10)


class Gateway:
    """A connection to a worker."""

    def __init__(self, worker: Worker) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(worker.path))
        self._reader = protocol.FrameReader()
        self._messages: list[protocol.FromWorker] = []

    def send(self, *messages: protocol.FromGateway) -> None:
        self._socket.sendall(b"".join([protocol.frame(message) for message in messages]))

    def read(self) -> protocol.FromWorker:
        while not self._messages:
            data = self._socket.recv(1 << 20)
            assert data, "the worker hung up"
            self._messages += [protocol.worker_decoder.decode(body) for body in self._reader.feed(data)]
        return self._messages.pop(0)

    def tokens(self, generation: int) -> int:
        """Read a generation to its end; how many tokens it had."""
        count = 0
        while True:
            message = self.read()
            assert isinstance(message, protocol.Tokens)
            for output in message.outputs:
                assert output.generation == generation
                count += len(output.token_ids)
                if output.finish is not None:
                    return count

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("worker"), MODEL)
    yield worker
    assert worker.close() == 0, "the end of its standard input ends it"


@pytest.fixture
def gateways(worker: Worker) -> Iterator[tuple[Gateway, Gateway]]:
    """Two gateways that the worker has greeted."""
    first, second = Gateway(worker), Gateway(worker)
    for gateway in (first, second):
        ready = gateway.read()
        assert isinstance(ready, protocol.Ready)
        assert (ready.version, ready.cache_tokens) == (protocol.VERSION, 256 * 32)
    yield first, second
    for gateway in (first, second):
        gateway.close()


def start(generation: int, *, max_tokens: int = 20, penalty: float = 0.0) -> protocol.Start:
    request = endless(max_tokens=max_tokens)
    return protocol.Start(
        generation=generation,
        prompt=request.prompt_ids.tobytes(),
        sampling=msgspec.structs.replace(request.sampling, presence_penalty=penalty),
        max_tokens=max_tokens,
        stop_ids=(),
        grammar=None,
        cache_scope="org-a",
    )


def test_two_gateways_are_served_with_generations_of_the_same_number(gateways: tuple[Gateway, Gateway]) -> None:
    for count, gateway in enumerate(gateways, 10):
        gateway.send(start(1, max_tokens=count))
    assert [gateway.tokens(1) for gateway in gateways] == [10, 11]


def test_a_gateway_that_does_not_read_stops_nobody_else(gateways: tuple[Gateway, Gateway]) -> None:
    """Refusals come at once, so that a few thousand of them fill the connection's buffers."""
    slow, other = gateways
    slow.send(*[start(number, penalty=9.0) for number in range(2000)], start(2000))
    other.send(start(1, max_tokens=40))
    assert other.tokens(1) == 40
    for number in range(2000):
        refused = slow.read()
        assert isinstance(refused, protocol.Failed)
        assert (refused.generation, refused.kind) == (number, "refused")
    assert slow.tokens(2000) == 20


def test_what_a_lost_gateway_had_running_is_cancelled(worker: Worker, gateways: tuple[Gateway, Gateway]) -> None:
    """Its eight long generations would take all places for minutes."""
    lost, other = gateways
    lost.send(*[start(number, max_tokens=900) for number in range(8)])
    message = lost.read()
    assert isinstance(message, protocol.Tokens)
    lost.close()
    began = time.monotonic()
    other.send(start(1, max_tokens=5))
    assert other.tokens(1) == 5
    assert time.monotonic() - began < 2


def test_a_cancelled_generation_says_no_more(gateways: tuple[Gateway, Gateway]) -> None:
    gateway, _ = gateways
    gateway.send(start(1, max_tokens=4000))
    gateway.read()
    gateway.send(protocol.Cancel(1, None), protocol.Cancel(99, None), start(2))
    seen: set[int] = set()
    while True:
        message = gateway.read()
        assert isinstance(message, protocol.Tokens)
        numbers = {output.generation for output in message.outputs}
        assert not (2 in seen and 1 in numbers)
        seen |= numbers
        if any(output.finish for output in message.outputs):
            return


def test_a_worker_without_a_model_says_why(tmp_path: Path) -> None:
    worker = Worker(tmp_path, tmp_path / "none.gguf")
    gateway = Gateway(worker)
    told = gateway.read()
    assert isinstance(told, protocol.Unloadable)
    assert told.reason
    assert worker.process.wait(10) == 1
    gateway.close()
    worker.close()
