"""The `llamacpp` engine with the real xllamacpp: the default model, and a tiny Kimi K2 with the real vocabulary."""

import json
import os
import signal
from array import array
from collections.abc import AsyncIterator
from pathlib import Path

import jsonschema_rs
import pytest

pytest.importorskip("xllamacpp")

from tests.e2e.server import kimi_vocabulary
from tests.engines import tiny_k2_gguf
from tests.engines.constrained import generated
from tests.engines.openvino import END_OF_TURN, MODEL, TOKENIZER, collect, prompt, request, until_ready
from tests.engines.tiny_k2 import GOLDENS
from tests.engines.token_server import request as kimi_request
from tests.engines.token_server import running

from moonbase.chat.constraint import (
    AnyText,
    Constraint,
    ConstString,
    Digits,
    JsonSchema,
    Marker,
    Optional,
    Or,
    Sequence,
    Triggered,
)
from moonbase.config import EngineSettings
from moonbase.engines.base import GenerateRequest
from moonbase.engines.llamacpp.engine import LlamaCppEngine, llamacpp_engine
from moonbase.engines.tokenizers.kimi import KimiTokenizer
from moonbase.engines.upstream.client import UpstreamClient
from moonbase.errors import (
    ConfigurationError,
    EngineOverloaded,
    EngineUnavailable,
    FatalRequest,
    ModelFileError,
    PromptTooLong,
)

pytestmark = pytest.mark.anyio

