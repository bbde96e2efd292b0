"""Constraints as the real model obeys them, in OpenVINO's own pipeline."""

import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest
from tests.formats.schemas import mfjs_cases

from moonbase.chat.constraint import (
    AnyText,
    Constraint,
    ConstString,
    Digits,
    JsonSchema,
    Marker,
    Optional,
    Or,
    Repeat,
    Sequence,
    Triggered,
)
from moonbase.config import cache
from moonbase.engines.grammar import Grammars
from moonbase.engines.structural_tag import OpenVINODialect
from moonbase.engines.tokenizers.huggingface import HuggingFaceTokenizer
from moonbase.formats.schemas.schema import read

genai = pytest.importorskip("openvino_genai")
np = pytest.importorskip("numpy")
MODEL = cache() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
END = 2  # <|im_end|>

Write = Callable[..., list[str | None]]


@pytest.fixture(scope="module")
def write() -> Write:
    """`write(constraint, runs, limit, temperature)` gives each run's text, None where the limit ended it."""
    from openvino import Tensor

    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = 512
    scheduler.max_num_batched_tokens = 256
    pipeline = genai.ContinuousBatchingPipeline(str(MODEL), scheduler, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    tokenizer = HuggingFaceTokenizer.read(MODEL)
    text = "Bob is 12 years old. Give name and age as JSON."
    start = tokenizer.control("<|im_start|>")
    ids = [start, *tokenizer.encode_plain("user\n" + text), END, *tokenizer.encode_plain("\n")]
    ids += [start, *tokenizer.encode_plain("assistant\n")]
    prompt = Tensor(np.array([ids], dtype=np.int64))

    def write(constraint: Constraint, runs: int = 4, limit: int = 100, temperature: float = 0.6) -> list[str | None]:
        handles, outputs = [], [[] for _ in range(runs)]
        finished: list[Any] = [None] * runs
        for run in range(runs):
            config = genai.GenerationConfig(max_new_tokens=limit, do_sample=True, temperature=temperature, rng_seed=run)
            config.stop_token_ids = {END}
            config.structured_output_config = genai.StructuredOutputConfig(
                structural_tags_config=Grammars(OpenVINODialect()).write(constraint).text
            )
            handles.append(pipeline.add_request(run, prompt, config))
        while pipeline.has_non_finished_requests():
            pipeline.step()
            for run, handle in enumerate(handles):
                while handle.can_read():
                    for part in handle.read().values():
                        outputs[run] += part.generated_ids
                        finished[run] = part.finish_reason
        return [
            tokenizer.decode(output).decode() if reason == genai.GenerationFinishReason.STOP else None
            for output, reason in zip(outputs, finished, strict=True)
        ]

    return write


def test_a_person_is_always_finished_and_valid(write: Write):
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }

    texts = write(JsonSchema(json.dumps(schema)), runs=50)

    assert all(text is not None and jsonschema_rs.is_valid(schema, json.loads(text)) for text in texts)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "minimum": 0.25, "maximum": 1.5},
        {"type": "integer", "minimum": -7, "maximum": 123456},
        {"type": "string", "pattern": r"^[A-Z]{3}-\d{4}$"},
        {"type": "string", "maxLength": 60},
        {"type": "string", "minLength": 20, "maxLength": 40},
        {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 5},
        {"enum": ["a", 'b"c', "\u4f60\u597d\n", None, 1.5, {"x": []}]},
        {"type": "object", "properties": {"a": {"type": "string", "maxLength": 9}, "b": {"type": "boolean"}}},
        {"type": "string", "pattern": r'^["\\-\]^\u00e9-\u00ff]{1,3}$'},
    ],
)
def test_what_ends_is_valid(write: Write, schema: dict[str, Any]):
    """At temperature 1 the model wanders; the schemas here are those that nevertheless force an end."""
    texts = write(JsonSchema(json.dumps(schema)), temperature=1.0)

    assert all(text is not None and jsonschema_rs.is_valid(schema, json.loads(text)) for text in texts), texts


