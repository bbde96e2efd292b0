"""JSON values of the wrong kind, in the service's words (moonshot-api.md 9.5)."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from moonbase.errors import InvalidRequest, WrongType

_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_VALIDATION = re.compile(r"Expected `(?P<expected>[^`]*)`, got `(?P<got>[^`]*)`(?: - at `\$\.?(?P<path>[^`]*)`)?")
_GO_TYPES = {"str": "string", "int": "int", "float": "float64", "bool": "bool", "array": "array"}
_KINDS = {"str": "string", "int": "number", "float": "number"}
_LONGEST = 200  # characters of a path that are shown: its keys and its depth are the client's
_SEARCHED = 256 * 1024  # bytes of a body that is read a second time: nothing else runs meanwhile


def wrong_type(text: str, prefix: str = "") -> InvalidRequest:
    """The error for msgspec's validation sentence; `prefix` is the path to what was decoded, with its last dot."""
    match = _VALIDATION.match(text)
    if match is None:
        reason, _, path = text.partition(" - at `$.")
        return _illegal(prefix + _dotted(path.rstrip("`")), reason)
    expected = match["expected"].split(" | ")[0]
    got = _KINDS.get(match["got"], match["got"])
    if not match["path"]:
        return InvalidRequest(f"the request body must be a JSON object, and {got} is not acceptable")
    return WrongType(_shown(prefix + _dotted(match["path"])), _GO_TYPES.get(expected, "dict[string,interface]"), got)


def _dotted(path: str) -> str:
    """`messages[0].content[1].text` to `messages.0.content.1.text`; map keys are shown as `*`."""
    return path.replace("[...]", ".*").replace("[", ".").replace("]", "")


def _illegal(path: str, reason: str) -> InvalidRequest:
    where = f"the `{_shown(path)}` field in the request" if path else "the request body"
    return InvalidRequest(f"{where} is illegal: {reason}")


def _shown(path: str) -> str:
    return path if len(path) <= _LONGEST else path[:_LONGEST] + "…"


def out_of_range(text: str, body: bytes) -> InvalidRequest | None:
    """The error for msgspec's validation sentence about a number in a map; None for any other, and for a large body.

    msgspec does not say which keys of a map lead to the number, so it is looked for in `body`, up to 256 KB of it.
    Raises `RecursionError` as `json.loads` does.
    """
    reason, _, path = text.partition(" - at `$")
    if not reason.endswith("out of range") or "[...]" not in path or len(body) > _SEARCHED:
        return None
    try:
        places: list[tuple[_Place, Any]] = [(None, json.loads(body, parse_int=float))]
    except ValueError:  # further on it is no JSON
        return None
    for name, key in _STEP.findall(path):
        places = [((place, found), inner) for place, value in places for found, inner in _inside(value, name or key)]
    for place, value in places:
        if isinstance(value, float) and math.isinf(value):
            return _illegal(_written(place), reason)
    return None


_Place = tuple[Any, str] | None  # where something is, and the last step to it: long keys are not copied


def _inside(value: Any, step: str) -> Iterator[tuple[str, Any]]:
    """What a step of msgspec's path may mean, and where it leads."""
    match value:
        case dict() if step == "...":
            yield from value.items()
        case dict() if step in value:
            yield step, value[step]
        case list() if step.isdigit() and int(step) < len(value):
            yield step, value[int(step)]


def _written(place: _Place) -> str:
    steps: list[str] = []
    while place is not None:
        place, step = place
        steps.append(step)
    return ".".join(reversed(steps)).encode(errors="replace").decode()  # of two equal keys either may be meant
