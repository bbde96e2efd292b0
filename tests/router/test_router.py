"""Which deployment answers, and when none may."""

import pytest

from moonbase.catalog.catalog import load_catalog
from moonbase.config import EngineSettings
from moonbase.engines.base import EngineDescription, GenerateRequest, Generation
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.errors import EngineUnavailable
from moonbase.formats.kimi_k2.format import KimiK2
from moonbase.router.router import Router
from moonbase.router.token_deployment import TokenDeployment

CATALOG = load_catalog({})
MODEL, OTHER = CATALOG.resolve("kimi-k2-0905-preview"), CATALOG.resolve("moonshot-v1-8k")


class Switched:
    """An engine that generates nothing and is ready when it is told to be."""

    description = EngineDescription(name="switched", model="switched", window=None)
    running = waiting = 0

    def __init__(self, *, ready: bool) -> None:
        self.ready = ready

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def generate(self, request: GenerateRequest) -> Generation:
        raise EngineUnavailable


def deployment(*, ready: bool = True) -> TokenDeployment:
    return TokenDeployment(
        "it", KimiK2("kimi-k2-0905"), ApproximateTokenizer(), Switched(ready=ready), EngineSettings()
    )


def test_the_default_deployment_answers_for_every_model_without_one_of_its_own() -> None:
    default, own = deployment(), deployment()
    router = Router(default, {OTHER.id: own})
    assert router.pick(MODEL) is default
    assert router.pick(OTHER) is own
    assert list(router.deployments) == [default, own]


def test_a_deployment_that_several_models_name_is_listed_once() -> None:
    default, own = deployment(), deployment()
    assert list(Router(default, {OTHER.id: own, MODEL.id: own}).deployments) == [default, own]


def test_an_engine_that_is_not_ready_is_a_503_that_may_be_tried_again() -> None:
    router = Router(deployment(ready=False), {})
    with pytest.raises(EngineUnavailable) as refusal:
        router.pick(MODEL)
    assert refusal.value.retry_after
    assert router.serves(MODEL) is router.default, "it would answer, only not now"
