"""The `kimi_k2` format: Moonshot's own protocol, in the revision of the weights that are served."""

from typing import TYPE_CHECKING

from moonbase.chat.constraint import Constraint
from moonbase.chat.prompt import Prompt
from moonbase.chat.request import Conversation
from moonbase.formats.base import Format, Parser
from moonbase.formats.calls import next_call
from moonbase.formats.kimi_k2.constraint import constraint
from moonbase.formats.kimi_k2.declaration import Declarations
from moonbase.formats.kimi_k2.parser import MISSPELT, KimiK2Parser
from moonbase.formats.kimi_k2.prompt import CALLS, ENVELOPE, THINK, render
from moonbase.formats.kimi_k2.revisions import REVISIONS

_EOS = "[EOS]"
_END = "<|im_end|>"


class KimiK2:
    """One revision of the format. It remembers the tool declarations it wrote lately, nothing else."""

    stop_controls = (_END, _EOS)

    def __init__(self, revision: str) -> None:
        """`revision` is a key of `REVISIONS`; raises `KeyError` for any other."""
        self._revision = REVISIONS[revision]
        self._declarations = Declarations(self._revision.declaration)
        self.name = revision
        self.reasons = self._revision.opens != "nobody"
        own = CALLS + THINK if self.reasons else CALLS
        self.controls = ENVELOPE + own
        self.markers = (*own, _END, *MISSPELT)

    def render(self, conversation: Conversation) -> Prompt:
        return render(self._revision, self._declarations, conversation)

    def parser(self, conversation: Conversation, choice: int) -> Parser:
        return KimiK2Parser(
            choice,
            next_call(conversation.messages),
            reasoning=self._revision.start(conversation) == "reasoning",
            calls=bool(conversation.tools) and conversation.tool_choice.kind != "none",
        )

    def constraint(self, conversation: Conversation) -> Constraint | None:
        return constraint(self._revision, conversation)


if TYPE_CHECKING:

    def _conforms(format: KimiK2) -> Format:
        return format
