"""Connections that are slow, huge, broken or meant for somebody else, as bytes on a socket."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from tests.e2e.conftest import StartServer
from tests.e2e.server import CHAT, Server, chat_body, eventually

MB = 1 << 20
HOST = b"Host: localhost\r\n"
MALFORMED = b'{"error":{"message":"Invalid request: the HTTP request is malformed","type":"invalid_request_error"}}'
MISDIRECTED = (
    b'{"error":{"message":"Invalid request: the `Host` header names a host that this server does not answer for",'
    b'"type":"invalid_request_error"}}'
)
TOO_LARGE = (
    b'{"error":{"message":"Request exceeds the maximum size of 104857600 bytes","type":"invalid_request_error"}}'
)


@pytest.fixture(scope="module")
def server(start_module_server: StartServer) -> Server:
    """Impatient, so that slowness is cheap to test."""
    return start_module_server("--set", "server.header_timeout=0.5", "--set", "server.body_timeout=1")


@pytest.fixture(autouse=True)
def still_answers(server: Server) -> Iterator[None]:
    """Whatever a test did to it, the server goes on."""
    yield
    assert server.chat("Still there?").json["choices"][0]["message"]["content"] == "Still there?"
    assert server.accidents == []


def get(target: bytes = b"/healthz", *lines: bytes, host: bytes = HOST) -> bytes:
    return b"GET %b HTTP/1.1\r\n%bConnection: close\r\n%b\r\n" % (target, host, b"".join(lines))


def post(server: Server, *lines: bytes, body: bytes | None = None, length: bool = True) -> bytes:
    """A chat request, to be made wrong by more header lines or another body."""
    body = chat_body() if body is None else body
    head = b"POST %b HTTP/1.1\r\n%bAuthorization: Bearer %b\r\nConnection: close\r\n" % (
        CHAT.encode(),
        HOST,
        server.key.encode(),
    )
    announced = b"Content-Length: %d\r\n" % len(body) if length else b""
    return b"%b%b%b\r\n%b" % (head, announced, b"".join(lines), body)


def parsed(answer: bytes) -> tuple[int, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(chat_body())
NO_REQUEST = {
    "random bytes": b"\x00\x01\xff\xfe\r\n\r\n",
    "a TLS hello": bytes.fromhex("16030100a5010000a10303") + b"\x07" * 160,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "words": b"hello there\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\n" + HOST + b"\r\n",
    "a tunnel": b"CONNECT localhost:22 HTTP/1.1\r\n" + HOST + b"\r\n",
    "an unknown method": b"BREW /v1/coffee HTTP/1.1\r\n" + HOST + b"\r\n",
    "a space in the path": get(b"/a b"),
    "a null in the path": get(b"/\0"),
    "raw bytes in the path": get(b"/\xff\xfe"),
    "no colon": get(b"/healthz", b"nonsense\r\n"),
    "a space before the colon": get(b"/healthz", b"X-A : b\r\n"),
    "a null in a header": get(b"/healthz", b"X-A: b\0c\r\n"),
    "a control character in a header": get(b"/healthz", b"X-A: \x01\r\n"),
    "a folded header": get(b"/healthz", b"X-A: b\r\n c\r\n"),
    "a bare line feed": get(b"/healthz", b"X-A: b\nX-B: c\r\n"),
    "a bare carriage return": get(b"/healthz", b"X-A: b\rX-B: c\r\n"),
}
SMUGGLING = {
    "length and chunks": (CHUNKED + LENGTH, b"0\r\n\r\n"),
    "two lengths": (LENGTH + b"Content-Length: 5\r\n", chat_body()),
    "the same length twice": (LENGTH + LENGTH, chat_body()),
    "a list of lengths": (b"Content-Length: 5, 5\r\n", b"hello"),
    "a negative length": (b"Content-Length: -5\r\n", b""),
    "a signed length": (b"Content-Length: +5\r\n", b"hello"),
    "a hexadecimal length": (b"Content-Length: 0x5\r\n", b"hello"),
    "an endless length": (b"Content-Length: 99999999999999999999999\r\n", b""),
    "another encoding": (b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"),
    "chunks of something packed": (b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    "the same in two lines": (b"Transfer-Encoding: gzip\r\n" + CHUNKED, b"0\r\n\r\n"),
    "chunked in between": (b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"),
    "identity": (b"Transfer-Encoding: identity\r\n", chat_body()),
    "a broken chunk size": (CHUNKED, b"zz\r\nabc\r\n0\r\n\r\n"),
    "an endless chunk size": (CHUNKED, b"fffffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    "a chunk longer than it says": (CHUNKED, b"2\r\nabc\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("case", NO_REQUEST)
def test_what_is_no_http_request_is_refused(server: Server, case: str) -> None:
    assert parsed(server.raw(NO_REQUEST[case])) == (400, MALFORMED)


@pytest.mark.parametrize("case", SMUGGLING)
def test_a_body_without_a_clear_end_is_refused(server: Server, case: str) -> None:
    headers, body = SMUGGLING[case]
    answer = server.raw(post(server, headers, body=body, length=False) + get(b"/smuggled"))
    assert parsed(answer) == (400, MALFORMED)


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "localhost.example.com",
        "localhost.",
        "127.0.0.2",
        "0.0.0.0",
        "127.1",
        "::1",
        "",
        "a b",
        "é",
        "localhost:",
        "localhost:x",
        "localhost:123456",
        "user@localhost",
        "localhost/",
        "localhost,example.com",
    ],
)
def test_another_host_is_misdirected(server: Server, host: str) -> None:
    answer = server.raw(get(host=b"Host: %b\r\n" % host.encode("latin-1")))
    assert parsed(answer) == (421, MISDIRECTED)


def test_a_missing_host_is_misdirected(server: Server) -> None:
    assert parsed(server.raw(get(host=b""))) == (421, MISDIRECTED)
    assert parsed(server.raw(b"GET /healthz HTTP/1.0\r\n\r\n")) == (421, MISDIRECTED)


def test_two_hosts_are_refused_whichever_comes_first(server: Server) -> None:
    """A proxy in front may have gone by the other one."""
    for host in (HOST + b"Host: a.example\r\n", b"Host: a.example\r\n" + HOST, HOST + HOST):
        status, body = parsed(server.raw(get(host=host)))
        assert status == 400
        assert json.loads(body)["error"]["message"] == "Invalid request: there is more than one `Host` header"


def test_the_host_counts_before_the_key_and_the_path(server: Server) -> None:
    answer = server.raw(get(b"/nothing", host=b"Host: a.example\r\n"))
    assert parsed(answer) == (421, MISDIRECTED)


@pytest.mark.parametrize("host", ["localhost", "LocalHost:1", "127.0.0.1", "127.0.0.1:65535", "[::1]", "[::1]:80"])
def test_loopback_names_are_answered(server: Server, host: str) -> None:
    assert parsed(server.raw(get(host=b"Host: %b\r\n" % host.encode())))[0] == 200


def test_allowed_hosts_are_answered_and_no_others(start_server: StartServer) -> None:
    server = start_server("--set", "server.allowed_hosts=kimi.example.com, *.moon.example")
    expected = {
        "kimi.example.com": 200,
        "KIMI.example.com:8000": 200,
        "a.moon.example": 200,
        "b.a.moon.example:1": 200,
        "moon.example": 421,
        "xmoon.example": 421,
        "x.kimi.example.com": 421,
        "example.com": 421,
        "localhost": 200,
    }
    assert {host: server.get("/healthz", headers={"Host": host}).status for host in expected} == expected


def test_an_announced_body_over_the_limit_is_refused_unread(server: Server) -> None:
    head = post(server, b"Content-Length: %d\r\n" % (100 * MB + 1), body=b"", length=False)
    assert parsed(server.raw(head)) == (413, TOO_LARGE)


def test_a_client_that_sends_an_oversized_body_at_once_gets_the_answer(server: Server) -> None:
    reply = server.post(b"x" * (100 * MB + 1))
    assert (reply.status, reply.body) == (413, TOO_LARGE)
    assert reply.header("connection") == "close"


def test_a_chunked_body_over_the_limit_is_refused_in_bounded_memory(server: Server) -> None:
    before = server.resident_bytes()

    def chunks() -> Iterator[bytes]:
        for _ in range(150):
            yield b"x" * MB

    reply = server.post(chunks())
    assert (reply.status, reply.body) == (413, TOO_LARGE)
    assert server.resident_bytes() - before < 250 * MB


def test_a_body_of_exactly_the_limit_is_read_while_others_are_answered(server: Server) -> None:
    body = chat_body(padding="")
    body = body.replace(b'"padding": ""', b'"padding": "%b"' % (b"x" * (100 * MB - len(body))))
    assert len(body) == 100 * MB
    statuses = []
    sender = threading.Thread(target=lambda: statuses.append(server.post(body).status))
    sender.start()
    answered = 0
    while sender.is_alive():
        assert server.get("/healthz").status == 200
        answered += 1
    sender.join()
    assert statuses == [200]
    assert answered > 5


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(get(b"/healthz", b"X-A: %b\r\n" % (b"a" * MB)), id="one header"),
        pytest.param(get(b"/healthz", b"X-A: b\r\n" * 100_000), id="many headers"),
        pytest.param(get(b"/" + b"a" * MB), id="path"),
        pytest.param(get(b"/?" + b"a" * MB), id="query"),
        pytest.param(b"GET /" + b"a" * MB, id="endless path"),
        pytest.param(b"GET / HTTP/1.1\r\nX-A: " + b"a" * MB, id="endless header"),
        pytest.param(get(b"/healthz", b"X-A: %b\r\n" % (b"a" * 32_768)), id="just over"),
    ],
)
def test_a_head_over_the_limit_is_refused(server: Server, request_bytes: bytes) -> None:
    status, body = parsed(server.raw(request_bytes))
    assert status == 431
    message = "Invalid request: the request head is larger than 32768 bytes"
    assert json.loads(body) == {"error": {"message": message, "type": "invalid_request_error"}}


def test_a_client_that_is_refused_may_end_what_it_sends(start_server: StartServer) -> None:
    server = start_server()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"GET /" + b"a" * 65_536)
        time.sleep(0.2)  # it has been refused by now
        for _ in range(10):
            connection.sendall(b"a" * 65_536)
            time.sleep(0.02)  # a reset would come meanwhile
        connection.shutdown(socket.SHUT_WR)
        assert parsed(_rest(connection))[0] == 431


def test_a_client_that_is_refused_and_never_ends_is_cut(server: Server) -> None:
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection,
        pytest.raises(ConnectionError),
    ):
        _send_on(connection, seconds=30)


def test_a_head_within_the_limit_is_read(server: Server) -> None:
    assert parsed(server.raw(get(b"/healthz", b"X-A: %b\r\n" % (b"a" * 32_000))))[0] == 200


@pytest.mark.parametrize("chunks", [0, 500_000])
def test_trailers_count_as_headers(server: Server, chunks: int) -> None:
    """Else anybody could fill the memory after the last chunk, however many came before, without a key."""
    before = server.resident_bytes()
    lines = b"X-T: abcd\r\n" * 10_000
    start = b"POST %b HTTP/1.1\r\n%b%b\r\n" % (CHAT.encode(), HOST, CHUNKED)
    server.raw(start + b"1\r\nx\r\n" * chunks + b"0\r\n", *[lines] * 100, timeout=20)
    assert server.resident_bytes() - before < 30 * MB


def test_a_trailer_is_no_header(server: Server) -> None:
    """A proxy that cleans heads may pass trailers on."""
    key = b"Authorization: Bearer %b\r\n" % server.key.encode()
    head = post(server, CHUNKED, body=b"", length=False).replace(key, b"")
    body = chat_body()
    chunks = b"%x\r\n%b\r\n0\r\n" % (len(body), body)
    assert parsed(server.raw(head + chunks + key + b"\r\n"))[0] == 401


def test_a_slow_head_is_told_that_it_is_late(server: Server) -> None:
    status, body = parsed(server.raw(b"GET /healthz HTTP/1.1\r\nHost: lo"))
    assert status == 408
    assert json.loads(body)["error"]["message"] == (
        "Invalid request: the request head did not arrive within 0.5 seconds"
    )


def test_a_head_that_drips_is_late_all_the_same(server: Server) -> None:
    began = time.monotonic()
    status, _ = parsed(server.raw(b"GET /healthz HTTP/1.1\r\n", *[b"X-A: b\r\n"] * 8, pause=0.1))
    assert status == 408
    assert time.monotonic() - began < 5


def test_a_connection_that_asks_nothing_is_closed_silently(server: Server) -> None:
    assert server.raw() == b""


def test_a_connection_that_only_sends_empty_lines_after_its_answer_is_closed(server: Server) -> None:
    keep = get().replace(b"Connection: close\r\n", b"")
    began = time.monotonic()
    answer = server.raw(keep, b"\r\n", pause=0.2)
    assert parsed(answer) == (200, b'{"status":"ok"}')
    assert time.monotonic() - began < 5


def test_a_slow_body_is_told_that_it_is_late(server: Server) -> None:
    answer = server.raw(post(server, b"Content-Length: 500\r\n", length=False))
    expected = {"message": "The request body did not arrive within 1 seconds", "type": "request_timeout_error"}
    status, body = parsed(answer)
    assert (status, json.loads(body)) == (408, {"error": expected})


def test_a_body_that_drips_is_late_all_the_same(server: Server) -> None:
    pieces = [b"x"] * 15
    status, _ = parsed(server.raw(post(server, b"Content-Length: 500\r\n", length=False), *pieces, pause=0.1))
    assert status == 408


def test_a_body_nobody_asked_for_ends_the_connection(server: Server) -> None:
    """The key is wrong, so the answer came at once; the rest of the body must not hold the connection open."""
    head = b"POST %b HTTP/1.1\r\n%bContent-Length: 500\r\n\r\nabc" % (CHAT.encode(), HOST)
    began = time.monotonic()
    assert parsed(server.raw(head))[0] == 401
    assert time.monotonic() - began < 5


def test_a_refused_request_whose_body_then_breaks_is_answered_once(server: Server) -> None:
    head = b"POST %b HTTP/1.1\r\n%b%b\r\n" % (CHAT.encode(), HOST, CHUNKED)
    answer = server.raw(head, b"zz\r\n", pause=0.2)
    assert parsed(answer)[0] == 401
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_client_that_leaves_in_its_body_does_no_harm(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(post(server, b"Content-Length: 500\r\n", length=False))
        time.sleep(0.05)


def test_good_requests_come_in_many_forms(server: Server) -> None:
    body = chat_body("Hi")
    single = b"".join([b"1\r\n%b\r\n" % body[at : at + 1] for at in range(len(body))])
    forms = {
        "byte by byte chunks": post(server, CHUNKED, body=single + b"0\r\n\r\n", length=False),
        "a chunk extension": post(server, CHUNKED, body=b"%x;a=b\r\n%b\r\n0\r\n\r\n" % (len(body), body), length=False),
        "a small trailer": post(
            server, CHUNKED, body=b"%x\r\n%b\r\n0\r\nX-T: 1\r\n\r\n" % (len(body), body), length=False
        ),
        "empty lines before": b"\r\n\r\n" + post(server, body=body),
        "an absolute target": post(server, body=body).replace(b"POST /", b"POST http://localhost/"),
    }
    for form, request in forms.items():
        status, answer = parsed(server.raw(request))
        assert status == 200, form
        assert b'"content":"Hi"' in answer, form


def test_continue_is_not_sent_to_a_client_of_http_1_0(server: Server) -> None:
    request = post(server, b"Expect: 100-continue\r\n").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert parsed(server.raw(request))[0] == 200


def test_continue_is_sent_to_a_client_that_waits_for_it(server: Server) -> None:
    answer = server.raw(post(server, b"Expect: 100-continue\r\n"))
    first, _, rest = answer.partition(b"\r\n\r\n")
    assert first == b"HTTP/1.1 100 Continue"
    assert parsed(rest)[0] == 200


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    keep = post(server, body=chat_body("first")).replace(b"Connection: close\r\n", b"")
    answer = server.raw(keep + post(server, body=chat_body("second")))
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert 0 < answer.index(b'"first"') < answer.index(b'"second"')


def test_what_is_no_request_behind_a_good_one_is_refused_after_its_answer(server: Server) -> None:
    keep = post(server, body=chat_body("one two three", stream=True)).replace(b"Connection: close\r\n", b"")
    for behind in (b"\x00\x01\r\n\r\n", b"GET /" + b"a" * MB, b"GET /healthz HTTP/1.1\r\nHost: lo"):
        answer = server.raw(keep + behind)
        first, done, rest = answer.partition(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert done, behind[:20]
        assert first.startswith(b"HTTP/1.1 200 OK\r\n")
        assert first.count(b'"delta":{"content":') == 3
        assert parsed(rest)[0] in (400, 408, 431)


def test_a_stream_for_http_1_0_ends_with_its_connection(server: Server) -> None:
    request = post(server, body=chat_body("one two", stream=True)).replace(b" HTTP/1.1", b" HTTP/1.0")
    head, _, body = server.raw(request).partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head
    assert b"transfer-encoding" not in head
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


def test_a_head_is_asked_for_alone(server: Server) -> None:
    answer = server.raw(get().replace(b"GET ", b"HEAD "))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\ncontent-length: 15" in head
    assert body == b""


@pytest.mark.parametrize("name", [b"Upgrade", b"upgrade", b"UPGRADE"])
def test_the_offer_of_another_protocol_is_ignored(server: Server, name: bytes) -> None:
    offer = b"%b: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n" % name
    request = post(server, offer, body=chat_body("Hi"))
    status, answer = parsed(server.raw(request.replace(b"Connection: ", b"Connection: Upgrade, HTTP2-Settings, ")))
    assert status == 200
    assert b'"content":"Hi"' in answer


def test_the_offer_of_a_request_behind_another_is_ignored_too(server: Server) -> None:
    offer = get(b"/healthz", b"Upgrade: h2c\r\n").replace(b"close", b"Upgrade")
    answer = server.raw(get().replace(b"Connection: close\r\n", b"") + offer + get())
    assert answer.count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize("split", [1, 2, 3])
def test_a_body_that_looks_like_an_offer_ends_where_its_head_says(server: Server, split: int) -> None:
    """What is parsed at once ends inside the end of the head; a body that grew or shrank would end in a request."""
    smuggled = get(b"/healthz", b"X-A: %b\r\n" % (b"a" * 100)).replace(b"Connection: close", b"X-B: bb")
    assert len(smuggled) % 2 == 0
    body = b"{" + b"\r\nupgrade:" * (len(smuggled) // 2) + b"\r\n\r\n" + b" " * 20 + smuggled
    request = post(server, body=body).replace(b"Connection: close\r\n", b"X-Pad: \r\n", 1)
    head = request.index(b"\r\n\r\n") + 4
    request = request.replace(b"X-Pad: ", b"X-Pad: " + b"p" * (16_384 + split - head), 1)
    assert request[16_384 + split - 4 : 16_384 + split] == b"\r\n\r\n"
    answer = server.raw(request + get())
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"400", b"200"]


@pytest.mark.parametrize("version", [b"2.0", b"1.2", b"0.9"])
def test_another_version_of_http_is_refused(server: Server, version: bytes) -> None:
    status, _ = parsed(server.raw(get().replace(b"HTTP/1.1", b"HTTP/" + version)))
    assert status in (400, 505)


def test_what_is_no_request_leaves_a_line_in_the_log(server: Server) -> None:
    server.raw(b"GARBAGE\r\n\r\n")
    line = eventually(lambda: [line for line in server.log if line["message"].startswith("no request: ")])[-1]
    assert (line["message"], line["client"]) == ("no request: 400, the HTTP request is malformed", "127.0.0.1")


def test_an_offer_that_the_parser_would_take_is_refused_once(server: Server) -> None:
    offer = post(server, b"UpGrAdE: h2c\r\n").replace(b"Connection: close", b"Connection: Upgrade")
    answer = server.raw(offer)
    assert parsed(answer) == (400, MALFORMED)
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("host", [b"localhost", b"a.example"])
def test_the_host_of_an_absolute_target_is_the_one_that_counts(server: Server, host: bytes) -> None:
    line = b"Host: %b\r\n" % host
    for own in (b"http://localhost/healthz", b"http://127.0.0.1:9/healthz", b"https://LOCALHOST/healthz"):
        assert parsed(server.raw(get(own, host=line)))[0] == 200, own
    for foreign in (b"http://b.example/healthz", b"https://localhost.b.example/healthz"):
        assert parsed(server.raw(get(foreign, host=line))) == (421, MISDIRECTED), foreign


@pytest.mark.parametrize("target", [b"OPTIONS *", b"GET *", b"GET ftp://localhost/healthz", b"GET localhost:80"])
def test_a_target_that_is_neither_path_nor_url_is_refused(server: Server, target: bytes) -> None:
    assert parsed(server.raw(target + b" HTTP/1.1\r\n" + HOST + b"\r\n")) == (400, MALFORMED)


def test_a_client_that_never_reads_is_cut_and_pays_for_what_there_was(start_server: StartServer) -> None:
    server = start_server("--set", "server.write_timeout=1", "--set", "echo.delay=0.005")
    word = "\x01" * 20_000  # six bytes each in JSON
    body = chat_body(f"{word} " * 25, stream=True, n=5, max_tokens=130_000)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(post(server, body=body))
        record = eventually(lambda: server.usage_count() and server.last_usage(), within=15)
        assert record["outcome"] == "cancelled"
        assert record["cost_nano"] > 0
        with suppress(ConnectionError):
            while connection.recv(MB):
                pass
    assert server.accidents == []


def test_a_refused_body_that_goes_on_beyond_the_limit_is_cut(start_server: StartServer) -> None:
    server = start_server("--set", "server.max_body_bytes=100000")
    head = b"POST %b HTTP/1.1\r\n%b%b\r\n" % (CHAT.encode(), HOST, CHUNKED)
    chunk = b"ffff\r\n%b\r\n" % (b"x" * 0xFFFF)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head + b"1\r\nx\r\n")
        assert parsed(connection.recv(65536))[0] == 401
        with pytest.raises(ConnectionError):
            connection.sendall(chunk * 1_000)


def test_bodies_that_are_held_at_once_have_a_limit_together(start_server: StartServer) -> None:
    server = start_server("--set", "server.max_bodies_bytes=10000")
    large = chat_body("Hi", padding="x" * 7_000)
    request = post(server, body=large)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request[:-1])
        refused = eventually(lambda: (reply := server.post(large)).status != 200 and reply)
        assert (refused.status, refused.json["error"]["type"]) == (429, "engine_overloaded_error")
        assert server.chat("Hi").status == 200, "there is room for a small one"
        connection.sendall(request[-1:])
        assert parsed(connection.recv(65536))[0] == 200
    for _ in range(3):
        assert server.post(large).status == 200


def test_a_body_is_held_no_more_once_its_answer_has_begun(start_server: StartServer) -> None:
    server = start_server("--set", "server.max_bodies_bytes=10000", "--set", "echo.delay=0.5")
    stream = chat_body("one two three four five six seven", padding="x" * 7_000, stream=True)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(post(server, body=stream))
        begun = b""
        while b"one" not in begun:
            begun += connection.recv(65536)
        assert server.post(chat_body("Hi", padding="x" * 7_000)).status == 200
        rest = _rest(connection)
        assert b"seven" in rest, "the stream went on meanwhile"


def _send_on(connection: socket.socket, *, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        connection.sendall(b"a" * 1024)
        time.sleep(0.01)


def _rest(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    return b"".join(iter(lambda: connection.recv(65_536), b""))
