"""Keys that do not open everything, on every endpoint, in every dialect and for every way to carry a key."""

import json
import sqlite3
from typing import Any

import pytest
from tests.e2e.administrator import admin, new_key
from tests.e2e.conftest import StartServer
from tests.e2e.server import CHAT, K2, Server, eventually, user
from tests.e2e.test_every_dialect import COUNTS, ESTIMATE, MESSAGES

ENDPOINTS = {
    CHAT: "chat",
    **dict.fromkeys(MESSAGES, "messages"),
    **dict.fromkeys([ESTIMATE, *COUNTS], "tokens"),
    "/v1/models": "models",
    "/v1/users/me/balance": "balance",
    "/v1/usage": "usage",
    "/v1/usage/none": "usage",
}
NAMES = sorted(set(ENDPOINTS.values()))
CLOSED = {"message": "The API you are accessing is not open", "type": "permission_denied_error"}


@pytest.fixture(scope="module")
def server(start_module_server: StartServer) -> Server:
    return start_module_server()


@pytest.fixture(scope="module")
def keys(server: Server) -> dict[str, str]:
    """A key for each endpoint, and one for some models."""
    made = {name: admin(server, "keys", "create", "--name", name, "--endpoint", name) for name in NAMES}
    return made | {"some": admin(server, "keys", "create", "--name", "some", "--model", K2, "--model", "kimi-k2.6")}


def ask(server: Server, path: str, secret: str, model: str = K2, **headers: str) -> tuple[int, Any]:
    carried = headers or {"Authorization": f"Bearer {secret}"}
    if path in ("/v1/models", "/v1/users/me/balance") or path.startswith("/v1/usage"):
        reply = server.get(path, key=None, headers=carried)
    else:
        body = json.dumps({"model": model, "max_tokens": 5, "messages": user("Hi")}).encode()
        reply = server.post(body, path=path, key=None, headers=carried)
    return reply.status, reply.json


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_key_opens_its_endpoint_and_no_other(server: Server, keys: dict[str, str], path: str, name: str) -> None:
    status, told = ask(server, path, keys[name])
    if ENDPOINTS[path] == name:
        assert status == (404 if path == "/v1/usage/none" else 200)
    else:
        assert (status, told["error"]) == (403, CLOSED)
    if path in (*MESSAGES, *COUNTS):
        assert ask(server, path, "", **{"x-api-key": keys[name]}) == (status, told) or status == 200


@pytest.mark.parametrize("path", [CHAT, ESTIMATE, *MESSAGES, *COUNTS])
def test_another_model_does_not_exist_for_it(server: Server, keys: dict[str, str], path: str) -> None:
    assert ask(server, path, keys["some"])[0] == 200
    status, told = ask(server, path, keys["some"], model="kimi-k2-0711-preview")
    message = "Not found the model kimi-k2-0711-preview or Permission denied"
    assert (status, told) == (404, {"error": {"message": message, "type": "resource_not_found_error"}})
    assert ask(server, path, keys["some"], model="nothing")[0] == 404
    if path in (*MESSAGES, *COUNTS):
        carried = {"x-api-key": keys["some"]}
        assert ask(server, path, "", model="kimi-k2-0711-preview", **carried) == (status, told)


def test_only_its_models_are_listed(server: Server, keys: dict[str, str]) -> None:
    listed = ask(server, "/v1/models", keys["some"])[1]["data"]
    assert [model["id"] for model in listed] == [K2, "kimi-k2.6"]
    assert len(ask(server, "/v1/models", server.key)[1]["data"]) > 10


def test_an_expired_key_is_refused_everywhere(server: Server) -> None:
    secret = admin(server, "keys", "create", "--name", "short", "--expires", "1m")
    (key,) = [key for key in json.loads(admin(server, "keys", "list", "--json")) if key["name"] == "short"]
    assert ask(server, CHAT, secret)[0] == 200
    database = sqlite3.connect(server.home / "moonbase.db")
    database.execute("UPDATE key SET expires_at = 1 WHERE id = ?", (key["id"],))
    database.commit()
    database.close()
    eventually(lambda: ask(server, CHAT, secret)[0] == 401)
    for path in ENDPOINTS:
        status, told = ask(server, path, secret)
        assert (status, told["error"]["type"]) == (401, "invalid_authentication_error")


def test_a_change_of_a_key_is_followed_within_five_seconds(server: Server) -> None:
    secret = admin(server, "keys", "create", "--name", "wide")
    (key,) = [key for key in json.loads(admin(server, "keys", "list", "--json")) if key["name"] == "wide"]
    assert ask(server, CHAT, secret)[0] == 200
    admin(server, "keys", "update", key["id"], "--endpoint", "models")
    eventually(lambda: ask(server, CHAT, secret)[0] == 403, within=5)


def test_a_price_is_followed_and_stored_with_what_it_billed(server: Server) -> None:
    secret = new_key(server, name="priced")
    before = server.usage(server.chat())
    admin(server, "prices", "set", K2, "--currency", "USD", "--since", "2026-01-01", "--miss", "7", "--output", "8")

    def price() -> int:
        reply = server.post(json.dumps({"model": K2, "messages": user("Hi")}).encode(), key=secret)
        return int(server.usage(reply)["price_miss"])

    eventually(lambda: price() == 7 * 10**9, within=5)
    assert server.usage(before["request_id"])["price_miss"] == 600_000_000
    assert server.moonbase("ledger", "check").returncode == 0


def test_nothing_of_that_was_an_accident(server: Server) -> None:
    assert server.accidents == []
