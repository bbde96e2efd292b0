"""A quarter of a million tokens of Chinese and English, and characters cut anywhere."""

import json
from pathlib import Path

import pytest
from tests.e2e.conftest import StartServer
from tests.e2e.prompts import prompt_tokens
from tests.e2e.server import K2, Server, chat_body, user

from moonbase.engines.base import Tokenizer
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.engines.tokenizers.kimi import KimiTokenizer

WINDOW = 262_144
PARAGRAPH = (
    "月球是地球唯一的天然卫星，也是太阳系中第五大的卫星。The Moon is Earth's only natural satellite; it orbits at an "
    "average distance of 384,400 km (238,900 mi), about 30 times Earth's diameter.\n\n它的自转周期与公转周期相同，"
    "因此总是以同一面朝向地球。Tidal locking keeps the near side — 月之正面 — facing us.\n"
)
TRICKY = (
    "ASCII, Latin é ñ ß, 中文，日本語のテキスト、한국어, العربية, עברית, हिन्दी, ไทย, \u0065\u0301\u0323 combining, "
    "🤔🎉 emoji, 👩‍👩‍👧‍👦 family, 🇨🇳 flag, 👍🏽 tone, 𝕄𝕒𝕥𝕙, 𠀀𠮷 rare Han, "
    "\u202eright to left\u202c, \ufeff mark, \u2028 line, "
    "\U0010ffff last\n"
) * 5


@pytest.fixture(scope="module", params=["approximate", "kimi"])
def counted(request: pytest.FixtureRequest, start_module_server: StartServer) -> tuple[Server, Tokenizer]:
    """A server over each of the tokenizers that `echo` counts with, and that tokenizer."""
    if request.param == "approximate":
        return start_module_server(), ApproximateTokenizer()
    cache: Path = request.getfixturevalue("kimi_cache")
    vocabulary = cache / "vocabularies" / "kimi-k2" / "tiktoken.model"
    return start_module_server(cache=cache), KimiTokenizer(vocabulary)


def tokens_of(tokenizer: Tokenizer, text: str) -> int:
    """The whole prompt of one user message."""
    return prompt_tokens(text, count=lambda piece: len(tokenizer.encode_plain(piece)))


def document(tokenizer: Tokenizer, tokens: int) -> str:
    """Whole paragraphs of at least so many tokens."""
    ten = len(tokenizer.encode_plain(PARAGRAPH * 10))
    copies = tokens * 10 // ten + 1
    text = PARAGRAPH * copies
    assert tokens <= len(tokenizer.encode_plain(text)) < tokens + 2 * ten
    return text


def test_a_document_of_250000_tokens_is_accepted_and_counted_exactly(counted: tuple[Server, Tokenizer]) -> None:
    server, tokenizer = counted
    text = document(tokenizer, 250_000)
    expected = tokens_of(tokenizer, text)
    reply = server.chat(text, max_tokens=32)
    assert reply.status == 200, reply.body
    assert reply.json["usage"] == {
        "prompt_tokens": expected,
        "completion_tokens": 32,
        "total_tokens": expected + 32,
    }
    estimate = server.post(chat_body(text), "/v1/tokenizers/estimate-token-count")
    assert estimate.json == {"data": {"total_tokens": expected}}


def test_a_document_over_the_window_is_refused_with_exact_counts(counted: tuple[Server, Tokenizer]) -> None:
    server, tokenizer = counted
    text = document(tokenizer, WINDOW)
    requested = tokens_of(tokenizer, text)
    reply = server.chat(text, max_tokens=32)
    message = f"Invalid request: Your request exceeded model token limit: {WINDOW} (requested: {requested})"
    assert reply.status == 400
    assert reply.json == {"error": {"message": message, "type": "invalid_request_error"}}


def test_others_are_answered_while_a_document_is_read(counted: tuple[Server, Tokenizer]) -> None:
    server, tokenizer = counted
    body = chat_body(document(tokenizer, 200_000) + "different", max_tokens=1)
    with server.streaming(body.replace(b'"max_tokens"', b'"stream": true, "max_tokens"')) as response:
        assert server.chat("Hi").status == 200
        assert b"[DONE]" in response.read()


def test_a_long_answer_comes_back_whole(counted: tuple[Server, Tokenizer]) -> None:
    server, _ = counted
    text = PARAGRAPH * 100
    assert server.chat(text, max_tokens=100_000).json["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize("delay", ["0", "0.0005"])
@pytest.mark.parametrize("vocabulary", ["approximate", "kimi"])
def test_no_cut_between_tokens_breaks_a_character(
    start_server: StartServer, request: pytest.FixtureRequest, tmp_path: Path, vocabulary: str, delay: str
) -> None:
    cache = request.getfixturevalue("kimi_cache") if vocabulary == "kimi" else None
    script = tmp_path / "script.txt"
    script.write_text(TRICKY, encoding="utf-8")
    server = start_server("--set", f"echo.script={script}", "--set", f"echo.delay={delay}", cache=cache)
    body = json.dumps({"model": K2, "messages": user("Go"), "stream": True, "n": 2, "max_tokens": 10_000}).encode()
    texts = {0: "", 1: ""}
    pieces = 0
    for frame in server.post(body).frames[:-1]:
        for choice in json.loads(frame.removeprefix(b"data: ").decode("utf-8"))["choices"]:
            piece = choice["delta"].get("content", "")
            assert "\ufffd" not in piece
            texts[choice["index"]] += piece
            pieces += bool(piece)
    assert texts == {0: TRICKY, 1: TRICKY}
    assert pieces > 500
