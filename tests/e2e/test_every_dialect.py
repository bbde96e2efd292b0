"""One table for what holds on every endpoint, in every dialect and for every way to carry a key."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from tests.e2e.conftest import StartServer
from tests.e2e.server import CHAT, K2, Server, eventually, user

ESTIMATE = "/v1/tokenizers/estimate-token-count"
MESSAGES = ["/anthropic/v1/messages", "/v1/v1/messages"]  # the others are the same route at another address
COUNTS = [f"{path}/count_tokens" for path in MESSAGES]
POSTS = [CHAT, ESTIMATE, *MESSAGES, *COUNTS]
GETS = ["/v1/models", "/v1/users/me/balance"]
BODY = json.dumps({"model": K2, "max_tokens": 5, "messages": user("Hi")}).encode()

ILL_FORMED: dict[str, dict[str, str]] = {
    "nothing": {},
    "another scheme": {"Authorization": "Basic abc"},
    "no scheme": {"Authorization": "sk-abc"},
    "no key": {"Authorization": "Bearer "},
    "blanks": {"Authorization": "Bearer a b"},
}
UNKNOWN: dict[str, dict[str, str]] = {
    "unknown": {"Authorization": "Bearer sk-unknown"},
    "SQL": {"Authorization": "Bearer ' OR 1=1 --"},
    "quotes": {"Authorization": 'Bearer ";DROP'},
    "wildcards": {"Authorization": "Bearer %_%"},
    "long": {"Authorization": f"Bearer sk-{'a' * 4000}"},
    "not ASCII": {"Authorization": "Bearer sk-\xff\xfe"},
}
INCORRECT = {"error": {"message": "Incorrect API key provided", "type": "incorrect_api_key_error"}}
INVALID = {"error": {"message": "Invalid Authentication", "type": "invalid_authentication_error"}}


def answer(server: Server, path: str, headers: Mapping[str, str]) -> tuple[int, Any]:
    if path in GETS:
        reply = server.get(path, key=None, headers=headers)
    else:
        reply = server.post(BODY, path=path, key=None, headers=headers)
    return reply.status, reply.json


@pytest.mark.parametrize("path", [*POSTS, *GETS])
@pytest.mark.parametrize("case", ILL_FORMED)
def test_an_ill_formed_credential_is_told_so(echo: Server, path: str, case: str) -> None:
    assert answer(echo, path, ILL_FORMED[case]) == (401, INCORRECT)


@pytest.mark.parametrize("path", [*POSTS, *GETS])
@pytest.mark.parametrize("case", [name for name in UNKNOWN if name != "SQL"])
def test_an_unknown_key_is_refused(echo: Server, path: str, case: str) -> None:
    assert answer(echo, path, UNKNOWN[case]) == (401, INVALID)


@pytest.mark.parametrize("path", [*MESSAGES, *COUNTS])
@pytest.mark.parametrize("case", UNKNOWN)
def test_an_unknown_key_in_the_other_header_is_refused_alike(echo: Server, path: str, case: str) -> None:
    secret = UNKNOWN[case]["Authorization"].removeprefix("Bearer ")
    status, told = answer(echo, path, {"x-api-key": secret})
    assert (status, told) == (401, INCORRECT if " " in secret else INVALID)


@pytest.mark.parametrize("path", [*MESSAGES, *COUNTS])
def test_either_header_lets_in_and_the_first_counts(echo: Server, path: str) -> None:
    for headers in ({"x-api-key": echo.key}, {"Authorization": f"bearer {echo.key}", "x-api-key": "sk-other"}):
        assert answer(echo, path, headers)[0] == 200
    wrong = {"Authorization": "Bearer sk-unknown", "x-api-key": echo.key}
    assert answer(echo, path, wrong) == (401, INVALID)
    empty = {"x-api-key": ""}
    assert answer(echo, path, empty) == (401, INCORRECT)


@pytest.mark.parametrize("path", [CHAT, ESTIMATE, *GETS])
def test_the_other_header_is_no_key_elsewhere(echo: Server, path: str) -> None:
    assert answer(echo, path, {"x-api-key": echo.key}) == (401, INCORRECT)


def test_a_revoked_key_is_refused_everywhere(start_server: StartServer) -> None:
    server = start_server()
    made = server.moonbase("keys", "create", "--name", "old")
    secret = made.stdout.strip()
    assert all(answer(server, path, {"Authorization": f"Bearer {secret}"})[0] == 200 for path in [*POSTS, *GETS])
    listed = server.moonbase("keys", "list", "--json")
    (key_id,) = [key["id"] for key in json.loads(listed.stdout) if key["name"] == "old"]
    assert server.moonbase("keys", "revoke", key_id).returncode == 0
    refused = (401, INVALID)  # what another process revokes may work for two seconds more
    eventually(lambda: answer(server, CHAT, {"Authorization": f"Bearer {secret}"}) == refused)
    for path in [*POSTS, *GETS]:
        assert answer(server, path, {"Authorization": f"Bearer {secret}"}) == (401, INVALID)
        if path in (*MESSAGES, *COUNTS):
            assert answer(server, path, {"x-api-key": secret}) == (401, INVALID)


def shape(path: str, kind: str, message: str) -> dict[str, Any]:
    """An error of status 400, 413 or 421 in the dialect of `path`."""
    if path in (*MESSAGES, *COUNTS):
        return {"type": "error", "error": {"type": kind, "message": message}}
    return {"error": {"message": message, "type": kind}}


@pytest.mark.parametrize("path", POSTS)
def test_a_body_over_the_limit_is_refused(small: Server, path: str) -> None:
    reply = small.post(BODY + b" " * 2000, path=path)
    expected = shape(path, "invalid_request_error", "Request exceeds the maximum size of 1024 bytes")
    assert (reply.status, reply.json, reply.header("connection")) == (413, expected, "close")


@pytest.fixture(scope="module")
def small(start_module_server: StartServer) -> Server:
    return start_module_server("--set", "server.max_body_bytes=1024", "--set", "server.body_timeout=0.5")


@pytest.mark.parametrize("path", POSTS)
def test_a_body_that_does_not_come_is_late(small: Server, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {small.key}\r\nContent-Length: 5\r\n\r\n"
    data = small.raw(head.encode(), b"{")
    assert b" 408 " in data.partition(b"\r\n")[0]
    told = json.loads(data.partition(b"\r\n\r\n")[2])
    assert told == shape(path, "request_timeout_error", "The request body did not arrive within 0.5 seconds")


@pytest.mark.parametrize("path", POSTS)
def test_another_host_is_misdirected(echo: Server, path: str) -> None:
    reply = echo.post(BODY, path=path, headers={"Host": "evil.example"})
    message = "Invalid request: the `Host` header names a host that this server does not answer for"
    assert (reply.status, reply.json) == (421, shape(path, "invalid_request_error", message))


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the request body is not valid JSON: Input data was truncated"),
        (b'{"a":' * 100_000, "the request body is nested too deeply"),
        (BODY.replace(b'"Hi"', b'"\xff"'), "the request body is not valid UTF-8"),
        (BODY.replace(f'"{K2}"'.encode(), b'""'), "model must not be empty"),
        (BODY.replace(b'"Hi"', b'""'), "the message at position 0 with role 'user' must not be empty"),
        (
            BODY.replace(b'"Hi"', b"5"),
            "the `messages.0.content` field in the request (expected type string) is illegal, and number is not "
            "acceptable",
        ),
        (BODY.replace(b'"user"', b'"robot"'), "the message at position 0 has an unknown role: robot"),
    ],
)
def test_what_is_no_request_is_refused_in_the_same_words(echo: Server, path: str, body: bytes, message: str) -> None:
    reply = echo.post(body, path=path)
    expected = shape(path, "invalid_request_error", f"Invalid request: {message}")
    assert (reply.status, reply.json) == (400, expected)


@pytest.mark.parametrize("path", [CHAT, *MESSAGES])
def test_a_prompt_over_the_window_is_refused_with_the_numbers(start_module_server: StartServer, path: str) -> None:
    server = start_module_server("--set", f"models.{K2}.window=100")
    body = json.dumps({"model": K2, "max_tokens": 5, "messages": user("word " * 500)}).encode()
    reply = server.post(body, path=path)
    counted = server.post(body, path=ESTIMATE).json["data"]["total_tokens"]
    message = f"Invalid request: Your request exceeded model token limit: 100 (requested: {counted})"
    assert (reply.status, reply.json) == (400, shape(path, "invalid_request_error", message))


def test_nothing_of_that_was_an_accident(echo: Server) -> None:
    assert echo.accidents == []
