"""Prompts to ids: what is remembered, for whom, and how much of it."""

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from moonbase.chat.prompt import Control, Prompt
from moonbase.engines.base import TokenIds
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.router.encoding import PromptEncoder

pytestmark = pytest.mark.anyio


class Noticing(ApproximateTokenizer):
    """Keeps what it was asked to encode, and in which thread."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[str] = []
        self.threads: set[int] = set()

    def encode_plain(self, text: str) -> TokenIds:
        self.encoded.append(text)
        self.threads.add(threading.get_ident())
        return super().encode_plain(text)


def prompt(*segments: str | Control) -> Prompt:
    return segments


async def test_ids_are_those_of_the_segments_in_order() -> None:
    tokenizer = Noticing()
    ids = await PromptEncoder(tokenizer).encode(prompt(Control("<a>"), "text", Control("<b>"), "x" * 1_000), "org")
    expected = [tokenizer.control("<a>"), *tokenizer.encode_plain("text"), tokenizer.control("<b>")]
    assert ids.tolist() == [*expected, *tokenizer.encode_plain("x" * 1_000)]


async def test_long_segments_are_encoded_once_for_each_scope() -> None:
    tokenizer = Noticing()
    encoder = PromptEncoder(tokenizer)
    first = await encoder.encode(prompt("x" * 1_000, "y" * 1_000), "one")
    again = await encoder.encode(prompt("x" * 1_000, "z" * 1_000), "one")
    assert [text[0] for text in tokenizer.encoded] == ["x", "y", "z"]
    assert first[:250] == again[:250]
    await encoder.encode(prompt("x" * 1_000), "another")
    assert [text[0] for text in tokenizer.encoded] == ["x", "y", "z", "x"]


async def test_what_is_remembered_is_never_changed_by_its_users() -> None:
    encoder = PromptEncoder(Noticing())
    ids = await encoder.encode(prompt("x" * 1_000), "org")
    ids.append(7)
    assert len(await encoder.encode(prompt("x" * 1_000), "org")) == 250


async def test_the_oldest_are_forgotten_beyond_the_limit() -> None:
    tokenizer = Noticing()
    encoder = PromptEncoder(tokenizer, max_bytes=8_000)
    for letter in "abca":
        await encoder.encode(prompt(letter * 1_000), "org")
    assert [text[0] for text in tokenizer.encoded] == ["a", "b", "c"], "a was used last and is still there"
    await encoder.encode(prompt("d" * 1_000), "org")
    await encoder.encode(prompt("a" * 1_000), "org")
    await encoder.encode(prompt("b" * 1_000), "org")
    assert [text[0] for text in tokenizer.encoded] == ["a", "b", "c", "d", "b"]


async def test_a_text_larger_than_all_room_is_encoded_and_not_kept() -> None:
    tokenizer = Noticing()
    encoder = PromptEncoder(tokenizer, max_bytes=100)
    for _ in range(2):
        assert len(await encoder.encode(prompt("x" * 1_000), "org")) == 250
    assert len(tokenizer.encoded) == 2


async def test_very_long_texts_are_encoded_beside_the_event_loop() -> None:
    tokenizer = Noticing()
    encoder = PromptEncoder(tokenizer)
    await encoder.encode(prompt("x" * 1_000), "org")
    assert tokenizer.threads == {threading.get_ident()}
    await encoder.encode(prompt("x" * 100_000), "org")
    assert len(tokenizer.threads) == 2


class CountingExecutor(ThreadPoolExecutor):
    """Counts the calls that the event loop hands to its threads."""

    calls = 0

    def submit(self, *args: Any, **options: Any) -> Future[Any]:
        self.calls += 1
        return super().submit(*args, **options)


async def test_texts_that_are_long_together_are_encoded_in_one_thread_call() -> None:
    tokenizer, executor = Noticing(), CountingExecutor()
    asyncio.get_running_loop().set_default_executor(executor)
    texts = [chr(0x4E00 + n) * 42_000 for n in range(40)]
    ids = await PromptEncoder(tokenizer).encode(prompt(Control("<a>"), *texts), "org")
    assert executor.calls == 1
    assert tokenizer.encoded == texts
    assert threading.get_ident() not in tokenizer.threads
    assert ids.tolist() == [
        tokenizer.control("<a>"),
        *[token for text in texts for token in ApproximateTokenizer().encode_plain(text)],
    ]


class Held(Noticing):
    """Encodes nothing in a thread before it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self._loops_thread = threading.get_ident()

    def encode_plain(self, text: str) -> TokenIds:
        if threading.get_ident() != self._loops_thread:
            assert self.go.wait(10)
        return super().encode_plain(text)


async def test_what_was_known_at_the_start_is_used_though_it_is_forgotten_meanwhile() -> None:
    tokenizer = Held()
    encoder = PromptEncoder(tokenizer, max_bytes=8_000)
    known, long = "a" * 1_000, "b" * 100_000
    first = await encoder.encode(prompt(known), "org")
    waiting = asyncio.create_task(encoder.encode(prompt(known, long, known), "org"))
    await asyncio.sleep(0)
    for letter in "cdef":
        await encoder.encode(prompt(letter * 1_000), "org")
    tokenizer.go.set()
    ids = await waiting
    assert [text[0] for text in tokenizer.encoded] == ["a", "c", "d", "e", "f", "b"]
    assert ids == first + ApproximateTokenizer().encode_plain(long) + first
    await encoder.encode(prompt(known), "org")
    assert tokenizer.encoded[-1] == known, "it really was forgotten"


async def test_others_have_their_turns_while_a_prompt_of_many_segments_is_put_together() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    ids = await PromptEncoder(Noticing()).encode(prompt(*["abcd"] * 10_001), "org")
    task.cancel()
    assert len(ids) == 10_001
    assert turns > 10
