import datetime

import pytest

from moonbase.catalog.catalog import Catalog, load_catalog
from moonbase.catalog.model import HubRepository
from moonbase.config import ModelOverride
from moonbase.errors import ConfigurationError, ModelNotFound

TODAY = datetime.date(2026, 3, 26)
CATALOG = load_catalog({})

# moonshot-api.md 1.2 and 4.1: id, window, default temperature, USD hit, miss, output in cents
TABLE = [
    ("moonshot-v1-8k", 8_192, 0.0, 20, 20, 200),
    ("moonshot-v1-32k", 32_768, 0.0, 100, 100, 300),
    ("moonshot-v1-128k", 131_072, 0.0, 200, 200, 500),
    ("moonshot-v1-8k-0430", 8_192, 0.0, 20, 20, 200),
    ("moonshot-v1-32k-0430", 32_768, 0.0, 100, 100, 300),
    ("moonshot-v1-128k-0430", 131_072, 0.0, 200, 200, 500),
    ("moonshot-v1-8k-vision-preview", 8_192, 0.0, 20, 20, 200),
    ("moonshot-v1-32k-vision-preview", 32_768, 0.0, 100, 100, 300),
    ("moonshot-v1-128k-vision-preview", 131_072, 0.0, 200, 200, 500),
    ("kimi-thinking-preview", 131_072, 0.0, 3000, 3000, 3000),
    ("kimi-k2-0711-preview", 131_072, 0.6, 15, 60, 250),
    ("kimi-k2-0905-preview", 262_144, 0.6, 15, 60, 250),
    ("kimi-k2-turbo-preview", 262_144, 0.6, 15, 115, 800),
    ("kimi-k2-thinking", 262_144, 1.0, 15, 60, 250),
    ("kimi-k2-thinking-turbo", 262_144, 1.0, 15, 115, 800),
    ("kimi-k2.5", 262_144, 1.0, 10, 60, 300),
    ("kimi-k2.6", 262_144, 1.0, 16, 95, 400),
    ("kimi-k2.7-code", 262_144, 1.0, 19, 95, 400),
    ("kimi-k2.7-code-highspeed", 262_144, 1.0, 38, 190, 800),
]


@pytest.mark.parametrize(("model_id", "window", "temperature", "hit", "miss", "output"), TABLE)
def test_each_id_has_the_published_window_default_and_price(
    model_id: str, window: int, temperature: float, hit: int, miss: int, output: int
) -> None:
    model = CATALOG.resolve(model_id)
    price = model.price_on(TODAY, "USD")
    limit = 32_768 if model_id.startswith("kimi-k2.") else 1024
    assert (model.window, model.rules.temperature.default, model.max_output) == (window, temperature, limit)
    assert (price.hit, price.miss, price.write, price.output) == (
        hit * 10**7,
        miss * 10**7,
        miss * 10**7,
        output * 10**7,
    )
    assert model.price_on(TODAY, "CNY").output > price.output


def test_the_list_holds_the_table_and_the_two_ids_with_tiers_and_no_billing_names() -> None:
    assert {model.id for model in CATALOG.listed()} == {row[0] for row in TABLE} | {"moonshot-v1-auto", "kimi-latest"}
    assert [model.id for model in CATALOG.listed()][:2] == ["moonshot-v1-8k", "moonshot-v1-32k"]
    with pytest.raises(ModelNotFound, match="Not found the model kimi-latest-8k or Permission denied"):
        CATALOG.resolve("kimi-latest-8k")


@pytest.mark.parametrize(
    ("tokens", "tier"), [(1, "8k"), (8_192, "8k"), (8_193, "32k"), (32_769, "128k"), (131_072, "128k"), (10**6, "128k")]
)
@pytest.mark.parametrize(
    ("model_id", "prefix"), [("moonshot-v1-auto", "moonshot-v1-"), ("kimi-latest", "kimi-latest-")]
)
def test_the_smallest_tier_that_fits_is_billed(model_id: str, prefix: str, tokens: int, tier: str) -> None:
    assert CATALOG.resolve(model_id).tier_for(tokens).id == prefix + tier


