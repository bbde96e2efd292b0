"""The default model with joined projections: the same answers, and a cache that may be in any state."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("openvino_genai")

import numpy as np
import openvino as ov
import openvino_genai as genai
from openvino import opset13 as ops
from tests.engines.openvino import MODEL, ask, prompt

from moonbase.config import EngineSettings
from moonbase.engines.openvino import conversion
from moonbase.engines.openvino.engine import OpenVINOEngine
from moonbase.engines.openvino.worker import build_pipeline

PROMPTS = [
    "What is the capital of France?",
    "Write a very long story about a fox.",
    "Count to twenty.",
    "Who wrote Hamlet?",
]
LAYERS = 30


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Path]:
    """A copy of the default model, gone with the test: it is 98 MB."""
    path = tmp_path / "model.gguf"
    shutil.copyfile(MODEL, path)
    yield path
    path.unlink()


def answers(model: Path) -> list[tuple[list[int], list[float]]]:
    """Greedy tokens and their log probabilities."""
    pipeline = build_pipeline(model, threads=0, kv_blocks=256, max_running=4)
    handles = []
    for number, text in enumerate(PROMPTS):
        generation = genai.GenerationConfig()
        generation.max_new_tokens, generation.logprobs = 40, 1
        ids = ov.Tensor(np.array(prompt(text), dtype=np.int64).reshape(1, -1))
        handles.append(pipeline.add_request(number, ids, generation))
    while pipeline.has_non_finished_requests():
        pipeline.step()
    outputs = [handle.read_all()[0] for handle in handles]
    return [(list(output.generated_ids), list(output.generated_log_probs)) for output in outputs]


def folders(cache: Path) -> list[Path]:
    return [path for path in cache.glob("openvino/*/*") if path.is_dir()]


def products(folder: Path) -> int:
    return sum(op.get_type_name() == "MatMul" for op in ov.Core().read_model(folder / "openvino_model.xml").get_ops())


def test_answers_are_those_of_the_file_as_it_is(cache: Path) -> None:
    folder = conversion.converted(MODEL, cache)
    assert folder != MODEL
    assert products(folder) == 4 * LAYERS + 2  # and the last one, and the one of the positions
    for (plain, likely), (joined, as_likely) in zip(answers(MODEL), answers(folder), strict=True):
        assert joined == plain
        assert as_likely == pytest.approx(likely, abs=1e-3)


def test_a_second_start_takes_what_is_there(cache: Path) -> None:
    folder = conversion.converted(MODEL, cache)
    made = (folder / "openvino_model.xml").stat()
    assert conversion.converted(MODEL, cache) == folder
    assert (folder / "openvino_model.xml").stat() == made
    assert folders(cache) == [folder]


def test_a_folder_that_is_not_whole_is_made_anew(tmp_path: Path, model: Path) -> None:
    folder = conversion.converted(model, tmp_path)
    size = (folder / "openvino_model.bin").stat().st_size
    os.truncate(folder / "openvino_model.bin", 1000)
    assert conversion.converted(model, tmp_path) == folder
    assert (folder / "openvino_model.bin").stat().st_size == size


def test_what_is_left_of_others_goes_when_the_file_has_changed(tmp_path: Path, model: Path) -> None:
    first = conversion.converted(model, tmp_path)
    (first.parent / "died.unfinished").mkdir()
    os.utime(model, ns=(1, 1))
    second = conversion.converted(model, tmp_path)
    assert second != first
    assert folders(tmp_path) == [second]


def test_those_who_come_at_once_get_one_whole_folder(tmp_path: Path, model: Path) -> None:
    command = [
        *(sys.executable, "-c"),
        "import sys, pathlib, moonbase.engines.openvino.conversion as c;"
        "print(c.converted(*map(pathlib.Path, sys.argv[1:])))",
        *(str(model), str(tmp_path)),
    ]
    with ThreadPoolExecutor() as pool:
        found = set(pool.map(lambda _: subprocess.check_output(command, text=True).strip(), range(3)))
    assert found == {str(folder) for folder in folders(tmp_path)}
    assert products(Path(found.pop())) == 4 * LAYERS + 2


def test_a_cache_that_cannot_be_written_leaves_the_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "openvino").touch()  # a folder without permissions would not stop root
    assert conversion.converted(MODEL, tmp_path) == MODEL
    assert len(caplog.records) == 1


def test_a_file_that_openvino_cannot_read_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(MODEL.read_bytes()[:2_000_000])
    assert conversion.converted(path, tmp_path) == path
    assert len(caplog.records) == 1
    assert folders(tmp_path) == []


def test_what_is_not_there_is_a_folder_or_large_is_left(tmp_path: Path) -> None:
    large = tmp_path / "large.gguf"
    large.touch()
    os.truncate(large, (1 << 30) + 1)
    for path in (tmp_path / "missing.gguf", tmp_path, large):
        assert conversion.converted(path, tmp_path) == path
    assert not (tmp_path / "openvino").exists()


def weights(rows: int, columns: int, kind: ov.Type) -> ov.Node:
    constant = ov.op.Constant(ov.Tensor(kind, ov.Shape([rows, columns])))
    return ops.convert(constant, "f32")


def network(*of: ov.Node, transposed: bool = True) -> ov.Model:
    source = ops.parameter([-1, 16], np.float32)
    return ov.Model([ops.result(ops.matmul(source, weight, False, transposed)) for weight in of], [source])


def test_products_of_unlike_weights_stay_apart() -> None:
    assert conversion.join(network(weights(8, 16, ov.Type.f16), weights(4, 16, ov.Type.f16))) == 1
    assert conversion.join(network(weights(8, 16, ov.Type.f16), weights(4, 16, ov.Type.i8))) == 0
    assert conversion.join(network(weights(16, 8, ov.Type.f16), weights(16, 8, ov.Type.f16), transposed=False)) == 0
    assert conversion.join(network(weights(8, 16, ov.Type.f16), ops.exp(weights(8, 16, ov.Type.f16)))) == 0


@pytest.mark.anyio
async def test_a_damaged_folder_costs_no_start(tmp_path: Path, model: Path) -> None:
    folder = conversion.converted(model, tmp_path)
    xml = folder / "openvino_model.xml"
    xml.write_bytes(b" " * xml.stat().st_size)
    engine = OpenVINOEngine(EngineSettings(), model, cache=tmp_path)
    await engine.start()
    try:
        assert "Paris" in (await ask(engine, PROMPTS[0], temperature=0.0)).text
    finally:
        await engine.close()
    assert not folder.exists()
