"""What tests of the `openvino` engine share: the default model, requests to it and answers of it."""

import asyncio
import os
import signal
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from tests.engines.constrained import generated

from moonbase.chat.constraint import Constraint
from moonbase.chat.request import Sampling
from moonbase.config import cache
from moonbase.engines.base import Engine, GenerateRequest, Generation, TokenIds
from moonbase.engines.openvino.engine import OpenVINOEngine
from moonbase.engines.tokenizers.huggingface import HuggingFaceTokenizer
from moonbase.errors import ApiError

MODEL = cache() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENIZER = HuggingFaceTokenizer.read(MODEL)
END_OF_TURN = TOKENIZER.control("<|im_end|>")
END_OF_TEXT = TOKENIZER.control("<|endoftext|>")
STOP_IDS = (END_OF_TURN, END_OF_TEXT)
STORY = "Write a very long story about a fox."


@dataclass
class Answer:
    """What a generation brought, by choice. `reads` counts the times that its reader woke up."""

    tokens: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    finish: dict[int, str] = field(default_factory=dict)
    cached: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    reads: int = 0
    error: ApiError | None = None

    @property
    def text(self) -> str:
        return self.texts[0]

    @property
    def texts(self) -> list[str]:
        return [TOKENIZER.decode(self.tokens[choice]).decode(errors="replace") for choice in sorted(self.tokens)]


def prompt(text: str) -> TokenIds:
    """One user message in ChatML."""
    start, line = TOKENIZER.control("<|im_start|>"), TOKENIZER.encode_plain
    ids = [start, *line("user\n" + text), END_OF_TURN, *line("\n"), start, *line("assistant\n")]
    return array("I", ids)


def request(
    text: str,
    *,
    n: int = 1,
    max_tokens: int = 40,
    constraint: Constraint | None = None,
    scope: str = "org-a",
    stop_ids: tuple[int, ...] = STOP_IDS,
    **sampling: float,
) -> GenerateRequest:
    defaults: dict[str, Any] = {"temperature": 0.6, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    return GenerateRequest(
        request_id="test",
        prompt_ids=prompt(text),
        sampling=Sampling(n=n, **defaults | sampling),
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        constraint=constraint,
        cache_scope=scope,
    )


def endless(text: str = STORY, *, max_tokens: int = 4000, n: int = 1) -> GenerateRequest:
    """A request that generates until its limit.

    OpenVINO also stops at the model's own end of text, so what was said once is rewarded: that is said for ever.
    """
    return request(text, max_tokens=max_tokens, n=n, stop_ids=(), temperature=0.0, frequency_penalty=-2.0)


async def collect(generation: Generation) -> Answer:
    """Read a generation to its end; an error that ends it is kept in the answer."""
    answer = Answer()
    with generation:
        try:
            while deltas := await generation.read():
                answer.reads += 1
                for delta in deltas:
                    answer.tokens[delta.choice] += delta.token_ids
                    answer.cached[delta.choice] += delta.cached_tokens
                    if delta.finish is not None:
                        answer.finish[delta.choice] = delta.finish
        except ApiError as error:
            answer.error = error
    return answer


async def ask(engine: Engine, text: str, **options: Any) -> Answer:
    return await collect(generated(engine, request(text, **options)))


async def until_ready(engine: Engine, ready: bool = True) -> None:
    async with asyncio.timeout(60):
        while engine.ready is not ready:  # noqa: ASYNC110 - engines tell nobody
            await asyncio.sleep(0.01)


def kill(engine: OpenVINOEngine, number: int = signal.SIGKILL) -> None:
    assert engine.worker_pid is not None
    os.kill(engine.worker_pid, number)
