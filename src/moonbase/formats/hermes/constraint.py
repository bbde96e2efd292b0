"""What an answer in the `hermes` format may be: only declared tools and valid arguments."""

from functools import partial

from moonbase.chat.constraint import (
    AnyText,
    Constraint,
    ConstString,
    JsonSchema,
    Marker,
    Optional,
    Or,
    Repeat,
    Sequence,
)
from moonbase.chat.request import Conversation
from moonbase.formats.answer import answer
from moonbase.formats.hermes.prompt import CALL, THINK

_CALL, _CALL_END = [Marker(literal) for literal in CALL]
_THINK, _THOUGHT = [Marker(literal) for literal in THINK]


def constraint(conversation: Conversation, *, thinks: bool, max_calls: int | None) -> Constraint | None:
    """What the answer must be, None when anything goes.

    Nothing comes after the calls, no more than `max_calls`, and a named tool is called once. `auto` with a JSON answer
    means that or calls.
    A model that `thinks` may do so first, unless its thinking is off or already done in a partial message.
    """
    markers = CALL + THINK if thinks else CALL
    wanted = answer(conversation, markers, _CALL, partial(_calls, max_calls=max_calls))
    if wanted is None or not thinks or not conversation.thinking or conversation.messages[-1].partial:
        return wanted
    thought = Sequence((_THINK, AnyText(markers), _THOUGHT, ConstString("\n\n")))
    return Sequence((Optional(thought), wanted))


def _calls(conversation: Conversation, *, max_calls: int | None) -> Constraint:
    """One call or more, after the marker that begins the first."""
    choice = conversation.tool_choice
    tools = [
        Sequence(
            (
                ConstString(f'\n{{"name": "{tool.name}", "arguments": '),
                JsonSchema(arguments.schema, spaced=True),
                ConstString("}\n"),
            )
        )
        for tool, arguments in zip(conversation.tools, conversation.arguments, strict=True)
        if choice.kind != "function" or tool.name == choice.name
    ]
    call = Sequence((tools[0] if len(tools) == 1 else Or(tuple(tools)), _CALL_END))
    if choice.kind == "function" or not conversation.parallel_tool_calls:
        return call
    following = Sequence((ConstString("\n"), _CALL, call))
    if max_calls is None:
        return Sequence((call, Repeat(following)))
    calls = call
    for _ in range(max_calls - 1):
        calls = Sequence((call, Optional(Sequence((ConstString("\n"), _CALL, calls)))))
    return calls
