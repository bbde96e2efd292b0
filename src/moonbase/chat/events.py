"""What comes back: the events that streaming and non-streaming answers are both made of."""

from typing import Literal

from msgspec import Struct

FinishReason = Literal["stop", "length"]


class Usage(Struct, frozen=True):
    """Tokens of one choice. `prompt_tokens` includes `cached_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class TextDelta(Struct, frozen=True):
    """More text of a choice; never empty, never ends inside a character."""

    choice: int
    text: str


class Finished(Struct, frozen=True):
    """The last event of a choice."""

    choice: int
    reason: FinishReason
    usage: Usage


ChatEvent = TextDelta | Finished
