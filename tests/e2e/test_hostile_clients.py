"""Clients that vanish, read nothing, half-close, pipeline and flood.

Accounts are settled, memory is bounded, and others notice nothing.
"""

import http.client
import json
import re
import resource
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import StartServer
from tests.e2e.payers import books, prepaid_key
from tests.e2e.server import CHAT, K2, Server, chat_body, eventually, user

from moonbase.store.database import database_url
from moonbase.store.records import Limits

MB = 1 << 20
MESSAGES = "/anthropic/v1/messages"
ORGANIZATION = "org-payer"
CASH = 10**12
FAR = "kimi-k2-turbo-preview"
WORDS = 40
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a reset in the place of an orderly end
METRICS = ("--set", "metrics.token=metrics-secret")
FLOOD = 2_000
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Pair:
    """A server that echoes one id and passes another on to a second server; its prepaid key may have one request open.

    So a place that is not given back is one for all that come after it.
    """

    def __init__(self, start: StartServer, folder: Path, *settings: str) -> None:
        self.far = start("--set", "echo.delay=0.002")
        config = folder / "moonbase.toml"
        config.write_text(
            f"""
            [engine]
            name = "echo"
            [echo]
            delay = 0.002
            [metrics]
            token = "metrics-secret"
            [deployments.far]
            name = "openai"
            url = "{self.far.base_url}"
            api_key = "{self.far.key}"
            [models.{FAR}]
            deployment = "far"
            """
        )
        options = [word for setting in settings for word in ("--set", setting)]
        self.near = start("--config", str(config), *options, engine=None)
        self.url = database_url(None, self.near.home)
        limits = Limits(concurrency=1, rpm=None, tpm=None, tpd=None)
        self.key = prepaid_key(self.url, ORGANIZATION, cash=CASH, limits=limits)

    def post(self, body: bytes, path: str = CHAT, *lines: bytes) -> bytes:
        return post(body, self.key, path, *lines)

    def answered(self) -> int:
        """Requests that have come to their ends, however they did."""
        return self.near.stderr.count('"logger":"moonbase.requests"')

    def still_answers(self) -> None:
        for model in (K2, FAR):
            reply = self.near.post(chat_body("Still there?", model=model), key=self.key)
            assert reply.status == 200, reply.body
            assert reply.json["choices"][0]["message"]["content"] == "Still there?"

    def close(self) -> list[dict[str, Any]]:
        """End both servers, which leave nothing behind, and return the usage records of the key."""
        assert gauges(self.near) == 0
        self.near.close()
        self.far.close()
        records = self.near.usage_records()
        balance, leases = books(self.url, ORGANIZATION)
        assert leases == []
        assert balance.available_nano == CASH - sum(record["cost_nano"] for record in records)
        return records


def post(body: bytes, key: str, path: str = CHAT, *lines: bytes) -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n%bContent-Length: %d\r\n\r\n"
    return head % (path.encode(), key.encode(), b"".join(lines), len(body)) + body


def message_body(text: str, **fields: Any) -> bytes:
    return json.dumps({"model": K2, "max_tokens": 500, "messages": user(text)} | fields).encode()


def connect(server: Server, *, buffer: int | None = None) -> socket.socket:
    """`buffer` bounds what the system takes in before it is read."""
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", server.port))
    return connection


def send(connection: socket.socket, data: bytes) -> None:
    """All of it, or as much as the other end takes before it ends the connection."""
    with suppress(OSError):
        connection.sendall(data)


def leave(connection: socket.socket, farewell: str) -> None:
    if farewell == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.close()


def read_exactly(connection: socket.socket, count: int) -> bytes:
    """At most `count` bytes, fewer where the connection ends."""
    received = b""
    while len(received) < count and (data := connection.recv(count - len(received))):
        received += data
    return received


def until_closed(connection: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionError):
        while data := connection.recv(65536):
            received += data
    return received


def gauges(server: Server) -> int:
    """Choices that engines run or have waiting."""
    text = server.get("/metrics", key="metrics-secret").body.decode()
    return sum(map(int, re.findall(r"^moonbase_(?:running|waiting)\{.*\} (\d+)", text, re.MULTILINE)))


