"""Applies a model's parameter rules to what a client asked for."""

from msgspec import structs

from moonbase.catalog.model import Model, Range, Rules
from moonbase.chat.request import Sampling, SamplingOptions, Thinking
from moonbase.errors import InvalidRequest

_GREEDY_BELOW = 0.01
"""Temperatures under this give the same answer n times, so the service refuses n > 1 with them."""


def thinking(model: Model, wish: Thinking | None) -> Thinking:
    """Whether and how a model thinks when a client wishes so; models that never think ignore the wish.

    Raises `InvalidRequest` for a switch that the model does not have (moonshot-api.md 1.7).
    """
    if model.thinking == "never":
        return Thinking(enabled=False)
    wish = wish or Thinking()
    if not wish.enabled and model.thinking == "always":
        raise InvalidRequest("invalid thinking: only type=enabled is allowed for this model", prefix=False)
    if wish.keep and model.keep_reasoning == "never":
        raise InvalidRequest("invalid thinking: keep is not allowed for this model", prefix=False)
    return Thinking(enabled=wish.enabled, keep=wish.keep or model.keep_reasoning == "always")


def sampling(model: Model, options: SamplingOptions, *, thinks: bool = True) -> Sampling:
    """`options` with the model's defaults filled in, for an answer that `thinks` or not.

    Raises `InvalidRequest` in the style of moonshot-api.md 9.5, naming the first parameter at fault.
    """
    rules = _rules(model, thinks=thinks)
    chosen = Sampling(
        temperature=_checked("temperature", options.temperature, rules.temperature),
        top_p=_checked("top_p", options.top_p, rules.top_p),
        n=int(_checked("n", options.n, rules.n)),
        presence_penalty=_checked("presence_penalty", options.presence_penalty, rules.presence_penalty),
        frequency_penalty=_checked("frequency_penalty", options.frequency_penalty, rules.frequency_penalty),
    )
    if chosen.n > 1 and chosen.temperature < _GREEDY_BELOW:
        detail = f"invalid n: only 1 is allowed when temperature is under {_GREEDY_BELOW:g}"
        raise InvalidRequest(detail, prefix=False)
    return chosen


def from_messages(model: Model, options: SamplingOptions, *, thinks: bool = True) -> SamplingOptions:
    """Options of the Messages API in the model's own terms (moonshot-api.md 8.1). What is out of range stays so."""
    if options.temperature is None or not 0 <= options.temperature <= 1:
        return options
    scale = _rules(model, thinks=thinks).messages_scale
    return structs.replace(options, temperature=options.temperature * scale)


def without_fixed(
    model: Model, options: SamplingOptions, *, thinks: bool = True
) -> tuple[SamplingOptions, dict[str, float]]:
    """`options` without a temperature and top_p that the model fixes to other values, and those values.

    For programs that know nothing of such models: the Messages API has none.
    """
    rules = _rules(model, thinks=thinks)
    fixed = {
        name: allowed.min
        for name, allowed in (("temperature", rules.temperature), ("top_p", rules.top_p))
        if allowed.min == allowed.max and getattr(options, name) not in (None, allowed.min)
    }
    return structs.replace(options, **dict.fromkeys(fixed)), fixed


def _rules(model: Model, *, thinks: bool) -> Rules:
    return model.rules if thinks else model.instant_rules


def _checked(name: str, value: float | None, allowed: Range) -> float:
    if value is None:
        return allowed.default
    if allowed.min <= value <= allowed.max:  # false for NaN
        return float(value)
    if allowed.min == allowed.max:
        raise InvalidRequest(f"invalid {name}: only {allowed.min:g} is allowed for this model", prefix=False)
    raise InvalidRequest(f"invalid {name}: must be between {allowed.min:g} and {allowed.max:g}", prefix=False)
