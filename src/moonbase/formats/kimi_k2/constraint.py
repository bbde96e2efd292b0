"""What an answer may be: calls of declared tools, with valid arguments and the next numbers (kimi-protocol.md 6.3)."""

from moonbase.chat.constraint import (
    AnyText,
    Constraint,
    ConstString,
    Digits,
    JsonSchema,
    Marker,
    Optional,
    Or,
    Repeat,
    Sequence,
)
from moonbase.chat.request import Conversation
from moonbase.formats.answer import answer
from moonbase.formats.calls import next_call
from moonbase.formats.kimi_k2.prompt import CALLS, THINK
from moonbase.formats.kimi_k2.revisions import Revision

_SECTION, _SECTION_END, _CALL, _ARGUMENTS, _CALL_END = [Marker(literal) for literal in CALLS]
_THINK, _THOUGHT = [Marker(literal) for literal in THINK]
_NUMBERED_CALLS = 8  # calls of one answer whose number is forced …
_NUMBERED_PAIRS = 256  # … as long as tools times calls are no more than this


def constraint(revision: Revision, conversation: Conversation) -> Constraint | None:
    """What the answer must be, None when anything goes.

    A call must not come before the reasoning has ended, nothing comes after the calls, and a named tool is called
    once. `auto` with a JSON answer means that or calls.
    """
    start = revision.start(conversation)
    markers = CALLS if revision.opens == "nobody" else CALLS + THINK
    wanted = answer(conversation, markers, _SECTION, _calls)
    if wanted is None:
        return None
    match start:
        case "text":
            return wanted
        case "reasoning":
            return _joined(AnyText(markers), _THOUGHT, wanted)
        case "model_opens":
            return _joined(_THINK, AnyText(markers), _THOUGHT, wanted)


def _calls(conversation: Conversation) -> Constraint:
    """One call or more and the end of the section. The first ones must bear the numbers that come next."""
    choice = conversation.tool_choice
    tools = [
        (tool.name, Sequence((_ARGUMENTS, JsonSchema(arguments.schema, spaced=True), _CALL_END)))
        for tool, arguments in zip(conversation.tools, conversation.arguments, strict=True)
        if choice.kind != "function" or tool.name == choice.name
    ]
    number = next_call(conversation.messages)
    if choice.kind == "function" or not conversation.parallel_tool_calls:
        return _joined(_call(tools, number), _SECTION_END)
    numbered = max(1, min(_NUMBERED_CALLS, _NUMBERED_PAIRS // len(tools)))
    more: Constraint = Repeat(_call(tools, None))
    for following in range(number + numbered - 1, number, -1):
        more = Optional(_joined(_call(tools, following), more))
    return _joined(_call(tools, number), more, _SECTION_END)


def _call(tools: list[tuple[str, Sequence]], number: int | None) -> Constraint:
    """A call of any of `tools` with this number, or with any."""
    calls: list[Constraint] = []
    for name, rest in tools:
        if number is None:
            calls.append(_joined(ConstString(f"functions.{name}:"), Digits(), rest))
        else:
            calls.append(_joined(ConstString(f"functions.{name}:{number}"), rest))
    return _joined(_CALL, calls[0] if len(calls) == 1 else Or(tuple(calls)))


def _joined(*parts: Constraint) -> Sequence:
    return Sequence(parts)
