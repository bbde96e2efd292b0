"""The admin API over HTTP, and what callers see of their own usage."""

import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.e2e.administrator import admin
from tests.e2e.conftest import StartServer
from tests.e2e.server import K2, Reply, Server, chat_body, eventually, user
from tests.e2e.test_every_dialect import ILL_FORMED, INCORRECT, INVALID, UNKNOWN

from moonbase.server.admin_operations import OPERATIONS

TABLES = ["organization", "project", "key", "balance", "entry", "usage", "usage_hour", "usage_day", "price"]
INJECTIONS = ["' OR 1=1 --", "';DROP TABLE key;--", '"', "%", "_", "sk-' UNION SELECT secret_hash FROM key --"]


class Admin:
    """An administrator of a server of this module's own."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.secret = admin(server, "admin", "create", "--name", "ops")
        eventually(lambda: self.call("GET", "organizations").status == 200)

    def call(
        self, method: str, path: str, body: Any = None, *, secret: str | None = None, once: str | None = None
    ) -> Reply:
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {} if once is None else {"Idempotency-Key": once}
        return self.server.request(method, f"/admin/v1/{path}", content, key=secret or self.secret, headers=headers)

    def make(self, method: str, path: str, body: Any = None) -> Any:
        reply = self.call(method, path, body)
        assert reply.status == 200, reply.body
        return reply.json

    def organization(self, name: str, **fields: Any) -> str:
        made = self.make("POST", "organizations", {"name": name, "region": "global", **fields})
        return str(made["id"])

    def key(self, organization_id: str, **fields: Any) -> tuple[str, str]:
        """The id and the secret of a key of a new project."""
        project = self.make("POST", "projects", {"organization_id": organization_id, "name": f"p{time.time_ns()}"})
        made = self.make("POST", "keys", {"name": "k", "project_id": project["id"], **fields})
        return made["key"]["id"], made["secret"]

    def dump(self) -> dict[str, list[tuple[Any, ...]]]:
        database = sqlite3.connect(f"file:{self.server.home / 'moonbase.db'}?mode=ro", uri=True)
        tables = [*TABLES, "admin_key", "audit"]
        found = {table: sorted(database.execute(f"SELECT * FROM {table}").fetchall(), key=repr) for table in tables}
        database.close()
        return found


@pytest.fixture(scope="module")
def boss(start_module_server: StartServer) -> Admin:
    return Admin(start_module_server())


def test_without_an_admin_key_the_paths_do_not_exist(echo: Server) -> None:
    for key in (echo.key, f"adm-{'a' * 47}", "x"):
        reply = echo.get("/admin/v1/organizations", key=key)
        assert (reply.status, reply.json["error"]["type"]) == (404, "resource_not_found_error")
        assert reply.json["error"]["message"].startswith("the admin API opens with the first admin key")


@pytest.mark.parametrize(("method", "path"), [("GET", "nothing"), ("PUT", "organizations"), ("POST", "usage")])
def test_what_the_admin_api_has_not_is_said_in_english(boss: Admin, method: str, path: str) -> None:
    reply = boss.call(method, path)
    assert (reply.status, reply.json["error"]["type"]) == (404, "resource_not_found_error")
    assert reply.json["error"]["message"] == f"there is no {method} /admin/v1/{path}; /openapi.json has what there is"


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("usage?by=model", "The query contains unknown parameter `by`; there are: group_by, from, to, project_id, "),
        ("usage?from=yesterday", "the query parameter `from` is illegal: Invalid "),
        ("audit?limit=0", "the query parameter `limit` is illegal: Expected `int` >= 1"),
    ],
)
def test_errors_in_queries_speak_of_their_parameters(boss: Admin, query: str, sentence: str) -> None:
    reply = boss.call("GET", query)
    assert reply.status == 400
    assert reply.json["error"]["message"].removeprefix("Invalid request: ").startswith(sentence)


def test_an_organization_from_its_beginning_to_its_end(boss: Admin) -> None:
    made = boss.make("POST", "organizations", {"name": "acme", "region": "china", "tier": 1, "limits": {"rpm": 5}})
    path = f"organizations/{made['id']}"
    assert made == {
        "id": made["id"],
        "uid": made["uid"],
        "name": "acme",
        "region": "china",
        "currency": "CNY",
        "tier": 1,
        "postpaid": False,
        "limits": {"concurrency": None, "rpm": 5, "tpm": None, "tpd": None},
        "effective_limits": {"concurrency": 50, "rpm": 5, "tpm": 2_000_000, "tpd": None},
        "created_at": made["created_at"],
    }
    changed = boss.make("PATCH", path, {"name": "apex", "limits": {"rpm": None, "tpd": 7}})
    assert changed == made | {
        "name": "apex",
        "limits": made["limits"] | {"rpm": None, "tpd": 7},
        "effective_limits": made["effective_limits"] | {"rpm": 200, "tpd": 7},
    }
    assert boss.make("GET", path) == changed
    assert changed in boss.make("GET", "organizations")["data"]
    assert boss.make("DELETE", path) == {"id": made["id"], "deleted": True}
    assert boss.call("GET", path).status == 404


def test_money_and_the_tier_that_it_gives(boss: Admin) -> None:
    owner = boss.organization("rich")
    path = f"organizations/{owner}"
    boss.make("POST", f"{path}/credits", {"amount": "20.000000001", "note": "invoice"})
    boss.make("POST", f"{path}/credits", {"amount": "5", "kind": "voucher", "currency": "USD"})
    boss.make("POST", f"{path}/corrections", {"amount": "-0.5", "note": "mistake"})
    balance = {"available": "24.500000001", "voucher": "5.00", "cash": "19.500000001", "currency": "USD"}
    assert boss.make("GET", f"{path}/balance") == balance
    assert boss.make("GET", path)["tier"] == 2
    newest, *_ = boss.make("GET", f"{path}/entries?kind=correction")["data"]
    assert (newest["cash"], newest["voucher"], newest["note"]) == ("-0.50", "0.00", "mistake")
    assert len(boss.make("GET", f"{path}/entries?limit=2")["data"]) == 2
    refused = boss.call("POST", f"{path}/corrections", {"amount": "-6", "kind": "voucher", "note": "x"})
    assert (refused.status, refused.json["error"]["type"]) == (409, "conflict_error")


@pytest.mark.parametrize(
    ("path", "body"), [("credits", {"amount": "5"}), ("corrections", {"amount": "5", "note": "x"})]
)
def test_a_change_of_a_balance_with_an_idempotency_key_is_made_once(
    boss: Admin, path: str, body: dict[str, str]
) -> None:
    organizations = [boss.organization(f"{path}-{number}") for number in range(2)]
    first, second = [f"organizations/{owner}/{path}" for owner in organizations]
    with ThreadPoolExecutor() as pool:
        replies = list(pool.map(lambda _: boss.call("POST", first, body, once="invoice 7"), range(8)))
    assert {(reply.status, reply.json["cash"]) for reply in replies} == {(200, "5.00")}
    assert len(boss.make("GET", f"organizations/{organizations[0]}/entries")["data"]) == 1
    other = boss.call("POST", first, body | {"amount": "6"}, once="invoice 7")
    assert (other.status, other.json["error"]["type"]) == (409, "conflict_error")
    assert other.json["error"]["message"] == "the Idempotency-Key invoice 7 was used for another request"
    assert boss.call("POST", first, body, once="invoice 8").json["cash"] == "10.00"
    assert boss.call("POST", second, body, once="invoice 7").json["cash"] == "5.00"
    for illegal in ("", "x" * 256, "é"):
        reply = boss.call("POST", second, body, once=illegal)
        assert reply.status == 400
        assert "Idempotency-Key" in reply.json["error"]["message"]
    assert boss.make("GET", f"organizations/{organizations[1]}/balance")["cash"] == "5.00"


def test_a_key_is_shown_once_and_revoked_at_once(boss: Admin) -> None:
    key_id, secret = boss.key(boss.organization("keys", postpaid=True), models=[K2], expires="1d")
    assert boss.server.post(chat_body(), key=secret).status == 200
    boss.make("PATCH", f"keys/{key_id}", {"endpoints": ["models"]})
    assert boss.server.post(chat_body(), key=secret).status == 403
    assert boss.make("GET", f"keys/{key_id}")["endpoints"] == ["models"]
    assert secret not in boss.call("GET", "keys").body.decode()
    assert boss.make("DELETE", f"keys/{key_id}")["revoked_at"] is not None
    assert boss.server.get("/v1/models", key=secret).status == 401
    audit = boss.make("GET", f"audit?target={key_id}")["data"]
    (operator,) = [each["id"] for each in boss.make("GET", "admin_keys")["data"] if each["name"] == "ops"]
    assert [(row["action"], row["actor"]) for row in audit] == [
        (action, operator) for action in ("key.revoke", "key.update", "key.create")
    ]
    assert secret not in json.dumps(audit)


def test_prices_are_set_and_removed(boss: Admin) -> None:
    price = {"model": "kimi-k2.6", "currency": "CNY", "since": "2026-12-01", "miss": "7", "output": "20", "hit": "0.1"}
    boss.make("PUT", "prices", price)
    mine = [row for row in boss.make("GET", "prices")["data"] if row["since"] == "2026-12-01"]
    assert [(row["miss"], row["hit"], row["write"], row["output"]) for row in mine] == [
        ("7.00", "0.10", "7.00", "20.00")
    ]
    query = "prices?model=kimi-k2.6&currency=CNY&since=2026-12-01"
    boss.make("DELETE", query)
    assert boss.call("DELETE", query).status == 404


def test_usage_is_what_was_used(boss: Admin) -> None:
    owner, other = boss.organization("user", postpaid=True), boss.organization("other", postpaid=True)
    key_id, secret = boss.key(owner)
    _, others = boss.key(other)
    replies = [boss.server.post(chat_body(), key=secret) for _ in range(3)]
    record = boss.server.usage(replies[0])
    (row,) = boss.server.get("/v1/usage", key=secret).json["data"]
    assert (row["requests"], row["failed"], row["prompt_miss"]) == (3, 0, 3 * record["prompt_miss"])
    assert row["cost"] == f"{3 * record['cost_nano'] / 10**9:.9f}".rstrip("0")
    today = row["day"]
    hours = boss.server.get(f"/v1/usage?group_by=hour,model&from={today}&to={today}&key_id={key_id}", key=secret).json
    assert [(each["model"], each["requests"]) for each in hours["data"]] == [(K2, 3)]
    for path in (f"/v1/usage/{record['request_id']}", f"/admin/v1/usage/{record['request_id']}"):
        shown = boss.server.get(path, key=secret if path.startswith("/v1") else boss.secret).json
        assert (shown["key_id"], shown["prompt_miss"], shown["price_miss"]) == (key_id, record["prompt_miss"], "0.60")
    by_organization = boss.make("GET", f"usage?group_by=organization&from={today}&organization_id={owner}")["data"]
    assert [(each["organization_id"], each["requests"]) for each in by_organization] == [(owner, 3)]
    assert boss.server.get("/v1/usage", key=others).json == {"object": "list", "data": []}
    for query in (f"/{record['request_id']}", f"?key_id={key_id}", f"?project_id={record['project_id']}"):
        reply = boss.server.get(f"/v1/usage{query}", key=others)
        assert (reply.status, reply.json["error"]["type"]) == (404, "resource_not_found_error")


NEVER = "org-none", "proj-none", "ak-none", "x" * 65, "%00", "..%2f", "%27%20OR%201=1", "%ff", "é".encode().hex()


@pytest.mark.parametrize("wrong", NEVER)
def test_an_id_that_there_is_not_is_not_found_on_every_verb(boss: Admin, wrong: str) -> None:
    before = boss.dump()
    bodies = {"credits": {"amount": "1"}, "corrections": {"amount": "1", "note": "x"}}
    for operation in OPERATIONS:
        if "{id}" not in operation.path:
            continue
        path = operation.path.removeprefix("/admin/v1/").replace("{id}", wrong)
        body = bodies.get(operation.path.rpartition("/")[2], {}) if operation.body else None
        reply = boss.call(operation.method, path, body)
        assert reply.status == 404, (operation.path, reply.body)
    for path in (f"projects?organization_id={wrong}", f"keys?project_id={wrong}", f"usage?key_id={wrong}"):
        assert boss.call("GET", path).status in (400, 404)
    assert boss.dump() == before


PRICE = {"model": K2, "currency": "USD", "since": "2026-12-01", "miss": "1", "output": "1"}
BAD: list[tuple[str, str, Any, int, str]] = [
    *[
        ("POST", "organizations", {"name": "n", "region": "global"} | fields, status, told)
        for fields, status, told in [
            ({"name": ""}, 400, "name"),
            ({"name": " "}, 400, "name"),
            ({"name": "a\nb"}, 400, "name"),
            ({"name": "x" * 101}, 400, "name"),
            ({"name": 5}, 400, "name"),
            ({"name": None}, 400, "name"),
            ({"name": "taken"}, 409, "name"),
            ({"region": "mars"}, 400, "region"),
            ({"region": None}, 400, "region"),
            ({"tier": -1}, 400, "tier"),
            ({"tier": 6}, 400, "tier"),
            ({"tier": "1"}, 400, "tier"),
            ({"tier": 1.5}, 400, "tier"),
            ({"postpaid": "yes"}, 400, "postpaid"),
            ({"limits": {"rpm": 0}}, 400, "limits.rpm"),
            ({"limits": {"rpm": -5}}, 400, "limits.rpm"),
            ({"limits": {"tpm": 10**30}}, 400, "limits.tpm"),
            ({"limits": {"speed": 5}}, 400, "speed"),
            ({"limits": []}, 400, "limits"),
            ({"currency": "USD"}, 400, "currency"),
        ]
    ],
    ("POST", "organizations", {"name": "n"}, 400, "region"),
    ("POST", "organizations", b"{", 400, "JSON"),
    ("POST", "organizations", b"[]", 400, "object"),
    ("POST", "organizations", b"", 400, "JSON"),
    ("POST", "organizations", b'{"name":"\xff"}', 400, "UTF-8"),
    ("PATCH", "organizations/ORG", {"name": "taken"}, 409, "name"),
    ("PATCH", "organizations/ORG", {"tier": 9}, 400, "tier"),
    ("PATCH", "organizations/ORG", {"region": "china"}, 400, "region"),
    ("DELETE", "organizations/ORG", None, 409, "projects"),
    *[
        ("POST", "organizations/ORG/credits", {"amount": amount}, 400, "amount")
        for amount in ["-1", "0", "1000000000", "1e30", "0.0000000001", "NaN", "x", "", 5, None, "9" * 41]
    ],
    ("POST", "organizations/ORG/credits", {"amount": "999999999.9"}, 400, "amount"),
    ("POST", "organizations/ORG/credits", {"amount": "1", "currency": "CNY"}, 400, "currency"),
    ("POST", "organizations/ORG/credits", {"amount": "1", "currency": "EUR"}, 400, "currency"),
    ("POST", "organizations/ORG/credits", {"amount": "1", "kind": "gold"}, 400, "kind"),
    ("POST", "organizations/ORG/credits", {"amount": "1", "note": "\u0000"}, 400, "note"),
    ("POST", "organizations/ORG/credits", {"amount": "1", "note": "x" * 501}, 400, "note"),
    ("POST", "organizations/ORG/corrections", {"amount": "-1"}, 400, "note"),
    ("POST", "organizations/ORG/corrections", {"amount": "-1", "note": ""}, 400, "note"),
    ("POST", "organizations/ORG/corrections", {"amount": "-1", "kind": "voucher", "note": "x"}, 409, "amount"),
    ("GET", "organizations/ORG/entries?kind=gift", None, 400, "kind"),
    ("GET", "organizations/ORG/entries?limit=0", None, 400, "limit"),
    ("GET", "organizations/ORG/entries?limit=x", None, 400, "limit"),
    ("GET", "organizations/ORG/entries?before=-1", None, 400, "before"),
    ("GET", "organizations/ORG/entries?before=99999999999999999999", None, 400, "before"),
    ("GET", "organizations/ORG/entries?limit=1&limit=2", None, 400, "limit"),
    ("GET", "organizations/ORG/entries?offset=2", None, 400, "offset"),
    ("GET", f"organizations?{'&'.join('a=1' for _ in range(60))}", None, 400, "query"),
    ("POST", "projects", {"name": "p"}, 400, "organization_id"),
    ("POST", "projects", {"name": "p", "organization_id": "org-none"}, 404, "org-none"),
    ("POST", "projects", {"name": "web", "organization_id": "ORG"}, 409, "name"),
    ("POST", "projects", {"name": "\u202e", "organization_id": "ORG"}, 400, "name"),
    ("PATCH", "projects/PROJECT", {"organization_id": "ORG"}, 400, "organization_id"),
    ("DELETE", "projects/PROJECT", None, 409, "keys"),
    ("POST", "keys", {"project_id": "PROJECT"}, 400, "name"),
    *[
        ("POST", "keys", {"name": "k", "project_id": "PROJECT"} | fields, status, told)
        for fields, status, told in [
            ({"project_id": "proj-none"}, 404, "proj-none"),
            ({"project_id": 5}, 400, "project_id"),
            ({"models": []}, 400, "models"),
            ({"models": ["gpt-5"]}, 400, "models"),
            ({"models": "all"}, 400, "models"),
            ({"endpoints": ["files"]}, 400, "endpoints"),
            ({"endpoints": []}, 400, "endpoints"),
            ({"expires": "2026-02-30"}, 400, "expires"),
            ({"expires": "yesterday"}, 400, "expires"),
            ({"expires": "2020-01-01"}, 400, "expires"),
            ({"expires": 1}, 400, "expires"),
            ({"secret": "sk-mine"}, 400, "secret"),
        ]
    ],
    ("PATCH", "keys/KEY", {"revoked_at": None}, 400, "revoked_at"),
    *[
        ("PUT", "prices", PRICE | fields, 400, told)
        for fields, told in [
            ({"model": "gpt-5"}, "model"),
            ({"currency": "EUR"}, "currency"),
            ({"since": "1.12.2026"}, "since"),
            ({"since": "2026-13-01"}, "since"),
            ({"since": "0001-01-01"}, "since"),
            ({"miss": "-1"}, "miss"),
            ({"miss": "1e9"}, "miss"),
            ({"hit": "free"}, "hit"),
            ({"write": 1}, "write"),
            ({"output": None}, "output"),
        ]
    ],
    ("DELETE", "prices?model=x", None, 400, "currency"),
    ("DELETE", "prices?model=x&currency=USD&since=soon", None, 400, "since"),
    ("DELETE", "prices?model=x&currency=USD&since=2026-12-01", None, 404, "price"),
    ("DELETE", "prices?model=%00&currency=USD&since=2026-12-01", None, 400, "model"),
    *[
        ("GET", f"usage?{query}", None, status, told)
        for query, status, told in [
            ("from=yesterday", 400, "from"),
            ("from=2026-02-30", 400, "from"),
            ("to=9999-12-31", 400, "to"),
            ("from=2026-11-02&to=2026-11-01", 400, "from"),
            ("group_by=colour", 400, "group_by"),
            ("group_by=day,day", 400, "group_by"),
            ("group_by=hour", 400, "group_by"),
            ("organization_id=org-none", 404, "org-none"),
            ("project_id=proj-none", 404, "proj-none"),
            ("key_id=%27--", 404, "key"),
            ("model=%00", 400, "model"),
            ("form=2026-11-01", 400, "form"),
        ]
    ],
    ("GET", "audit?target=%0a", None, 400, "target"),
    ("POST", "admin_keys", {"name": "ops"}, 409, "name"),
    ("POST", "admin_keys", {}, 400, "name"),
]  # fmt: skip


def test_bad_input_gets_a_4xx_that_names_the_field_and_changes_nothing(boss: Admin) -> None:
    boss.organization("taken")
    owner = boss.organization("bad input")
    project = boss.make("POST", "projects", {"organization_id": owner, "name": "web"})["id"]
    key_id = boss.make("POST", "keys", {"name": "k", "project_id": project})["key"]["id"]
    boss.make("POST", f"organizations/{owner}/credits", {"amount": "1"})
    names = {"ORG": owner, "PROJECT": project, "KEY": key_id}
    before = boss.dump()
    for method, path, body, status, told in BAD:
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        for name, value in names.items():
            path = path.replace(name, value)
            content = content and content.replace(f'"{name}"'.encode(), f'"{value}"'.encode())
        reply = boss.call(method, path, content)
        assert reply.status == status, (method, path, body, reply.body)
        assert told in reply.json["error"]["message"], (method, path, body, reply.body)
        assert boss.dump() == before, (method, path, body)


@pytest.mark.parametrize("case", ILL_FORMED)
def test_an_ill_formed_credential_is_told_so(boss: Admin, case: str) -> None:
    reply = boss.server.get("/admin/v1/organizations", key=None, headers=ILL_FORMED[case])
    assert (reply.status, reply.json) == (401, INCORRECT)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: f"{each.method} {each.path}")
def test_no_other_key_opens_the_admin_api(boss: Admin, operation: Any) -> None:
    path = operation.path.removeprefix("/admin/v1/").replace("{id}", "x")
    for secret in (boss.server.key, boss.secret.swapcase(), boss.secret[:-1], boss.secret.replace("adm-", "sk-")):
        reply = boss.call(operation.method, path, b"{", secret=secret)
        assert (reply.status, reply.json) == (401, INVALID)


def test_an_admin_key_opens_nothing_else(boss: Admin) -> None:
    for path in ("/v1/models", "/v1/users/me/balance", "/v1/usage", "/v1/usage/x"):
        assert boss.server.get(path, key=boss.secret).status == 401
    assert boss.server.post(chat_body(), key=boss.secret).status == 401
    body = json.dumps({"model": K2, "max_tokens": 5, "messages": user("Hi")}).encode()
    headers = {"x-api-key": boss.secret}
    assert boss.server.post(body, path="/anthropic/v1/messages", key=None, headers=headers).status == 401


def test_a_revoked_admin_key_is_refused(boss: Admin) -> None:
    made = boss.make("POST", "admin_keys", {"name": "short"})
    secret = made["secret"]
    eventually(lambda: boss.call("GET", "audit", secret=secret).status == 200)
    boss.make("DELETE", f"admin_keys/{made['key']['id']}")
    eventually(lambda: boss.call("GET", "audit", secret=secret).status == 401, within=5)


CARRIERS = [
    ("/v1/models", "Authorization", "Bearer {}"),
    ("/v1/usage", "Authorization", "Bearer {}"),
    ("/admin/v1/organizations", "Authorization", "Bearer {}"),
    ("/anthropic/v1/messages", "x-api-key", "{}"),
    ("/anthropic/v1/messages", "Authorization", "Bearer {}"),
]


@pytest.mark.parametrize(("path", "header", "form"), CARRIERS)
def test_sql_in_a_credential_is_a_401_and_no_database_error(boss: Admin, path: str, header: str, form: str) -> None:
    for secret in [*INJECTIONS, *[value["Authorization"].removeprefix("Bearer ") for value in UNKNOWN.values()]]:
        body = b"{}" if "messages" in path else None
        method = "POST" if body else "GET"
        reply = boss.server.request(method, path, body, key=None, headers={header: form.format(secret)})
        assert reply.status == 401, (secret, reply.body)
        assert reply.json in (INCORRECT, INVALID)
    assert boss.server.accidents == []


def test_nothing_of_that_was_an_accident(boss: Admin) -> None:
    assert boss.server.accidents == []
    assert boss.server.moonbase("ledger", "check").returncode == 0
