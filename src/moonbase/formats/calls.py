"""Tool calls over a conversation: which result answers which call, and the number that each call has in prompts."""

from msgspec import Struct

from moonbase.chat.request import Message, ToolCall
from moonbase.errors import InvalidRequest

_PREFIX = "functions."
_MAX_DIGITS = 6  # of a number that a client may set; far under the nine that an output may have


class CallNumbers(Struct, frozen=True, kw_only=True):
    """`ids` holds for each message the ids, `name:number`, of the calls it makes, or of the one call it answers.

    `next` is the number of the next call of the conversation.
    """

    ids: tuple[tuple[str, ...], ...]
    next: int


def number_calls(messages: tuple[Message, ...]) -> CallNumbers:
    """Number all calls, whatever the client calls them; a pure function, so that prompts stay prefixes of later ones.

    Numbers count over the conversation from 0 (moonshot-api.md 1.5, kimi-protocol.md 3.2). When every id already is
    `name:number` or `functions.name:number` and the numbers rise, they are kept: a client that sends back what it got
    and then drops its oldest turns changes nothing in the rest.

    Raises `InvalidRequest` unless each call has one result before the next user or assistant message, in any order
    and with system messages anywhere, and each result has a call (moonshot-api.md 9.3).
    """
    numbers = _numbers(messages)
    following = iter(numbers)
    ids: list[tuple[str, ...]] = []
    unanswered: dict[str, str] = {}
    for message in messages:
        if message.role == "tool":
            ids.append((_answered(message, unanswered),))
            continue
        if message.role != "system":
            _refuse_missing(unanswered)
        if message.tool_calls:
            unanswered = {call.id: f"{call.name}:{next(following)}" for call in message.tool_calls}
            _refuse_duplicates(message)
        ids.append(tuple(unanswered.values()) if message.tool_calls else ())
    _refuse_missing(unanswered)
    return CallNumbers(ids=tuple(ids), next=_next(numbers))


def next_call(messages: tuple[Message, ...]) -> int:
    """The number of the next call of a conversation that `number_calls` has accepted."""
    return _next(_numbers(messages))


def _next(numbers: list[int]) -> int:
    return numbers[-1] + 1 if numbers else 0


def _numbers(messages: tuple[Message, ...]) -> list[int]:
    """The numbers in the ids when they all are ours and rise, else 0, 1, 2, …"""
    calls = [call for message in messages for call in message.tool_calls]
    kept: list[int] = []
    for call in calls:
        number = own_number(call)
        if number is None or (kept and number <= kept[-1]):
            return list(range(len(calls)))
        kept.append(number)
    return kept


def own_number(call: ToolCall) -> int | None:
    """The number in an id of the form that we give out or that the model writes, None for any other id."""
    name, _, digits = call.id.rpartition(":")
    if name not in (call.name, _PREFIX + call.name):
        return None
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS):
        return None
    number = int(digits)
    return number if str(number) == digits else None


def _answered(message: Message, unanswered: dict[str, str]) -> str:
    """The call that a result answers, which has none from now on."""
    call = unanswered.pop(message.tool_call_id or "", None)
    if call is None:
        raise InvalidRequest(f"tool_call_id {message.tool_call_id or ''} is not found")
    return call


def _refuse_missing(unanswered: dict[str, str]) -> None:
    if unanswered:
        raise InvalidRequest(
            "an assistant message with 'tool_calls' must be followed by tool messages responding to each "
            f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(unanswered)}"
        )


def _refuse_duplicates(message: Message) -> None:
    seen: set[str] = set()
    for call in message.tool_calls:
        if call.id in seen:
            raise InvalidRequest(f"tool_call_id {call.id} is duplicated")
        seen.add(call.id)
