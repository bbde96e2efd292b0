"""Chunks of answers as servers of this dialect send them, read leniently (moonshot-api.md 2 and 3)."""

from typing import Any

import msgspec
from msgspec import Struct

from moonbase.chat.events import EngineFinish
from moonbase.dialects.openai.client.failure import ErrorBody, broken
from moonbase.dialects.surrogates import mended
from moonbase.errors import ApiError, ContentFiltered

_REASONS: dict[str, EngineFinish] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "tool_calls": "stop",
    "tool_use": "stop",
    "function_call": "stop",
}
"""Calls make a `stop` into `tool_calls`, and nothing else does."""
_MAX_CHOICES = 16  # in a chunk; requests ask for no more than 5
_FOR_CALLS = ("tool_calls", "tool_use", "function_call")


class WireFunction(Struct, gc=False):
    """Arguments are text; some servers send the object itself."""

    name: str | None = None
    arguments: str | dict[str, Any] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.arguments, dict):
            return msgspec.json.encode(self.arguments).decode()
        return self.arguments or ""


class WireCall(Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: WireFunction | None = None


class WirePart(Struct, gc=False):
    text: str | None = None


class Delta(Struct, gc=False):
    """What is new of a message, or all of it."""

    content: str | list[WirePart] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[WireCall] | None = None

    @property
    def thought(self) -> str:
        return self.reasoning_content or self.reasoning or ""

    @property
    def text(self) -> str:
        return (self.content if isinstance(self.content, str) else _joined(self.content)) or self.refusal or ""


class PromptDetails(Struct, gc=False):
    cached_tokens: int | None = None


class CompletionDetails(Struct, gc=False):
    reasoning_tokens: int | None = None


class WireUsage(Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None

    @property
    def cached(self) -> int:
        if self.cached_tokens is None and self.prompt_tokens_details is not None:
            return count(self.prompt_tokens_details.cached_tokens)
        return count(self.cached_tokens)

    @property
    def thought(self) -> int:
        return count(self.completion_tokens_details.reasoning_tokens) if self.completion_tokens_details else 0


class WireChoice(Struct, gc=False):
    index: int | None = None
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None
    usage: WireUsage | None = None

    @property
    def finish(self) -> EngineFinish | None:
        """None while the choice goes on, for which some servers say ""."""
        if not self.finish_reason:
            return None
        if self.finish_reason == "content_filter":
            raise ContentFiltered
        reason = _REASONS.get(self.finish_reason)
        if reason is None:
            raise broken("gave an answer a finish_reason that is not known")
        return reason

    @property
    def called(self) -> bool:
        """Whether the choice says that it stopped for calls."""
        return self.finish_reason in _FOR_CALLS


class Chunk(ErrorBody, gc=False):
    """A chunk of a stream, a whole completion, or an error in the place of one."""

    choices: list[WireChoice] | None = None
    usage: WireUsage | None = None


_decode = msgspec.json.Decoder(Chunk).decode


def read_chunk(data: bytes) -> Chunk:
    """Raises when `data` is none, or has too many choices. A usage that nobody can read tells nothing, but breaks no
    answer.
    """
    try:
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            chunk = _leniently(mended(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, AttributeError, TypeError):
        chunk = None
    if chunk is None:  # raised here, it has no cause that quotes the upstream
        raise broken("sent what is no chunk of an answer")
    if chunk.choices and len(chunk.choices) > _MAX_CHOICES:
        raise _too_many()
    return chunk


def _too_many() -> ApiError:
    return broken(f"sent more than {_MAX_CHOICES} choices at once")


def _leniently(data: bytes) -> Chunk:
    """The chunk without any usage that is none."""
    fields = msgspec.json.decode(data)
    choices = fields.get("choices") or ()
    if len(choices) > _MAX_CHOICES:
        raise _too_many()
    for holder in (fields, *choices):
        try:
            msgspec.convert(holder.get("usage"), WireUsage | None)
        except msgspec.ValidationError:
            holder["usage"] = {}
    return msgspec.convert(fields, Chunk)


def count(given: int | None) -> int:
    """A number of tokens; none and less than none are nothing."""
    return max(given or 0, 0)


def _joined(parts: list[WirePart] | None) -> str:
    texts = [part.text for part in parts or () if part.text is not None]
    if len(texts) < len(parts or ()):
        raise broken("sent a part of a message that is no text")
    return "".join(texts)
