"""A format, a tokenizer and an engine together: windows, constraints, and events out of deltas."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from moonbase.chat.constraint import JsonSchema
from moonbase.chat.events import (
    ArgumentsDelta,
    ChatEvent,
    Finished,
    ReasoningDelta,
    TextDelta,
    ToolCallStarted,
)
from moonbase.chat.request import ChatRequest, Conversation, Message, Sampling, TextPart, Tool, ToolChoice
from moonbase.config import EchoSettings, EngineSettings
from moonbase.engines.base import Delta, EngineDescription, GenerateRequest, Generation
from moonbase.engines.echo import EchoEngine
from moonbase.engines.structural_tag import TokenDialect
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.errors import EngineUnavailable, InvalidRequest
from moonbase.formats.kimi_k2.format import KimiK2
from moonbase.router.deployment import window
from moonbase.router.token_deployment import TokenDeployment, TokenStream

pytestmark = pytest.mark.anyio

TOKENIZER = ApproximateTokenizer()


class StillEngine:
    """An engine of one's own making: it generates what a test puts into `generation`."""

    waiting = running = 0
    ready = True

    def __init__(self, window: int | None = None, *, constrains: bool = False, reads_text: bool = False) -> None:
        dialect = TokenDialect(TOKENIZER) if constrains else None
        self.description = EngineDescription(
            name="still", model="still", window=window, dialect=dialect, reads_text=reads_text
        )
        self.cancelled: list[int | None] = []
        self.flows: list[bool] = []
        self.requests: list[GenerateRequest] = []

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def generate(self, request: GenerateRequest) -> Generation:
        self.requests.append(request)
        self.generation = Generation(request.sampling.n, self.cancelled.append, self.flows.append)
        return self.generation


def deployment(engine: StillEngine | EchoEngine | None = None, revision: str = "kimi-k2-0905") -> TokenDeployment:
    return TokenDeployment(
        "a name",
        KimiK2(revision),
        TOKENIZER,
        engine or EchoEngine(EchoSettings(), TOKENIZER, ()),
        EngineSettings(),
    )


def conversation(text: str = "Hi", **fields: Any) -> Conversation:
    return Conversation(messages=(Message(role="user", content=(TextPart(text),)),), **fields)


async def opened(
    under_test: TokenDeployment,
    text: str = "Hi",
    *,
    n: int = 1,
    stop: tuple[str, ...] = (),
    max_tokens: int = 100,
    **fields: Any,
) -> TokenStream:
    asked = conversation(text, **fields)
    request = ChatRequest(model="m", messages=asked.messages, stop=stop)
    prompt = await under_test.prepare(request, asked, "org")
    sampling = Sampling(temperature=0.6, top_p=1, n=n, presence_penalty=0, frequency_penalty=0)
    return prompt.open("id", sampling=sampling, max_tokens=max_tokens)


async def everything(stream: TokenStream) -> list[ChatEvent]:
    events: list[ChatEvent] = []
    while more := await stream.read():
        events += more
    return events


def tokens(text: str) -> list[int]:
    return TOKENIZER.encode_plain(text).tolist()


def marker(literal: str) -> int:
    return TOKENIZER.control(literal)


SCHEMA = JsonSchema('{"type":"object"}')
TOOL = Tool(name="f", declaration='{"type":"function","function":{"name":"f"}}', parameters=SCHEMA.schema)
TOOLS: dict[str, Any] = {"tools": (TOOL,), "arguments": (SCHEMA,)}


def test_a_window_is_never_larger_than_the_engines_own() -> None:
    assert window(deployment(), 262_144) == 262_144
    assert window(deployment(StillEngine(8_192)), 262_144) == 8_192
    assert window(deployment(StillEngine(8_192)), 4_096) == 4_096


@pytest.mark.parametrize(
    ("fields", "constrains", "expected"),
    [
        ({}, False, None),
        ({"content": SCHEMA}, True, None),
        ({"content": SCHEMA}, False, "response_format is not supported: a name cannot be held to a schema"),
        (TOOLS, True, None),
        (TOOLS, False, "tools is not supported: a name cannot be held to their schemas"),
        ({**TOOLS, "tool_choice": ToolChoice("none")}, False, None),
    ],
)
async def test_an_engine_that_cannot_hold_to_what_is_demanded_is_named(
    fields: dict[str, Any], constrains: bool, expected: str | None
) -> None:
    under_test = deployment(StillEngine(constrains=constrains))
    if expected is None:
        await opened(under_test, **fields)
    else:
        with pytest.raises(InvalidRequest, match=expected):
            await opened(under_test, **fields)


async def test_nothing_is_enforced_where_the_operator_wants_none() -> None:
    engine = StillEngine()
    await opened(
        TokenDeployment("it", KimiK2("kimi-k2-0905"), TOKENIZER, engine, EngineSettings(enforce=False)), content=SCHEMA
    )
    assert engine.requests[0].constraint is None


