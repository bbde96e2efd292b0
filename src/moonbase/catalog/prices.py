"""What tokens cost, as exact integers."""

import datetime
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from msgspec import Struct

NANO = 10**9  # nano-units of one unit


class Price(Struct, frozen=True, kw_only=True):
    """Nano-units of a currency per 1M tokens, in force from `since` until the next price's date.

    The four classes of tokens are disjoint: prompt tokens not in the cache (`miss`), read from it
    (`hit`), written to it for a fee (`write`), and output tokens. Where a price list knows no hit
    or write price, that class costs what a miss costs.
    """

    since: datetime.date
    miss: int
    hit: int
    write: int
    output: int


def nano(amount: str) -> int:
    """The nano-units of a decimal amount such as `0.60`, exactly.

    Raises `ValueError` for anything but a finite amount of at least 0 with at most nine decimals.
    """
    try:
        value = Decimal(amount)
    except InvalidOperation:
        raise ValueError(f"{amount!r} is not a decimal number") from None
    if not value.is_finite() or value.is_signed() or value >= NANO:
        raise ValueError(f"{amount!r} is not an amount from 0 to {NANO}")
    exact = Fraction(value) * NANO  # decimal arithmetic would round what is to be refused
    if exact.denominator != 1:
        raise ValueError(f"{amount!r} has more than nine decimals")
    return exact.numerator


def decimal(nanos: int) -> str:
    """The decimal amount of `nanos`, exactly, with at least two decimals: the reverse of `nano`."""
    whole, fraction = divmod(nanos, NANO)
    return f"{whole}.{f'{fraction:09}'.rstrip('0'):0<2}"
