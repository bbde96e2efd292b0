"""`chaos`: the same seed meets the same faults, and without one it does what is demanded."""

import asyncio
import json

import jsonschema_rs
import msgspec
import pytest

from moonbase.chat.constraint import AnyText, Constraint, JsonSchema
from moonbase.chat.events import ArgumentsDelta, OutputEvent, TextDelta, ToolCallStarted
from moonbase.chat.request import Conversation, Message, Sampling, TextPart, Tool, ToolChoice
from moonbase.config import ChaosSettings
from moonbase.engines.base import GenerateRequest, Generation
from moonbase.engines.chaos import ChaosEngine
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.errors import EngineUnavailable, GenerationTimeout
from moonbase.formats.base import Format
from moonbase.formats.hermes.format import Hermes
from moonbase.formats.kimi_k2.format import KimiK2
from moonbase.formats.output import OutputDecoder

pytestmark = pytest.mark.anyio

TOKENIZER = ApproximateTokenizer()
TEXT = "one two three four five six"


def request(n: int = 1) -> GenerateRequest:
    return GenerateRequest(
        request_id="id",
        prompt_ids=TOKENIZER.encode_plain(TEXT),
        sampling=Sampling(temperature=0.6, top_p=1, n=n, presence_penalty=0, frequency_penalty=0),
        max_tokens=1_000,
        stop_ids=(),
        user_text=TEXT,
    )


async def outcome(generation: Generation) -> str:
    """`text`, `garbage`, `failed` or `stalled`."""
    data = b""
    try:
        async with asyncio.timeout(0.15):
            with generation:
                while deltas := await generation.read():
                    data += TOKENIZER.decode([token for delta in deltas for token in delta.token_ids])
    except EngineUnavailable:
        return "failed"
    except TimeoutError:
        return "stalled"
    return "text" if data.decode(errors="replace") == TEXT else "garbage"


async def outcomes(seed: int, count: int = 8) -> list[str]:
    settings = ChaosSettings(seed=seed, faults=("stall", "cut", "malformed"))
    engine = ChaosEngine(settings, TOKENIZER)
    return [await outcome(engine.generate(request())) for _ in range(count)]


async def test_the_same_seed_gives_the_same_faults() -> None:
    first = await outcomes(7)
    assert await outcomes(7) == first
    assert len(set(first)) > 1
    assert await outcomes(8) != first


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("stall", "stalled"),
        ("cut", "failed"),
        ("death", "failed"),
        ("malformed", "garbage"),
        ("slow_first_token", "text"),
    ],
)
async def test_each_fault_is_what_it_says(fault: str, expected: str) -> None:
    settings = ChaosSettings(fault_rate=1, faults=(fault,), slow_seconds=0.05)  # type: ignore[arg-type]
    assert await outcome(ChaosEngine(settings, TOKENIZER).generate(request())) == expected


async def test_without_faults_it_is_an_echo() -> None:
    for settings in (ChaosSettings(fault_rate=0), ChaosSettings(fault_rate=1, faults=())):
        assert await outcome(ChaosEngine(settings, TOKENIZER).generate(request())) == "text"


async def test_a_death_takes_all_with_it_and_passes() -> None:
    engine = ChaosEngine(ChaosSettings(fault_rate=1, faults=("death",)), TOKENIZER)
    both = [engine.generate(request()) for _ in range(2)]
    assert engine.running == 2
    assert await asyncio.gather(*map(outcome, both)) == ["failed", "failed"]
    assert not engine.ready
    assert engine.running == 0
    with pytest.raises(EngineUnavailable):
        engine.generate(request())
    await asyncio.sleep(1.05)
    assert engine.ready


async def test_choices_that_are_left_or_aborted_no_longer_run() -> None:
    engine = ChaosEngine(ChaosSettings(fault_rate=1, faults=("stall",)), TOKENIZER)
    generation = engine.generate(request(n=3))
    assert engine.running > 0
    generation.abort(GenerationTimeout("idle", 1))
    assert engine.running == 0


PARAMETERS = json.dumps(
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    }
)
NAMES = ("get_weather", "search")
FORMATS = [KimiK2("kimi-k2-0905"), KimiK2("kimi-k2.6"), Hermes()]


def conversation(kind: str = "required", name: str | None = None, **more: object) -> Conversation:
    return Conversation(
        messages=(Message(role="user", content=(TextPart(TEXT),)),),
        tools=tuple([Tool(name=each, declaration="{}", parameters=PARAMETERS) for each in NAMES]),
        tool_choice=ToolChoice(kind, name),  # type: ignore[arg-type]
        arguments=(JsonSchema(PARAMETERS),) * 2,
        **more,  # type: ignore[arg-type]
    )


async def played(
    constraint: Constraint | None, fault: str | None = None, *, seed: int = 0, temperature: float = 0.6, count: int = 1
) -> list[list[int]]:
    """The tokens of `count` answers of one engine."""
    settings = ChaosSettings(seed=seed, fault_rate=fault is not None, faults=(fault,) if fault else ())  # type: ignore[arg-type]
    engine = ChaosEngine(settings, TOKENIZER)
    outputs = []
    for _ in range(count):
        asked = msgspec.structs.replace(request(), constraint=constraint)
        asked = msgspec.structs.replace(
            asked, sampling=msgspec.structs.replace(asked.sampling, temperature=temperature)
        )
        tokens: list[int] = []
        with engine.generate(asked) as generation:
            while deltas := await generation.read():
                tokens += [token for delta in deltas for token in delta.token_ids]
        outputs.append(tokens)
    return outputs


