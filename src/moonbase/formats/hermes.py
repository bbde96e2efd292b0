"""ChatML: `<|im_start|>role`, a newline, the text, `<|im_end|>`. Qwen, SmolLM2 and many others."""

from moonbase.chat.prompt import Control, Prompt, Segment
from moonbase.chat.request import Message

_START = Control("<|im_start|>")
_END = Control("<|im_end|>")


class Hermes:
    """The `hermes` format. No default system prompt is added: the service adds none (moonshot-api.md 2)."""

    name = "hermes"
    controls = ("<|im_start|>", "<|im_end|>")
    stop_controls = ("<|im_end|>", "<|endoftext|>")

    def render(self, messages: tuple[Message, ...]) -> Prompt:
        segments: list[Segment] = []
        for message in messages:
            if message.partial:
                break
            segments += (_START, f"{message.role}\n{message.text}", _END, "\n")
        segments.append(_START)
        prefix = _prefix(messages[-1])
        segments.append(f"assistant\n{prefix}")
        user_text = next((m.text for m in reversed(messages) if m.role == "user"), "")
        return Prompt(tuple(segments), user_text)


def _prefix(last: Message) -> str:
    """What a partial message already says; its name counts as part of it (moonshot-api.md 1.4)."""
    if not last.partial:
        return ""
    if last.name is None:
        return last.text
    return f"{last.name}: {last.text}" if last.text else f"{last.name}:"
