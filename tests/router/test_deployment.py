"""A deployment over `echo`: windows, constraints, and events out of deltas."""

from pathlib import Path

import pytest

from moonbase.chat.constraint import JsonSchema, TriggeredTags
from moonbase.chat.events import ChatEvent, Finished, TextDelta
from moonbase.chat.request import Message, Sampling, TextPart
from moonbase.config import EchoSettings
from moonbase.engines.base import Delta, EngineDescription, GenerateRequest, Generation
from moonbase.engines.echo import EchoEngine
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.errors import EngineUnavailable
from moonbase.formats.hermes import Hermes
from moonbase.router.deployment import EventStream, TokenDeployment

pytestmark = pytest.mark.anyio

TOKENIZER = ApproximateTokenizer()


class StillEngine:
    """An engine of one's own making: it generates what a test puts into `generation`."""

    waiting = running = 0
    ready = True

    def __init__(self, window: int | None = None) -> None:
        self.description = EngineDescription(
            name="still", model="still", window=window, constrains=frozenset({"json_schema"})
        )
        self.cancelled: list[int | None] = []
        self.requests: list[GenerateRequest] = []

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def generate(self, request: GenerateRequest) -> Generation:
        self.requests.append(request)
        self.generation = Generation(request.sampling.n, self.cancelled.append)
        return self.generation


def deployment(engine: StillEngine | EchoEngine | None = None) -> TokenDeployment:
    return TokenDeployment("a name", Hermes(), TOKENIZER, engine or EchoEngine(EchoSettings(), TOKENIZER))


async def opened(
    under_test: TokenDeployment, text: str = "Hi", *, n: int = 1, stop: tuple[str, ...] = ()
) -> EventStream:
    prompt = await under_test.encode((Message(role="user", content=(TextPart(text),)),), "org")
    sampling = Sampling(temperature=0.6, top_p=1, n=n, presence_penalty=0, frequency_penalty=0)
    return under_test.open("id", prompt, sampling=sampling, max_tokens=100, stop=stop, constraint=None)


async def everything(stream: EventStream) -> list[ChatEvent]:
    events: list[ChatEvent] = []
    while more := await stream.read():
        events += more
    return events


def tokens(text: str) -> list[int]:
    return TOKENIZER.encode_plain(text).tolist()


def test_a_window_is_never_larger_than_the_engines_own() -> None:
    assert deployment().window(262_144) == 262_144
    assert deployment(StillEngine(8_192)).window(262_144) == 8_192
    assert deployment(StillEngine(8_192)).window(4_096) == 4_096


def test_constraints_are_those_the_engine_enforces_or_leaves_to_validation() -> None:
    schema, tags = JsonSchema("{}"), TriggeredTags((), ())
    assert [deployment().enforces(one) for one in (schema, tags)] == [True, True]
    assert [deployment(StillEngine()).enforces(one) for one in (schema, tags)] == [True, False]


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
    expected = [TOKENIZER.control("<|im_start|>"), *tokens("user\nHi"), TOKENIZER.control("<|im_end|>")]
    assert request.prompt_ids.tolist()[: len(expected)] == expected
    assert request.stop_ids == (TOKENIZER.control("<|im_end|>"), TOKENIZER.control("<|endoftext|>"))
    assert (request.cache_scope, request.user_text, request.max_tokens) == ("org", "Hi", 100)


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
        engine.generation.put([Delta(0, tokens("late")), Delta(1, tokens("!"), "length")])
        assert [event.choice for event in await stream.read()] == [1, 1]
        assert await stream.read() == []
    assert engine.cancelled == [0], "nothing was left to cancel"


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
    engine = EchoEngine(EchoSettings(script=str(script)), TOKENIZER)
    with await opened(deployment(engine)) as stream:
        events = await everything(stream)
    text = "".join([event.text for event in events if isinstance(event, TextDelta)])
    assert text == "世界 🤔 e\u0301\n"
