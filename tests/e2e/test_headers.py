"""The headers of every answer (moonshot-api.md 9.2)."""

import re
import time
import uuid
from typing import Any

import pytest
from tests.e2e.conftest import StartServer
from tests.e2e.server import CHAT, Reply, Server, chat_body

BEHIND_A_KEY = ("msh-org-id", "msh-project-id", "msh-uid", "msh-gid")
JSON = "application/json; charset=utf-8"


def replies(echo: Server) -> dict[str, Reply]:
    """One answer of every kind that a client with a key may get."""
    return {
        "whole": echo.chat(),
        "stream": echo.chat(stream=True),
        "models": echo.get("/v1/models"),
        "balance": echo.get("/v1/users/me/balance"),
        "estimate": echo.post(chat_body(), "/v1/tokenizers/estimate-token-count"),
        "400": echo.post(b"{"),
        "404": echo.chat(model="nothing"),
    }


def without_key(echo: Server) -> dict[str, Reply]:
    return {
        "401": echo.post(chat_body(), key=None),
        "wrong key": echo.post(chat_body(), key="sk-wrong"),
        "unknown path": echo.get("/v1/nothing"),
        "health": echo.get("/healthz", key=None),
        "wrong host": echo.get("/healthz", headers={"Host": "example.com"}),
    }


def test_every_answer_carries_its_ids(echo: Server) -> None:
    seen = set()
    for kind, reply in (replies(echo) | without_key(echo)).items():
        request_id = uuid.UUID(reply.header("msh-request-id"))
        assert request_id.version == 1, kind
        arrived = (request_id.time - 0x01B21DD213814000) / 1e7  # 100 ns since 1582 to seconds since 1970
        assert abs(time.time() - arrived) < 10, kind
        trace = reply.header("x-msh-trace-id")
        assert re.fullmatch("[0-9a-f]{32}", trace or ""), kind
        assert reply.header("msh-trace-mode") == "on", kind
        assert reply.header("vary") == "Origin", kind
        seen |= {str(request_id), trace}
    assert len(seen) == 2 * 12


def test_answers_to_a_known_key_name_its_owner(echo: Server) -> None:
    owners = {tuple([reply.header(name) for name in BEHIND_A_KEY]) for reply in replies(echo).values()}
    assert len(owners) == 1
    [(organization, project, uid, group)] = owners
    assert re.fullmatch("org-[0-9a-f]{32}", organization or "")
    assert re.fullmatch("proj-[0-9a-f]{32}", project or "")
    assert re.fullmatch("[0-9a-v]{20}", uid or "")
    assert re.fullmatch("enterprise-tier-[0-5]", group or "")


def test_answers_without_a_known_key_name_nobody(echo: Server) -> None:
    for kind, reply in without_key(echo).items():
        assert [reply.header(name) for name in BEHIND_A_KEY] == [None] * 4, kind


def test_content_types_and_lengths_are_those_of_the_service(echo: Server) -> None:
    for kind, reply in (replies(echo) | without_key(echo)).items():
        if kind == "stream":
            assert reply.header("content-type") == "text/event-stream"
            assert reply.header("transfer-encoding") == "chunked"
            assert reply.header("cache-control") == "no-cache"
        else:
            assert reply.header("content-type") == JSON, kind
            assert reply.header("content-length") == str(len(reply.body)), kind


def test_no_header_tells_what_the_service_does_not_tell(echo: Server) -> None:
    for kind, reply in (replies(echo) | without_key(echo)).items():
        names = {name for name, _ in reply.headers}
        assert not [name for name in names if name.startswith("x-ratelimit")], kind
        assert not names & {"retry-after", "x-retry-after", "msh-cooldown-seconds", "msh-context-cache-token-saved"}, (
            kind
        )
        assert "server" not in names, kind


def test_an_answer_names_what_really_answers(echo: Server) -> None:
    assert echo.chat().header("moonbase-served-by") == "echo"
    assert echo.chat(stream=True).header("moonbase-served-by") == "echo"
    assert echo.chat().header("moonbase-adapted") is None


def test_an_id_begins_with_the_second_of_the_arrival(start_server: StartServer) -> None:
    server = start_server("--set", "echo.first_delay=1.1")
    for stream in (False, True):
        reply = server.chat(stream=stream)
        arrived = (uuid.UUID(reply.header("msh-request-id")).time - 0x01B21DD213814000) / 1e7
        found = re.search(rb"chatcmpl-([0-9a-f]{8})", reply.body)
        assert found is not None
        assert int(found[1], 16) in (int(arrived), int(arrived + 0.05))


def test_browsers_get_no_permission_unless_their_origin_is_configured(echo: Server, start_server: StartServer) -> None:
    asking = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    reply = echo.request("OPTIONS", CHAT, headers=asking, key=None)
    assert reply.status == 404
    assert not [name for name, _ in reply.headers if name.startswith("access-control")]
    server = start_server("--set", "server.cors_origins=https://app.example")
    allowed = server.request("OPTIONS", CHAT, headers=asking, key=None)
    assert allowed.header("access-control-allow-origin") == "https://app.example"
    answer = server.post(chat_body(), headers={"Origin": "https://app.example"})
    assert answer.header("access-control-allow-origin") == "https://app.example"
    refused = server.post(b"{", headers={"Origin": "https://other.example"})
    assert refused.header("access-control-allow-origin") is None


def strictly(**schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}


@pytest.mark.parametrize(
    ("fields", "adapted"),
    [
        (
            {"response_format": strictly(type="object", const={"a": 1}, allOf=[{}])},
            "response_format.left_out=allOf+const",
        ),
        ({"response_format": strictly(type="object"), "stop": "b"}, "response_format.validation=off"),
        ({"response_format": strictly(type="object", title="T")}, None),
        ({"response_format": {"type": "json_object"}}, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_names_what_of_its_format_is_not_held(
    echo: Server, fields: dict[str, Any], adapted: str | None, stream: bool
) -> None:
    reply = echo.chat('{"a":1}', stream=stream, **fields)
    assert (reply.status, reply.header("moonbase-adapted")) == (200, adapted)
