"""Health, metrics, and logs that tell everything but what people wrote."""

import re
import socket
import urllib.request

from tests.e2e.conftest import StartServer
from tests.e2e.payers import prepaid_key
from tests.e2e.prompts import prompt_tokens
from tests.e2e.server import K2, Server, chat_body

from moonbase.store.database import database_url
from moonbase.store.records import Limits

SECRET = "Zanzibar-Xylophone-90125"


def test_health_and_readiness_need_no_key(echo: Server) -> None:
    assert (echo.get("/healthz", key=None).status, echo.get("/healthz", key=None).body) == (200, b'{"status":"ok"}')
    assert (echo.get("/readyz", key=None).status, echo.get("/readyz", key=None).body) == (200, b'{"status":"ready"}')


def test_metrics_need_their_own_token(echo: Server) -> None:
    assert echo.get("/metrics", key=None).status == 401
    assert echo.get("/metrics").status == 401, "an API key is no metrics token"
    reply = echo.get("/metrics", key="metrics-secret")
    assert reply.status == 200
    assert reply.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"


def test_there_are_no_metrics_without_a_token(start_server: StartServer) -> None:
    server = start_server()
    assert server.get("/metrics").status == 404
    assert server.get("/metrics", key=None).status == 404


def test_metrics_count_requests_tokens_and_times_by_model(start_server: StartServer) -> None:
    server = start_server("--set", "metrics.token=metrics-secret")
    server.chat("Hello there")
    server.chat("Hello there", stream=True, max_tokens=1)
    server.post(b"{")
    text = server.get("/metrics", key="metrics-secret").body.decode()
    for line in (
        f'moonbase_requests_total{{model="{K2}",outcome="stop"}} 1.0',
        f'moonbase_requests_total{{model="{K2}",outcome="length"}} 1.0',
        f'moonbase_prompt_tokens_total{{model="{K2}"}} {2 * prompt_tokens("Hello there")}.0',
        f'moonbase_completion_tokens_total{{model="{K2}"}} 5.0',
        f'moonbase_time_to_first_token_seconds_count{{model="{K2}"}} 2.0',
        'moonbase_http_responses_total{status="200"} 2.0',
        'moonbase_http_responses_total{status="400"} 1.0',
        'moonbase_running{model="echo"} 0.0',
        'moonbase_waiting{model="echo"} 0.0',
    ):
        assert line in text.splitlines(), line
    assert server.key not in text
    assert not re.search("(ak|org|proj)-", text), "no labels of keys or owners"


def test_the_time_between_tokens_counts_every_token(start_server: StartServer) -> None:
    """Three choices come in one step: that is three tokens, of which only the first step's are not after another."""
    server = start_server("--set", "metrics.token=metrics-secret", "--set", "echo.delay=0.02")
    generated = server.chat("one two three four five six", n=3).json["usage"]["completion_tokens"]
    text = server.get("/metrics", key="metrics-secret").body.decode()
    found = re.search(r'^moonbase_inter_token_seconds_count{model=".*"} (.*)$', text, re.MULTILINE)
    assert found is not None
    first_step = 3
    assert float(found[1]) == generated - first_step


def test_metrics_may_have_a_listener_of_their_own(start_server: StartServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    start_server("--set", f"metrics.port={port}").chat()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        assert b"moonbase_requests_total" in response.read()


def test_neither_logs_nor_the_database_hold_what_people_wrote(start_server: StartServer) -> None:
    server = start_server("--set", "log.level=debug", "--set", "metrics.token=metrics-secret")
    body = chat_body(SECRET)
    server.post(body)
    server.post(body.replace(b"}]", b'}], "stream": true'))
    server.post(body[:-1])
    server.post(body.replace(SECRET.encode(), b"\xff" + SECRET.encode()))
    server.chat(messages=[{"role": "user", "content": [{"type": SECRET}]}])
    server.chat(messages=[{"role": "user", "content": "x", "name": SECRET}], stop=SECRET)
    server.chat("[]" + SECRET, response_format={"type": "json_object"})
    server.post(chat_body(SECRET), "/v1/tokenizers/estimate-token-count")
    server.get(f"/v1/models?q={SECRET}", headers={"X-Note": SECRET})
    metrics = server.get("/metrics", key="metrics-secret").body.decode()
    server.close()
    assert len(server.log) > 8
    assert SECRET not in server.stderr
    assert server.key not in server.stderr.replace(f"Bearer {server.key}", ""), "only the banner shows the key"
    assert SECRET not in metrics
    for file in server.home.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert SECRET.encode() not in data, file
            assert server.key.encode() not in data, file


def test_a_request_has_one_log_line_with_its_id(start_server: StartServer) -> None:
    server = start_server()
    replies = [server.chat(), server.chat(stream=True), server.post(b"{"), server.get("/nothing")]
    server.close()
    lines = {line["request_id"]: line for line in server.log if line["logger"] == "moonbase.requests"}
    assert len(lines) == len(replies)
    for reply in replies:
        line = lines[reply.header("msh-request-id")]
        assert line["message"].endswith(str(reply.status))
        assert line["ms"] >= 0


def test_the_log_says_why_a_request_was_refused(start_server: StartServer) -> None:
    server = start_server()
    url = database_url(None, server.home)
    limited, poor = prepaid_key(url, "org-limited", limits=Limits(rpm=1)), prepaid_key(url, "org-poor", cash=0)
    for _ in range(2):
        server.post(chat_body(), key=limited)
    server.post(chat_body(), key=poor)
    server.post(chat_body(), key="sk-unknown")
    server.post(b"{")
    server.close()
    lines = [line for line in server.log if line["logger"] == "moonbase.requests"]
    assert [(line["organization"], line["error"]) for line in lines[:4]] == [
        ("org-limited", None),
        ("org-limited", "rate_limit_reached_error: organization RPM"),
        ("org-poor", "exceeded_current_quota_error"),
        (None, "invalid_authentication_error"),
    ]
    assert lines[4]["error"] == "invalid_request_error"


def test_the_log_may_be_text_or_silent(start_server: StartServer) -> None:
    text = start_server("--set", "log.format=text")
    text.chat()
    text.close()
    assert "POST /v1/chat/completions 200" in text.stderr
    silent = start_server("--set", "log.level=error")
    silent.chat()
    silent.close()
    assert silent.log == []
