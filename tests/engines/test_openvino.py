"""The `openvino` engine with its real worker and the default model."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import jsonschema_rs
import pytest

pytest.importorskip("openvino_genai")

from tests.engines.constrained import generated
from tests.engines.openvino import (
    END_OF_TURN,
    MODEL,
    STOP_IDS,
    STORY,
    ask,
    collect,
    endless,
    prompt,
    request,
)

from moonbase.chat.constraint import JsonSchema, Marker, Sequence
from moonbase.config import EngineSettings
from moonbase.engines.openvino.engine import OpenVINOEngine
from moonbase.errors import EngineOverloaded, EngineUnavailable, InvalidRequest

pytestmark = pytest.mark.anyio

CAPITAL = "What is the capital of France?"
BOB = "Bob is 12 years old. Give name and age as JSON."
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
COLOUR = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
MAX_RUNNING, MAX_WAITING = 4, 3


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OpenVINOEngine]:
    """Shared by the tests of this module, which leave it idle. It runs the model as it runs fastest."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MOONSHOT_API_KEY", "sk-secret")
    patch.setenv("SECRET_X", "secret")
    settings = EngineSettings(max_running=MAX_RUNNING, max_waiting=MAX_WAITING)
    engine = OpenVINOEngine(settings, MODEL, cache=tmp_path_factory.mktemp("cache"))
    await engine.start()
    yield engine
    await engine.close()
    patch.undo()


def read(path: str) -> str:
    return Path(path).read_text()


def constrained(schema: dict[str, object]) -> JsonSchema:
    return JsonSchema(json.dumps(schema))


async def test_it_describes_the_model(engine: OpenVINOEngine) -> None:
    description = engine.description
    assert (description.name, description.model, description.window) == ("openvino", MODEL.stem, 8192)
    assert description.dialect is not None
    assert not description.validates_only
    assert description.reports_cached


async def test_greedy_answers_are_right_and_the_same_each_time(engine: OpenVINOEngine) -> None:
    first, second = await ask(engine, CAPITAL, temperature=0.0), await ask(engine, CAPITAL, temperature=0.0)
    assert "Paris" in first.text
    assert first.tokens == second.tokens


async def test_tokens_arrive_while_they_are_generated(engine: OpenVINOEngine) -> None:
    answer = await collect(engine.generate(endless(max_tokens=32)))
    assert answer.reads > 8


async def test_choices_differ_when_they_are_sampled(engine: OpenVINOEngine) -> None:
    answer = await ask(engine, STORY, n=2, temperature=1.0)
    assert set(answer.finish) == {0, 1}
    assert answer.texts[0] != answer.texts[1]


async def test_two_requests_of_the_same_kind_are_sampled_apart(engine: OpenVINOEngine) -> None:
    answers = [await ask(engine, STORY, temperature=1.0) for _ in range(2)]
    assert answers[0].text != answers[1].text


async def test_the_token_that_stops_is_no_output(engine: OpenVINOEngine) -> None:
    answer = await ask(engine, CAPITAL, temperature=0.0, max_tokens=200)
    assert answer.finish == {0: "stop"}
    assert not set(STOP_IDS) & set(answer.tokens[0])
    without = await ask(engine, CAPITAL, temperature=0.0, max_tokens=len(answer.tokens[0]) + 1, stop_ids=())
    assert without.tokens[0] == [*answer.tokens[0], END_OF_TURN]


@pytest.mark.parametrize("limit", [1, 2, 17])
async def test_a_limit_ends_a_choice_exactly(engine: OpenVINOEngine, limit: int) -> None:
    answer = await collect(engine.generate(endless(max_tokens=limit, n=2)))
    assert answer.finish == {0: "length", 1: "length"}
    assert [len(tokens) for tokens in answer.tokens.values()] == [limit, limit]


