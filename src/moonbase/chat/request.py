"""What a client asks for, whatever dialect it spoke."""

import itertools
from typing import Literal

from msgspec import Struct

from moonbase.chat.constraint import JsonSchema

Role = Literal["system", "user", "assistant", "tool"]


class TextPart(Struct, frozen=True, tag="text"):
    text: str


class ImagePart(Struct, frozen=True, tag="image"):
    """`url` is `data:<mime>;base64,…` or `ms://<file id>` (moonshot-api.md 1.3)."""

    url: str


Part = TextPart | ImagePart


class ToolCall(Struct, frozen=True):
    """A call that the model made before. `id` is whatever the client calls it; `arguments` is text, JSON as a rule."""

    id: str
    name: str
    arguments: str


class Message(Struct, frozen=True, kw_only=True):
    """One turn. `partial` marks a last assistant message that the model is to continue.

    `reasoning` is what an assistant thought, None when the client did not send the field. A message with role
    `tool` answers the call `tool_call_id` of the assistant turn before it. `position` is its place in the client's
    list.
    """

    role: Role
    content: tuple[Part, ...] = ()
    name: str | None = None
    partial: bool = False
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    position: int = 0

    @property
    def text(self) -> str:
        """All text parts, joined without a separator."""
        return "".join([part.text for part in self.content if isinstance(part, TextPart)])


class Tool(Struct, frozen=True, kw_only=True):
    """A function that the model may call.

    `declaration` is the JSON text of the whole tool as the client sent it, which prompts show; `parameters` that of
    the schema of its arguments, which the client calls `field`. Without `strict` any JSON object will do.
    """

    name: str
    declaration: str
    parameters: str
    strict: bool = True
    field: str = "tools.function.parameters"


class ToolChoice(Struct, frozen=True):
    """Whether the model calls tools; `name` is the one that kind `function` demands."""

    kind: Literal["auto", "none", "required", "function"] = "auto"
    name: str | None = None


class Thinking(Struct, frozen=True):
    """The client's wish (moonshot-api.md 1.7). `keep` leaves the reasoning of earlier turns in the prompt."""

    enabled: bool = True
    keep: bool = False


class ResponseFormat(Struct, frozen=True, kw_only=True):
    """`schema` is the JSON text of the schema, present for `json_schema` only; the client calls it `field`."""

    kind: Literal["text", "json_object", "json_schema"] = "text"
    schema: str | None = None
    strict: bool = True
    field: str = "response_format.json_schema.schema"


class SamplingOptions(Struct, frozen=True, kw_only=True):
    """Sampling as the client gave it; None where it left the choice to the model."""

    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class Sampling(Struct, frozen=True, kw_only=True):
    """Sampling as the engine gets it, every default filled in."""

    temperature: float
    top_p: float
    n: int
    presence_penalty: float
    frequency_penalty: float


class ChatRequest(Struct, frozen=True, kw_only=True):
    """A decoded request: shapes are right, nothing of the model's rules has been applied.

    `max_tokens` is the explicit output limit in tokens, None when absent. `stop` holds at most
    five strings of at most 32 bytes each. `messages_api` tells that the client spoke that: its temperatures are others,
    and it knows no models with fixed parameters (moonshot-api.md 8.1).
    """

    model: str
    messages: tuple[Message, ...]
    sampling: SamplingOptions = SamplingOptions()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    response_format: ResponseFormat = ResponseFormat()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    thinking: Thinking | None = None
    stream: bool = False
    include_usage: bool = False
    messages_api: bool = False


class Conversation(Struct, frozen=True, kw_only=True):
    """A request as a format gets it: what to render, and what may come back.

    `thinking` and `keep_reasoning` are decided here, where a request may leave them open. `arguments` holds, for each
    of `tools`, what its arguments must be; `content` what the text must be, None for free text.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    thinking: bool = False
    keep_reasoning: bool = False
    arguments: tuple[JsonSchema, ...] = ()
    content: JsonSchema | None = None

    @property
    def user_text(self) -> str:
        """The last user message."""
        return next((message.text for message in reversed(self.messages) if message.role == "user"), "")

    @property
    def turn(self) -> int:
        """How many answers have followed that one already."""
        since = itertools.takewhile(lambda message: message.role != "user", reversed(self.messages))
        return sum([message.role == "assistant" and not message.partial for message in since])
