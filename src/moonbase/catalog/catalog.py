"""Reads models.toml and applies what the operator changed."""

import datetime
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any, get_args

import msgspec
from msgspec import Struct

from moonbase.catalog.model import Capabilities, Model, Rules, Switch, Tier, Weights
from moonbase.catalog.prices import Price, nano
from moonbase.config import Currency, ModelOverride
from moonbase.errors import ConfigurationError, ModelNotFound


class Catalog(Struct, frozen=True):
    """Every id that may be asked for, in the order of the file and then of the configuration."""

    models: Mapping[str, Model]
    weights: Mapping[str, Weights]

    def resolve(self, model_id: str) -> Model:
        """Raises `ModelNotFound` for an unknown or disabled id."""
        try:
            return self.models[model_id]
        except KeyError:
            raise ModelNotFound(model_id) from None

    def listed(self) -> list[Model]:
        return list(self.models.values())


class _PriceRow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    since: datetime.date
    miss: str
    output: str
    hit: str | None = None
    write: str | None = None


class _TierRow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    up_to: int
    id: str


class _ModelRow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`billed_only`: a name on bills, not an id that may be asked for."""

    window: int
    released: datetime.date
    rules: str
    instant_rules: str | None = None
    thinking: Switch = "never"
    keep_reasoning: Switch = "never"
    prices: str | None = None
    max_output: int = 1024
    image_in: bool = False
    video_in: bool = False
    reasoning: bool = False
    tools: bool = False
    tiers: tuple[_TierRow, ...] = ()
    billed_only: bool = False


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    rules: dict[str, Rules]
    prices: dict[str, dict[Currency, tuple[_PriceRow, ...]]]
    models: dict[str, _ModelRow]
    weights: dict[str, dict[str, Any]]


def load_catalog(overrides: Mapping[str, ModelOverride]) -> Catalog:
    """The catalog with the operator's `[models.<id>]` tables applied.

    An alias takes over its target's final definition, also when the target itself is disabled; its
    own fields then apply on top. A price override holds in every currency and for all dates.
    Raises `ConfigurationError` naming `models.<id>.<field>`.
    """
    text = resources.files("moonbase.catalog").joinpath("models.toml").read_text(encoding="utf-8")
    file = msgspec.convert(tomllib.loads(text), _File)
    builder = _Builder(file, overrides)
    models = {}
    for model_id in {**file.models, **overrides}:
        model = builder.build(model_id, ())
        override, row = overrides.get(model_id), file.models.get(model_id)
        asked_for = override is not None and override.alias_of is not None
        if (override is None or not override.disabled) and (asked_for or row is None or not row.billed_only):
            models[model_id] = model
    weights = {name: msgspec.convert({**row, "name": name}, Weights) for name, row in file.weights.items()}
    return Catalog(models, weights)


class _Builder:
    """Builds definitions by id, following aliases and tiers."""

    def __init__(self, file: _File, overrides: Mapping[str, ModelOverride]) -> None:
        self._file = file
        self._overrides = overrides

    def build(self, model_id: str, path: tuple[str, ...]) -> Model:
        """`path` is how we came here: the ids whose definitions wait for this one."""
        override = self._overrides.get(model_id, ModelOverride())
        if model_id in path:
            # The file has no loops of its own, so one of the aliases on the way closes this one.
            alias = next(step for step in reversed(path) if step in self._overrides and self._overrides[step].alias_of)
            raise ConfigurationError(f"models.{alias}.alias_of: leads back to {alias}")
        if override.alias_of is not None:
            self._check_target(model_id, override.alias_of)
            model = self.build(override.alias_of, (*path, model_id))
            model = msgspec.structs.replace(model, id=model_id)
        elif model_id in self._file.models:
            model = self._listed(model_id, path)
        else:
            raise ConfigurationError(f"models.{model_id}.alias_of: must be set, for {model_id} is not in the catalog")
        return _overridden(model, override)

    def _check_target(self, model_id: str, target: str) -> None:
        if target not in self._file.models and target not in self._overrides:
            raise ConfigurationError(
                f"models.{model_id}.alias_of: there is no model {target}; `moonbase models list` shows them"
            )

    def _listed(self, model_id: str, path: tuple[str, ...]) -> Model:
        row = self._file.models[model_id]
        prices = self._file.prices[row.prices] if row.prices is not None else {}
        return Model(
            id=model_id,
            window=row.window,
            released=row.released,
            max_output=row.max_output,
            rules=self._file.rules[row.rules],
            instant_rules=self._file.rules[row.instant_rules or row.rules],
            thinking=row.thinking,
            keep_reasoning=row.keep_reasoning,
            capabilities=Capabilities(
                image_in=row.image_in, video_in=row.video_in, reasoning=row.reasoning, tools=row.tools
            ),
            prices={currency: tuple(_price(price) for price in history) for currency, history in prices.items()},
            tiers=tuple(Tier(tier.up_to, self.build(tier.id, (*path, model_id))) for tier in row.tiers),
        )


def _price(row: _PriceRow) -> Price:
    miss = nano(row.miss)
    return Price(
        since=row.since,
        miss=miss,
        hit=miss if row.hit is None else nano(row.hit),
        write=miss if row.write is None else nano(row.write),
        output=nano(row.output),
    )


def _overridden(model: Model, override: ModelOverride) -> Model:
    key = f"models.{model.id}"
    window = override.window or model.window
    if override.max_output is not None and override.max_output > window:
        raise ConfigurationError(f"{key}.max_output: {override.max_output} is more than the window of {window} tokens")
    model = msgspec.structs.replace(model, window=window, max_output=override.max_output or model.max_output)
    if override.temperature is not None:
        allowed = model.rules.temperature
        if not allowed.min <= override.temperature <= allowed.max:
            raise ConfigurationError(f"{key}.temperature: must be between {allowed.min:g} and {allowed.max:g}")
        temperature = msgspec.structs.replace(allowed, default=override.temperature)
        rules = msgspec.structs.replace(model.rules, temperature=temperature)
        instant = rules if model.thinking == "never" else model.instant_rules
        model = msgspec.structs.replace(model, rules=rules, instant_rules=instant)
    if (override.price_miss, override.price_hit, override.price_output) != (None, None, None):
        model = _repriced(model, override)
    return model


def _repriced(model: Model, override: ModelOverride) -> Model:
    """An own price replaces the tiers, so it has to be a whole one there."""
    key = f"models.{model.id}"
    amounts: dict[str, int] = {}
    for name in ("miss", "hit", "output"):
        text: str | None = getattr(override, f"price_{name}")
        if text is None:
            continue
        try:
            amounts[name] = nano(text)
        except ValueError as error:
            raise ConfigurationError(f"{key}.price_{name}: {error}") from error
    if not model.prices:
        for name in ("miss", "output"):
            if name not in amounts:
                raise ConfigurationError(f"{key}.price_{name}: must be set, for {model.id} has the prices of its tiers")
        first = Price(since=model.released, miss=0, hit=0, write=0, output=0)
        model = msgspec.structs.replace(model, tiers=(), prices=dict.fromkeys(get_args(Currency), (first,)))
    prices = {
        currency: tuple(_with_amounts(price, amounts) for price in history)
        for currency, history in model.prices.items()
    }
    return msgspec.structs.replace(model, prices=prices)


def _with_amounts(price: Price, amounts: Mapping[str, int]) -> Price:
    """A class of tokens that cost what a miss cost goes on doing so."""
    miss = amounts.get("miss", price.miss)
    return Price(
        since=price.since,
        miss=miss,
        hit=amounts.get("hit", miss if price.hit == price.miss else price.hit),
        write=miss if price.write == price.miss else price.write,
        output=amounts.get("output", price.output),
    )