@pytest.mark.parametrize(
    "sampling",
    [
        {"presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"presence_penalty": -2.0, "frequency_penalty": -2.0},
        {"presence_penalty": 1.0, "temperature": 0.0},
        {"temperature": 0.01},
        {"temperature": 1.0, "top_p": 0.5},
        {"top_p": 0.0},
        {"top_p": 1e-50},
    ],
)
async def test_every_sampling_that_clients_may_ask_for_works(
    engine: OpenVINOEngine, sampling: dict[str, float]
) -> None:
    answer = await ask(engine, STORY, max_tokens=4, **sampling)
    assert answer.error is None
    assert answer.text


async def test_a_top_p_of_nothing_leaves_the_likeliest_token(engine: OpenVINOEngine) -> None:
    greedy, narrow = await ask(engine, CAPITAL, temperature=0.0), await ask(engine, CAPITAL, top_p=0.0)
    assert narrow.tokens == greedy.tokens


async def test_frequent_tokens_are_penalised(engine: OpenVINOEngine) -> None:
    text = "Repeat the word moon a hundred times: moon moon moon moon moon moon moon"
    plain = await collect(engine.generate(request(text, temperature=0.0, max_tokens=60, stop_ids=())))
    penalised = await collect(
        engine.generate(request(text, temperature=0.0, max_tokens=60, stop_ids=(), frequency_penalty=2.0))
    )
    assert len(set(penalised.tokens[0])) > len(set(plain.tokens[0]))


async def test_what_openvino_refuses_is_refused_without_its_words(engine: OpenVINOEngine) -> None:
    answer = await ask(engine, CAPITAL, presence_penalty=9.0)
    assert isinstance(answer.error, InvalidRequest)
    assert str(answer.error) == "Invalid request: the engine cannot serve this combination of parameters"
    assert (engine.running, engine.waiting) == (0, 0)


async def test_a_schema_is_always_obeyed(engine: OpenVINOEngine) -> None:
    runs = [request(BOB, max_tokens=150, constraint=constrained(PERSON), n=MAX_RUNNING) for _ in range(5)]
    for run in runs:
        answer = await collect(generated(engine, run))
        assert set(answer.finish.values()) == {"stop"}
        for text, tokens in zip(answer.texts, answer.tokens.values(), strict=True):
            assert jsonschema_rs.is_valid(PERSON, json.loads(text)), text
            assert len(tokens) < 100


async def test_two_schemas_at_once_stay_apart(engine: OpenVINOEngine) -> None:
    wanted = [PERSON, COLOUR, PERSON, COLOUR]
    answers = await asyncio.gather(
        *[ask(engine, BOB, max_tokens=150, constraint=constrained(schema)) for schema in wanted]
    )
    for schema, answer in zip(wanted, answers, strict=True):
        assert jsonschema_rs.is_valid(schema, json.loads(answer.text)), answer.text


async def test_a_schema_between_markers_is_filled(engine: OpenVINOEngine) -> None:
    constraint = Sequence((Marker("<person>"), constrained(PERSON), Marker("</person>")))
    answer = await ask(engine, BOB, max_tokens=150, constraint=constraint)
    assert answer.text.startswith("<person>")
    assert answer.text.endswith("</person>")
    assert jsonschema_rs.is_valid(PERSON, json.loads(answer.text[len("<person>") : -len("</person>")]))


async def test_leaving_a_generation_frees_its_place(engine: OpenVINOEngine) -> None:
    """In the worker, too: as many choices as may run start while those that were left would go on for minutes."""
    with engine.generate(endless(n=MAX_RUNNING)) as generation:
        await generation.read()
        assert engine.running == MAX_RUNNING
    assert engine.running == 0
    with engine.generate(endless("Tell me other news.", n=MAX_RUNNING)) as following:
        started: set[int] = set()
        async with asyncio.timeout(20):
            while len(started) < MAX_RUNNING:
                started |= {delta.choice for delta in await following.read()}


async def test_one_choice_of_several_can_be_stopped(engine: OpenVINOEngine) -> None:
    with engine.generate(endless(n=3, max_tokens=60)) as generation:
        await generation.read()
        generation.stop(1)
        assert engine.running == 2
        counts, ends = {0: 0, 1: 0, 2: 0}, set()
        while deltas := await generation.read():
            for delta in deltas:
                counts[delta.choice] += len(delta.token_ids)
                ends |= {delta.choice} if delta.finish else set()
    assert ends == {0, 2}
    assert counts[1] < 10
    assert engine.running == 0


@pytest.mark.parametrize("read", range(1, 6))
async def test_a_choice_may_be_stopped_while_its_end_is_on_its_way(engine: OpenVINOEngine, read: int) -> None:
    """As when a stop string matches in what is nearly the last token."""
    with engine.generate(endless(n=2, max_tokens=read + 1)) as generation:
        counts, finish = {0: 0, 1: 0}, {}
        while deltas := await generation.read():
            for delta in deltas:
                counts[delta.choice] += len(delta.token_ids)
                if delta.finish is not None:
                    finish[delta.choice] = delta.finish
            if counts[0] >= read:
                generation.stop(0)
    assert (counts[1], finish[1]) == (read + 1, "length")
    assert (engine.running, engine.waiting) == (0, 0)


async def test_a_repeated_prompt_is_cached_in_whole_blocks_and_for_its_own_scope_only(engine: OpenVINOEngine) -> None:
    text = "The moon is our nearest neighbour in space. " * 10
    whole = (len(prompt(text)) - 1) // 32 * 32
    assert whole > 64
    first = await ask(engine, text, scope="org-1", max_tokens=2)
    again = await ask(engine, text, scope="org-1", max_tokens=2)
    other = await ask(engine, text, scope="org-2", max_tokens=2)
    longer = await ask(engine, text + "And then?", scope="org-1", max_tokens=2)
    both = await ask(engine, text, scope="org-1", max_tokens=2, n=2)
    assert (first.cached[0], again.cached[0], other.cached[0]) == (0, whole, 0)
    assert 64 <= longer.cached[0] <= whole
    assert dict(both.cached) == {0: whole, 1: whole}


async def test_more_than_may_run_waits_and_more_than_may_wait_is_refused(engine: OpenVINOEngine) -> None:
    running = engine.generate(endless(n=MAX_RUNNING, max_tokens=40))
    waiting = engine.generate(endless(n=MAX_WAITING, max_tokens=5))
    assert (engine.running, engine.waiting) == (MAX_RUNNING, MAX_WAITING)
    with pytest.raises(EngineOverloaded):
        engine.generate(endless(max_tokens=5))
    answers = await asyncio.gather(collect(running), collect(waiting))
    assert [len(answer.finish) for answer in answers] == [MAX_RUNNING, MAX_WAITING]
    assert (engine.running, engine.waiting) == (0, 0)


async def test_a_waiting_request_can_be_left(engine: OpenVINOEngine) -> None:
    with engine.generate(endless(n=MAX_RUNNING)):
        with engine.generate(endless()):
            assert engine.waiting == 1
        assert engine.waiting == 0
        assert engine.running == MAX_RUNNING


async def test_a_request_for_more_choices_than_may_run_runs_nevertheless(engine: OpenVINOEngine) -> None:
    answer = await collect(engine.generate(endless(n=MAX_RUNNING + 2, max_tokens=5)))
    assert [len(tokens) for tokens in answer.tokens.values()] == [5] * (MAX_RUNNING + 2)


async def test_the_worker_knows_no_secret_and_yields_to_others(engine: OpenVINOEngine) -> None:
    pid = engine.worker_pid
    assert pid is not None
    variables = read(f"/proc/{pid}/environ").split("\0")
    assert not [variable for variable in variables if "secret" in variable.lower() or "KEY" in variable]
    assert os.getpriority(os.PRIO_PROCESS, pid) >= 5
    assert read(f"/proc/{pid}/oom_score_adj").strip() == "500"


async def test_a_small_cache_bounds_the_window_and_serves_more_than_it_holds_at_once() -> None:
    """Four blocks of 32 tokens for four choices of 60: OpenVINO sets some back and computes them again."""
    engine = OpenVINOEngine(EngineSettings(cache_bytes=4 * 32 * 23_040), MODEL)
    assert engine.description.window == 128
    await engine.start()
    try:
        answer = await collect(engine.generate(endless(n=4, max_tokens=60)))
        assert [len(tokens) for tokens in answer.tokens.values()] == [60] * 4
        full = await collect(engine.generate(endless(max_tokens=128 - len(prompt(STORY)))))
        assert full.finish == {0: "length"}
        running, waiting = engine.generate(endless(n=32, max_tokens=100)), engine.generate(endless(max_tokens=100))
        await running.read()
    finally:
        await engine.close()
    assert isinstance((await collect(running)).error, EngineUnavailable)
    assert isinstance((await collect(waiting)).error, EngineUnavailable), "nobody waits for an engine that is closed"
    assert not engine.ready
    with pytest.raises(EngineUnavailable):
        engine.generate(endless())
