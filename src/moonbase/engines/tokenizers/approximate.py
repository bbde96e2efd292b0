"""A tokenizer without a vocabulary: a token is four bytes of UTF-8. For engines that only play text."""

from array import array
from collections.abc import Mapping

from moonbase.engines.base import TokenIds

_PAD = b"\xfe"  # never occurs in UTF-8
_CONTROL = 0xFF000000  # 0xff neither, so no four bytes of text are this large


class ApproximateTokenizer:
    """Lossless and fast: `decode(encode_plain(text))` is the text's UTF-8. Tokens may end inside a character."""

    def __init__(self) -> None:
        self._controls: dict[str, int] = {}

    def encode_plain(self, text: str) -> TokenIds:
        data = text.encode()
        return array("I", data + _PAD * (-len(data) % 4))

    def control(self, name: str) -> int:
        return self._controls.setdefault(name, _CONTROL + len(self._controls))

    @property
    def silent(self) -> Mapping[str, int]:
        return self._controls

    def decode(self, ids: list[int]) -> bytes:
        text = array("I", [token for token in ids if token < _CONTROL])
        return text.tobytes().replace(_PAD, b"")
