"""What a request costs."""

from moonbase.catalog.prices import Price


def cost(price: Price, *, miss: int, hit: int, write: int, output: int) -> int:
    """The cost in nano-units of disjoint classes of tokens: exact, then rounded up once."""
    total = miss * price.miss + hit * price.hit + write * price.write + output * price.output
    return -(-total // 1_000_000)


def worst_case(price: Price, *, prompt_tokens: int, max_tokens: int) -> int:
    """The most that `prompt_tokens`, of whatever classes, and up to `max_tokens` of output can cost."""
    total = prompt_tokens * max(price.miss, price.hit, price.write) + max_tokens * price.output
    return -(-total // 1_000_000)
