"""What the types of requests cannot say about their fields. Everything raises `InvalidField`."""

import datetime
import re
from typing import Final

import msgspec

from moonbase.accounts.requests import NOTE_LENGTH
from moonbase.catalog.prices import NANO, nano
from moonbase.errors import InvalidField

_DURATION = re.compile(r"([0-9]{1,5})([mhd])")
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_UNITS_MS: Final = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
_FIRST_YEAR, _LAST_YEAR = 2000, 2199
_MOST_PRICE = 100_000


def printable(field: str, text: str) -> str:
    """Control characters would make lines and columns of their own, wherever the text is shown."""
    if not text.isprintable():
        raise InvalidField(field, "must be printable text")
    return text


def name(text: str) -> str:
    """What something is called by."""
    if not text.strip():
        raise InvalidField("name", "must not be empty")
    return printable("name", text)


def reason(note: str) -> str:
    """Why a change of the books is made."""
    if not note.strip() or len(note) > NOTE_LENGTH:
        raise InvalidField("note", f"must say why, in at most {NOTE_LENGTH} characters")
    return printable("note", note)


def amount(field: str, text: str) -> int:
    """The nano-units of a decimal amount of at least 0."""
    if _DECIMAL.fullmatch(text) is None:
        raise InvalidField(field, "must be a decimal such as 12.50")
    try:
        return nano(text)
    except ValueError as error:
        raise InvalidField(field, f"is illegal: {error}") from error


def price(field: str, text: str) -> int:
    """The nano-units of a decimal amount per 1M tokens. Sums of what requests cost stay in 64 bits."""
    nanos = amount(field, text)
    if nanos > _MOST_PRICE * NANO:
        raise InvalidField(field, f"must be at most {_MOST_PRICE}, in whole units of the currency per 1M tokens")
    return nanos


def day(field: str, value: datetime.date) -> int:
    """The beginning of a day, UTC, in milliseconds."""
    if not _FIRST_YEAR <= value.year <= _LAST_YEAR:
        raise InvalidField(field, f"must be a day of the years {_FIRST_YEAR} to {_LAST_YEAR}")
    return _milliseconds(datetime.datetime.combine(value, datetime.time(), datetime.UTC))


def moment(field: str, text: str, now: int) -> int:
    """The milliseconds of a time to come: of the beginning of a day, of a time, or of a duration from `now`."""
    at = _moment(field, text, now)
    if at <= now:
        raise InvalidField(field, "must be in the future")
    return at


def _moment(field: str, text: str, now: int) -> int:
    if (duration := _DURATION.fullmatch(text)) is not None:
        return now + int(duration[1]) * _UNITS_MS[duration[2]]
    try:
        if len(text) == len("2026-12-31"):
            return day(field, msgspec.convert(text, datetime.date))
        at = msgspec.convert(text, datetime.datetime)
    except msgspec.ValidationError as error:
        raise InvalidField(field, "must be a day (2026-12-31), a time of RFC 3339, or a duration (30d)") from error
    if at.tzinfo is None:
        raise InvalidField(field, "must name its offset from UTC, as in 2026-12-31T12:00:00Z")
    day(field, at.date())
    return _milliseconds(at)


def _milliseconds(at: datetime.datetime) -> int:
    return round(at.timestamp() * 1000)
