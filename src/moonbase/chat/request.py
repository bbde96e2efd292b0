"""What a client asks for, whatever dialect it spoke."""

from typing import Literal

from msgspec import Struct

Role = Literal["system", "user", "assistant"]


class TextPart(Struct, frozen=True, tag="text"):
    text: str


class ImagePart(Struct, frozen=True, tag="image"):
    """`url` is `data:<mime>;base64,…` or `ms://<file id>` (moonshot-api.md 1.3)."""

    url: str


Part = TextPart | ImagePart


class Message(Struct, frozen=True, kw_only=True):
    """One turn. `partial` marks a last assistant message that the model is to continue."""

    role: Role
    content: tuple[Part, ...]
    name: str | None = None
    partial: bool = False

    @property
    def text(self) -> str:
        """All text parts, joined without a separator."""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


class ResponseFormat(Struct, frozen=True, kw_only=True):
    """`schema` is the JSON text of the schema, present for `json_schema` only."""

    kind: Literal["text", "json_object", "json_schema"] = "text"
    schema: str | None = None
    strict: bool = True


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
    five strings of at most 32 bytes each.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: SamplingOptions = SamplingOptions()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    response_format: ResponseFormat = ResponseFormat()
    stream: bool = False
    include_usage: bool = False
