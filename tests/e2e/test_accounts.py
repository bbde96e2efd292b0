"""Keys that come and go while the server runs, the usage it records, and the balance."""

import re
import time
from pathlib import Path

import pytest
from tests.e2e.conftest import StartServer
from tests.e2e.prompts import prompt_tokens
from tests.e2e.server import K2, Server, StartFailed, chat_body, eventually

TEXT = "Hello there"
PROMPT = prompt_tokens(TEXT)


def test_every_answer_leaves_a_record_with_its_tokens_price_and_outcome(echo: Server) -> None:
    before = int(time.time() * 1000)
    reply = echo.chat(TEXT)
    record = echo.usage(reply)
    assert record.pop("entry_id") > 0
    times = [record.pop(name) for name in ("started_at", "first_token_at", "finished_at")]
    assert times == sorted(times)
    assert before <= times[0] <= times[2] <= time.time() * 1000
    assert re.fullmatch("ak-[a-z0-9]{20}", record.pop("key_id"))
    assert record == {
        "request_id": reply.header("msh-request-id"),
        "organization_id": reply.header("msh-org-id"),
        "project_id": reply.header("msh-project-id"),
        "model": K2,
        "served_by": "echo",
        "prompt_miss": PROMPT,
        "prompt_hit": 0,
        "prompt_write": 0,
        "output": 4,
        "price_miss": 600_000_000,
        "price_hit": 150_000_000,
        "price_write": 600_000_000,
        "price_output": 2_500_000_000,
        "cost_nano": PROMPT * 600 + 4 * 2_500,
        "currency": "USD",
        "outcome": "stop",
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "output", "outcome"),
    [
        ({}, 4, "stop"),
        ({"n": 3}, 12, "stop"),
        ({"max_tokens": 1}, 1, "length"),
        ({"max_tokens": 1, "n": 2}, 2, "length"),
        ({"stop": "Hello"}, 2, "stop"),
    ],
)
def test_the_record_counts_what_was_generated(
    echo: Server, stream: bool, fields: dict[str, object], output: int, outcome: str
) -> None:
    record = echo.usage(echo.chat(TEXT, stream=stream, **fields))
    assert (record["output"], record["outcome"]) == (output, outcome)
    assert record["cost_nano"] == PROMPT * 600 + output * 2_500


@pytest.mark.parametrize(
    ("model", "fields", "billed", "price_output"),
    [
        ("moonshot-v1-8k", {}, "moonshot-v1-8k", 2_000_000_000),
        ("kimi-k2-turbo-preview", {}, "kimi-k2-turbo-preview", 8_000_000_000),
        ("moonshot-v1-auto", {}, "moonshot-v1-8k", 2_000_000_000),
        ("moonshot-v1-auto", {"max_tokens": 9_000}, "moonshot-v1-32k", 3_000_000_000),
        ("moonshot-v1-auto", {"max_tokens": 40_000}, "moonshot-v1-128k", 5_000_000_000),
        ("kimi-latest", {"max_tokens": 9_000}, "kimi-latest-32k", 3_000_000_000),
    ],
)
def test_the_price_is_that_of_the_tier(
    echo: Server, model: str, fields: dict[str, int], billed: str, price_output: int
) -> None:
    record = echo.usage(echo.chat(model=model, **fields))
    assert (record["model"], record["price_output"]) == (billed, price_output)


def test_refusals_and_estimates_cost_nothing(start_server: StartServer) -> None:
    server = start_server()
    refused = [
        server.post(b"{"),
        server.chat(model="nothing"),
        server.chat(temperature=2),
        server.chat("x" * 40_000, model="moonshot-v1-8k"),
        server.post(chat_body(), "/v1/tokenizers/estimate-token-count"),
        server.get("/v1/models"),
    ]
    assert [reply.status for reply in refused] == [400, 404, 400, 400, 200, 200]
    server.usage(server.chat())
    assert server.usage_count() == 1


