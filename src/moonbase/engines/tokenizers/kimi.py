"""The Kimi K2 vocabulary: tiktoken ranks, Moonshot's split rules (kimi-protocol.md 1)."""

import binascii
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path

import tiktoken

from moonbase.engines.base import TokenIds
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
_CONTROLS = {
    "[BOS]": 163_584,
    "[EOS]": 163_585,
    "<|im_end|>": 163_586,
    "<|im_user|>": 163_587,
    "<|im_assistant|>": 163_588,
    "<|im_system|>": 163_594,
    "<|tool_calls_section_begin|>": 163_595,
    "<|tool_calls_section_end|>": 163_596,
    "<|tool_call_begin|>": 163_597,
    "<|tool_call_argument_begin|>": 163_598,
    "<|tool_call_end|>": 163_599,
    "<|im_middle|>": 163_601,
    "<think>": 163_606,
    "</think>": 163_607,
}
_PIECE = 400_000
_RUN = 25_000


class KimiTokenizer:
    """`tiktoken.model` as the official tokenizer reads it, with control tokens kept out of text."""

    def __init__(self, file: Path, extra_controls: Mapping[str, int] | None = None) -> None:
        """`extra_controls` adds literals that the vocabulary lacks. Raises `ModelFileError`."""
        ranks = _read_ranks(file)
        if len(ranks) != _BASE_TOKENS:
            raise ModelFileError(f"{file} holds {len(ranks)} tokens, the Kimi vocabulary has {_BASE_TOKENS}")
        self._encoding = tiktoken.Encoding("kimi", pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens={})
        self._controls = {**_CONTROLS, **(extra_controls or {})}

    def encode_plain(self, text: str) -> TokenIds:
        ids = array("I")
        for start in range(0, len(text), _PIECE):
            for piece in _split_runs(text[start : start + _PIECE]):
                ids.extend(self._encoding.encode_ordinary(piece))
        return ids

    def control(self, name: str) -> int:
        return self._controls[name]

    def decode(self, ids: list[int]) -> bytes:
        return self._encoding.decode_bytes([token for token in ids if token < _BASE_TOKENS])


def _read_ranks(file: Path) -> dict[bytes, int]:
    """Not with tiktoken's own loader, which copies what it reads into a folder that everybody can write."""
    try:
        lines = file.read_bytes().splitlines()
        return {binascii.a2b_base64(token): int(rank) for token, rank in map(bytes.split, lines)}
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{file} is not a readable tiktoken vocabulary") from error


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
