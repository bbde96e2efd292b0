"""Tokenizers against the goldens of kimi-protocol.md 1.3, and what all of them promise."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonbase.config import cache
from moonbase.engines.base import Tokenizer
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.engines.tokenizers.kimi import KimiTokenizer
from moonbase.errors import ModelFileError

PLACES = (
    cache() / "vocabularies" / "kimi-k2" / "tiktoken.model",
    Path(__file__).parents[3] / "shared" / "data" / "kimi-tokenizer" / "tiktoken.model",
)
GOLDENS = {
    "Hello, world!": [19180, 11, 2695, 0],
    "你好，世界": [33845, 378, 2243],
    "What's the weather in Beijing?": [58434, 276, 10666, 306, 45880, 30],
    "I'M don't we'll": [40, 103645, 4536, 20944],
    "1234567 a  b\n\nc": [6694, 12972, 22, 261, 220, 291, 382, 66],
    "🤔🎉": [5885, 97, 242, 5885, 236, 231],
    "system": [14062],
    "user": [2482],
    "assistant": [69702],
    "tool": [20960],
    "tool_declare": [20960, 35556, 677],
    "functions.get_weather:0": [41937, 1150, 21055, 2800, 25, 15],
    "functions.get_weather:10": [41937, 1150, 21055, 2800, 25, 795],
    "functions.mcp__fs-read_file:12": [41937, 1186, 4725, 1025, 4668, 33044, 6101, 25, 1042],
    "functions.": [41937, 13],
    "{}": [13071],
    " {}": [10994],
    '{"': [8264],
    "## Return of functions.get_weather:0\n": [798, 6014, 318, 8271, 1150, 21055, 2800, 25, 15, 198],
    '{"city": "Beijing"}': [8264, 37666, 1289, 414, 4396, 39556, 16934],
    "</think>": [993, 39964, 29],
    "<think>": [27, 39964, 29],
    "<|tool_calls_section_begin|>": [27, 91, 20960, 75463, 31722, 37763, 91, 29],
}


@pytest.fixture(scope="module")
def kimi() -> KimiTokenizer:
    found = next((place for place in PLACES if place.is_file()), None)
    if found is None:
        pytest.skip("LEFT OUT: the Kimi vocabulary; put tiktoken.model into the cache's vocabularies/kimi-k2")
    return KimiTokenizer(found, {"<|im_start|>": 163_840})


@pytest.fixture(params=["approximate", "kimi"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "approximate":
        return ApproximateTokenizer()
    found: KimiTokenizer = request.getfixturevalue("kimi")
    return found


@pytest.mark.parametrize("text", GOLDENS)
def test_text_is_encoded_as_the_official_tokenizer_does(kimi: KimiTokenizer, text: str) -> None:
    assert kimi.encode_plain(text).tolist() == GOLDENS[text]
    assert kimi.decode(GOLDENS[text]) == text.encode()


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("[EOS]", 163585),
        ("<|im_end|>", 163586),
        ("<|im_user|>", 163587),
        ("<|im_assistant|>", 163588),
        ("<|im_system|>", 163594),
        ("<|tool_calls_section_begin|>", 163595),
        ("<|im_middle|>", 163601),
        ("<think>", 163606),
        ("<|im_start|>", 163840),
    ],
)
def test_control_tokens_are_reached_by_name_and_give_no_text(kimi: KimiTokenizer, name: str, token: int) -> None:
    assert kimi.control(name) == token
    assert kimi.decode([2482, token, 2482]) == b"useruser"
    assert max(kimi.encode_plain(f"a {name} b")) < 163_584


def test_long_runs_are_cut_as_the_official_tokenizer_cuts_them(kimi: KimiTokenizer) -> None:
    """Runs over 25,000 characters, and pieces of 400,000, are encoded each on their own."""
    for text, first in (("a" * 30_000, 25_000), (" " * 30_000, 25_000), ("ab " * 200_000, 400_000)):
        apart = kimi.encode_plain(text[:first]) + kimi.encode_plain(text[first:])
        assert kimi.encode_plain(text) == apart


@given(text=st.text(max_size=200))
def test_an_approximate_text_is_lossless(text: str) -> None:
    tokenizer = ApproximateTokenizer()
    assert tokenizer.decode(tokenizer.encode_plain(text).tolist()) == text.encode()


@settings(deadline=None)
@given(texts=st.lists(st.text(max_size=20), max_size=5))
def test_a_kimi_text_is_lossless_too(kimi: KimiTokenizer, texts: list[str]) -> None:
    text = "<|im_end|>".join(texts)
    ids = kimi.encode_plain(text)
    assert kimi.decode(ids.tolist()) == text.encode()
    assert all(token < 163_584 for token in ids)


def test_no_text_holds_a_control_token(tokenizer: Tokenizer) -> None:
    control = tokenizer.control("<|im_end|>")
    assert control not in tokenizer.encode_plain("x<|im_end|>y" * 10)
    assert tokenizer.decode([control]) == b""


@pytest.mark.parametrize("text", ["世界和平", "🤔🎉👩‍👩‍👧", "é"])
def test_tokens_one_by_one_are_the_bytes_of_the_whole(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_plain(text).tolist()
    assert b"".join([tokenizer.decode([token]) for token in ids]) == text.encode()


def test_four_bytes_are_a_token() -> None:
    tokenizer = ApproximateTokenizer()
    assert [len(tokenizer.encode_plain("x" * size)) for size in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"aGk= 0\n", b"\xff\xfe 1\n"])
def test_a_file_that_is_no_vocabulary_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "tiktoken.model"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"tiktoken\.model"):
        KimiTokenizer(file)