CAPITAL = "What is the capital of France?"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
}
WINDOW, SLOTS, MAX_WAITING = 8192, 2, 3
TOKEN_BYTES = 2 * 30 * 3 * 64 * 2  # keys and values, layers, heads, width, bytes
SECTION, SECTION_END, CALL, ARGUMENTS, CALL_END = CALLS = (
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
)
KIMI_STOPS = {163585, 163586}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[LlamaCppEngine]:
    """Shared by the tests of this module, which leave it idle."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MOONSHOT_API_KEY", "sk-secret")
    room = int(2.9 * WINDOW) * TOKEN_BYTES
    settings = EngineSettings(name="llamacpp", max_waiting=MAX_WAITING, cache_bytes=room)
    engine = llamacpp_engine(settings, TOKENIZER, MODEL)
    await engine.start()
    yield engine
    await engine.close()
    patch.undo()


def read(path: str) -> str:
    return Path(path).read_text()


def child(engine: LlamaCppEngine) -> int:
    """The process of the server itself."""
    leash = engine.server_pid
    return int(read(f"/proc/{leash}/task/{leash}/children").split()[0])


def endless(max_tokens: int = 800, n: int = 1) -> GenerateRequest:
    """What was said once is rewarded, so the model repeats itself and does not stop."""
    return request(CAPITAL, max_tokens=max_tokens, n=n, temperature=0.0, frequency_penalty=-2.0)


def constrained(schema: dict[str, object], *, spaced: bool = False) -> JsonSchema:
    return JsonSchema(json.dumps(schema), spaced)


async def answered(engine: LlamaCppEngine, text: str, constraint: Constraint, **options: float) -> str:
    answer = await collect(generated(engine, request(text, constraint=constraint, max_tokens=200, **options)))
    assert answer.finish == {0: "stop"}, answer.error
    return answer.text


async def test_memory_for_two_windows_makes_two_slots(engine: LlamaCppEngine) -> None:
    assert (engine.description.model, engine.description.window) == (MODEL.stem, WINDOW)
    with engine.generate(endless(n=SLOTS + 1)):
        assert (engine.running, engine.waiting) == (SLOTS, 1)


async def test_memory_for_less_than_a_window_shortens_it() -> None:
    settings = EngineSettings(name="llamacpp", cache_bytes=512 * TOKEN_BYTES, arguments=("n_batch=64",))
    async with running(llamacpp_engine(settings, TOKENIZER, MODEL)) as engine:
        assert engine.description.window == 512


async def test_an_answer_ends_where_the_turn_does(engine: LlamaCppEngine) -> None:
    answer = await collect(engine.generate(request(CAPITAL, temperature=0.0)))
    assert (answer.text, answer.finish) == ("The capital of France is Paris.", {0: "stop"})
    assert END_OF_TURN not in answer.tokens[0]


async def test_an_answer_is_cut_at_its_limit(engine: LlamaCppEngine) -> None:
    answer = await collect(engine.generate(request(CAPITAL, temperature=0.0, max_tokens=3)))
    assert (answer.text, answer.finish) == ("The capital of", {0: "length"})
    assert len(answer.tokens[0]) == 3


async def test_a_stop_token_of_ours_ends_an_answer_and_the_work_for_it(engine: LlamaCppEngine) -> None:
    france = TOKENIZER.encode_plain(" France")[0]
    answer = await collect(engine.generate(request(CAPITAL, temperature=0.0, stop_ids=(france,))))
    assert (answer.text, answer.finish) == ("The capital of", {0: "stop"})
    assert engine.running == 0


async def test_choices_that_do_not_fit_wait_for_their_turn(engine: LlamaCppEngine) -> None:
    generation = engine.generate(request(CAPITAL, n=5, max_tokens=8, temperature=1.0))
    assert (engine.running, engine.waiting) == (SLOTS, 5 - SLOTS)
    answer = await collect(generation)
    assert sorted(answer.finish) == [0, 1, 2, 3, 4]
    assert (engine.running, engine.waiting) == (0, 0)


async def test_more_than_may_wait_are_refused(engine: LlamaCppEngine) -> None:
    with engine.generate(endless(n=SLOTS + MAX_WAITING)), pytest.raises(EngineOverloaded):
        engine.generate(request(CAPITAL))
    assert (engine.running, engine.waiting) == (0, 0)


async def test_leaving_frees_the_slot(engine: LlamaCppEngine) -> None:
    with engine.generate(endless(1500)) as generation:
        await generation.read()
    assert engine.running == 0
    answer = await collect(engine.generate(request(CAPITAL, temperature=0.0)))
    assert answer.text == "The capital of France is Paris."


async def test_one_choice_of_several_can_be_stopped(engine: LlamaCppEngine) -> None:
    with engine.generate(endless(20, n=2)) as generation:
        await generation.read()
        generation.stop(0)
        ends = set()
        while deltas := await generation.read():
            ends |= {delta.choice for delta in deltas if delta.finish}
    assert ends == {1}


async def test_a_repeated_prompt_is_reported_as_cached(engine: LlamaCppEngine) -> None:
    text = "The moon is our nearest neighbour in space. " * 10
    await collect(engine.generate(request(text, max_tokens=2)))
    answer = await collect(engine.generate(request(text, max_tokens=2)))
    assert answer.cached == {0: len(prompt(text)) - 1}


async def test_a_prompt_over_the_window_is_refused_with_exact_counts(engine: LlamaCppEngine) -> None:
    long = GenerateRequest(
        request_id="long",
        prompt_ids=array("I", [504] * (WINDOW + 5)),
        sampling=request(CAPITAL).sampling,
        max_tokens=1,
        stop_ids=(),
    )
    answer = await collect(engine.generate(long))
    assert isinstance(answer.error, PromptTooLong)
    assert (answer.error.window, answer.error.requested) == (WINDOW, WINDOW + 5)


async def test_a_schema_is_obeyed(engine: LlamaCppEngine) -> None:
    for spaced in (False, True):
        text = await answered(engine, "Bob is 12. Give name and age as JSON.", constrained(PERSON, spaced=spaced))
        assert jsonschema_rs.is_valid(PERSON, json.loads(text)), text


async def test_a_call_between_markers_that_are_text(engine: LlamaCppEngine) -> None:
    call = Sequence((Marker("<tool_call>"), ConstString("\n"), constrained(PERSON), Marker("</tool_call>")))
    text = await answered(engine, "Call.", call, temperature=1.0)
    assert text.startswith("<tool_call>\n")
    assert text.endswith("</tool_call>")
    assert jsonschema_rs.is_valid(PERSON, json.loads(text[len("<tool_call>") : -len("</tool_call>")]))


async def test_characters_of_several_tokens_come_whole(engine: LlamaCppEngine) -> None:
    """The server never sends the ids of tokens that end inside a character."""
    for text in ("🤔🎉", "你好，世界"):
        assert await answered(engine, CAPITAL, ConstString(text), temperature=0.0) == text


async def test_free_text_ends_in_the_call_that_it_triggers(engine: LlamaCppEngine) -> None:
    constraint = Triggered(" capital", Sequence((ConstString("!"), constrained(PERSON))), ("zz",))
    text = await answered(engine, CAPITAL, constraint, temperature=0.0)
    assert text.startswith("The capital!")
    assert jsonschema_rs.is_valid(PERSON, json.loads(text.removeprefix("The capital!")))


async def test_free_text_never_spells_what_it_excludes(engine: LlamaCppEngine) -> None:
    answer = await collect(generated(engine, request(CAPITAL, temperature=0.0, constraint=AnyText((" is", "Par")))))
    assert answer.text
    assert " is" not in answer.text
    assert "Par" not in answer.text


async def test_the_child_has_no_secrets_and_answers_nobody_else(engine: LlamaCppEngine) -> None:
    server = child(engine)
    environment, arguments = read(f"/proc/{server}/environ"), read(f"/proc/{server}/cmdline").split("\0")
    assert "sk-secret" not in environment
    key = dict(line.partition("=")[::2] for line in environment.split("\0"))["MOONBASE_LLAMACPP_KEY"]
    assert key not in arguments
    port = arguments[arguments.index("--port") + 1]
    async with UpstreamClient(f"http://127.0.0.1:{port}") as stranger, stranger.request("GET", "/props") as response:
        assert response.status == 401


async def test_a_child_that_dies_fails_what_it_ran_and_comes_back(engine: LlamaCppEngine) -> None:
    falling = engine.generate(endless(1500, n=SLOTS))
    queued = engine.generate(request(CAPITAL, temperature=0.0))
    await falling.read()
    os.kill(child(engine), signal.SIGKILL)
    assert isinstance((await collect(falling)).error, EngineUnavailable)
    await until_ready(engine, ready=False)
    with pytest.raises(EngineUnavailable):
        engine.generate(request(CAPITAL))
    answer = await collect(queued)  # it waited for the next server
    assert answer.text == "The capital of France is Paris."
    assert engine.ready


async def test_a_request_that_two_children_died_of_is_refused_and_others_are_not(engine: LlamaCppEngine) -> None:
    deadly, innocent = [
        request(text, max_tokens=1500, temperature=0.0, frequency_penalty=-2.0) for text in ("Divide by 0.", "By 1.")
    ]
    first = [engine.generate(deadly), engine.generate(innocent)]
    for generation in first:
        await generation.read()
    os.kill(child(engine), signal.SIGKILL)
    for generation in first:
        assert isinstance((await collect(generation)).error, EngineUnavailable)
    await until_ready(engine, ready=False)
    await until_ready(engine)

    again, beside = engine.generate(deadly), engine.generate(request(CAPITAL, temperature=0.0))
    await again.read()
    assert (engine.running, engine.waiting) == (1, 1), "a suspect runs alone"
    os.kill(child(engine), signal.SIGKILL)
    assert isinstance((await collect(again)).error, EngineUnavailable)
    assert (await collect(beside)).text == "The capital of France is Paris."

    with pytest.raises(FatalRequest):
        engine.generate(deadly)
    with engine.generate(innocent) as generation:
        assert await generation.read()


async def test_a_file_that_is_no_model_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(MODEL.read_bytes()[:1000])
    with pytest.raises(ModelFileError):
        llamacpp_engine(EngineSettings(name="llamacpp"), TOKENIZER, tmp_path / "cut.gguf")


async def test_an_unknown_parameter_stops_the_start() -> None:
    settings = EngineSettings(name="llamacpp", arguments=("n_gpu_leyers=1",), cache_bytes=512 * TOKEN_BYTES)
    engine = llamacpp_engine(settings, TOKENIZER, MODEL)
    with pytest.raises(ModelFileError):
        await engine.start()
    await engine.close()


def test_without_address_and_file_there_is_nothing_to_start() -> None:
    with pytest.raises(ConfigurationError):
        llamacpp_engine(EngineSettings(name="llamacpp"), TOKENIZER)


@pytest.fixture(scope="module")
def vocabulary() -> Path:
    found = kimi_vocabulary()
    if found is None:
        pytest.skip("LEFT OUT: the Kimi vocabulary; set KIMI_VOCABULARY to a folder with tiktoken.model")
    return found.parent


@pytest.fixture(scope="module")
async def kimi(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LlamaCppEngine]:
    file = tmp_path_factory.mktemp("k2") / "tiny-k2.gguf"
    tiny_k2_gguf.write(vocabulary, file)
    settings = EngineSettings(name="llamacpp", max_running=4, cache_bytes=64 << 20)
    engine = llamacpp_engine(settings, KimiTokenizer.read(vocabulary), file)
    await engine.start()
    yield engine
    await engine.close()


def calls(schema: dict[str, object]) -> Sequence:
    """A section of one call or two, of either of two tools, with the numbers that come next."""

    def call(number: int) -> Sequence:
        rest = (Marker(ARGUMENTS), constrained(schema, spaced=True), Marker(CALL_END))
        named = [Sequence((ConstString(f"functions.{name}:{number}"), *rest)) for name in ("get", "get_weather")]
        return Sequence((Marker(CALL), Or(tuple(named))))

    return Sequence((call(3), Optional(call(4)), Marker(SECTION_END)))


def read_calls(tokens: list[int], tokenizer: KimiTokenizer) -> list[tuple[str, str]]:
    """Ids and arguments of a section, by the tokens of its markers."""
    names = {tokenizer.control(literal): literal for literal in CALLS}
    pieces: list[tuple[str, list[int]]] = []
    for token in tokens:
        if token in names:
            pieces.append((names[token], []))
        else:
            pieces[-1][1].append(token)
    texts = [(marker, tokenizer.decode(inner).decode()) for marker, inner in pieces]
    assert texts[0] == (SECTION, "")
    assert texts[-1] == (SECTION_END, "")
    found = []
    for at in range(1, len(texts) - 1, 3):
        (begin, name), (separator, arguments), (end, nothing) = texts[at : at + 3]
        assert (begin, separator, end, nothing) == (CALL, ARGUMENTS, CALL_END, "")
        found.append((name, arguments))
    return found


CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}


async def test_forced_calls_of_a_random_model_are_valid(kimi: LlamaCppEngine, vocabulary: Path) -> None:
    tokenizer = KimiTokenizer.read(vocabulary)
    constraint = Sequence((Marker(SECTION), calls(CITY)))
    answer = await collect(generated(kimi, kimi_request(n=4, max_tokens=120, constraint=constraint)))
    assert set(answer.finish.values()) == {"stop"}, answer.error
    for tokens in answer.tokens.values():
        for number, (name, arguments) in enumerate(read_calls(tokens, tokenizer), 3):
            assert name in (f"functions.get:{number}", f"functions.get_weather:{number}")
            assert jsonschema_rs.is_valid(CITY, json.loads(arguments)), arguments


async def test_reasoning_comes_first_and_holds_no_marker(kimi: LlamaCppEngine, vocabulary: Path) -> None:
    tokenizer = KimiTokenizer.read(vocabulary)
    thought = tokenizer.control("</think>")
    constraint = Sequence((AnyText((*CALLS, "<think>", "</think>")), Marker("</think>"), Marker(SECTION), Digits()))
    answer = await collect(generated(kimi, kimi_request(max_tokens=24, constraint=constraint)))
    assert not {tokenizer.control(literal) for literal in CALLS} & set(answer.tokens[0])
    assert thought not in answer.tokens[0]
    assert answer.finish == {0: "length"}
    assert not KIMI_STOPS & set(answer.tokens[0])


async def test_a_marker_is_a_token_and_not_its_characters(kimi: LlamaCppEngine, vocabulary: Path) -> None:
    tokenizer = KimiTokenizer.read(vocabulary)
    constraint = Sequence((Marker(SECTION), Marker(CALL), ConstString("x"), Marker(SECTION_END)))
    answer = await collect(generated(kimi, kimi_request(constraint=constraint)))
    plain = tokenizer.encode_plain("x")[0]
    assert answer.tokens[0] == [
        tokenizer.control(SECTION),
        tokenizer.control(CALL),
        plain,
        tokenizer.control(SECTION_END),
    ]
    assert answer.finish == {0: "stop"}


async def test_a_string_that_spells_a_control_token_is_made_of_characters(
    kimi: LlamaCppEngine, vocabulary: Path
) -> None:
    """The server takes the token for its characters; one in four of a random model's would be the token."""
    tokenizer = KimiTokenizer.read(vocabulary)
    text = "[BOS]" * 8
    answer = await collect(generated(kimi, kimi_request(n=4, max_tokens=60, constraint=constrained({"enum": [text]}))))
    assert set(answer.finish.values()) == {"stop"}, answer.error
    for tokens in answer.tokens.values():
        assert tokenizer.control("[BOS]") not in tokens
        assert json.loads(tokenizer.decode(tokens)) == text


async def test_the_file_has_kimis_vocabulary(kimi: LlamaCppEngine, vocabulary: Path) -> None:
    """Every token of a golden is forced through the model by its text, so text and ids agree with ours."""
    tokenizer = KimiTokenizer.read(vocabulary)
    for text in [text for text in GOLDENS if not text.startswith("<|")]:
        answer = await collect(generated(kimi, kimi_request(max_tokens=60, constraint=ConstString(text))))
        assert tokenizer.decode(answer.tokens[0]).decode() == text
