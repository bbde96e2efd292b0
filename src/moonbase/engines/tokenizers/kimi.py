"""The Kimi K2 vocabulary: tiktoken ranks, Moonshot's split rules (kimi-protocol.md 1)."""

import binascii
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec
import tiktoken

from moonbase.engines.base import TokenIds, Tokenizer
from moonbase.engines.gguf import GGUF
from moonbase.engines.tokenizers.huggingface import byte_alphabet
from moonbase.errors import ModelFileError

_PATTERN = "|".join(
    [
        r"""[\p{Han}]+""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""",
        r""" ?[^\s\p{L}\p{N}]+[\r\n]*""",
        r"""\s*[\r\n]+""",
        r"""\s+(?!\S)""",
        r"""\s+""",
    ]
)
_BASE_TOKENS = 163_584
_RESERVED = 256  # ids after the base tokens, most of them without a name
_CONTROLS = {
    "[BOS]": 163_584,
    "[EOS]": 163_585,
    "<|im_end|>": 163_586,
    "<|im_user|>": 163_587,
    "<|im_assistant|>": 163_588,
    "<|start_header_id|>": 163_590,
    "<|end_header_id|>": 163_591,
    "[EOT]": 163_593,
    "<|im_system|>": 163_594,
    "<|tool_calls_section_begin|>": 163_595,
    "<|tool_calls_section_end|>": 163_596,
    "<|tool_call_begin|>": 163_597,
    "<|tool_call_argument_begin|>": 163_598,
    "<|tool_call_end|>": 163_599,
    "<|im_middle|>": 163_601,
    "<|media_begin|>": 163_602,
    "<|media_content|>": 163_603,
    "<|media_end|>": 163_604,
    "<|media_pad|>": 163_605,
    "<think>": 163_606,
    "</think>": 163_607,
    "[UNK]": 163_838,
    "[PAD]": 163_839,
}
_OPTIONAL = frozenset(("<|media_begin|>", "<|media_content|>", "<|media_end|>", "<|media_pad|>", "<think>", "</think>"))
_REQUIRED = tuple([literal for literal in _CONTROLS if literal not in _OPTIONAL])
_PIECE = 400_000
_RUN = 25_000


class _AddedToken(msgspec.Struct, frozen=True):
    content: str


class _TokenizerConfig(msgspec.Struct, frozen=True):
    """What is read of a `tokenizer_config.json`: the named tokens by id."""

    added_tokens_decoder: dict[int, _AddedToken] = {}


class KimiTokenizer:
    """`tiktoken.model` as the official tokenizer reads it, with control tokens kept out of text."""

    def __init__(
        self,
        file: Path | GGUF,
        extra_controls: Mapping[str, int] | None = None,
        controls: Mapping[str, int] = MappingProxyType(_CONTROLS),
    ) -> None:
        """`controls` are those of the vocabulary; `extra_controls` adds literals it lacks. Raises `ModelFileError`."""
        ranks = _gguf_ranks(file) if isinstance(file, GGUF) else _read_ranks(file)
        if len(ranks) != _BASE_TOKENS or max(ranks.values()) != _BASE_TOKENS - 1:
            name = file.path if isinstance(file, GGUF) else file
            raise ModelFileError(f"{name} holds {len(ranks)} tokens, the Kimi vocabulary has {_BASE_TOKENS}")
        self._encoding = tiktoken.Encoding("kimi", pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens={})
        self._controls = {**controls, **(extra_controls or {})}

    @classmethod
    def read(cls, folder: Path) -> "KimiTokenizer":
        """The vocabulary of a model's folder: `tiktoken.model`, and the control tokens `tokenizer_config.json` names.

        Where it names none they are those of kimi-protocol.md 1.1. The models before K2-Thinking lack `<think>` and
        the media tokens. Raises `ModelFileError` when a file is missing or is not that of a Kimi K2 model.
        """
        return cls(folder / "tiktoken.model", controls=_read_controls(folder / "tokenizer_config.json"))

    @classmethod
    def from_gguf(cls, gguf: GGUF) -> "KimiTokenizer":
        """The vocabulary in the header of a GGUF file, where a token's id is its rank. Raises `ModelFileError`."""
        tokens = _gguf_tokens(gguf)[_BASE_TOKENS:]
        named = {text: _BASE_TOKENS + number for number, text in enumerate(tokens)}
        controls = {text: number for text, number in named.items() if text in _CONTROLS}
        return cls(gguf, controls=_checked(controls, gguf.path))

    def encode_plain(self, text: str) -> TokenIds:
        if len(text) <= _RUN:  # nearly all; prompts have hundreds of them
            return array("I", self._encoding.encode_ordinary(text))
        ids = array("I")
        for start in range(0, len(text), _PIECE):
            for piece in _split_runs(text[start : start + _PIECE]):
                ids.extend(self._encoding.encode_ordinary(piece))
        return ids

    def control(self, name: str) -> int:
        return self._controls[name]

    @property
    def silent(self) -> Mapping[str, int]:
        return self._controls

    def decode(self, ids: list[int]) -> bytes:
        return self._encoding.decode_bytes([token for token in ids if token < _BASE_TOKENS])


