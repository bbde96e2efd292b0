"""`echo`: words, scripts, limits."""

import asyncio
from pathlib import Path

import pytest
from msgspec import structs

from moonbase.chat.request import Sampling
from moonbase.config import EchoSettings
from moonbase.engines.base import Delta, GenerateRequest, Generation
from moonbase.engines.echo import EchoEngine
from moonbase.engines.playback import cut
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.errors import ConfigurationError

pytestmark = pytest.mark.anyio

TOKENIZER = ApproximateTokenizer()


def request(text: str, *, max_tokens: int = 1_000, n: int = 1) -> GenerateRequest:
    return GenerateRequest(
        request_id="id",
        prompt_ids=TOKENIZER.encode_plain(text),
        sampling=Sampling(temperature=0.6, top_p=1, n=n, presence_penalty=0, frequency_penalty=0),
        max_tokens=max_tokens,
        stop_ids=(),
        user_text=text,
    )


async def played(generation: Generation) -> list[Delta]:
    deltas: list[Delta] = []
    with generation:
        while more := await generation.read():
            deltas += more
    return deltas


def text_of(deltas: list[Delta], choice: int = 0) -> str:
    return TOKENIZER.decode([token for delta in deltas if delta.choice == choice for token in delta.token_ids]).decode()


@pytest.mark.parametrize("text", ["Hello there", "  spaced   out  ", "\n\n", "世界 🤔", "one", "a\u3000b"])
async def test_the_last_user_message_is_repeated_exactly(text: str) -> None:
    deltas = await played(EchoEngine(EchoSettings(), TOKENIZER, ()).generate(request(text, n=2)))
    assert [text_of(deltas, choice) for choice in (0, 1)] == [text, text]
    assert [delta.finish for delta in deltas if delta.finish] == ["stop", "stop"]


async def test_an_empty_message_ends_at_once() -> None:
    assert await played(EchoEngine(EchoSettings(), TOKENIZER, ()).generate(request(""))) == [Delta(0, [], "stop")]


async def test_a_limit_ends_the_output_at_exactly_that_many_tokens() -> None:
    deltas = await played(EchoEngine(EchoSettings(), TOKENIZER, ()).generate(request("word " * 100, max_tokens=7)))
    assert sum(len(delta.token_ids) for delta in deltas) == 7
    assert deltas[-1].finish == "length"


@pytest.mark.parametrize(
    ("limit", "kept", "finish"),
    [
        (5, [[1, 2], [3]], "stop"),
        (3, [[1, 2], [3]], "stop"),
        (2, [[1, 2]], "length"),
        (1, [[1]], "length"),
    ],
)
def test_pieces_are_cut_to_the_limit(limit: int, kept: list[list[int]], finish: str) -> None:
    assert cut([[1, 2], [3]], limit) == (kept, finish)


async def test_a_script_is_played_token_by_token_whatever_was_asked(tmp_path: Path) -> None:
    script = tmp_path / "script.txt"
    script.write_text('{"a": "世界"}', encoding="utf-8")
    deltas = await played(EchoEngine(EchoSettings(script=str(script)), TOKENIZER, ()).generate(request("anything")))
    assert text_of(deltas) == '{"a": "世界"}'
    assert {len(delta.token_ids) for delta in deltas[:-1]} == {1}


async def test_markers_of_a_script_are_single_tokens_and_the_rest_stays_text(tmp_path: Path) -> None:
    script = tmp_path / "script.txt"
    script.write_text("a<end>b<|end|>", encoding="utf-8")
    engine = EchoEngine(EchoSettings(script=str(script)), TOKENIZER, ("<|end|>",))
    deltas = await played(engine.generate(request("anything")))
    assert [delta.token_ids for delta in deltas[:-1]] == [
        *[[token] for token in TOKENIZER.encode_plain("a<end>b")],
        [TOKENIZER.control("<|end|>")],
    ]


async def test_a_script_of_lines_answers_each_user_message_and_repeats_others(tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text('{"user": "Hi", "output": "Hello!"}\n{"user": "Bye", "output": "See you."}\n', encoding="utf-8")
    engine = EchoEngine(EchoSettings(script=str(script)), TOKENIZER, ())
    answers = [text_of(await played(engine.generate(request(text)))) for text in ("Bye", "Hi", "What?")]
    assert answers == ["See you.", "Hello!", "What?"]


async def test_a_script_plays_the_turns_of_a_loop_one_after_the_other_and_repeats_the_last(tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text('{"user": "Hi", "output": ["first", "second"]}\n', encoding="utf-8")
    engine = EchoEngine(EchoSettings(script=str(script)), TOKENIZER, ())
    asked = [structs.replace(request("Hi"), turn=turn) for turn in range(4)]
    assert [text_of(await played(engine.generate(each))) for each in asked] == ["first", "second", "second", "second"]


@pytest.mark.parametrize(
    "line", ['{"user": "a", "output": []}', "{", '{"user": "Hi"}', '{"user": "a", "output": "b", "c": 1}', "5"]
)
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text(line)
    with pytest.raises(ConfigurationError, match=r"echo\.script: .*script\.jsonl is not lines of user and output"):
        EchoEngine(EchoSettings(script=str(script)), TOKENIZER, ())


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_script_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    script = tmp_path / "script.txt"
    if content is not None:
        script.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"echo\.script: .*script\.txt"):
        EchoEngine(EchoSettings(script=str(script)), TOKENIZER, ())


async def test_leaving_stops_the_playing() -> None:
    engine = EchoEngine(EchoSettings(delay=0.01), TOKENIZER, ())
    with engine.generate(request("word " * 100)) as generation:
        assert await generation.read()
        assert generation.open
    assert not generation.open
    await engine.close()


async def test_without_a_delay_no_more_is_played_than_a_slow_reader_takes() -> None:
    text = "word " * 20_000
    with EchoEngine(EchoSettings(), TOKENIZER, ()).generate(request(text, max_tokens=100_000)) as generation:
        await asyncio.sleep(0.3)
        waiting = sum([len(delta.token_ids) for delta in generation.take()])
        assert 4_096 < waiting < 6_000
        rest = await played(generation)
    assert waiting + sum([len(delta.token_ids) for delta in rest]) == 20_000 * len(TOKENIZER.encode_plain("word "))
    assert rest[-1].finish == "stop"
