"""`ChatEvent`s to the bytes of moonshot-api.md 2 and 3."""

import hashlib
from typing import assert_never

import msgspec

from moonbase.chat.events import (
    ArgumentsDelta,
    ChatEvent,
    Finished,
    ReasoningDelta,
    TextDelta,
    ToolCallStarted,
    Usage,
)
from moonbase.dialects.base import Head
from moonbase.dialects.errors import encode_error
from moonbase.errors import ApiError

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


class ChunkEncoder:
    """A stream's events to server-sent events. The constant bytes of a stream are built once."""

    def __init__(self, head: Head) -> None:
        self._head = b'data: {"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,"choices":[' % (
            _encode(head.id),
            head.created,
            _encode(head.model),
        )
        self._tail = b'],"system_fingerprint":"%b"}\n\n' % fingerprint(head.served_by).encode()
        self._include_usage = head.include_usage
        self._text_heads: dict[int, bytes] = {}  # of choices that have begun: a frame up to its text
        self._text_tail = b'},"finish_reason":null}' + self._tail
        self._total = Usage(0, 0)

    def encode(self, events: list[ChatEvent]) -> bytes:
        """The frames for what one wake-up brought, the role frame of a new choice first."""
        frames: list[bytes] = []
        for event in events:
            head = self._text_heads.get(event.choice)
            if head is None:
                head = self._begin(event.choice, frames)
            if type(event) is TextDelta:
                frames.append(b"%b%b%b" % (head, _encode(event.text), self._text_tail))
                continue
            match event:
                case ArgumentsDelta(choice, index, text):
                    call = b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (index, _encode(text))
                    frames.append(self._frame(choice, call))
                case ReasoningDelta(choice, text):
                    frames.append(self._frame(choice, b'{"reasoning_content":%b}' % _encode(text)))
                case ToolCallStarted(choice):
                    frames.append(self._frame(choice, b'{"tool_calls":[%b]}' % _tool_call(event, "")))
                case Finished(choice, reason, usage):
                    self._total = add_usage(self._total, usage)
                    frames.append(
                        b'%b{"index":%d,"delta":{},"finish_reason":"%b","usage":%b}%b'
                        % (self._head, choice, reason.encode(), _usage(usage), self._tail)
                    )
                case TextDelta():
                    raise AssertionError("is written above")
                case _:
                    assert_never(event)
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def done(self) -> bytes:
        """The end of a complete stream: the usage-only chunk when asked for, and `[DONE]`."""
        if not self._include_usage:
            return DONE
        return b'%b],"usage":%b}\n\n%b' % (self._head, _usage(self._total), DONE)

    def error(self, error: ApiError) -> bytes:
        """The last frame of a stream that broke after it began. No `[DONE]`: the answer is not done."""
        return b"data: %b\n\n" % encode_error(error)

    def _begin(self, choice: int, frames: list[bytes]) -> bytes:
        """Add the frame that begins a choice; returns the head of its frames with text."""
        frames.append(self._frame(choice, b'{"role":"assistant","content":""}'))
        head = self._text_heads[choice] = b'%b{"index":%d,"delta":{"content":' % (self._head, choice)
        return head

    def _frame(self, choice: int, delta: bytes) -> bytes:
        return b'%b{"index":%d,"delta":%b,"finish_reason":null}%b' % (self._head, choice, delta, self._tail)


def encode_completion(head: Head, events: list[ChatEvent]) -> bytes:
    """All events of an answer, folded into one chat.completion body."""
    messages: dict[int, _Message] = {}
    total = Usage(0, 0)
    choices: dict[int, bytes] = {}
    for event in events:
        message = messages.setdefault(event.choice, _Message())
        match event:
            case TextDelta(_, text):
                message.content.append(text)
            case ReasoningDelta(_, text):
                message.reasoning.append(text)
            case ToolCallStarted():
                message.calls.append((event, []))
            case ArgumentsDelta(_, index, text):
                message.calls[index][1].append(text)
            case Finished(choice, reason, usage):
                total = add_usage(total, usage)
                choices[choice] = b'{"index":%d,"message":%b,"finish_reason":"%b"}' % (
                    choice,
                    message.encode(),
                    reason.encode(),
                )
            case _:
                assert_never(event)
    return b'{"id":%b,"object":"chat.completion","created":%d,"model":%b,"choices":[%b],"usage":%b}' % (
        _encode(head.id),
        head.created,
        _encode(head.model),
        b",".join([choices[choice] for choice in sorted(choices)]),
        _usage(total),
    )


class _Message:
    """One choice's message, put together from its events."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[tuple[ToolCallStarted, list[str]]] = []

    def encode(self) -> bytes:
        """Reasoning and calls only where there are some (moonshot-api.md 2)."""
        reasoning = b',"reasoning_content":%b' % _encode("".join(self.reasoning)) if self.reasoning else b""
        calls = b",".join([_tool_call(call, "".join(arguments)) for call, arguments in self.calls])
        return b'{"role":"assistant","content":%b%b%b}' % (
            _encode("".join(self.content)),
            reasoning,
            b',"tool_calls":[%b]' % calls if calls else b"",
        )


def _tool_call(call: ToolCallStarted, arguments: str) -> bytes:
    """A call with its arguments so far, as both kinds of answers have it."""
    return b'{"index":%d,"id":%b,"type":"function","function":{"name":%b,"arguments":%b}}' % (
        call.index,
        _encode(call.id),
        _encode(call.name),
        _encode(arguments),
    )


def add_usage(total: Usage, choice: Usage) -> Usage:
    """Usage of a whole answer: its choices share one prompt, their completions add up."""
    return Usage(
        choice.prompt_tokens,
        total.completion_tokens + choice.completion_tokens,
        max(total.cached_tokens, choice.cached_tokens),
        total.reasoning_tokens + choice.reasoning_tokens,
    )


def fingerprint(served_by: str) -> str:
    """`system_fingerprint`: stable for what answers."""
    return "fpv0_" + hashlib.sha256(served_by.encode()).hexdigest()[:8]


def _usage(usage: Usage) -> bytes:
    """`cached_tokens` is flat; it and `reasoning_tokens` are omitted when 0 (moonshot-api.md 2)."""
    cached = b',"cached_tokens":%d' % usage.cached_tokens if usage.cached_tokens else b""
    thought = b',"completion_tokens_details":{"reasoning_tokens":%d}' % usage.reasoning_tokens
    return b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d%b%b}' % (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        cached,
        thought if usage.reasoning_tokens else b"",
    )
