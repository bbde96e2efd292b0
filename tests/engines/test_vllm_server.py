"""The `vllm` engine over a real vLLM, started by the engine itself: the K2 architecture with random weights."""

import asyncio
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import jsonschema_rs
import msgspec
import pytest
from tests.e2e.server import kimi_vocabulary
from tests.engines.constrained import generated
from tests.engines.token_server import Answer, collect, request, running, until

from moonbase.chat.constraint import AnyText, Constraint, JsonSchema, Marker, Or, Sequence
from moonbase.chat.request import Conversation, Message, TextPart, Tool, ToolChoice
from moonbase.config import EngineSettings
from moonbase.engines.token_server import TokenServerEngine
from moonbase.engines.tokenizers.kimi import KimiTokenizer
from moonbase.engines.upstream.client import UpstreamClient
from moonbase.engines.vllm import vllm_engine
from moonbase.errors import EngineUnavailable
from moonbase.formats.kimi_k2.format import KimiK2

pytestmark = [pytest.mark.anyio, pytest.mark.full]

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / ".venv-vllm" / "bin"
SECTION, SECTION_END, CALL, ARGUMENTS, CALL_END = range(163595, 163600)
THOUGHT = 163607
BASE_TOKENS = 163584
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},  # without a bound, a random text hardly ever ends
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    "required": ["city", "days"],
}


@pytest.fixture(scope="module")
def vocabulary() -> Path:
    found = kimi_vocabulary()
    if found is None:
        pytest.skip("LEFT OUT: the Kimi vocabulary; set KIMI_VOCABULARY to a folder with tiktoken.model")
    return found.parent


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path) -> KimiTokenizer:
    return KimiTokenizer.read(vocabulary)