@pytest.mark.parametrize(
    ("constraint", "right"),
    [
        (ConstString("fixed \u4f60"), {"fixed \u4f60"}),
        (Or((ConstString("yes"), ConstString("no"))), {"yes", "no"}),
        (Sequence((ConstString("a"), Optional(ConstString("b")), ConstString("z"))), {"az", "abz"}),
        (Sequence((Marker("<t>"), JsonSchema('{"enum":[1,2]}'), Marker("</t>"))), {"<t>1</t>", "<t>2</t>"}),
        (
            JsonSchema('{"type":"object","properties":{"a":{"enum":[1]}},"required":["a"]}', spaced=True),
            {'{"a": 1}', '{"a":1}'},
        ),
    ],
)
def test_each_kind_of_constraint_is_enforced(write: Write, constraint: Constraint, right: set[str]):
    assert set(write(constraint, limit=30, temperature=1.0)) <= right


@pytest.mark.parametrize(
    ("constraint", "right"),
    [
        (Sequence((ConstString("#"), Digits(), ConstString("."))), r"#[0-9]{1,9}\."),
        (Sequence((Marker("["), Repeat(ConstString("x")), Marker("]"))), r"\[x*\]"),
        (Sequence((AnyText(("<a>",)), Marker("</t>"), ConstString("!"))), r"(?s:.*)</t>!"),
        (Triggered("the", ConstString("...")), r"(?s:(?!.*the).*|.*the\.\.\.)"),
    ],
)
def test_each_kind_of_repetition_is_enforced(write: Write, constraint: Constraint, right: str):
    for text in write(constraint, limit=60, temperature=1.0):
        assert text is None or re.fullmatch(right, text), text


def test_free_text_stays_free_of_what_it_must_not_hold(write: Write):
    for constraint in (AnyText(("e", "th")), Triggered("<t>", JsonSchema('{"type":"object"}'), ("e", "th"))):
        for text in write(constraint, runs=8, limit=40, temperature=1.0):
            assert text is None or not re.search("e|th", text), text


def _names(count: int) -> list[str]:
    return [f"name_number_{number}" for number in range(count)]


def _fields(count: int, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": dict.fromkeys(_names(count), schema), **more}


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for level in range(depth):
        schema = {"type": "object", "properties": {f"a{level}": schema, f"b{level}": {"type": "integer"}}}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({"type": "string", "enum": [name * 2 for name in _names(1000)]}, id="many values"),
        pytest.param({"type": "string", "enum": ["x" * 1200, "y"]}, id="a long value"),
        pytest.param(_fields(3000, {"type": "boolean"}), id="many properties"),
        pytest.param(_fields(2000, {"type": "boolean"}, required=_names(2000)), id="many required properties"),
        pytest.param(
            {
                "type": "object",
                "properties": {
                    f"s{size}": {"type": "string", "minLength": size, "maxLength": 60} for size in range(1, 60)
                },
            },
            id="bounded strings",
        ),
        pytest.param(
            {
                "type": "object",
                "properties": {
                    f"s{size}": {"type": "string", "pattern": f"^([^a{size}]{{1,8}}-){{1,8}}$"} for size in range(60)
                },
            },
            id="patterns",
        ),
        pytest.param(
            {
                "type": "object",
                "properties": {
                    f"n{size}": {"type": "number", "minimum": -12345.678 + size, "maximum": 98765.4321 * size + 1}
                    for size in range(300)
                },
            },
            id="ranges",
        ),
        pytest.param(
            {"type": "array", "minItems": 900, "maxItems": 1000, "items": _fields(20, {"type": "string"})}, id="items"
        ),
        pytest.param(_nested(29), id="nesting"),
    ],
)
def test_the_most_expensive_schemas_compile(write: Write, schema: dict[str, Any]):
    """A grammar that the compiler cannot take leaves the pipeline unusable, so this ends with an easy one."""
    write(JsonSchema(read(json.dumps(schema), "parameters").text), runs=1, limit=3)

    assert write(JsonSchema('{"type":"boolean"}'), runs=1, limit=5)[0] in ("true", "false")


def test_the_valid_mfjs_cases_compile(write: Write):
    too_long = {"TestRangeConstraints 1"}  # minLength 999999999999
    for text in [text for case, text in mfjs_cases.valid() if case not in too_long]:
        write(JsonSchema(read(text, "parameters").text), runs=1, limit=1)

    assert write(JsonSchema('{"type":"boolean"}'), runs=1, limit=5)[0] in ("true", "false")
