"""The `hermes` format: ChatML with `<tool_call>`. Qwen, SmolLM2 and many others."""

from typing import TYPE_CHECKING

from moonbase.chat.constraint import Constraint
from moonbase.chat.prompt import Prompt
from moonbase.chat.request import Conversation
from moonbase.formats.base import Format, Parser
from moonbase.formats.calls import next_call
from moonbase.formats.hermes.constraint import constraint
from moonbase.formats.hermes.parser import HermesParser
from moonbase.formats.hermes.prompt import CALL, ENVELOPE, RESPONSE, THINK, render


class Hermes:
    """For one vocabulary and kind of model."""

    name = "hermes"
    controls = ENVELOPE
    stop_controls = ("<|im_end|>", "<|endoftext|>")
    spelled = CALL + RESPONSE + THINK
    """The literals that are one token in some vocabularies and text in others."""

    def __init__(
        self,
        *,
        tokens: frozenset[str] = frozenset(),
        thinks: bool = False,
        max_calls: int | None = None,
        spells_markers: bool = False,
    ) -> None:
        """`tokens` are those of `spelled` that are one token here; `thinks` is for models that write `<think>`.

        An answer may hold `max_calls` calls, one or more, where it may hold several; None for no limit.
        With `spells_markers`, outputs may have the characters of these tokens in their place.
        """
        self._tokens = tokens
        self._told_apart: frozenset[str] = frozenset() if spells_markers else tokens
        self._max_calls = max_calls
        self.reasons = thinks
        self.markers = CALL + THINK if thinks else CALL

    def render(self, conversation: Conversation) -> Prompt:
        return render(conversation, self._tokens, thinks=self.reasons)

    def parser(self, conversation: Conversation, choice: int) -> Parser:
        return HermesParser(
            choice,
            next_call(conversation.messages),
            calls=bool(conversation.tools) and conversation.tool_choice.kind != "none",
            tokens=self._told_apart,
        )

    def constraint(self, conversation: Conversation) -> Constraint | None:
        return constraint(conversation, thinks=self.reasons, max_calls=self._max_calls)


if TYPE_CHECKING:

    def _conforms(format: Hermes) -> Format:
        return format
