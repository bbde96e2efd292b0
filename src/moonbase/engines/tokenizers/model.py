"""The tokenizer of a model's files."""

from pathlib import Path

from moonbase.engines.base import Tokenizer
from moonbase.engines.gguf import GGUF
from moonbase.engines.tokenizers.huggingface import HuggingFaceTokenizer
from moonbase.engines.tokenizers.kimi import KimiTokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model's folder or GGUF file, which may have its `tiktoken.model` beside it.

    Raises `ModelFileError` when it is none of those that we can rebuild exactly.
    """
    if path.is_dir():
        return KimiTokenizer.read(path) if _has_ranks(path) else HuggingFaceTokenizer.read(path)
    header = GGUF.read(path)
    if header.metadata.get("tokenizer.ggml.pre") != "kimi-k2":
        return HuggingFaceTokenizer.from_gguf(header)
    return KimiTokenizer.read(path.parent) if _has_ranks(path.parent) else KimiTokenizer.from_gguf(header)


def _has_ranks(folder: Path) -> bool:
    return (folder / "tiktoken.model").is_file()
