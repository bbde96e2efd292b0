"""A client that leaves ends its generation within 250 ms, streaming or not, and is billed for what there was."""

import re
import socket
import time

import pytest
from tests.e2e.conftest import StartServer
from tests.e2e.server import CHAT, Server, chat_body, eventually

TEXT = "word " * 200


@pytest.fixture(scope="module")
def stalling(start_module_server: StartServer) -> Server:
    """Every answer stops in its middle without an end."""
    return start_module_server(
        *("--set", "chaos.faults=stall", "--set", "chaos.fault_rate=1", "--set", "metrics.token=metrics-secret"),
        engine="chaos",
    )


def running(server: Server) -> int:
    text = server.get("/metrics", key="metrics-secret").body.decode()
    found = re.search(r'^moonbase_running\{model="chaos"\} (\d+)', text, re.MULTILINE)
    assert found is not None
    return int(found[1])


def start(server: Server, body: bytes, *, length: int | None = None) -> socket.socket:
    """`length` is what is announced, where more of the body is to come."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {server.key}\r\n"
    connection.sendall(f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body)
    return connection


@pytest.mark.parametrize("farewell", ["close", "reset"])
@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_generation(
    stalling: Server, stream: bool, choices: int, farewell: str
) -> None:
    connection = start(stalling, chat_body(TEXT, stream=stream, n=choices, max_tokens=1000))
    eventually(lambda: running(stalling))
    if stream:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
    time.sleep(0.2)
    if farewell == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    left = time.monotonic()
    connection.close()
    eventually(lambda: running(stalling) == 0)
    assert time.monotonic() - left < 0.25
    eventually(lambda: stalling.last_usage()["started_at"] > (time.time() - 5) * 1000)
    record = stalling.last_usage()
    assert record["outcome"] == "cancelled"
    assert 0 < record["output"] < 400 * choices, "billed for what was generated until then"
    assert record["cost_nano"] > 0


@pytest.mark.parametrize("size", [60_000, 70_000, 120_000])
def test_a_client_that_leaves_is_noticed_however_its_body_came(stalling: Server, size: int) -> None:
    """After its head, and as much at once as makes the server read no more for a while."""
    body = chat_body(TEXT, padding="x" * size, max_tokens=1000)
    connection = start(stalling, b"", length=len(body))
    time.sleep(0.1)
    connection.sendall(body)
    eventually(lambda: running(stalling))
    left = time.monotonic()
    connection.close()
    eventually(lambda: running(stalling) == 0)
    assert time.monotonic() - left < 0.25


def test_half_a_close_is_leaving_too(stalling: Server) -> None:
    """HTTP clients that shut down their sending half have gone; asyncio reports the end of input as such."""
    connection = start(stalling, chat_body(TEXT, stream=True))
    eventually(lambda: running(stalling))
    connection.shutdown(socket.SHUT_WR)
    eventually(lambda: running(stalling) == 0)
    connection.close()


def test_a_client_that_stops_reading_and_leaves_is_cancelled(start_server: StartServer) -> None:
    """The server waits in its send, with full buffers, when the connection ends."""
    server = start_server("--set", "echo.delay=0.005")
    word = "\x01" * 20_000  # six bytes each in JSON
    body = chat_body(f"{word} " * 25, stream=True, n=5, max_tokens=130_000)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {server.key}\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
        time.sleep(1)
        assert server.usage_count() == 0, "still open"
    record = server.last_usage()
    assert record["outcome"] == "cancelled"


def test_many_clients_that_leave_at_once_leave_nothing_behind(stalling: Server) -> None:
    before = stalling.usage_count()
    connections = [start(stalling, chat_body(TEXT, stream=number % 2 == 0)) for number in range(40)]
    eventually(lambda: running(stalling) == 40)
    for connection in connections:
        connection.close()
    eventually(lambda: running(stalling) == 0, within=2)
    eventually(lambda: stalling.usage_count() == before + 40)
