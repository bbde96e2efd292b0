"""What differs between the official templates of the Kimi K2 family, as data (kimi-protocol.md 2.1)."""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from moonbase.chat.request import Conversation

AnswerStart = Literal["text", "reasoning", "model_opens"]
"""Where the prompt leaves the model: in its answer, inside `<think>`, or before the `<think>` that it writes itself."""
_SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."


class Revision(Struct, frozen=True, kw_only=True):
    """One template.

    `system` is the text of the system turn that a conversation without one gets, `after_system` what follows that
    turn. `declaration` is how tools are shown. `opens` says who writes `<think>`: the model, the prompt, or nobody
    because the vocabulary lacks it; with `can_rest` thinking can be switched off. `keeps` is the past reasoning that
    is shown: `open_loop` that after the last answer without calls, `on_request` all if the client asks, or `always`.
    """

    name: str
    system: str | None = None
    after_system: str = ""
    declaration: Literal["json", "typescript"]
    opens: Literal["nobody", "model", "prompt"]
    can_rest: bool = False
    keeps: Literal["open_loop", "on_request", "always"] = "open_loop"

    def thinks(self, conversation: Conversation) -> bool:
        """Whether the answer begins with reasoning."""
        return self.opens != "nobody" and (conversation.thinking or not self.can_rest)

    def keeps_all(self, conversation: Conversation) -> bool:
        """Whether the reasoning of all past turns is shown."""
        return self.keeps == "always" or (self.keeps == "on_request" and conversation.keep_reasoning)

    def start(self, conversation: Conversation) -> AnswerStart:
        """A partial message with text has thought already; one with reasoning only goes on with that."""
        last = conversation.messages[-1]
        if not self.thinks(conversation) or (last.partial and last.text):
            return "text"
        if self.opens == "prompt" or (last.partial and last.reasoning):
            return "reasoning"
        return "model_opens"


# K2-0711's template of the first days is left out: it shows no calls of earlier turns, so no tool loop works with it.
# Its weights carry that of K2-0905 since revision 0102674.
REVISIONS: Mapping[str, Revision] = {
    revision.name: revision
    for revision in (
        Revision(name="kimi-k2-0711", system=_SYSTEM, after_system="\n", declaration="json", opens="nobody"),
        Revision(name="kimi-k2-0905", system=_SYSTEM, after_system="\n", declaration="json", opens="nobody"),
        Revision(name="kimi-k2-thinking", system=_SYSTEM, declaration="json", opens="model"),
        # The first release, Hugging Face revision 2426b45; the later ones have no default system turn.
        Revision(name="kimi-k2.5-first", system=_SYSTEM, declaration="typescript", opens="prompt", can_rest=True),
        Revision(name="kimi-k2.5", declaration="typescript", opens="prompt", can_rest=True),
        Revision(name="kimi-k2.6", declaration="typescript", opens="prompt", can_rest=True, keeps="on_request"),
        Revision(name="kimi-k2.7-code", declaration="typescript", opens="prompt", keeps="always"),
    )
}
