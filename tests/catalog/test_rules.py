import math

import msgspec
import pytest

from moonbase.catalog.catalog import load_catalog
from moonbase.catalog.model import Range
from moonbase.catalog.rules import sampling, thinking
from moonbase.chat.request import Sampling, SamplingOptions, Thinking
from moonbase.config import ModelOverride
from moonbase.errors import InvalidRequest

CATALOG = load_catalog({})
K2 = CATALOG.resolve("kimi-k2-0905-preview")
V1 = CATALOG.resolve("moonshot-v1-8k")


def test_defaults_are_filled_in() -> None:
    assert sampling(K2, SamplingOptions()) == Sampling(
        temperature=0.6, top_p=1, n=1, presence_penalty=0, frequency_penalty=0
    )


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(temperature=0, top_p=0, n=1, presence_penalty=-2, frequency_penalty=-2),
        SamplingOptions(temperature=1, top_p=1, n=5, presence_penalty=2, frequency_penalty=2),
        SamplingOptions(temperature=0.01, n=2),
    ],
)
def test_the_ends_of_the_ranges_are_allowed(options: SamplingOptions) -> None:
    assert sampling(K2, options).temperature == options.temperature


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (SamplingOptions(temperature=1.01), "invalid temperature: must be between 0 and 1"),
        (SamplingOptions(temperature=-0.1), "invalid temperature: must be between 0 and 1"),
        (SamplingOptions(temperature=math.nan), "invalid temperature: must be between 0 and 1"),
        (SamplingOptions(top_p=math.inf), "invalid top_p: must be between 0 and 1"),
        (SamplingOptions(n=0), "invalid n: must be between 1 and 5"),
        (SamplingOptions(n=6), "invalid n: must be between 1 and 5"),
        (SamplingOptions(presence_penalty=-2.5), "invalid presence_penalty: must be between -2 and 2"),
        (SamplingOptions(frequency_penalty=3), "invalid frequency_penalty: must be between -2 and 2"),
        (SamplingOptions(n=2, temperature=0.009), "invalid n: only 1 is allowed when temperature is under 0.01"),
    ],
)
def test_what_is_out_of_range_is_refused_in_the_style_of_the_service(options: SamplingOptions, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        sampling(K2, options)
    assert (caught.value.status, str(caught.value)) == (400, sentence)


def test_several_choices_need_a_temperature_where_the_default_is_zero() -> None:
    with pytest.raises(InvalidRequest, match="invalid n: only 1"):
        sampling(V1, SamplingOptions(n=2))
    assert sampling(V1, SamplingOptions(n=2, temperature=0.3)).n == 2


def test_a_fixed_parameter_accepts_its_value_and_names_it() -> None:
    fixed = Range(default=0.95, min=0.95, max=0.95)
    model = msgspec.structs.replace(K2, rules=msgspec.structs.replace(K2.rules, top_p=fixed))
    assert sampling(model, SamplingOptions(top_p=0.95)).top_p == 0.95
    with pytest.raises(InvalidRequest, match=r"^invalid top_p: only 0\.95 is allowed for this model$"):
        sampling(model, SamplingOptions(top_p=1))


ON, OFF, KEEP = Thinking(), Thinking(enabled=False), Thinking(keep=True)


@pytest.mark.parametrize(
    ("model_id", "wish", "expected"),
    [
        ("kimi-k2-0905-preview", None, OFF),
        ("kimi-k2-0905-preview", KEEP, OFF),
        ("kimi-k2-thinking", None, ON),
        ("kimi-k2-thinking", ON, ON),
        ("kimi-k2.5", None, ON),
        ("kimi-k2.5", OFF, OFF),
        ("kimi-k2.6", None, ON),
        ("kimi-k2.6", KEEP, KEEP),
        ("kimi-k2.7-code", None, KEEP),
        ("kimi-k2.7-code", ON, KEEP),
    ],
)
def test_a_model_thinks_as_the_client_wishes_where_it_may(
    model_id: str, wish: Thinking | None, expected: Thinking
) -> None:
    assert thinking(CATALOG.resolve(model_id), wish) == expected


@pytest.mark.parametrize(
    ("model_id", "wish", "sentence"),
    [
        ("kimi-k2-thinking", OFF, "invalid thinking: only type=enabled is allowed for this model"),
        ("kimi-k2.7-code", OFF, "invalid thinking: only type=enabled is allowed for this model"),
        ("kimi-k2.5", KEEP, "invalid thinking: keep is not allowed for this model"),
    ],
)
def test_a_switch_that_a_model_lacks_is_refused(model_id: str, wish: Thinking, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        thinking(CATALOG.resolve(model_id), wish)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(("thinks", "temperature"), [(True, 1), (False, 0.6)])
def test_the_temperature_of_the_models_that_may_think_is_fixed_for_either(thinks: bool, temperature: float) -> None:
    model = CATALOG.resolve("kimi-k2.6")
    assert sampling(model, SamplingOptions(), thinks=thinks).temperature == temperature
    assert sampling(model, SamplingOptions(temperature=temperature), thinks=thinks).top_p == 0.95
    with pytest.raises(InvalidRequest) as caught:
        sampling(model, SamplingOptions(temperature=0.5), thinks=thinks)
    assert str(caught.value) == f"invalid temperature: only {temperature:g} is allowed for this model"


def test_a_changed_default_temperature_holds_for_a_model_that_never_thinks() -> None:
    catalog = load_catalog({"kimi-k2-0905-preview": ModelOverride(temperature=0.3)})
    model = catalog.resolve("kimi-k2-0905-preview")
    assert sampling(model, SamplingOptions(), thinks=False).temperature == 0.3
