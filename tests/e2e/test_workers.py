"""Several gateway processes behind one port: what they share, and that any of them may die."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.request import urlopen

import pytest
from tests.e2e.conftest import StartServer
from tests.e2e.server import Server, StartFailed, chat_body, eventually

from moonbase.config import cache

TEXT = "one two three four five six seven eight nine ten"
WORKERS = 3
CONNECTIONS = 60  # of which each of three gateways gets some, but once in ten billion times


@pytest.fixture
def start(start_server: StartServer, redis_url: str) -> StartServer:
    """`start_server` for a server with several gateways."""

    def start(*args: str, workers: int = WORKERS, **options: object) -> Server:
        return start_server("--workers", str(workers), "--set", f"limits.redis_url={redis_url}", *args, **options)

    return start


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def sockets(pid: int) -> int:
    return sum(os.readlink(entry).startswith("socket:") for entry in Path(f"/proc/{pid}/fd").iterdir())


@contextmanager
def connections(server: Server) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(CONNECTIONS)]


def test_connections_are_spread_over_the_gateways(start: StartServer) -> None:
    server = start()
    before = {pid: sockets(pid) for pid in server.gateway_pids}
    assert len(before) == WORKERS
    with connections(server):
        eventually(lambda: sum(sockets(pid) - before[pid] for pid in before) == CONNECTIONS)
        assert all(sockets(pid) > before[pid] for pid in before)


def test_a_killed_gateway_is_replaced_and_its_port_never_refuses(start: StartServer) -> None:
    server = start("--set", "echo.delay=0.05")
    for victim in server.gateway_pids:
        streams = []
        with ExitStack() as stack:
            for _ in range(12):
                streams.append(stack.enter_context(server.streaming(chat_body(TEXT, stream=True))))
            os.kill(victim, signal.SIGKILL)
            assert {server.chat("short").status for _ in range(12)} == {200}, "what comes to the dead one waits"
            endings = {_rest(stream).endswith(b"data: [DONE]\n\n") for stream in streams}
        assert True in endings, "the other gateways go on"
        eventually(lambda: len(server.gateway_pids) == WORKERS, within=20)
        assert victim not in server.gateway_pids
    assert [line["message"] for line in server.log if line["level"] == "error"] == [
        f"the gateway {number} ended: killed by SIGKILL" for number in _numbers(server)
    ]
    assert server.stop() == 0


def _rest(stream: HTTPResponse) -> bytes:
    try:
        return stream.read()
    except (ConnectionError, HTTPException):
        return b""


def _numbers(server: Server) -> list[str]:
    return [line["message"].split()[2] for line in server.log if line["level"] == "error"]


def test_gateways_and_engines_end_with_their_parent(start: StartServer, tmp_path: Path) -> None:
    server = start()
    family = server.gateway_pids
    server.process.kill()
    server.process.wait()
    eventually(lambda: not any(map(alive, family)), within=20)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server.port), timeout=1)


def test_a_server_that_stops_finishes_its_streams_and_lets_nobody_in(start: StartServer) -> None:
    server = start("--set", "echo.delay=0.1")
    family = server.gateway_pids
    with ExitStack() as stack:
        streams = [stack.enter_context(server.streaming(chat_body(TEXT, stream=True))) for _ in range(12)]
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", server.port), timeout=1)
        assert all(stream.read().endswith(b"data: [DONE]\n\n") for stream in streams)
    server.close()
    assert not any(map(alive, family))


def test_a_second_interrupt_cuts_what_is_open(start: StartServer) -> None:
    server = start("--set", "echo.delay=1")
    with server.streaming(chat_body(TEXT * 10, stream=True)) as stream:
        request_id = stream.headers["Msh-Request-Id"]
        stream.read1()
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        began = time.monotonic()
        assert server.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < 15, "not the whole grace"
    assert (server.usage(request_id)["outcome"], server.usage(request_id)["cost_nano"]) == ("failed", 0)


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("echo.script=/nowhere/script.txt", "echo.script: /nowhere/script.txt cannot be read (No such file or dire"),
        ("limits.redis_url=", "limits.redis_url: "),
    ],
)
def test_what_stops_a_gateway_stops_the_start_and_is_named(
    start: StartServer, tmp_path: Path, assignment: str, sentence: str
) -> None:
    with pytest.raises(StartFailed) as failed:
        start("--set", assignment)
    assert failed.value.code == 2
    assert failed.value.stderr.startswith(f"moonbase: {sentence}"), failed.value.stderr
    assert len(failed.value.stderr.splitlines()) == 1


def test_several_gateways_need_a_place_to_count_together(start_server: StartServer) -> None:
    with pytest.raises(StartFailed) as failed:
        start_server("--workers", "2")
    assert failed.value.stderr.startswith("moonbase: limits.redis_url: must be set when there is more than one of ")


def test_a_used_port_is_not_shared_with_another_server(start: StartServer, start_server: StartServer) -> None:
    server = start()
    for options in ((), ("--workers", "2", "--set", "limits.redis_url=redis://127.0.0.1")):
        with pytest.raises(StartFailed, match=rf"server\.port: cannot listen on 127\.0\.0\.1 port {server.port} \("):
            start_server(*options, port=server.port)


def test_metrics_of_all_gateways_are_in_every_scrape(start: StartServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start("--set", "metrics.token=t", "--set", f"metrics.port={port}")
    for _ in range(CONNECTIONS):
        assert server.chat("short").status == 200
    time.sleep(1.5)  # so that each has told what it counted
    os.kill(min(server.gateway_pids), signal.SIGKILL)
    counted = f'moonbase_requests_total{{model="kimi-k2-0905-preview",outcome="stop"}} {CONNECTIONS}.0'

    def scraped() -> bool:
        reply = server.get("/metrics", key="t")
        return reply.status == 200 and counted in reply.body.decode()

    eventually(scraped)
    with urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        assert counted in response.read().decode()
    assert server.stop() == 0


def _counts_to_ten(server: Server) -> int:
    return server.chat("Count to ten.", max_tokens=8, temperature=0).status


def _back(server: Server) -> None:
    """Every gateway reaches the engine again."""
    eventually(lambda: {_counts_to_ten(server) for _ in range(12)} == {200}, within=90)


@pytest.mark.parametrize("engine", ["openvino", "llamacpp"])
def test_gateways_share_an_engine_and_find_it_again_after_its_death(start: StartServer, engine: str) -> None:
    server = start(engine=engine, cache=cache(), workers=2)
    before = server.worker_pid
    assert {_counts_to_ten(server) for _ in range(12)} == {200}
    with ExitStack() as stack:
        body = chat_body("Write a long story about a fox.", stream=True, max_tokens=2_000)
        streams = [stack.enter_context(server.streaming(body)) for _ in range(4)]
        for stream in streams:
            stream.read1()
        _kill_engine(before)
        for stream in streams:
            assert b'"type":"server_unavailable"' in stream.read()
    _back(server)
    after = server.worker_pid
    assert after != before
    assert server.stop() == 0
    assert not alive(after)


def _kill_engine(pid: int) -> None:
    """What really runs it: a server has a process over it that holds it on its leash."""
    held = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(held[0]) if held else pid, signal.SIGKILL)


def test_what_an_engine_dies_of_is_refused_by_every_gateway(start: StartServer) -> None:
    """Whichever gateways it came through."""
    server = start(engine="openvino", cache=cache(), workers=2)
    deadly = chat_body("Divide by zero, for ever.", stream=True, max_tokens=2_000)
    for _ in range(2):
        with server.streaming(deadly) as stream:
            stream.read1()
            os.kill(server.worker_pid, signal.SIGKILL)
            stream.read()
        _back(server)
    assert [server.post(deadly).status for _ in range(12)] == [400] * 12
    assert _counts_to_ten(server) == 200
    assert server.stop() == 0


def test_an_engine_that_hangs_is_replaced_whoever_notices(start: StartServer) -> None:
    server = start("--set", "engine.hang_timeout=4", engine="openvino", cache=cache(), workers=2)
    before = server.worker_pid
    os.kill(before, signal.SIGSTOP)
    assert _counts_to_ten(server) == 503
    _back(server)
    assert server.worker_pid != before
    assert server.stop() == 0
