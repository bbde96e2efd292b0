"""Whatever a model says, its calls are valid: real engines under the schemas of the MFJS cases, by way of the server.

The whole run, 500 calls of each kind, is `benchmarks/acid_test.py`.
"""

import asyncio
from pathlib import Path

import pytest
from benchmarks.acid_test import CHOICES, Subject, replay, serving, subject, verify
from tests.e2e.server import shared

from moonbase.verify.schemas import CallChoice, read_cases

COUNTS: dict[CallChoice, int] = {"named": 8, "required": 6, "auto": 8}
MAX_TOKENS = 600
MORE_TOKENS = {"vllm": 2_000}  # strings of the random model go on for long
STREAMS = 8
ENGINES = [
    "openvino",
    "llamacpp",
    pytest.param("vllm", marks=pytest.mark.full),
]


@pytest.fixture(scope="module")
def schemas() -> Path:
    folder = shared("data", "mfjs-cases")
    if folder is None:
        pytest.skip("LEFT OUT: the MFJS cases; put them at ../shared/data/mfjs-cases")
    return folder


@pytest.fixture(scope="module")
def vocabulary() -> Path:
    folder = shared("data", "kimi-tokenizer")
    if folder is None:
        pytest.skip("LEFT OUT: the Kimi vocabulary; put it at ../shared/data/kimi-tokenizer")
    return folder


def engine_at_hand(name: str, vocabulary: Path, folder: Path) -> Subject:
    if name == "vllm" and not Path(".venv-vllm/bin/vllm").is_file():
        pytest.skip("LEFT OUT: vLLM; scripts/install-vllm installs it")
    if name != "vllm":
        pytest.importorskip("openvino_genai" if name == "openvino" else "xllamacpp", reason=f"LEFT OUT: {name}")
    return subject(name, vocabulary, folder)


@pytest.mark.parametrize("name", ENGINES)
def test_calls_are_valid_whatever_the_model_says(name: str, schemas: Path, vocabulary: Path, tmp_path: Path) -> None:
    tested = engine_at_hand(name, vocabulary, tmp_path)
    with serving(tested) as server:
        rounds = [
            verify(
                server, choice, schemas, COUNTS[choice], streams=STREAMS, max_tokens=MORE_TOKENS.get(name, MAX_TOKENS)
            )
            for choice in CHOICES
        ]
    assert [problem for each in rounds for problem in each.missed(calls=tested.calls, least_finished=0)] == []
    forced = [each.overall for each in rounds if each.choice != "auto"]  # one round alone is too few to tell
    assert sum([each["tool_calls"] for each in forced]) >= 0.5 * sum([each["requests"] for each in forced])


@pytest.mark.parametrize("name", ENGINES)
def test_streams_and_whole_answers_are_what_the_engine_put_out(
    name: str, schemas: Path, vocabulary: Path, tmp_path: Path
) -> None:
    tested = engine_at_hand(name, vocabulary, tmp_path)
    cases, _ = read_cases(schemas)
    found = asyncio.run(replay(tested, cases, vocabulary, 12, streams=STREAMS, max_tokens=100))
    assert found.differences == []
    assert found.outputs == 12
    assert found.calls >= 6
