"""Lines that a client changes with every request, and that the model need not read.

Before everything else in a prompt they would let no prefix cache match. Claude Code begins its system prompt with its
version and a checksum, for whoever bills it (moonshot-api.md 8.6 describes the rest of what it sends).
"""

from msgspec import structs

from moonbase.chat.request import Message, Part, TextPart

_LINES = ("x-anthropic-billing-header:",)


def without_changing_lines(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], int]:
    """The messages without such lines at the beginning of a part of the system prompt, and how many there were."""
    removed = 0
    kept: list[Message] = []
    for message in messages:
        if message.role == "system" and any(_changes(part) for part in message.content):
            parts = [_rest(part) if _changes(part) else part for part in message.content]
            removed += sum(map(_changes, message.content))
            content = tuple([part for part in parts if not isinstance(part, TextPart) or part.text])
            if not content:
                continue
            message = structs.replace(message, content=content)
        kept.append(message)
    return (tuple(kept), removed) if removed and kept else (messages, 0)


def _changes(part: Part) -> bool:
    return isinstance(part, TextPart) and part.text.startswith(_LINES)


def _rest(part: Part) -> Part:
    """What follows the first line."""
    assert isinstance(part, TextPart)
    return TextPart(part.text.partition("\n")[2])