def test_the_balance_is_the_credit_minus_the_cost(start_server: StartServer) -> None:
    """The first organization has no credit and is not refused for it: what it used is a debt."""
    server = start_server()
    body = (
        b'{"code":0,"data":{"available_balance":0,"voucher_balance":0,"cash_balance":%b},"scode":"0x0","status":true}'
    )
    assert server.get("/v1/users/me/balance").body == body % b"0"
    replies = [server.chat("word " * 1_000) for _ in range(3)]
    balance = server.get("/v1/users/me/balance").body
    cost = sum(server.usage(reply)["cost_nano"] for reply in replies)
    assert balance == body % f"-{-(-cost // 10_000) / 100_000}".encode()


def test_a_key_made_while_the_server_runs_works_at_once(start_server: StartServer) -> None:
    server = start_server()
    made = server.moonbase("keys", "create", "--name", "second")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    assert made.stdout == f"{secret}\n", "nothing but the secret"
    reply = server.post(chat_body(), key=secret)
    assert reply.status == 200
    key_id = server.usage(reply)["key_id"]
    assert key_id in server.moonbase("keys", "list").stdout
    assert secret not in server.moonbase("keys", "list").stdout

    revoked = server.moonbase("keys", "revoke", key_id)
    assert revoked.returncode == 0, revoked.stderr
    eventually(lambda: server.get("/v1/models", key=secret).status == 401, within=2.2)
    refused = server.post(chat_body(), key=secret)
    assert refused.json["error"] == {"message": "Invalid Authentication", "type": "invalid_authentication_error"}
    assert server.chat().status == 200, "other keys go on"


def test_models_are_listed_as_the_service_lists_them(echo: Server) -> None:
    body = echo.get("/v1/models").body
    assert body.startswith(b'{"object":"list","data":[{"id":"moonshot-v1-8k","object":"model","created":')
    assert (
        b'{"id":"kimi-k2-0905-preview","object":"model","created":1757030400,"owned_by":"moonshot",'
        b'"context_length":262144,"supports_image_in":false,"supports_video_in":false,"supports_reasoning":false,'
        b'"served_by":"echo","permission":[{"created":0,"id":"","object":"","allow_create_engine":false,'
        b'"allow_sampling":false,"allow_logprobs":false,"allow_search_indices":false,"allow_view":false,'
        b'"allow_fine_tuning":false,"organization":"public","group":"public","is_blocking":false}],'
        b'"root":"","parent":""}'
    ) in body


def test_the_estimate_has_exactly_one_number(echo: Server) -> None:
    reply = echo.post(chat_body(TEXT), "/v1/tokenizers/estimate-token-count")
    assert reply.body == b'{"data":{"total_tokens":%d}}' % PROMPT
    assert echo.chat(TEXT).json["usage"]["prompt_tokens"] == PROMPT


def test_over_the_kimi_vocabulary_a_prompt_has_the_published_number_of_tokens(
    start_server: StartServer, kimi_cache: Path
) -> None:
    """26 of K2-Thinking, and the newline that K2-0905 has after the default system turn (kimi-protocol.md 2.6, G1)."""
    assert start_server(cache=kimi_cache).chat("Hi").json["usage"]["prompt_tokens"] == 26 + 1


def test_the_vocabulary_that_is_named_is_counted_with(start_server: StartServer, kimi_cache: Path) -> None:
    folder = kimi_cache / "vocabularies" / "kimi-k2"
    assert start_server("--set", f"engine.vocabulary={folder}").chat("Hi").json["usage"]["prompt_tokens"] == 26 + 1


def test_a_vocabulary_that_cannot_be_read_is_named(start_server: StartServer, tmp_path: Path) -> None:
    for engine in ("echo", "chaos"):
        with pytest.raises(StartFailed, match=r"engine\.vocabulary: .*tokenizer\.json: cannot be read"):
            start_server("--set", f"engine.vocabulary={tmp_path}", engine=engine)
