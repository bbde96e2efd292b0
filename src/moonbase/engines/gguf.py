"""Read and check the header of a GGUF file: metadata and tensor table, never the weights.

The format is that of ggml's `docs/gguf.md`, versions 2 and 3, little-endian. A header may claim
anything, so every count is checked against the bytes that are left before anything is made of it.
"""

import mmap
import struct
from array import array
from math import prod
from pathlib import Path
from typing import Any

from msgspec import Struct

from moonbase.errors import ModelFileError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4

# ggml tensor type -> (elements per block, bytes per block)
_BLOCKS = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    9: (32, 36),  # Q8_1
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
    40: (64, 36),  # NVFP4
}


class Tensor(Struct, frozen=True):
    name: str
    shape: tuple[int, ...]
    type: int


class GGUF(Struct, frozen=True):
    """A header that has been checked: the file holds every tensor it names.

    Values of `metadata` are numbers, booleans, strings, `list[str]` and, for arrays of numbers, `array`.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]

    @classmethod
    def read(cls, path: Path) -> "GGUF":
        """Raises `ModelFileError` when the file is missing, damaged, cut short or no GGUF."""
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(data, path).read()
        except FileNotFoundError as error:
            raise ModelFileError(f"{path}: there is no such file") from error
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:  # mmap refuses an empty file
            raise ModelFileError(f"{path}: the file is empty; fetch it again") from error

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    @property
    def parameters(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.tensors)

    @property
    def window(self) -> int:
        return self.number("context_length")

    @property
    def cache_elements(self) -> int:
        """Numbers that the KV cache holds per token, at most: some layers of some architectures hold less."""
        heads = self._each_layer("attention.head_count", None)
        width = self.number("embedding_length") // max(max(heads), 1)
        key = self.number("attention.key_length", width)
        value = self.number("attention.value_length", width)
        return sum(self._each_layer("attention.head_count_kv", heads)) * (key + value)

    def _each_layer(self, key: str, default: list[int] | None) -> list[int]:
        """A number of every layer; a header gives one for all, or an array."""
        name = f"{self.architecture}.{key}"
        given, layers = self.metadata.get(name), self.number("block_count")
        if given is None and default is not None:
            return default
        if not isinstance(given, array):
            return [self.number(key)] * layers
        if len(given) != layers or not any(given) or min(given) < 0:
            raise ModelFileError(f"{self.path}: the header lacks a valid {name}; fetch it again")
        return [int(count) for count in given]

    def number(self, key: str, default: int | None = None) -> int:
        """A positive number under the architecture's prefix."""
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelFileError(f"{self.path}: the header lacks a valid {self.architecture}.{key}; fetch it again")
        return value

    def text(self, key: str) -> str:
        value = self.metadata.get(key)
        if not isinstance(value, str):
            raise ModelFileError(f"{self.path}: the header lacks {key}; fetch it again")
        return value


class _Reader:
    """Walks one header. Every read checks the end of the file first."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._at = 0

    def read(self) -> GGUF:
        if self._take(4) != b"GGUF":
            raise ModelFileError(f"{self._path}: this is not a GGUF file")
        version = self._scalar("I")
        if version not in (2, 3):
            raise ModelFileError(f"{self._path}: GGUF version {version} is not supported; versions 2 and 3 are")
        tensor_count = self._count(least_size=8 + 4 + 4 + 8)
        entry_count = self._count(least_size=8 + 4 + 1)
        metadata = {}
        for _ in range(entry_count):
            key = self._string()
            metadata[key] = self._value(self._scalar("I"))
        tensors = [self._tensor() for _ in range(tensor_count)]
        self._check_length(metadata.get("general.alignment", 32), tensors)
        return GGUF(path=self._path, metadata=metadata, tensors=tuple(tensor for tensor, _ in tensors))

    def _damaged(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self._path}: the file is damaged ({what}); fetch it again")

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise ModelFileError(f"{self._path}: the file ends inside its header; fetch it again")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def _scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _count(self, least_size: int) -> int:
        """A count of things of at least `least_size` bytes each that are still to come."""
        count: int = self._scalar("Q")
        if count * least_size > len(self._data) - self._at:
            raise self._damaged(f"it claims {count} entries, more than it can hold")
        return count

    def _string(self) -> str:
        try:
            return self._take(self._count(least_size=1)).decode()
        except UnicodeDecodeError as error:
            raise self._damaged("a text is not UTF-8") from error

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self._damaged(f"value type {kind} does not exist")
        element = self._scalar("I")
        if element == _STRING:
            return self._strings()
        if element not in _SCALARS:
            raise self._damaged(f"array of value type {element}")
        code = "B" if _SCALARS[element] == "?" else _SCALARS[element]
        return array(code, self._take(self._count(struct.calcsize(code)) * struct.calcsize(code)))

    def _strings(self) -> list[str]:
        """The vocabularies are here, some hundred thousand entries, so this loop calls nothing of ours."""
        count = self._count(least_size=8)
        data, at, end = self._data, self._at, len(self._data)
        length_of = struct.Struct("<Q").unpack_from
        strings = []
        for _ in range(count):
            if at + 8 > end:
                break
            start = at + 8
            at = start + length_of(data, at)[0]
            if at > end:
                break
            strings.append(data[start:at])
        if len(strings) < count:
            raise ModelFileError(f"{self._path}: the file ends inside its header; fetch it again")
        self._at = at
        try:
            return [text.decode() for text in strings]
        except UnicodeDecodeError as error:
            raise self._damaged("a text is not UTF-8") from error

    def _tensor(self) -> tuple[Tensor, int]:
        """A tensor and its offset in the data section."""
        name = self._string()
        dimensions = self._scalar("I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self._damaged(f"tensor {name!r} claims {dimensions} dimensions")
        shape = struct.unpack(f"<{dimensions}Q", self._take(8 * dimensions))
        return Tensor(name, shape, self._scalar("I")), self._scalar("Q")

    def _check_length(self, alignment: Any, tensors: list[tuple[Tensor, int]]) -> None:
        if not isinstance(alignment, int) or alignment < 1:
            raise self._damaged("general.alignment is not a positive number")
        start = -(-self._at // alignment) * alignment
        for tensor, offset in tensors:
            if tensor.type not in _BLOCKS:
                raise ModelFileError(
                    f"{self._path}: tensor {tensor.name!r} has type {tensor.type}, which is not supported"
                )
            per_block, block_size = _BLOCKS[tensor.type]
            if start + offset + prod(tensor.shape) // per_block * block_size > len(self._data):
                raise ModelFileError(f"{self._path}: the file is cut short; fetch it again")
