"""Model files that the `openvino` engine cannot serve are refused, each with one sentence."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("openvino_genai")

from tests.engines.openvino import MODEL

from moonbase.config import EngineSettings
from moonbase.engines.openvino.engine import OpenVINOEngine
from moonbase.engines.openvino.model import ModelFacts
from moonbase.errors import ModelFileError

pytestmark = pytest.mark.anyio

SIZE = MODEL.stat().st_size
HEADER = 1_785_664  # bytes of the default model's header, the vocabulary in it included
CONFIG = (
    '{"max_position_embeddings":2048,"num_hidden_layers":30,"hidden_size":576,"num_attention_heads":9,'
    '"num_key_value_heads":3}'
)

Edit = Callable[[bytearray], None]


def edited(folder: Path, edit: Edit) -> Path:
    """The default model with an edited header and zeros for weights, which take no room on disk."""
    with MODEL.open("rb") as file:
        header = bytearray(file.read(HEADER))
    edit(header)
    path = folder / "model.gguf"
    with path.open("wb") as file:
        file.write(header)
        file.truncate(SIZE)
    return path


def put(old: bytes, new: bytes) -> Edit:
    def edit(header: bytearray) -> None:
        at = header.index(old)
        assert len(old) == len(new)
        header[at : at + len(old)] = new

    return edit


def garbage(at: int) -> Edit:
    def edit(header: bytearray) -> None:
        header[at : at + 64] = random.Random(at).randbytes(64)

    return edit


def refusal(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        OpenVINOEngine(EngineSettings(), path)
    return sentence(caught.value, path)


def sentence(error: ModelFileError, path: Path) -> str:
    text = str(error)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (0, "empty"),
        (HEADER // 2, "more than it can hold"),
        (HEADER - 9, "ends inside its header"),
        (SIZE - 1, "cut short"),
    ],
)
def test_a_truncated_file_is_refused(tmp_path: Path, size: int, reason: str) -> None:
    path = edited(tmp_path, lambda header: None)
    with path.open("rb+") as file:
        file.truncate(size)
    assert reason in refusal(path)


@pytest.mark.parametrize("at", [0, 1_000, 300_000, HEADER - 2_000])
def test_garbage_in_the_header_is_refused(tmp_path: Path, at: int) -> None:
    assert refusal(edited(tmp_path, garbage(at)))


def test_an_architecture_that_openvino_does_not_read_is_refused(tmp_path: Path) -> None:
    length = struct.pack("<Q", 5)
    path = edited(tmp_path, put(length + b"llama", length + b"bloom"))
    assert refusal(path).endswith("the openvino engine reads llama, qwen2, qwen3 models, not bloom")


@pytest.mark.parametrize(
    "edit",
    [
        put(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"),
        put(b"llama.block_count\4\0\0\0\x1e", b"llama.block_count\4\0\0\0\x1f"),
        put(b"llama.attention.head_count\4\0\0\0\x09", b"llama.attention.head_count\4\0\0\0\x07"),
    ],
    ids=["tensor", "layers", "heads"],
)
async def test_a_header_that_contradicts_itself_is_refused_when_it_is_loaded(tmp_path: Path, edit: Edit) -> None:
    path = edited(tmp_path, edit)
    engine = OpenVINOEngine(EngineSettings(), path)
    with pytest.raises(ModelFileError, match="cannot be loaded") as caught:
        await engine.start()
    assert "exit status" not in sentence(caught.value, path), "the worker says why"
    assert engine.worker_pid is None
    await engine.close()


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "openvino_model.xml" in refusal(tmp_path)


@pytest.mark.parametrize(
    "config",
    [None, "", "{}", '{"max_position_embeddings":"many"}', CONFIG.replace("9", "0"), CONFIG.replace("576", "5")],
)
def test_a_folder_without_a_sound_configuration_is_refused(tmp_path: Path, config: str | None) -> None:
    (tmp_path / "openvino_model.xml").touch()
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert "config.json" in refusal(tmp_path)


def test_a_folder_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.xml").touch()
    (tmp_path / "config.json").write_text(CONFIG)
    facts = ModelFacts.read(tmp_path)
    assert (facts.window, facts.cache_bytes_per_token) == (2048, ModelFacts.read(MODEL).cache_bytes_per_token)


async def test_a_folder_with_a_damaged_model_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.xml").write_text("<not a model")
    (tmp_path / "config.json").write_text(CONFIG)
    with pytest.raises(ModelFileError, match="cannot be loaded") as caught:
        await OpenVINOEngine(EngineSettings(), tmp_path).start()
    assert sentence(caught.value, tmp_path)