async def test_tool_calls_are_events_and_the_reason_of_the_end() -> None:
    engine = StillEngine(constrains=True)
    section = [
        *(marker("<|tool_calls_section_begin|>"), marker("<|tool_call_begin|>"), *tokens("functions.f:0")),
        *(marker("<|tool_call_argument_begin|>"), *tokens('{"a": 1}')),
        *(marker("<|tool_call_end|>"), marker("<|tool_calls_section_end|>")),
    ]
    with await opened(deployment(engine), stop=("{",), **TOOLS) as stream:
        engine.generation.put([Delta(0, [*tokens("Well"), *section], "stop")])
        events = await stream.read()
    assert events[0] == TextDelta(0, "Well")
    assert events[1] == ToolCallStarted(0, 0, "f:0", "f")
    arguments = [event.text for event in events if isinstance(event, ArgumentsDelta)]
    assert "".join(arguments) == '{"a": 1}', "stop strings are for text"
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.usage.completion_tokens) == ("tool_calls", 1 + len(section))


async def test_reasoning_is_events_of_its_own_and_counted() -> None:
    engine = StillEngine()
    with await opened(deployment(engine, "kimi-k2.5"), thinking=True) as stream:
        engine.generation.put([Delta(0, tokens("Hm, let me see"))])
        assert await stream.read() == [ReasoningDelta(0, "Hm, let me see")]
        engine.generation.put([Delta(0, [*tokens("So."), marker("</think>"), *tokens("Done")], "stop")])
        *events, end = await stream.read()
    assert events == [ReasoningDelta(0, "So."), TextDelta(0, "Done")]
    assert isinstance(end, Finished)
    assert end.usage.reasoning_tokens == len(tokens("Hm, let me see")) + len(tokens("So."))


async def test_an_echo_is_events_of_words_and_an_end_with_usage() -> None:
    under_test = deployment()
    with await opened(under_test, "one two", n=2) as stream:
        events = await everything(stream)
    for choice in (0, 1):
        own = [event for event in events if event.choice == choice]
        assert [event.text for event in own if isinstance(event, TextDelta)] == ["one ", "two"]
        end = own[-1]
        assert isinstance(end, Finished)
        assert (end.reason, end.usage.completion_tokens) == ("stop", 2)
    assert not stream.open
    assert stream.completion_tokens == 4


async def test_the_engine_gets_the_prompt_the_stops_of_the_format_and_the_scope() -> None:
    engine = StillEngine()
    with await opened(deployment(engine), "Hi"):
        [request] = engine.requests
    expected = [marker("<|im_user|>"), *tokens("user"), marker("<|im_middle|>"), *tokens("Hi"), marker("<|im_end|>")]
    end = [marker("<|im_assistant|>"), *tokens("assistant"), marker("<|im_middle|>")]
    assert request.prompt_ids.tolist()[-len(expected) - len(end) :] == expected + end
    assert request.stop_ids == (marker("<|im_end|>"), marker("[EOS]"))
    assert (request.cache_scope, request.max_tokens) == ("org", 100)


@pytest.mark.parametrize("reads_text", [True, False])
async def test_only_an_engine_that_reads_text_is_given_the_users(reads_text: bool) -> None:
    engine = StillEngine(reads_text=reads_text)
    with await opened(deployment(engine), "Hi"):
        [request] = engine.requests
    assert request.user_text == ("Hi" if reads_text else "")


async def test_an_engine_that_goes_on_over_the_limit_is_cut_and_only_the_limit_is_counted() -> None:
    engine = StillEngine()
    with await opened(deployment(engine), n=2) as stream:
        engine.generation.put([Delta(0, tokens("a b ")), Delta(0, tokens("c ") * 100), Delta(1, tokens("also "))])
        events = await stream.read()
        engine.generation.put([Delta(0, tokens("never seen"), "stop"), Delta(1, [], "stop")])
        events += await everything(stream)
    text = "".join([event.text for event in events if isinstance(event, TextDelta) and event.choice == 0])
    assert text.startswith("a b c ")
    ends = [event for event in events if isinstance(event, Finished)]
    assert [(end.choice, end.reason, end.usage.completion_tokens) for end in ends] == [
        (0, "length", 100),
        (1, "stop", len(tokens("also "))),
    ]
    assert engine.cancelled == [0]


@pytest.mark.parametrize("claimed", [-77, 10**40])
async def test_no_more_of_a_prompt_is_cached_than_there_is(claimed: int) -> None:
    engine = StillEngine()
    with await opened(deployment(engine)) as stream:
        engine.generation.put([Delta(0, tokens("a"), "stop", cached_tokens=claimed)])
        await everything(stream)
        assert stream.cached_tokens == (0 if claimed < 0 else stream.prompt_tokens)


