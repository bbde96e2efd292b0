"""`chaos`: the same seed meets the same faults."""

import asyncio

import pytest

from moonbase.chat.request import Sampling
from moonbase.config import ChaosSettings
from moonbase.engines.base import GenerateRequest, Generation
from moonbase.engines.chaos import ChaosEngine
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.errors import EngineUnavailable, GenerationTimeout

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
