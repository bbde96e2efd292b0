"""Which tokenizer a model's files give."""

from pathlib import Path

import pytest
from tests.e2e.server import kimi_vocabulary
from tests.engines import tiny_k2_gguf
from tests.engines.tiny_k2 import GOLDENS

from moonbase.config import cache
from moonbase.engines.tokenizers.huggingface import HuggingFaceTokenizer
from moonbase.engines.tokenizers.kimi import KimiTokenizer
from moonbase.engines.tokenizers.model import read_tokenizer

SMOLLM2 = cache() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = [text for text in GOLDENS if not text.startswith("<|")]


@pytest.fixture(scope="module")
def vocabulary() -> Path:
    found = kimi_vocabulary()
    if found is None:
        pytest.skip("LEFT OUT: the Kimi vocabulary; set KIMI_VOCABULARY to a folder with tiktoken.model")
    return found.parent


@pytest.fixture(scope="module")
def kimi_file(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("k2") / "tiny-k2.gguf"
    tiny_k2_gguf.write(vocabulary, file)
    return file


def test_a_gguf_file_of_kimis_holds_its_vocabulary(kimi_file: Path, vocabulary: Path) -> None:
    ours, official = read_tokenizer(kimi_file), KimiTokenizer.read(vocabulary)
    assert {text: ours.encode_plain(text).tolist() for text in TEXTS} == {text: GOLDENS[text] for text in TEXTS}
    for literal in ("<|im_end|>", "<|tool_calls_section_begin|>", "</think>"):
        assert ours.control(literal) == official.control(literal)
    with pytest.raises(KeyError):
        ours.control("<|reserved_token_163589|>")


def test_the_ranks_beside_a_gguf_file_come_first(kimi_file: Path, vocabulary: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").symlink_to(kimi_file)
    for name in ("tiktoken.model", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(vocabulary / name)
    beside = read_tokenizer(tmp_path / "model.gguf")
    assert isinstance(beside, KimiTokenizer)
    assert beside.encode_plain(TEXTS[0]).tolist() == GOLDENS[TEXTS[0]]


def test_a_folder_with_ranks_is_kimis(vocabulary: Path) -> None:
    assert isinstance(read_tokenizer(vocabulary), KimiTokenizer)


def test_other_gguf_files_hold_a_byte_level_vocabulary() -> None:
    tokenizer = read_tokenizer(SMOLLM2)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert tokenizer.encode_plain("Hello").tolist() == HuggingFaceTokenizer.read(SMOLLM2).encode_plain("Hello").tolist()
