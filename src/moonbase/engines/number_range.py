"""Ranges of decimal numbers as expressions of a grammar: every text of a number in the range, and no other."""


def signed(first: int, last: int, places: int) -> list[str]:
    """Expressions for the numbers from `first` to `last`, in units of 10 to the power of -`places`."""
    negative = [f'"-" {part}' for part in magnitudes(max(-last, 1), -first, places)]
    return negative + magnitudes(max(first, 0), last, places)


def magnitudes(first: int, last: int, places: int) -> list[str]:
    """The same for numbers that are not negative; none when `first` > `last`."""
    parts: list[str] = []
    while first <= last:
        width = max(len(str(first)), places + 1)
        widest = len(str(last + 1)) - 1  # the most digits of which every number is in the range
        if first == 10 ** (width - 1) and widest >= width:
            parts.append(_full_widths(width, widest, places))
            first = 10**widest
            continue
        top = min(last, 10**width - 1)
        parts += [_with_point(digits, places) for digits in _ranges(str(first).zfill(width), str(top).zfill(width))]
        first = top + 1
    return parts


def _ranges(low: str, high: str) -> list[list[str]]:
    """The texts of digits from `low` to `high`, which are equally long, as lists of one `(low, high)` pair a digit."""
    if not low:
        return [[]]
    rest = len(low) - 1
    if low[0] == high[0]:
        return [[low[0] * 2, *tail] for tail in _ranges(low[1:], high[1:])]
    found: list[list[str]] = []
    first, last = int(low[0]), int(high[0])
    if low[1:] != "0" * rest:
        found += [[low[0] * 2, *tail] for tail in _ranges(low[1:], "9" * rest)]
        first += 1
    if high[1:] != "9" * rest:
        last -= 1
    if first <= last:
        found.append([f"{first}{last}", *["09"] * rest])
    if high[1:] != "9" * rest:
        found += [[high[0] * 2, *tail] for tail in _ranges("0" * rest, high[1:])]
    return found


def _with_point(digits: list[str], places: int) -> str:
    classes = [f'"{pair[0]}"' if pair[0] == pair[1] else f"[{pair[0]}-{pair[1]}]" for pair in digits]
    if places:
        classes.insert(len(classes) - places, '"."')
    return " ".join(classes)


def _digits(least: int, most: int) -> str:
    return f"[0-9]{{{least},{most}}}" if most else ""


def _full_widths(width: int, widest: int, places: int) -> str:
    """All numbers of `width` to `widest` digits."""
    parts = ["[1-9]", _digits(width - 1 - places, widest - 1 - places)]
    return " ".join(filter(None, [*parts, f'"." {_digits(places, places)}' if places else ""]))