@pytest.fixture
def pair(start_server: StartServer, tmp_path: Path) -> Pair:
    return Pair(start_server, tmp_path, "server.header_timeout=5", "server.body_timeout=5")


@pytest.mark.parametrize("farewell", ["close", "reset"])
def test_a_client_that_vanishes_at_any_byte_of_its_request_leaves_nothing(pair: Pair, farewell: str) -> None:
    """Whole requests are recorded once, what is no request not at all; the place of each is free for the next."""
    request = pair.post(chat_body("Hello there", max_tokens=20))
    head = request.index(b"\r\n\r\n") + 4
    for count in range(len(request) + 1):
        before = pair.answered()
        connection = connect(pair.near)
        connection.sendall(request[:count])
        leave(connection, farewell)
        if count >= head:
            eventually(lambda before=before: pair.answered() > before)
    pair.still_answers()
    records = pair.close()
    assert len(records) <= 3
    assert [record["outcome"] for record in records[-2:]] == ["stop", "stop"]
    assert all(record["outcome"] in ("stop", "cancelled") for record in records)


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("model", [K2, FAR])
def test_a_client_that_vanishes_at_any_byte_of_an_answer_is_settled_once(pair: Pair, path: str, model: str) -> None:
    make = chat_body if path == CHAT else message_body
    request = pair.post(make("word " * WORDS, model=model, stream=True, max_tokens=500), path, b"Connection: close\r\n")
    with connect(pair.near) as connection:
        connection.sendall(request)
        whole = len(until_closed(connection))
    offsets = [0, 1, 12, 100, 400, *range(500, whole, whole // 25), whole - 100, whole - 5, whole - 1, whole]
    for number, count in enumerate(offsets, 2):
        connection = connect(pair.near)
        connection.sendall(request)
        read_exactly(connection, count)
        leave(connection, "reset" if number % 2 else "close")
        eventually(lambda number=number: pair.answered() == number)
    pair.still_answers()
    records = pair.close()
    assert len(records) == 1 + len(offsets) + 2
    assert {record["outcome"] for record in records} == {"stop", "cancelled"}
    for record in records[1:-2]:
        assert 0 <= record["output"] <= records[0]["output"]
        if model == K2 or record["outcome"] == "stop":  # an upstream tells at the end how it counts
            assert record["prompt_miss"] == records[0]["prompt_miss"]


def test_a_client_that_shuts_its_sending_half_has_left(start_server: StartServer, tmp_path: Path) -> None:
    """In its request and after it: nothing is answered, and what was not begun is not recorded."""
    pair = Pair(start_server, tmp_path, "echo.first_delay=5")
    request = pair.post(chat_body("Hello"))
    for sent, ends in ((request[:20], 0), (request[:-1], 1), (request, 2)):
        with connect(pair.near) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b""
        eventually(lambda ends=ends: pair.answered() == ends)
    records = pair.close()
    assert [(record["outcome"], record["output"]) for record in records] in ([], [("cancelled", 0)])


class Endless(BaseHTTPRequestHandler):
    """An upstream that sends as fast as it is read, and remembers how much that was and how it ended."""

    protocol_version = "HTTP/1.1"
    event: bytes
    most: int
    models: bytes
    sent = 0
    cut = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.models)))
        self.end_headers()
        self.wfile.write(self.models)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        events = self.event * (1 + 65536 // len(self.event))
        chunk = b"%x\r\n%b\r\n" % (len(events), events)
        try:
            while type(self).sent < self.most:
                self.wfile.write(chunk)
                type(self).sent += len(events)
        except OSError:
            self.cut.set()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Tests are quiet."""


@contextmanager
def endless(event: bytes, models: bytes, most: int) -> Iterator[tuple[type[Endless], str]]:
    """A handler's class and its server's address."""
    known = {"event": event, "models": models, "most": most, "sent": 0, "cut": threading.Event()}
    handler = type("_Endless", (Endless,), known)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield handler, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
WORD = (
    b"data: %b\n\n"
    % json.dumps(
        CHUNK | {"choices": [{"index": 0, "delta": {"content": "\x01" * 100}, "finish_reason": None}]}
    ).encode()
)
TOKENS = (
    b"data: %b\n\n"
    % json.dumps({"choices": [{"index": 0, "text": "", "finish_reason": None, "token_ids": [1000]}]}).encode()
)
MODELS = json.dumps({"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 10**7}]}).encode()


def others_go_on(server: Server) -> None:
    """Another client's stream comes whole, and word by word, whoever reads nothing."""
    with server.streaming(chat_body("word " * 100, stream=True, max_tokens=1000)) as response:
        assert response.status == 200
        assert response.read().count(b'"content":"word "') == 100


def is_settled_when_it_is_cut(server: Server) -> None:
    """The client of the one request of `FAR` still has its connection, and the request is recorded all the same."""
    (record,) = eventually(lambda: [each for each in server.usage_records() if each["model"] == FAR], within=20)
    assert record["outcome"] == "cancelled"
    assert record["cost_nano"] > 0
    others_go_on(server)
    assert server.accidents == []


@pytest.mark.parametrize("choices", [1, 2])
def test_a_reader_of_nothing_does_not_fill_the_memory_from_a_chat_upstream(
    start_server: StartServer, choices: int
) -> None:
    with endless(WORD, MODELS, 100 * MB) as (upstream, url):
        server = start_server(
            *("--set", "echo.delay=0.005", "--set", "server.write_timeout=4"),
            *("--set", "deployments.far.name=openai", "--set", f"deployments.far.url={url}"),
            *("--set", "deployments.far.api_key=sk-any", "--set", f"models.{FAR}.deployment=far"),
        )
        others_go_on(server)
        before = server.resident_bytes()
        with connect(server, buffer=4096) as connection:
            body = chat_body("Hi", model=FAR, stream=True, n=choices, max_tokens=200_000)
            connection.sendall(post(body, server.key))
            assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
            others_go_on(server)
            assert upstream.sent < 32 * MB, "what sockets hold, here and there, and not much more"
            assert server.resident_bytes() - before < 24 * MB
            is_settled_when_it_is_cut(server)
        assert upstream.cut.wait(10), "the upstream is not asked for more"


def test_a_reader_of_nothing_does_not_fill_the_memory_from_a_token_engine(
    start_server: StartServer, kimi_cache: Path
) -> None:
    vocabulary, tokens = kimi_cache / "vocabularies" / "kimi-k2", 800_000
    with endless(TOKENS, MODELS, tokens * len(TOKENS)) as (upstream, url):
        server = start_server(
            *("--set", "echo.delay=0.005", "--set", "server.write_timeout=4"),
            *("--set", "deployments.far.name=vllm", "--set", f"deployments.far.url={url}"),
            *("--set", f"deployments.far.vocabulary={vocabulary}", "--set", f"models.{FAR}.deployment=far"),
        )
        others_go_on(server)
        eventually(lambda: server.get("/readyz").status == 200)
        before = server.resident_bytes()
        with connect(server, buffer=4096) as connection:
            body = chat_body("Hi", model=FAR, stream=True, max_tokens=tokens)
            connection.sendall(post(body, server.key))
            assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
            others_go_on(server)
            assert upstream.sent < 32 * MB, "what sockets hold, here and there, and not much more"
            assert server.resident_bytes() - before < 32 * MB
            is_settled_when_it_is_cut(server)
        assert upstream.cut.wait(10), "the upstream is not asked for more"


def test_three_pipelined_requests_are_answered_in_their_order(pair: Pair) -> None:
    """Streams too, of both dialects, here and passed on; each is whole and charged once."""
    texts = ["first " * 20, "second " * 20, "third " * 20]
    requests = [
        pair.post(chat_body(texts[0], model=FAR, stream=True, max_tokens=500)),
        pair.post(message_body(texts[1], stream=True), MESSAGES),
        pair.post(chat_body(texts[2], max_tokens=500), CHAT, b"Connection: close\r\n"),
    ]
    with connect(pair.near) as connection:
        connection.sendall(b"".join(requests))
        answer = until_closed(connection)
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    places = [answer.rindex(each) for each in (b'"first "', b"data: [DONE]", b'"second "', b"event: message_stop")]
    assert places == sorted(places)
    assert answer.index(b'"second ') > places[1]
    assert answer.index(b"third ") > places[3]
    assert answer.count(b'"first "') == answer.count(b'"second "') == 20
    assert [record["outcome"] for record in pair.close()] == ["stop"] * 3


def test_a_client_that_leaves_its_pipelined_requests_is_cancelled(start_server: StartServer, tmp_path: Path) -> None:
    """The request that runs is told, and those that wait are not run for nobody."""
    pair = Pair(start_server, tmp_path, "echo.delay=0.02")
    request = pair.post(chat_body("word " * 2_000, stream=True, max_tokens=10_000))
    with connect(pair.near) as connection:
        connection.sendall(request * 3)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
    eventually(lambda: pair.near.usage_count() == 1)
    pair.still_answers()
    records = pair.close()
    assert [record["outcome"] for record in records] == ["cancelled", "stop", "stop"]


@pytest.mark.parametrize("first_delay", [0, 2], ids=["that flows", "that waits"])
def test_a_pipeline_of_thousands_does_not_fill_the_memory(start_server: StartServer, first_delay: float) -> None:
    """The server takes in a few requests that wait for their turn, and leaves the others to the client."""
    server = start_server("--set", f"echo.first_delay={first_delay}")
    before = server.resident_bytes()
    count = 50_000
    last = HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with connect(server) as connection:
        requests = post(chat_body("first"), server.key) + HEALTH * count + last
        sender = threading.Thread(target=send, args=[connection, requests])
        sender.start()
        answers, most = b"", 0
        seen = 0
        while data := connection.recv(65536):
            answers = answers[-20:] + data
            seen += data.count(b'{"status":"ok"}')
            most = max(most, server.resident_bytes() - before)
        sender.join()
    assert most < 24 * MB
    assert seen >= count


def test_a_head_that_waits_for_its_turn_is_not_late(start_server: StartServer) -> None:
    server = start_server("--set", "echo.first_delay=3", "--set", "server.header_timeout=1")
    answer = b""
    with connect(server) as connection:
        # More than is read at once, which ends inside one of them.
        sender = threading.Thread(target=send, args=[connection, HEALTH * 20_000])
        connection.sendall(post(chat_body("first"), server.key))
        sender.start()
        with suppress(ConnectionError):
            answer = read_exactly(connection, 3_000)
            connection.shutdown(socket.SHUT_RDWR)
        sender.join()
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b'"content":"first"' in answer


@contextmanager
def many_files() -> Iterator[int]:
    """How many connections a flood can have here, for this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(FLOOD + 500, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield min(FLOOD, max(soft, wanted) - 500)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_sockets(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def test_a_flood_of_silent_connections_is_served_past_and_closed(start_server: StartServer) -> None:
    """Half of them say nothing, half of them half a head; all are ended when the time for a head is over."""
    with many_files() as count, ExitStack() as stack:
        server = start_server("--set", "server.header_timeout=4", "--set", "echo.delay=0.005")
        others_go_on(server)
        before, files = server.resident_bytes(), open_sockets(server)
        half = post(chat_body(), server.key)[:60]
        connections = [stack.enter_context(connect(server)) for _ in range(count)]
        for number, connection in enumerate(connections):
            if number % 2:
                connection.sendall(half)
        others_go_on(server)
        for number, connection in enumerate(connections):
            answer = until_closed(connection)
            assert answer.startswith(b"HTTP/1.1 408 Request Timeout") if number % 2 else answer == b""
        eventually(lambda: open_sockets(server) <= files)
        assert server.resident_bytes() - before < 60 * MB
        others_go_on(server)
        eventually(lambda: server.usage_count() == 3)
        assert server.accidents == []


def test_a_flood_that_takes_every_file_ends_with_it(start_server: StartServer) -> None:
    """More connections than the process may have open files: it lives on, and answers when they have gone."""
    program = ("sh", "-c", 'ulimit -n 200 && exec "$0" "$@"', sys.executable, "-m", "moonbase")
    server = start_server("--set", "server.header_timeout=2", program=program)
    others_go_on(server)
    with ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(connect(server))
    eventually(lambda: is_answered(server), within=20)
    others_go_on(server)


def is_answered(server: Server) -> bool:
    with suppress(OSError, http.client.HTTPException):
        return server.chat().status == 200
    return False
