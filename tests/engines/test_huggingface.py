"""The default model's vocabulary, as text to ids and back."""

import json
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonbase.config import cache
from moonbase.engines.gguf import GGUF
from moonbase.engines.tokenizers.huggingface import HuggingFaceTokenizer
from moonbase.errors import ModelFileError

genai = pytest.importorskip("openvino_genai")
MODEL = cache() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
LOST = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}  # bytes that SmolLM2's vocabulary has no token for

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 3 o'clock, isn't it? I'LL go!",
    "月亮是离我们最近的邻居。你好，世界！日本語のテキスト、한국어도.",
    "🙂👩‍👩‍👧‍👦🇨🇭 emoji, é vs é, ﬁ, Ünïcödé, العربية עברית हिन्दी ไทย",
    'def f(x: int) -> str:\n\treturn f"{x:>10}"  # comment\n\n\nclass A:\n    pass\n',
    "0 12 345 6789 3.14159 1,000,000 ½ ² ٣ 一二三",
    " leading   runs\tof \t\n\n  white space   \r\n and a trailing one  ",
    "",
    "\n",
    "a" * 500,
    '{"key": [1, -2.5e10, null, true], "nested": {"a": "b\\"c"}}',
    "https://example.com/path?q=1&r=%20#frag user@example.org $100 50% C++ #hash",
]


@pytest.fixture(scope="module")
def tokenizer() -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer.read(MODEL)


@pytest.fixture(scope="module")
def oracle() -> Any:
    return genai.Tokenizer(str(MODEL))


@pytest.mark.parametrize("text", CORPUS)
def test_ids_equal_those_of_openvinos_tokenizer(tokenizer: HuggingFaceTokenizer, oracle: Any, text: str):
    start, end = tokenizer.control("<|im_start|>"), tokenizer.control("<|im_end|>")
    ours = [start, *tokenizer.encode_plain(text), end]

    theirs = oracle.encode(f"<|im_start|>{text}<|im_end|>", add_special_tokens=False).input_ids.data[0].tolist()

    assert ours == theirs


@given(text=st.text(st.characters(codec="utf-8").filter(lambda c: not LOST & set(c.encode()))))
def test_text_survives(tokenizer: HuggingFaceTokenizer, text: str):
    assert tokenizer.decode(list(tokenizer.encode_plain(text))) == text.encode()


def test_control_literals_in_text_are_plain_characters(tokenizer: HuggingFaceTokenizer):
    control = {tokenizer.control(name) for name in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")}
    ids = tokenizer.encode_plain("<|im_end|>\n<|im_start|>system<|endoftext|>")

    assert not control & set(ids)
    assert tokenizer.decode(list(ids)) == b"<|im_end|>\n<|im_start|>system<|endoftext|>"


def test_control_tokens_decode_to_nothing(tokenizer: HuggingFaceTokenizer):
    assert tokenizer.decode([tokenizer.control("<|im_end|>"), 999_999]) == b""
    with pytest.raises(KeyError):
        tokenizer.control("<|no such|>")


def test_a_character_may_be_cut(tokenizer: HuggingFaceTokenizer):
    ids = list(tokenizer.encode_plain("\U0001f984"))
    assert len(ids) > 1

    pieces = [tokenizer.decode([token]) for token in ids]

    assert b"".join(pieces).decode() == "\U0001f984"
    with pytest.raises(UnicodeDecodeError):
        pieces[0].decode()


_FILE: dict[str, Any] = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "<|x|>": 4}, "merges": [["a", "b"]]},
    "added_tokens": [
        {"id": 4, "content": "<|x|>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False},
        {"id": 5, "content": "<tool>", "special": False, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False},
    ],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
}


def test_a_tokenizer_json_is_read(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(_FILE))
    tokenizer = HuggingFaceTokenizer.read(tmp_path)

    assert tokenizer.encode_plain("ab ab") == array("I", [3, 2, 3])
    assert tokenizer.decode([3, 2, 0]) == b"ab a"
    assert (tokenizer.control("<|x|>"), tokenizer.decode([4])) == (4, b"")
    assert (tokenizer.control("<tool>"), tokenizer.decode([5])) == (5, b"<tool>")  # a parser has to see it


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "not valid JSON"),
        (json.dumps({**_FILE, "decoder": {"type": "Metaspace"}}), "only byte-level BPE"),
        (json.dumps({**_FILE, "model": {"type": "Unigram"}}), "only byte-level BPE"),
        (json.dumps({**_FILE, "model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}), "not a usable"),
    ],
)
def test_another_tokenizer_json_is_refused(tmp_path: Path, content: str, reason: str):
    (tmp_path / "tokenizer.json").write_text(content)

    with pytest.raises(ModelFileError, match=reason):
        HuggingFaceTokenizer.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokenizer.ggml.model": "llama"}, "'llama'.* is not supported"),
        ({"tokenizer.ggml.pre": "deepseek-v3"}, "'deepseek-v3' is not supported"),
        ({"tokenizer.ggml.tokens": None}, "lacks the vocabulary"),
        ({"tokenizer.ggml.token_type": array("i", [1])}, "vocabulary in the header is damaged"),
        ({"tokenizer.ggml.merges": ["zz yy"]}, "vocabulary in the header is damaged"),
    ],
)
def test_another_vocabulary_in_a_gguf_is_refused(changes: dict[str, Any], reason: str):
    sound = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.token_type": array("i", [1, 1, 1]),
        "tokenizer.ggml.merges": ["a b"],
    }
    assert HuggingFaceTokenizer.from_gguf(GGUF(Path("m.gguf"), sound, ())).encode_plain("ab") == array("I", [2])

    with pytest.raises(ModelFileError, match=reason):
        HuggingFaceTokenizer.from_gguf(GGUF(Path("m.gguf"), {**sound, **changes}, ()))


@pytest.mark.parametrize(("pre", "pieces"), [("smollm", [*"1234"]), ("qwen2", [*"1234"]), ("llama-bpe", ["123", "4"])])
def test_digits_are_split_as_the_model_was_trained(pre: str, pieces: list[str]):
    tokens = [*"1234", "12", "123"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": array("i", [1] * 6),
        "tokenizer.ggml.merges": ["1 2", "12 3"],
    }
    ids = HuggingFaceTokenizer.from_gguf(GGUF(Path("m.gguf"), metadata, ())).encode_plain("1234")

    assert [tokens[token] for token in ids] == pieces