def test_a_model_with_tiers_has_no_price_of_its_own() -> None:
    with pytest.raises(LookupError):
        CATALOG.resolve("kimi-latest").price_on(TODAY, "USD")


def test_a_price_holds_from_its_date_and_the_first_one_also_before() -> None:
    turbo = CATALOG.resolve("kimi-k2-turbo-preview")
    days = [datetime.date(2020, 1, 1), datetime.date(2025, 11, 5), datetime.date(2025, 11, 6)]
    assert [turbo.price_on(day, "USD").miss for day in days] == [2_400_000_000, 2_400_000_000, 1_150_000_000]


def test_created_is_midnight_utc_of_the_release() -> None:
    assert CATALOG.resolve("kimi-k2-0905-preview").created == 1_757_030_400


def test_weights_come_by_memory_need_and_only_files_can_be_fetched() -> None:
    weights = list(CATALOG.weights.values())
    assert [w.memory for w in weights] == sorted(w.memory for w in weights)
    for w in weights:
        fetched_by_engine = isinstance(w.source, HubRepository)
        assert fetched_by_engine == (w.file is None) == (w.sha256 is None) == ("openvino" not in w.engines)


def overridden(**overrides: ModelOverride) -> Catalog:
    return load_catalog({name.replace("_", "-"): override for name, override in overrides.items()})


def test_an_alias_takes_over_the_final_definition_and_puts_its_own_fields_on_top() -> None:
    catalog = overridden(
        mine=ModelOverride(alias_of="theirs", temperature=0.3),
        theirs=ModelOverride(alias_of="kimi-k2-0905-preview", window=4096, disabled=True),
    )
    mine = catalog.resolve("mine")
    assert (mine.id, mine.window, mine.rules.temperature.default) == ("mine", 4096, 0.3)
    assert mine.price_on(TODAY, "USD") == CATALOG.resolve("kimi-k2-0905-preview").price_on(TODAY, "USD")
    assert catalog.listed()[-1].id == "mine"
    with pytest.raises(ModelNotFound):
        catalog.resolve("theirs")


def test_a_miss_price_also_moves_the_classes_that_are_billed_as_misses() -> None:
    catalog = overridden(
        moonshot_v1_8k=ModelOverride(price_miss="0.5"), kimi_k2_thinking=ModelOverride(price_miss="0.5")
    )
    v1 = catalog.resolve("moonshot-v1-auto").tier_for(1).price_on(TODAY, "CNY")
    k2 = catalog.resolve("kimi-k2-thinking").price_on(TODAY, "USD")
    assert (v1.miss, v1.hit, v1.write) == (500_000_000,) * 3
    assert (k2.miss, k2.hit, k2.write, k2.output) == (500_000_000, 150_000_000, 500_000_000, 2_500_000_000)


def test_an_own_price_replaces_tiers() -> None:
    model = overridden(kimi_latest=ModelOverride(price_miss="1", price_output="2")).resolve("kimi-latest")
    assert model.tier_for(100_000) is model
    assert model.price_on(TODAY, "USD").hit == 10**9


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"a": ModelOverride()}, "models.a.alias_of: must be set"),
        ({"a": ModelOverride(alias_of="b")}, "models.a.alias_of: there is no model b"),
        ({"a": ModelOverride(alias_of="a")}, "models.a.alias_of: leads back to a"),
        (
            {"a": ModelOverride(alias_of="b"), "b": ModelOverride(alias_of="a")},
            "models.b.alias_of: leads back to b",
        ),
        (
            {"moonshot-v1-8k": ModelOverride(alias_of="moonshot-v1-auto")},
            "models.moonshot-v1-8k.alias_of: leads back to moonshot-v1-8k",
        ),
        ({"kimi-latest": ModelOverride(price_miss="1")}, "models.kimi-latest.price_output: must be set"),
        ({"kimi-k2-thinking": ModelOverride(price_hit="a")}, "models.kimi-k2-thinking.price_hit: 'a' is not a decimal"),
        ({"moonshot-v1-8k": ModelOverride(max_output=9000)}, "models.moonshot-v1-8k.max_output: 9000 is more than"),
    ],
)
def test_a_mistake_names_its_key(overrides: dict[str, ModelOverride], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_catalog(overrides)
    assert str(caught.value).startswith(sentence)