def events(tokens: list[int], format: Format, asked: Conversation) -> list[OutputEvent]:
    decoder = OutputDecoder(TOKENIZER.decode, {TOKENIZER.control(marker): marker for marker in format.markers})
    parser = format.parser(asked, 0)
    return parser.feed(decoder.feed(tokens)) + parser.feed(decoder.flush()) + parser.flush(complete=True)


def calls(found: list[OutputEvent]) -> list[tuple[str, str]]:
    """Names and arguments."""
    texts: dict[int, list[str]] = {}
    for event in found:
        if isinstance(event, ToolCallStarted):
            texts[event.index] = [event.name, ""]
        elif isinstance(event, ArgumentsDelta):
            texts[event.index][1] += event.text
    return [(name, arguments) for name, arguments in texts.values()]


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
async def test_demanded_calls_are_made_and_valid_in_every_format(format: Format) -> None:
    validator = jsonschema_rs.Draft202012Validator(json.loads(PARAMETERS))
    seen = set()
    asked = conversation()
    for tokens in await played(format.constraint(asked), count=20):
        found = calls(events(tokens, format, asked))
        assert found
        assert all(validator.is_valid(json.loads(arguments)) for _, arguments in found)
        seen |= {name for name, _ in found}
    assert seen == set(NAMES)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
async def test_a_named_function_is_the_one_that_is_called(format: Format) -> None:
    asked = conversation("function", "search")
    for tokens in await played(format.constraint(asked), count=5):
        assert [name for name, _ in calls(events(tokens, format, asked))] == ["search"]


async def test_where_the_choice_is_left_open_some_answers_are_calls_and_some_are_text() -> None:
    asked = conversation("auto")
    found = [events(tokens, FORMATS[0], asked) for tokens in await played(FORMATS[0].constraint(asked), count=20)]

    assert {bool(calls(each)) for each in found} == {True, False}
    assert all(calls(each) or "".join([e.text for e in each if isinstance(e, TextDelta)]) == TEXT for each in found)


async def test_a_greedy_answer_is_the_same_each_time_another_is_not() -> None:
    constraint = FORMATS[0].constraint(conversation())
    greedy = await played(constraint, temperature=0, count=4)
    assert greedy == [greedy[0]] * 4
    assert greedy == await played(constraint, temperature=0, count=4)
    assert len({tuple(tokens) for tokens in await played(constraint, count=4)}) > 1


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("undeclared_tool", [("undeclared_search", "valid")]),
        ("invalid_arguments", [("search", "invalid")]),
        ("broken_arguments", [("search", "broken")]),
        ("missing_call", []),
        ("parallel_calls", [("search", "valid"), ("search", "valid")]),
        ("leaked_marker", [("search", "valid")]),
    ],
)
async def test_faults_of_calls_reach_the_client_in_every_format(
    fault: str, expected: list[tuple[str, str]], format: Format
) -> None:
    def worth(arguments: str) -> str:
        try:
            value = json.loads(arguments)
        except ValueError:
            return "broken"
        return "valid" if jsonschema_rs.is_valid(json.loads(PARAMETERS), value) else "invalid"

    asked = conversation("function", "search")
    (tokens,) = await played(format.constraint(asked), fault)
    found = events(tokens, format, asked)

    assert [(name, worth(arguments)) for name, arguments in calls(found)] == expected
    text = "".join([event.text for event in found if isinstance(event, TextDelta)])
    leaks = [marker for marker in format.markers if marker in text]
    assert bool(leaks) is (fault == "leaked_marker")


@pytest.mark.parametrize(
    ("fault", "constraint", "expected"),
    [
        ("prose_answer", JsonSchema(PARAMETERS), "Certainly! Here is what you asked for: {"),
        ("invalid_answer", JsonSchema(PARAMETERS), "{}"),
        ("empty_answer", AnyText(), ""),
        ("empty_answer", None, ""),
        ("cut_short", None, "one two three "),
    ],
)
async def test_faults_of_texts(fault: str, constraint: Constraint | None, expected: str) -> None:
    (tokens,) = await played(constraint, fault)
    assert TOKENIZER.decode(tokens).decode()[: len(expected) or None] == expected


async def test_limits_are_kept_but_for_the_fault_of_limits() -> None:
    async def end(fault: str | None, max_tokens: int) -> tuple[int, str | None]:
        settings = ChaosSettings(fault_rate=fault is not None, faults=(fault,) if fault else ())  # type: ignore[arg-type]
        limited = msgspec.structs.replace(request(), max_tokens=max_tokens)
        with ChaosEngine(settings, TOKENIZER).generate(limited) as generation:
            deltas = []
            while more := await generation.read():
                deltas += more
        return sum([len(delta.token_ids) for delta in deltas]), deltas[-1].finish

    assert await end(None, 4) == (4, "length")
    assert await end("cut_short", 100) == (4, "length")
