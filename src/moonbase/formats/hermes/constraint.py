"""What an answer in the `hermes` format may be: only declared tools and valid arguments."""

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


def constraint(conversation: Conversation, *, thinks: bool) -> Constraint | None:
    """What the answer must be, None when anything goes.

    Nothing comes after the calls, and a named tool is called once. `auto` with a JSON answer means that or calls.
    A model that `thinks` may do so first, unless its thinking is off or already done in a partial message.
    """
    markers = CALL + THINK if thinks else CALL
    wanted = answer(conversation, markers, _CALL, _calls)
    if wanted is None or not thinks or not conversation.thinking or conversation.messages[-1].partial:
        return wanted
    thought = Sequence((_THINK, AnyText(markers), _THOUGHT, ConstString("\n\n")))
    return Sequence((Optional(thought), wanted))


def _calls(conversation: Conversation) -> Constraint:
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
    return Sequence((call, Repeat(Sequence((ConstString("\n"), _CALL, call)))))