async def test_a_stop_string_ends_one_choice_and_cancels_it_in_the_engine() -> None:
    engine = StillEngine()
    with await opened(deployment(engine), n=2, stop=("END",)) as stream:
        engine.generation.put([Delta(0, tokens("go EN")), Delta(1, tokens("also"))])
        assert await stream.read() == [TextDelta(0, "go "), TextDelta(1, "also")]
        engine.generation.put([Delta(0, tokens("D more"))])
        [end] = await stream.read()
        assert isinstance(end, Finished)
        assert (end.choice, end.reason) == (0, "stop")
        assert engine.cancelled == [0]
        reading = asyncio.create_task(stream.read())
        await asyncio.sleep(0)
        put_before = stream.last_put
        engine.generation.put([Delta(0, tokens("late"))])
        await asyncio.sleep(0.01)
        assert not reading.done(), "what a stopped choice still says is no end of the other"
        assert stream.last_put == put_before, "nor does it show that the other is alive"
        engine.generation.put([Delta(0, tokens("later")), Delta(1, tokens("!"), "length")])
        assert [event.choice for event in await reading] == [1, 1]
        assert await stream.read() == []
    assert engine.cancelled == [0], "nothing was left to cancel"


async def test_an_engine_is_held_while_its_reader_is_busy_and_is_not_late_then() -> None:
    engine = StillEngine()
    with await opened(deployment(engine), max_tokens=10_000) as stream:
        engine.generation.put([Delta(0, tokens("a"))])
        await stream.read()
        engine.generation.put([Delta(0, tokens("b") * 5_000)])
        assert engine.flows == [False]
        await asyncio.sleep(0.05)
        for _ in range(2):
            assert stream.last_put is not None
            assert time.monotonic() - stream.last_put < 0.03, "neither before nor when it is taken"
            if engine.flows == [False]:
                await stream.read()
        assert engine.flows == [False, True]


async def test_an_engine_that_is_done_is_not_held() -> None:
    """Else nobody would let it go on where the reader leaves, and the end of its response would be read by nobody."""
    engine = StillEngine()
    with await opened(deployment(engine), max_tokens=10_000):
        engine.generation.put([Delta(0, tokens("b") * 5_000, "stop")])
    assert (engine.flows, engine.cancelled) == ([], [])


async def test_what_was_held_back_for_a_stop_string_comes_with_the_end() -> None:
    engine = StillEngine()
    with await opened(deployment(engine), stop=("END",)) as stream:
        engine.generation.put([Delta(0, tokens("x EN"))])
        assert await stream.read() == [TextDelta(0, "x ")]
        engine.generation.put([Delta(0, [], "stop")])
        assert (await stream.read())[0] == TextDelta(0, "EN")


async def test_wake_ups_without_text_are_waited_through() -> None:
    engine = StillEngine()
    data = tokens("世界")  # six bytes: the first token ends inside the second character
    with await opened(deployment(engine)) as stream:
        engine.generation.put([Delta(0, data[:1])])
        assert await stream.read() == [TextDelta(0, "世")]
        engine.generation.put([Delta(0, data[1:], "stop")])
        assert (await stream.read())[0] == TextDelta(0, "界")


async def test_cached_tokens_are_counted_in_the_usage() -> None:
    engine = StillEngine()
    with await opened(deployment(engine)) as stream:
        engine.generation.put([Delta(0, tokens("x"), cached_tokens=5), Delta(0, [], "stop")])
        events = await stream.read()
    assert stream.cached_tokens == 5
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.usage.cached_tokens == 5


async def test_leaving_early_cancels_all_that_runs() -> None:
    engine = StillEngine()
    with await opened(deployment(engine), n=3):
        pass
    assert engine.cancelled == [None]


async def test_a_failure_comes_after_what_was_put_before() -> None:
    engine = StillEngine()
    with await opened(deployment(engine)) as stream:
        engine.generation.put([Delta(0, tokens("part"))])
        engine.generation.fail(EngineUnavailable())
        assert await stream.read() == [TextDelta(0, "part")]
        with pytest.raises(EngineUnavailable):
            await stream.read()
    assert engine.cancelled == []


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.txt"
    path.write_text("世界 🤔 e\u0301\n", encoding="utf-8")
    return path


async def test_a_script_is_played_through_the_same_way(script: Path) -> None:
    engine = EchoEngine(EchoSettings(script=str(script)), TOKENIZER, ())
    with await opened(deployment(engine)) as stream:
        events = await everything(stream)
    text = "".join([event.text for event in events if isinstance(event, TextDelta)])
    assert text == "世界 🤔 e\u0301\n"
