"""Constraints as the real model obeys them, in OpenVINO's own pipeline."""

import json
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest

from moonbase.chat.constraint import (
    AnyText,
    Constraint,
    ConstString,
    JsonSchema,
    Regex,
    Sequence,
    Tag,
    TagsWithSeparator,
    TriggeredTags,
)
from moonbase.config import cache
from moonbase.engines.openvino.constraints import structural_tag
from moonbase.engines.tokenizers.huggingface import HuggingFaceTokenizer
from moonbase.errors import InvalidRequest

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
                structural_tags_config=structural_tag(constraint)
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
        (Regex("(yes|no)"), {"yes", "no"}),
        (Sequence((ConstString("a"), Regex("[0-9]"), ConstString("z"))), {f"a{digit}z" for digit in range(10)}),
        (Tag("<t>", JsonSchema('{"enum":[1,2]}'), "</t>"), {"<t>1</t>", "<t>2</t>"}),
        (
            TriggeredTags(
                ("<t",), (Tag("<t=a>", JsonSchema('{"enum":[1]}'), "</t>"),), at_least_one=True, stop_after_first=True
            ),
            {"<t=a>1</t>"},
        ),
        (
            TagsWithSeparator((Tag("<t>", JsonSchema('{"enum":[1]}'), "</t>"),), ",", True, True),
            {"<t>1</t>"},
        ),
    ],
)
def test_each_kind_of_constraint_is_enforced(write: Write, constraint: Constraint, right: set[str]):
    assert set(write(constraint, limit=30, temperature=1.0)) <= right


def test_free_text_stays_free(write: Write):
    write(AnyText(), runs=1, limit=5)
    write(TriggeredTags(("<t>",), (Tag("<t>", JsonSchema('{"type":"object"}'), "</t>"),)), runs=1, limit=5)


def test_a_schema_that_cannot_be_enforced_never_reaches_the_engine():
    with pytest.raises(InvalidRequest, match=r"response_format\.json_schema\.schema"):
        structural_tag(JsonSchema('{"type":"text"}'))
