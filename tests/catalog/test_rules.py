import math

import msgspec
import pytest

from moonbase.catalog.catalog import load_catalog
from moonbase.catalog.model import Range
from moonbase.catalog.rules import sampling
from moonbase.chat.request import Sampling, SamplingOptions
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
