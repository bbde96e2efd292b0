"""`ChatEvent`s to the bytes of the Messages API (moonshot-api.md 8.2 and 8.3), and errors to those of 8.4."""

import base64
import hashlib
from typing import TYPE_CHECKING

import msgspec

from moonbase.chat.events import ChatEvent, Finished, FinishReason, ToolCallStarted, Usage
from moonbase.dialects.anthropic.blocks import BlockSequence, Kind, is_object
from moonbase.dialects.base import Head
from moonbase.dialects.errors import encode_error as encode_openai_error
from moonbase.dialects.errors import go_escaped
from moonbase.errors import ApiError, ModelNotFound

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":'
_FIELDS: dict[Kind, tuple[bytes, bytes]] = {
    "text": (b"text_delta", b"text"),
    "thinking": (b"thinking_delta", b"thinking"),
    "tool_use": (b"input_json_delta", b"partial_json"),
}
_REASONS: dict[FinishReason, bytes] = {"stop": b"end_turn", "length": b"max_tokens", "tool_calls": b"tool_use"}
_LIKE_OPENAI = frozenset({401, 429})  # statuses whose bodies the service does not translate (moonshot-api.md 8.4)

_encode = msgspec.json.Encoder().encode


class EventEncoder:
    """A stream's events to server-sent events."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._sequence = BlockSequence(self)
        self._frames: list[bytes] = []
        self._started = False
        self._index = -1  # of the latest block
        self._delta = b""  # of the block that is open, up to its text
        self._thought: Hash | None = None

    def encode(self, events: list[ChatEvent]) -> bytes:
        """The frames for what one wake-up brought, `message_start` first. Raises `InvalidOutput` as the blocks do."""
        if not self._started:
            self._started = True
            self._frames += (self._start(), _PING)
        for event in events:
            if isinstance(event, Finished):
                self._sequence.finish(event.reason)
                self._frames.append(
                    b'event: message_delta\ndata: {"type":"message_delta","delta":{%b},"usage":%b}\n\n'
                    % (_stop(event), _usage(event.usage))
                )
            else:
                self._sequence.take(event)
        frames = b"".join(self._frames)
        self._frames.clear()
        return frames

    def done(self) -> bytes:
        """The end of a complete stream."""
        return _STOP

    def error(self, error: ApiError) -> bytes:
        """What has not been sent yet, and the last frame of a stream that broke after it began."""
        return b"%bevent: error\ndata: %b\n\n" % (b"".join(self._frames), _error(error))

    def _start(self) -> bytes:
        head = self._head
        usage = Usage(head.prompt_tokens, 0, head.cached_tokens)
        message = _message(head, b"", b'"stop_reason":null,"stop_sequence":null', usage)
        return b'event: message_start\ndata: {"type":"message_start","message":%b}\n\n' % message

    # The sink of the blocks

    def open(self, kind: Kind, call: ToolCallStarted | None) -> None:
        self._index += 1
        self._delta = _DELTA % (self._index, *_FIELDS[kind])
        self._thought = hashlib.sha256() if kind == "thinking" else None
        if call is not None:
            block = b'"id":%b,"name":%b,"input":{}' % (_encode(call.id), _encode(call.name))
        else:
            block = b'"text":""' if kind == "text" else b'"thinking":"","signature":""'
        self._frames.append(
            b'event: content_block_start\ndata: {"type":"content_block_start","index":%d,"content_block":'
            b'{"type":"%b",%b}}\n\n' % (self._index, kind.encode(), block)
        )

    def add(self, text: str) -> None:
        if self._thought is not None:
            self._thought.update(text.encode())
        self._frames.append(b"%b%b}}\n\n" % (self._delta, _encode(text)))

    def close(self) -> None:
        if self._thought is not None:
            delta = _DELTA % (self._index, b"signature_delta", b"signature")
            self._frames.append(b"%b%b}}\n\n" % (delta, _encode(_signature(self._thought))))
        self._frames.append(
            b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n' % self._index
        )


def encode_message(head: Head, events: list[ChatEvent]) -> bytes:
    """All events of an answer, folded into one message.

    Raises `InvalidOutput` as the blocks do. A last call that the limit cut is left out: `input` is an object.
    """
    blocks = _Blocks()
    sequence = BlockSequence(blocks)
    for event in events:
        if isinstance(event, Finished):
            sequence.finish(event.reason)
            return _message(head, blocks.encode(), _stop(event), event.usage)
        sequence.take(event)
    raise AssertionError("an answer has an end")


class _Blocks:
    """The blocks of a whole answer: a sink."""

    def __init__(self) -> None:
        self._blocks: list[tuple[Kind, ToolCallStarted | None, list[str]]] = []

    def open(self, kind: Kind, call: ToolCallStarted | None) -> None:
        self._blocks.append((kind, call, []))

    def add(self, text: str) -> None:
        self._blocks[-1][2].append(text)

    def close(self) -> None:
        pass

    def encode(self) -> bytes:
        encoded: list[bytes] = []
        for kind, call, texts in self._blocks:
            text = "".join(texts)
            if call is not None:
                if is_object(text):
                    encoded.append(
                        b'{"type":"tool_use","id":%b,"name":%b,"input":%b}'
                        % (_encode(call.id), _encode(call.name), text.encode())
                    )
            elif kind == "text":
                encoded.append(b'{"type":"text","text":%b}' % _encode(text))
            else:
                signature = _encode(_signature(hashlib.sha256(text.encode())))
                encoded.append(b'{"type":"thinking","thinking":%b,"signature":%b}' % (_encode(text), signature))
        return b",".join(encoded)


def encode_count(tokens: int) -> bytes:
    return b'{"input_tokens":%d}' % tokens


def encode_error(error: ApiError) -> bytes:
    """Some keep the OpenAI dialect's shape, as the service has it."""
    if error.status in _LIKE_OPENAI or isinstance(error, ModelNotFound):
        return encode_openai_error(error)
    return _error(error)


def _error(error: ApiError) -> bytes:
    return go_escaped(
        b'{"type":"error","error":{"type":%b,"message":%b}}' % (_encode(error.type), _encode(error.sentence))
    )


def _message(head: Head, content: bytes, stop: bytes, usage: Usage) -> bytes:
    return b'{"id":%b,"type":"message","role":"assistant","model":%b,"content":[%b],%b,"usage":%b}' % (
        _encode(head.id),
        _encode(head.model),
        content,
        stop,
        _usage(usage),
    )


def _stop(end: Finished) -> bytes:
    """A stop string is told, but ends a turn as any other end does (moonshot-api.md 8.2)."""
    return b'"stop_reason":"%b","stop_sequence":%b' % (_REASONS[end.reason], _encode(end.stop))


def _usage(usage: Usage) -> bytes:
    """Cached tokens are no input tokens here; nothing is written to a cache at a price of its own."""
    thought = b',"output_tokens_details":{"thinking_tokens":%d}' % usage.reasoning_tokens
    return b'{"input_tokens":%d,"cache_creation_input_tokens":0,"cache_read_input_tokens":%d,"output_tokens":%d%b}' % (
        usage.prompt_tokens - usage.cached_tokens,
        usage.cached_tokens,
        usage.completion_tokens,
        thought if usage.reasoning_tokens else b"",
    )


def _signature(thought: "Hash") -> str:
    """Clients send it back with the thought, which counts alone."""
    return base64.b64encode(thought.digest()).decode()
