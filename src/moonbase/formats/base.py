"""The format contract: a conversation to a prompt, raw output to events. Pure."""

from typing import Protocol

from moonbase.chat.prompt import Prompt
from moonbase.chat.request import Message


class Format(Protocol):
    """How one family of models is prompted.

    `controls` are all control tokens that prompts are made of; `stop_controls` end a turn and are
    never output.
    """

    @property
    def name(self) -> str: ...

    @property
    def controls(self) -> tuple[str, ...]: ...

    @property
    def stop_controls(self) -> tuple[str, ...]: ...

    def render(self, messages: tuple[Message, ...]) -> Prompt:
        """Segments up to the point where the model continues; a partial last message stays open."""
        ...
