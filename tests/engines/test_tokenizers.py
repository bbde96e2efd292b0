"""Tokenizers against the goldens of kimi-protocol.md 1.3, and what all of them promise."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.e2e.server import kimi_vocabulary

from moonbase.engines.base import Tokenizer
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.engines.tokenizers.kimi import KimiTokenizer
from moonbase.errors import ModelFileError

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
def vocabulary() -> Path:
    found = kimi_vocabulary()
    if found is None:
        pytest.skip("LEFT OUT: the Kimi vocabulary; set KIMI_VOCABULARY to a folder with tiktoken.model")
    return found


@pytest.fixture(scope="module")
def kimi(vocabulary: Path) -> KimiTokenizer:
    return KimiTokenizer(vocabulary, {"<|im_start|>": 163_840})


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


CONTROLS = {
    "[BOS]": 163584,
    "[EOS]": 163585,
    "<|im_end|>": 163586,
    "<|im_user|>": 163587,
    "<|im_assistant|>": 163588,
    "<|start_header_id|>": 163590,
    "<|end_header_id|>": 163591,
    "[EOT]": 163593,
    "<|im_system|>": 163594,
    "<|tool_calls_section_begin|>": 163595,
    "<|tool_calls_section_end|>": 163596,
    "<|tool_call_begin|>": 163597,
    "<|tool_call_argument_begin|>": 163598,
    "<|tool_call_end|>": 163599,
    "<|im_middle|>": 163601,
    "<|media_begin|>": 163602,
    "<|media_content|>": 163603,
    "<|media_end|>": 163604,
    "<|media_pad|>": 163605,
    "<think>": 163606,
    "</think>": 163607,
    "[UNK]": 163838,
    "[PAD]": 163839,
}
BEFORE_THINKING = {name: token for name, token in CONTROLS.items() if not 163_601 < token < 163_838}


def model_folder(folder: Path, vocabulary: Path | None, config: object = None) -> Path:
    """A model's folder with the vocabulary, where there is one, and a `tokenizer_config.json` of this content."""
    if vocabulary is not None:
        (folder / "tiktoken.model").symlink_to(vocabulary)
    if config is not None:
        written = config if isinstance(config, str) else json.dumps(config)
        (folder / "tokenizer_config.json").write_text(written)
    return folder


def naming(controls: dict[str, int]) -> dict[str, object]:
    added = {str(token): {"content": name, "special": True, "lstrip": False} for name, token in controls.items()}
    return {"added_tokens_decoder": added, "tokenizer_class": "TikTokenTokenizer"}


def test_a_whole_call_has_the_published_tokens(kimi: KimiTokenizer) -> None:
    parts = ("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>")
    section, call, arguments = [kimi.control(name) for name in parts]
    ends = [kimi.control(name) for name in ("<|tool_call_end|>", "<|tool_calls_section_end|>")]
    ids = [section, call, *kimi.encode_plain("functions.get_weather:0")]
    ids += [arguments, *kimi.encode_plain('{"city": "Beijing"}'), *ends]
    expected = [163595, 163597, 41937, 1150, 21055, 2800, 25, 15, 163598]
    assert ids == [*expected, 8264, 37666, 1289, 414, 4396, 39556, 16934, 163599, 163596]


@pytest.mark.parametrize("config", [None, {}, {"added_tokens_decoder": {}}, naming(CONTROLS)])
def test_a_models_folder_has_the_control_tokens_of_the_family(tmp_path: Path, vocabulary: Path, config: object) -> None:
    tokenizer = KimiTokenizer.read(model_folder(tmp_path, vocabulary, config))
    assert {name: tokenizer.control(name) for name in CONTROLS} == CONTROLS
    assert tokenizer.encode_plain("Hello, world!").tolist() == GOLDENS["Hello, world!"]


def test_models_that_do_not_think_lack_the_tokens_for_it(tmp_path: Path, vocabulary: Path) -> None:
    tokenizer = KimiTokenizer.read(model_folder(tmp_path, vocabulary, naming(BEFORE_THINKING)))
    assert tokenizer.control("[PAD]") == 163839
    for name in ("<think>", "</think>", "<|media_pad|>"):
        with pytest.raises(KeyError):
            tokenizer.control(name)


def test_names_that_only_a_models_folder_has_are_known(tmp_path: Path, vocabulary: Path) -> None:
    tokenizer = KimiTokenizer.read(model_folder(tmp_path, vocabulary, naming(CONTROLS | {"<|mine|>": 163_700})))
    assert tokenizer.control("<|mine|>") == 163_700


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("nonsense", "is not a readable tokenizer configuration"),
        ("[]", "is not a readable tokenizer configuration"),
        ({"added_tokens_decoder": {"x": {"content": "a"}}}, "is not a readable tokenizer configuration"),
        ({"added_tokens_decoder": {"163606": {}}}, "is not a readable tokenizer configuration"),
        (naming(CONTROLS | {"<think>": 163_607, "</think>": 163_606}), "gives <think> the id 163607"),
        (naming(CONTROLS | {"<|mine|>": 163_840}), "gives <|mine|> the id 163840"),
        (naming(CONTROLS | {"<|mine|>": 5}), "gives <|mine|> the id 5"),
        (naming({"<|end_of_msg|>": 163_586, "[BOS]": 163_584}), "lacks [EOS]"),
        (naming({name: token for name, token in CONTROLS.items() if token != 163_597}), "lacks <|tool_call_begin|>"),
    ],
)
def test_a_configuration_of_another_vocabulary_is_refused(tmp_path: Path, config: object, said: str) -> None:
    with pytest.raises(ModelFileError) as error:
        KimiTokenizer.read(model_folder(tmp_path, None, config))
    assert str(error.value).startswith(f"{tmp_path / 'tokenizer_config.json'} {said}")


def test_a_folder_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"tiktoken\.model is not a readable tiktoken vocabulary"):
        KimiTokenizer.read(tmp_path)


@pytest.mark.parametrize(("name", "token"), [*CONTROLS.items(), ("<|im_start|>", 163840)])
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
