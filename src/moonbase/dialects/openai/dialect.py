"""The OpenAI dialect (moonshot-api.md 1 to 3, 5.1 and 9.1)."""

from typing import TYPE_CHECKING, ClassVar

from moonbase.chat.events import ChatEvent
from moonbase.chat.request import ChatRequest
from moonbase.dialects.base import Dialect, Head
from moonbase.dialects.errors import encode_error
from moonbase.dialects.openai.decode import decode_chat, decode_estimate
from moonbase.dialects.openai.encode import ChunkEncoder, encode_completion
from moonbase.dialects.openai.models import encode_estimate
from moonbase.errors import ApiError


class OpenAI:
    """A `Dialect`."""

    takes_api_key: ClassVar[bool] = False

    def decode(self, body: bytes) -> ChatRequest:
        return decode_chat(body)

    def decode_count(self, body: bytes) -> ChatRequest:
        return decode_estimate(body)

    def stream(self, head: Head) -> ChunkEncoder:
        return ChunkEncoder(head)

    def whole(self, head: Head, events: list[ChatEvent]) -> bytes:
        return encode_completion(head, events)

    def count(self, tokens: int) -> bytes:
        return encode_estimate(tokens)

    def error(self, error: ApiError) -> bytes:
        return encode_error(error)


if TYPE_CHECKING:

    def _conforms(dialect: OpenAI) -> Dialect:
        return dialect
