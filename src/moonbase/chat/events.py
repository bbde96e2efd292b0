"""What comes back: the events that streaming and non-streaming answers are both made of."""

from typing import Literal

from msgspec import Struct

EngineFinish = Literal["stop", "length"]
"""How an engine ends a choice: the model stopped, or the limit cut it."""
FinishReason = Literal["stop", "length", "tool_calls"]


class Usage(Struct, frozen=True):
    """Tokens of one choice. `prompt_tokens` includes `cached_tokens`, `completion_tokens` `reasoning_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class ReasoningDelta(Struct, frozen=True):
    """More of what the model thought, before any text; never empty, never ends inside a character."""

    choice: int
    text: str


class TextDelta(Struct, frozen=True):
    """More text of a choice; never empty, never ends inside a character."""

    choice: int
    text: str


class ToolCallStarted(Struct, frozen=True):
    """The model calls a tool. `index` counts the calls of the choice from 0; clients see `id`, `name:number`."""

    choice: int
    index: int
    id: str
    name: str


class ArgumentsDelta(Struct, frozen=True):
    """More of the arguments (JSON text) of call `index`, which has started; calls may interleave. Never empty."""

    choice: int
    index: int
    text: str


class Finished(Struct, frozen=True):
    """The last event of a choice. `stop` is the stop string that ended it, where one is known to have.

    `broken_calls` are tool calls that were begun and could not be reported.
    """

    choice: int
    reason: FinishReason
    usage: Usage
    broken_calls: int = 0
    stop: str | None = None


OutputEvent = ReasoningDelta | TextDelta | ToolCallStarted | ArgumentsDelta
"""What parsers find in a model's output."""
ChatEvent = OutputEvent | Finished
