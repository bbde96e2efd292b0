"""What an answer may be, as far as all formats agree: text, JSON, or calls of tools."""

from collections.abc import Callable

from moonbase.chat.constraint import AnyText, Constraint, Marker, Or, Sequence, Triggered
from moonbase.chat.request import Conversation


def answer(
    conversation: Conversation, markers: tuple[str, ...], begin: Marker, calls: Callable[[Conversation], Constraint]
) -> Constraint | None:
    """What follows the reasoning, None when anything goes.

    Text holds none of `markers`. `begin` is the marker before the first call, and `calls` gives what follows that.
    """
    choice = conversation.tool_choice
    if not conversation.tools:
        return conversation.content
    if choice.kind == "none":
        return conversation.content or AnyText(markers)
    called = calls(conversation)
    if choice.kind in ("required", "function"):
        return Sequence((begin, called))
    if conversation.content is not None:
        return Or((conversation.content, Sequence((begin, called))))
    return Triggered(begin.literal, called, tuple([literal for literal in markers if literal != begin.literal]))
