"""Byte-level BPE vocabularies, from a `tokenizer.json` or from the metadata of a GGUF file.

The vocabulary is split in two. Plain text is encoded by a tokenizer that was built without any
added token, so no text can become one. Added tokens are reached by name only.
"""

from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Encoder

from moonbase.engines.base import TokenIds, Tokenizer
from moonbase.engines.gguf import GGUF
from moonbase.errors import ModelFileError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types that are added tokens


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in of each byte, and the byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class HuggingFaceTokenizer:
    """Implements `Tokenizer`. Encoding is thread-safe."""

    def __init__(self, encoder: Encoder, vocabulary: dict[str, int], added: dict[str, int], hidden: set[int]) -> None:
        """`encoder` knows `vocabulary` only; `added` are the control tokens by literal, `hidden` those without text."""
        self._encoder = encoder
        self._added = added
        self._silent = {text: token for text, token in added.items() if token in hidden}
        alphabet = byte_alphabet()
        table = [b""] * (max([*vocabulary.values(), *added.values()]) + 1)
        for text, token in vocabulary.items():
            table[token] = bytes([alphabet[character] for character in text if character in alphabet])
        for text, token in added.items():
            table[token] = b"" if token in hidden else text.encode()
        self._bytes = table

    @classmethod
    def read(cls, path: Path) -> "HuggingFaceTokenizer":
        """The tokenizer of a model folder (its `tokenizer.json`) or of a GGUF file. Raises `ModelFileError`."""
        return cls.from_file(path / "tokenizer.json") if path.is_dir() else cls.from_gguf(GGUF.read(path))

    @classmethod
    def from_file(cls, path: Path) -> "HuggingFaceTokenizer":
        """Raises `ModelFileError` when `path` is no `tokenizer.json` of a byte-level BPE."""
        try:
            tree: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict)
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read ({error.strerror})") from error
        except msgspec.DecodeError as error:
            raise ModelFileError(f"{path}: is not valid JSON: {error}") from error
        model = tree.get("model") or {}
        if model.get("type", "BPE") != "BPE" or (tree.get("decoder") or {}).get("type") != "ByteLevel":
            raise ModelFileError(f"{path}: only byte-level BPE tokenizers are supported")
        try:
            entries = [(entry["content"], entry["id"], entry["special"]) for entry in tree.get("added_tokens") or ()]
            added = {content: token for content, token, _ in entries}
            model["vocab"] = {text: token for text, token in model["vocab"].items() if text not in added}
            tree |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
            encoder = Encoder.from_str(msgspec.json.encode(tree).decode())
        except Exception as error:  # the library raises bare Exception for a file it cannot use
            raise ModelFileError(f"{path}: is not a usable tokenizer.json: {error}") from error
        return cls(encoder, model["vocab"], added, {token for _, token, special in entries if special})

    @classmethod
    def from_gguf(cls, gguf: GGUF) -> "HuggingFaceTokenizer":
        """Raises `ModelFileError` when the file's tokenizer is none of those we can rebuild exactly."""
        model, kind = gguf.text("tokenizer.ggml.model"), gguf.metadata.get("tokenizer.ggml.pre", "default")
        pretokenizer = _pretokenizers().get(kind)
        if model != "gpt2" or pretokenizer is None:
            raise ModelFileError(
                f"{gguf.path}: the tokenizer {model!r} with pre-tokenizer {kind!r} is not supported; "
                f"'gpt2' with one of {', '.join(sorted(_pretokenizers()))} is"
            )
        tokens, types, merges = (
            gguf.metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", "merges")
        )
        if not (isinstance(tokens, list) and isinstance(merges, list) and isinstance(types, array)):
            raise ModelFileError(f"{gguf.path}: the header lacks the vocabulary; fetch it again")
        if not tokens or len(types) != len(tokens):
            raise ModelFileError(f"{gguf.path}: the vocabulary in the header is damaged; fetch it again")
        vocabulary, added, hidden = {}, {}, set()
        for token, (text, token_type) in enumerate(zip(tokens, types, strict=True)):
            if token_type in (_CONTROL, _USER_DEFINED):
                added[text] = token
                if token_type == _CONTROL:
                    hidden.add(token)
            else:
                vocabulary[text] = token
        pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
        try:
            bpe = models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=kind == "llama-bpe")
        except Exception as error:  # the library raises bare Exception for merges outside the vocabulary
            raise ModelFileError(f"{gguf.path}: the vocabulary in the header is damaged: {error}") from error
        encoder = Encoder(bpe)
        encoder.pre_tokenizer = pretokenizer
        if kind == "qwen2":
            encoder.normalizer = normalizers.NFC()
        return cls(encoder, vocabulary, added, hidden)

    def encode_plain(self, text: str) -> TokenIds:
        # Not `encode`, which holds the interpreter's lock all the while and computes offsets that nobody reads.
        return array("I", self._encoder.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def control(self, name: str) -> int:
        return self._added[name]

    @property
    def silent(self) -> Mapping[str, int]:
        return self._silent

    def decode(self, ids: list[int]) -> bytes:
        table = self._bytes
        return b"".join([table[token] for token in ids if token < len(table)])


def _pretokenizers() -> dict[str, pre_tokenizers.PreTokenizer]:
    """What llama.cpp's `tokenizer.ggml.pre` names, as the tokenizer.json files of those models have it."""
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def split(pattern: str) -> pre_tokenizers.PreTokenizer:
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_only])

    return {
        "smollm": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        ),
        "qwen2": split(rf"{_WORDS}|\p{{N}}|{_REST}"),
        "llama-bpe": split(rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"),
    }


if TYPE_CHECKING:

    def _conforms(tokenizer: HuggingFaceTokenizer) -> Tokenizer:
        return tokenizer