def _read_ranks(file: Path) -> dict[bytes, int]:
    """Not with tiktoken's own loader, which copies what it reads into a folder that everybody can write."""
    try:
        lines = file.read_bytes().splitlines()
        return {binascii.a2b_base64(token): int(rank) for token, rank in map(bytes.split, lines)}
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{file} is not a readable tiktoken vocabulary") from error


def _read_controls(file: Path) -> Mapping[str, int]:
    """Raises `ModelFileError` for what is readable and not that of a Kimi K2 model, as for what is not readable."""
    try:
        config = msgspec.json.decode(file.read_bytes(), type=_TokenizerConfig)
    except FileNotFoundError:
        return _CONTROLS
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{file} is not a readable tokenizer configuration: {error}") from error
    if not config.added_tokens_decoder:
        return _CONTROLS
    controls = {token.content: number for number, token in config.added_tokens_decoder.items()}
    return _checked(controls, file)


def _checked(controls: Mapping[str, int], source: Path) -> Mapping[str, int]:
    """The ids must be those of kimi-protocol.md 1.1: another vocabulary with the same ranks has other meanings."""
    for literal, number in controls.items():
        if _CONTROLS.get(literal, number) != number or not _BASE_TOKENS <= number < _BASE_TOKENS + _RESERVED:
            raise ModelFileError(f"{source} gives {literal} the id {number}, which it has in no Kimi K2 vocabulary")
    for literal in _REQUIRED:
        if literal not in controls:
            raise ModelFileError(f"{source} lacks {literal}, which every Kimi K2 vocabulary has")
    return controls


def _gguf_tokens(gguf: GGUF) -> list[str]:
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise ModelFileError(f"{gguf.path}: the header lacks the vocabulary; fetch it again")
    return tokens


def _gguf_ranks(gguf: GGUF) -> dict[bytes, int]:
    alphabet = byte_alphabet()
    try:
        return {
            bytes([alphabet[character] for character in text]): rank
            for rank, text in enumerate(_gguf_tokens(gguf)[:_BASE_TOKENS])
        }
    except KeyError as error:
        raise ModelFileError(f"{gguf.path}: the vocabulary in the header is damaged; fetch it again") from error


def _split_runs(text: str) -> Iterator[str]:
    """Cut where more than `_RUN` characters are all whitespace or all not, as the official tokenizer does."""
    if not _has_long_run(text):
        yield text
        return
    start = run = 0
    in_space = text[0].isspace()
    for at, char in enumerate(text):
        if char.isspace() != in_space:
            run, in_space = 1, not in_space
        elif run == _RUN:
            yield text[start:at]
            start, run = at, 1
        else:
            run += 1
    yield text[start:]


def _has_long_run(text: str) -> bool:
    """Whether a run of more than `_RUN` exists. One would cover a whole stretch between two such marks."""
    for at in range(0, len(text) - _RUN // 2 + 1, _RUN // 2):
        stretch = text[at : at + _RUN // 2]
        if len(stretch) == _RUN // 2 and (stretch.isspace() or len(stretch.split(None, 1)[0]) == len(stretch)):
            return True
    return False


if TYPE_CHECKING:

    def _conforms(tokenizer: KimiTokenizer) -> Tokenizer:
        return tokenizer
