"""GGUF headers, sound and damaged."""

import contextlib
import struct
from array import array
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moonbase.config import cache
from moonbase.engines.gguf import GGUF, Tensor
from moonbase.errors import ModelFileError

MODEL = cache() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def header(entries: list[bytes], tensors: list[bytes], *, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entries + tensors)


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def small() -> bytes:
    """A sound file: some metadata of each kind and one tensor of 64 F32."""
    entries = [
        entry("general.architecture", 8, text("llama")),
        entry("llama.context_length", 4, struct.pack("<I", 2048)),
        entry("numbers", 9, struct.pack("<IQ3i", 5, 3, -1, 0, 7)),
        entry("flags", 9, struct.pack("<IQ2B", 7, 2, 1, 0)),
        entry("words", 9, struct.pack("<IQ", 8, 2) + text("a") + text("é")),
    ]
    head = header(entries, [tensor("weight", (32, 2), 0, 0)])
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + bytes(256)


def written(folder: Path, data: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(data)
    return path


def test_a_sound_file_is_read(tmp_path: Path):
    gguf = GGUF.read(written(tmp_path, small()))

    assert gguf.metadata == {
        "general.architecture": "llama",
        "llama.context_length": 2048,
        "numbers": array("i", [-1, 0, 7]),
        "flags": array("B", [1, 0]),
        "words": ["a", "é"],
    }
    assert gguf.tensors == (Tensor("weight", (32, 2), 0),)
    assert (gguf.architecture, gguf.window, gguf.parameters) == ("llama", 2048, 64)


@pytest.mark.parametrize("kind", [kind for kind in GGML_QUANT_SIZES if kind.name not in ("Q8_1", "Q1_0")])
def test_tensors_of_every_type_are_measured_as_ggml_does(kind: GGMLQuantizationType, tmp_path: Path):
    per_block, block_size = GGML_QUANT_SIZES[kind]
    head = header([], [tensor("w", (per_block, 3), int(kind), 0)])
    head = head.ljust(-(-len(head) // 32) * 32, b"\0")
    GGUF.read(written(tmp_path, head + bytes(3 * block_size)))
    with pytest.raises(ModelFileError, match="cut short"):
        GGUF.read(written(tmp_path, head + bytes(3 * block_size - 1)))


def test_layers_may_differ_in_what_they_cache(tmp_path: Path):
    numbers = {"block_count": 3, "embedding_length": 64, "attention.head_count": 4}
    entries = [entry("general.architecture", 8, text("hybrid"))]
    entries += [entry(f"hybrid.{name}", 4, struct.pack("<I", number)) for name, number in numbers.items()]
    heads = entry("hybrid.attention.head_count_kv", 9, struct.pack("<IQ3i", 5, 3, 2, 0, 1))
    assert GGUF.read(written(tmp_path, header([*entries, heads], []) + bytes(64))).cache_elements == (2 + 1) * 2 * 16
    short = entry("hybrid.attention.head_count_kv", 9, struct.pack("<IQ2i", 5, 2, 2, 1))
    with pytest.raises(ModelFileError, match="head_count_kv"):
        _ = GGUF.read(written(tmp_path, header([*entries, short], []) + bytes(64))).cache_elements


def test_the_default_model_is_read():
    gguf = GGUF.read(MODEL)

    assert (gguf.architecture, gguf.window, gguf.parameters) == ("llama", 8192, 134_515_008)
    assert gguf.cache_elements == 30 * 3 * 64 * 2  # layers, key-value heads, width, keys and values
    assert len(gguf.metadata["tokenizer.ggml.tokens"]) == 49_152


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"GG", "ends inside its header"),
        (b"PK\x03\x04" + bytes(100), "not a GGUF file"),
        (header([], [], version=9) + bytes(99), "version 9"),
        (small()[:-1], "cut short"),
        (small()[:90], "claims|ends inside"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**62, 1), "claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62), "claims"),
        (header([text("key")[:8].replace(b"\3", b"\xff")], []) + bytes(50), "claims"),
        (header([entry("a", 9, struct.pack("<IQ", 4, 2**61))], []), "claims"),
        (header([entry("a", 9, struct.pack("<IQ", 8, 2**61))], []), "claims"),
        (header([entry("a", 9, struct.pack("<IQ", 9, 1))], []) + bytes(50), "array of value type 9"),
        (header([entry("a", 77, b"")], []) + bytes(50), "value type 77"),
        (header([entry("a", 8, struct.pack("<Q", 1) + b"\xff")], []) + bytes(50), "not UTF-8"),
        (header([entry("general.alignment", 4, struct.pack("<I", 0))], []) + bytes(50), "alignment"),
        (header([], [text("w") + struct.pack("<I", 999)]) + bytes(99), "999 dimensions"),
        (header([], [tensor("w", (1,), 99, 0)]) + bytes(99), "type 99"),
        (header([], [tensor("w", (2**60, 2**60), 0, 0)]) + bytes(99), "cut short"),
    ],
)
def test_a_damaged_file_is_refused_with_a_sentence(tmp_path: Path, data: bytes, reason: str):
    path = written(tmp_path, data)

    with pytest.raises(ModelFileError, match=reason) as caught:
        GGUF.read(path)

    assert str(caught.value).startswith(f"{path}: ")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    with pytest.raises(ModelFileError, match="no such file"):
        GGUF.read(tmp_path / "none.gguf")
    with pytest.raises(ModelFileError, match="cannot be read"):
        GGUF.read(tmp_path)


@pytest.mark.parametrize("value", [None, 0, "many", 1.5, True])
def test_a_header_without_a_valid_window_is_refused(value: Any):
    metadata = {"general.architecture": "llama", "llama.context_length": value}
    gguf = GGUF(path=Path("model.gguf"), metadata=metadata, tensors=())

    with pytest.raises(ModelFileError, match=r"llama\.context_length"):
        _ = gguf.window


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_told_or_harmless(tmp_path: Path, data: st.DataObject):
    damaged = bytearray(small()[: data.draw(st.integers(0, len(small())))])
    for at in data.draw(st.lists(st.integers(0, max(len(damaged) - 1, 0)), max_size=4)):
        if damaged:
            damaged[at] = data.draw(st.integers(0, 255))

    with contextlib.suppress(ModelFileError):
        GGUF.read(written(tmp_path, bytes(damaged)))
