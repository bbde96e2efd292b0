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
        if message.role != "system":
            kept.append(message)
            continue
        parts = [_without_line(part) for part in message.content]
        changed = sum([part is not before for part, before in zip(parts, message.content, strict=True)])
        content = tuple([part for part in parts if part is not None])
        if content or not changed:
            kept.append(structs.replace(message, content=content) if changed else message)
        removed += changed
    return (tuple(kept), removed) if removed and kept else (messages, 0)


def _without_line(part: Part) -> Part | None:
    """What follows the line, None where nothing does; `part` itself where there is no such line."""
    if not isinstance(part, TextPart) or not part.text.startswith(_LINES):
        return part
    rest = part.text.partition("\n")[2]
    return TextPart(rest) if rest else None