@pytest.fixture(scope="module")
def model(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (PROGRAMS / "vllm").is_file():
        pytest.skip("vLLM left out: scripts/install-vllm installs it")
    folder = tmp_path_factory.mktemp("models") / "tiny-k2"
    script = Path(__file__).with_name("tiny_k2.py")
    subprocess.run([PROGRAMS / "python", script, vocabulary, folder], check=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def programs() -> Iterator[None]:
    """What the engine finds on the PATH, and what vLLM needs on a small machine."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PATH", f"{PROGRAMS}:{os.environ['PATH']}")
        environment.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        environment.setenv("VLLM_API_KEY", "not-for-children")
        yield


@pytest.fixture(scope="module")
async def engine(model: Path, tokenizer: KimiTokenizer, programs: None) -> AsyncIterator[TokenServerEngine]:
    async with started(model, tokenizer) as engine:
        yield engine


@asynccontextmanager
async def started(model: Path, tokenizer: KimiTokenizer) -> AsyncIterator[TokenServerEngine]:
    settings = EngineSettings(
        name="vllm",
        model=str(model),
        arguments=("--load-format", "dummy", "--enforce-eager", "--max-model-len", "8192"),
    )
    made = vllm_engine(settings, tokenizer, model)
    async with running(made):
        yield made


def conversation(choice: ToolChoice, names: tuple[str, ...] = ("get_weather", "get"), **more: object) -> Conversation:
    schema = msgspec.json.encode(SCHEMA).decode()
    return Conversation(
        messages=(Message(role="user", content=(TextPart("How is the weather?"),)),),
        tools=tuple([Tool(name=name, declaration="{}", parameters=schema) for name in names]),
        arguments=tuple([JsonSchema(schema) for _ in names]),
        tool_choice=choice,
        **more,  # type: ignore[arg-type]
    )


async def ask(
    engine: TokenServerEngine, constraint: Constraint | None, runs: int = 12, limit: int = 600
) -> list[Answer]:
    asked = [generated(engine, request(constraint=constraint, max_tokens=limit)) for _ in range(runs)]
    return await asyncio.gather(*[collect(generation) for generation in asked])


def calls(ids: list[int], tokenizer: KimiTokenizer) -> list[tuple[str, str]]:
    """Id and arguments of the calls in a section, which `ids` is from its first token to its last."""
    assert (ids[0], ids[-1]) == (SECTION, SECTION_END)
    found: list[tuple[str, str]] = []
    rest = ids[1:-1]
    while rest:
        separator, end = rest.index(ARGUMENTS), rest.index(CALL_END)
        assert rest[0] == CALL
        assert all(token < BASE_TOKENS for token in (*rest[1:separator], *rest[separator + 1 : end]))
        name, arguments = tokenizer.decode(rest[1:separator]), tokenizer.decode(rest[separator + 1 : end])
        found.append((name.decode(), arguments.decode(errors="replace")))
        rest = rest[end + 1 :]
    return found


async def test_it_says_what_it_serves_and_gets_no_secret(engine: TokenServerEngine):
    assert (engine.description.model, engine.description.window) == ("tiny-k2", 8192)
    environment = _environment(engine.server_pid)
    assert b"VLLM_CPU_KVCACHE_SPACE=1" in environment
    assert b"not-for-children" not in environment


async def test_it_answers_nobody_else(engine: TokenServerEngine):
    async with UpstreamClient(engine.url) as stranger:
        async with stranger.request("GET", "/health") as response:
            assert response.status == 200
        async with stranger.request("GET", "/v1/models") as response:
            assert response.status == 401


async def test_a_string_that_spells_a_control_token_is_made_of_characters(
    engine: TokenServerEngine, tokenizer: KimiTokenizer
):
    text = "[BOS]" * 8
    for answer in await ask(engine, JsonSchema(msgspec.json.encode({"enum": [text]}).decode()), runs=4, limit=60):
        assert tokenizer.control("[BOS]") not in answer.tokens[0]
        assert msgspec.json.decode(tokenizer.decode(answer.tokens[0])) == text


def _environment(pid: int | None) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


async def test_free_text_is_what_the_model_says(engine: TokenServerEngine):
    answer = (await ask(engine, None, runs=1, limit=20))[0]
    assert (len(answer.tokens[0]), answer.finish) == (20, {0: "length"})


@pytest.mark.parametrize("choice", [ToolChoice("required"), ToolChoice("function", "get")])
async def test_calls_that_are_demanded_are_valid(
    engine: TokenServerEngine, tokenizer: KimiTokenizer, choice: ToolChoice
):
    constraint = KimiK2("kimi-k2-0905").constraint(conversation(choice))
    answers = await ask(engine, constraint, runs=24)
    finished = [calls(answer.tokens[0], tokenizer) for answer in answers if answer.finish == {0: "stop"}]
    assert len(finished) >= 12
    for found in finished:
        names = [name.rpartition(":") for name, _ in found]
        first = names[:8]  # further calls may have any number (decision 0007)
        assert [int(number) for _, _, number in first] == list(range(len(first)))
        assert {name for name, _, _ in names} <= {"functions.get", "functions.get_weather"}
        for _, arguments in found:
            jsonschema_rs.validate(SCHEMA, msgspec.json.decode(arguments))
        if choice.kind == "function":
            assert [name for name, _ in found] == ["functions.get:0"]


async def test_free_text_never_holds_a_marker_that_begins_no_call(engine: TokenServerEngine):
    constraint = KimiK2("kimi-k2-0905").constraint(conversation(ToolChoice("none")))
    answers = await ask(engine, constraint, runs=8, limit=400)
    assert not {token for answer in answers for token in answer.tokens[0]} & set(range(SECTION, CALL_END + 1))


async def test_reasoning_ends_with_its_marker(engine: TokenServerEngine):
    constraint = Sequence((AnyText(("<think>", "</think>")), Marker("</think>"), Marker("<|tool_call_end|>")))
    answers = await ask(engine, constraint, runs=4, limit=200)
    counted = Counter(token for answer in answers for token in answer.tokens[0] if token >= SECTION)
    assert counted.keys() <= {*range(SECTION, BASE_TOKENS + 256)} - {163606}


async def test_json_or_calls(engine: TokenServerEngine, tokenizer: KimiTokenizer):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    text = msgspec.json.encode(schema).decode()
    constraint = Or((JsonSchema(text), Sequence((Marker("<|tool_calls_section_begin|>"), JsonSchema(text)))))
    for answer in await ask(engine, constraint, runs=12, limit=50):
        ids = answer.tokens[0][1:] if answer.tokens[0][0] == SECTION else answer.tokens[0]
        assert msgspec.json.decode(tokenizer.decode(ids)) in ({"ok": True}, {"ok": False})


async def test_leaving_stops_the_server_within_a_quarter_of_a_second(engine: TokenServerEngine):
    with engine.generate(request(max_tokens=8000)) as generation:
        await generation.read()
    loop = asyncio.get_running_loop()
    left = loop.time()
    async with asyncio.timeout(5):
        while await busy(engine):  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.02)
    assert loop.time() - left < 1


async def busy(engine: TokenServerEngine) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(engine.url.rpartition(":")[2]))
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return "vllm:num_requests_running{" in text and not any(
        line.startswith("vllm:num_requests_running{") and line.endswith(" 0.0") for line in text.splitlines()
    )


async def test_a_server_that_is_killed_is_started_again(engine: TokenServerEngine):
    generation = engine.generate(request(max_tokens=8000))
    await generation.read()
    os.kill(_child_of(engine.server_pid), signal.SIGKILL)
    assert isinstance((await collect(generation)).error, EngineUnavailable)
    await until(lambda: not engine.ready)
    await until(lambda: engine.ready, seconds=180)
    assert (await ask(engine, None, runs=1, limit=5))[0].finish == {0: "length"}


def _child_of(pid: int | None) -> int:
    return random.choice(list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())))


async def test_nothing_is_left_of_a_server_that_is_closed(model: Path, tokenizer: KimiTokenizer, programs: None):
    async with started(model, tokenizer) as engine:
        pids = _family(engine.server_pid)
        assert len(pids) > 2
    assert not _still_there(pids)


def _still_there(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def _family(pid: int | None) -> list[int]:
    children = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid or 0, *[member for child in children for member in _family(child)]]
