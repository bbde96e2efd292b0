"""The Anthropic dialect (moonshot-api.md 8)."""

from typing import TYPE_CHECKING, ClassVar

from moonbase.chat.events import ChatEvent
from moonbase.chat.request import ChatRequest
from moonbase.dialects.anthropic.decode import decode_count, decode_messages
from moonbase.dialects.anthropic.encode import EventEncoder, encode_count, encode_error, encode_message
from moonbase.dialects.base import Dialect, Head
from moonbase.errors import ApiError

MESSAGES = ("/anthropic/v1/messages", "/anthropic/v1/v1/messages", "/v1/messages", "/v1/v1/messages")
"""Where it is spoken. A base URL that ends in `/v1` gets another one from the SDKs."""


class Anthropic:
    """A `Dialect`."""

    takes_api_key: ClassVar[bool] = True

    def decode(self, body: bytes) -> ChatRequest:
        return decode_messages(body)

    def decode_count(self, body: bytes) -> ChatRequest:
        return decode_count(body)

    def stream(self, head: Head) -> EventEncoder:
        return EventEncoder(head)

    def whole(self, head: Head, events: list[ChatEvent]) -> bytes:
        return encode_message(head, events)

    def count(self, tokens: int) -> bytes:
        return encode_count(tokens)

    def error(self, error: ApiError) -> bytes:
        return encode_error(error)


if TYPE_CHECKING:

    def _conforms(dialect: Anthropic) -> Dialect:
        return dialect
