"""Which deployment answers, and when none may."""

import pytest

from moonbase.catalog.catalog import load_catalog
from moonbase.chat.constraint import JsonSchema
from moonbase.config import ChaosSettings
from moonbase.engines.base import EngineDescription, GenerateRequest, Generation
from moonbase.engines.chaos import ChaosEngine
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.errors import EngineUnavailable, InvalidRequest
from moonbase.formats.hermes import Hermes
from moonbase.router.deployment import TokenDeployment
from moonbase.router.router import Router

pytestmark = pytest.mark.anyio

MODEL = load_catalog({}).resolve("kimi-k2-0905-preview")


class Unready:
    """An engine that constrains nothing and is ready when it is told to be."""

    description = EngineDescription(name="unready", model="unready", window=None)
    running = waiting = 0
    ready = False

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def generate(self, request: GenerateRequest) -> Generation:
        raise EngineUnavailable


def router(engine: Unready | ChaosEngine) -> Router:
    return Router(TokenDeployment("it", Hermes(), ApproximateTokenizer(), engine))


async def test_a_ready_deployment_is_picked_for_every_model() -> None:
    under_test = router(ChaosEngine(ChaosSettings(), ApproximateTokenizer()))
    assert under_test.pick(MODEL, None) is under_test.deployment
    assert under_test.pick(MODEL, JsonSchema("{}")) is under_test.deployment


async def test_an_engine_that_is_not_ready_is_a_503_that_may_be_tried_again() -> None:
    under_test = router(Unready())
    with pytest.raises(EngineUnavailable) as refusal:
        under_test.pick(MODEL, None)
    assert refusal.value.retry_after
    assert under_test.serves(MODEL) is under_test.deployment, "it would answer, only not now"


async def test_an_engine_that_cannot_hold_to_a_schema_is_named() -> None:
    engine = Unready()
    engine.ready = True
    with pytest.raises(InvalidRequest, match="it cannot be held to a schema"):
        router(engine).pick(MODEL, JsonSchema("{}"))
