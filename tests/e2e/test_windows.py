"""Output limits and windows: what is capped, what is named, what is refused with exact counts."""

import pytest
from tests.e2e.conftest import StartServer
from tests.e2e.prompts import prompt_tokens
from tests.e2e.server import Server, chat_body

WINDOW = 8_192
MODEL = "moonshot-v1-8k"


def of_tokens(count: int) -> str:
    """A user text whose whole prompt is `count` tokens of four bytes."""
    return "word" * (count - prompt_tokens(""))


def too_long(window: int, requested: int) -> bytes:
    return (
        b'{"error":{"message":"Invalid request: Your request exceeded model token limit: %d (requested: %d)",'
        b'"type":"invalid_request_error"}}' % (window, requested)
    )


@pytest.fixture(scope="module")
def strict(start_module_server: StartServer) -> Server:
    return start_module_server("--set", "mode=strict")


@pytest.fixture(params=["lenient", "strict"])
def either(request: pytest.FixtureRequest, echo: Server, strict: Server) -> Server:
    return {"lenient": echo, "strict": strict}[request.param]


@pytest.mark.parametrize("stream", [False, True])
def test_lenient_caps_a_limit_over_the_window_and_names_it(echo: Server, stream: bool) -> None:
    reply = echo.chat(of_tokens(100), model=MODEL, max_tokens=WINDOW, stream=stream)
    assert reply.status == 200
    assert reply.header("moonbase-adapted") == f"max_tokens={WINDOW - 100}"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_strict_refuses_a_limit_over_the_window_with_exact_counts(strict: Server, field: str, stream: bool) -> None:
    reply = strict.post(chat_body(of_tokens(100), model=MODEL, stream=stream, **{field: WINDOW - 99}))
    assert (reply.status, reply.body) == (400, too_long(WINDOW, WINDOW + 1))


def test_a_limit_that_just_fits_is_taken_as_it_is(either: Server) -> None:
    reply = either.chat(of_tokens(100), model=MODEL, max_tokens=WINDOW - 100)
    assert reply.status == 200
    assert reply.header("moonbase-adapted") is None


def test_an_absent_limit_is_capped_silently(either: Server) -> None:
    reply = either.chat(of_tokens(WINDOW - 10), model=MODEL)
    assert reply.status == 200
    assert reply.header("moonbase-adapted") is None
    assert reply.json["choices"][0]["finish_reason"] == "length"
    usage = {"prompt_tokens": WINDOW - 10, "completion_tokens": 10, "total_tokens": WINDOW}
    assert reply.json["usage"] == usage


def test_an_absent_limit_is_1024_where_there_is_room(either: Server) -> None:
    reply = either.chat("word " * 2_000, model=MODEL)
    assert reply.json["choices"][0]["finish_reason"] == "length"
    assert reply.json["usage"]["completion_tokens"] == 1_024


def test_one_free_token_is_enough(either: Server) -> None:
    assert either.chat(of_tokens(WINDOW - 1), model=MODEL).json["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize(("tokens", "requested"), [(WINDOW, WINDOW + 1), (WINDOW + 1, WINDOW + 1), (9_000, 9_000)])
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_without_room_is_refused_with_exact_counts(
    either: Server, tokens: int, requested: int, stream: bool
) -> None:
    reply = either.chat(of_tokens(tokens), model=MODEL, stream=stream)
    assert (reply.status, reply.body) == (400, too_long(WINDOW, requested))


def test_partial_mode_gives_up_the_response_format_and_names_it(echo: Server) -> None:
    messages = [{"role": "user", "content": "Go"}, {"role": "assistant", "content": "{", "partial": True}]
    reply = echo.chat(messages=messages, response_format={"type": "json_object"})
    assert reply.status == 200
    assert reply.header("moonbase-adapted") == "response_format=text"


def test_the_operators_window_is_reported_and_enforced(start_server: StartServer) -> None:
    server = start_server("--set", f"models.{MODEL}.window=100", "--set", "models.mine.alias_of=kimi-latest")
    windows = {model["id"]: model["context_length"] for model in server.get("/v1/models").json["data"]}
    assert (windows[MODEL], windows["mine"]) == (100, 131_072)
    assert server.chat(of_tokens(99), model=MODEL).status == 200
    assert server.chat(of_tokens(101), model=MODEL).body == too_long(100, 101)
