"""What a dialect is: the wire between clients and `ChatRequest` on one side, `ChatEvent`s on the other."""

from typing import ClassVar, Protocol

from msgspec import Struct

from moonbase.chat.events import ChatEvent
from moonbase.chat.request import ChatRequest
from moonbase.errors import ApiError


class Head(Struct, frozen=True, kw_only=True):
    """What is known of an answer when its first events have come.

    `created` is in unix seconds, `model` the id that was asked for, `served_by` names what runs. `cached_tokens`
    of the `prompt_tokens` came from a cache, as far as is known by then.
    """

    id: str
    created: int
    model: str
    served_by: str
    prompt_tokens: int
    cached_tokens: int
    include_usage: bool = False


class StreamEncoder(Protocol):
    """One answer's events to the bytes of server-sent events."""

    def encode(self, events: list[ChatEvent]) -> bytes:
        """The frames for what one wake-up brought."""

    def done(self) -> bytes:
        """The end of a complete stream."""

    def error(self, error: ApiError) -> bytes:
        """What has not been sent yet, and the last frame of a stream that broke after it began."""


class Dialect(Protocol):
    """Holds no state. `takes_api_key` tells whether keys may come in the header `x-api-key` too."""

    takes_api_key: ClassVar[bool]

    def decode(self, body: bytes) -> ChatRequest:
        """Shapes only. Raises `InvalidRequest` naming the field."""

    def decode_count(self, body: bytes) -> ChatRequest:
        """The same of a request that asks for the tokens of its prompt."""

    def stream(self, head: Head) -> StreamEncoder:
        """For one answer."""

    def whole(self, head: Head, events: list[ChatEvent]) -> bytes:
        """All events of an answer, folded into one body. Raises `InvalidOutput` where they cannot be told."""

    def count(self, tokens: int) -> bytes:
        """The body that tells the tokens of a prompt."""

    def error(self, error: ApiError) -> bytes:
        """The body of a response that is an error."""
