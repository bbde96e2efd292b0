"""Fields that requests have in every dialect, and their limits (moonshot-api.md 1.1 and 8.1)."""

from collections.abc import Sequence

from moonbase.chat.request import Tool
from moonbase.errors import InvalidRequest

MAX_STOPS = 5
MAX_STOP_BYTES = 32
MAX_TOOLS = 128
_MOST_TOKENS = 2**31 - 1


def model_id(given: str | None) -> str:
    if not given:
        raise InvalidRequest("model must not be empty")
    return given


def output_limit(given: int | None, name: str) -> int | None:
    """Tokens; `name` is the field's. More than any model could write is that much."""
    if given is not None and given < 1:
        raise InvalidRequest(f"invalid {name}: must be at least 1", prefix=False)
    return None if given is None else min(given, _MOST_TOKENS)


def stop_strings(given: Sequence[str]) -> tuple[str, ...]:
    """Empty ones stop nothing."""
    if len(given) > MAX_STOPS:
        raise InvalidRequest(
            f"stop array too long. Expected an array with maximum length {MAX_STOPS}, but got {len(given)}"
        )
    for stop in given:
        size = len(stop.encode())
        if size > MAX_STOP_BYTES:
            raise InvalidRequest(
                f"stop string too long. Expected a string with maximum length {MAX_STOP_BYTES}, but got {size}"
            )
    return tuple([stop for stop in given if stop])


def check_tool_count(tools: Sequence[object]) -> None:
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(
            f"tools array too long. Expected an array with maximum length {MAX_TOOLS}, but got {len(tools)}"
        )


def check_tool_names(tools: Sequence[Tool]) -> None:
    """Each may be there once."""
    names: set[str] = set()
    for tool in tools:
        if tool.name in names:
            raise InvalidRequest(f"function name {tool.name} is duplicated")
        names.add(tool.name)
