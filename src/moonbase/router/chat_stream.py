"""One answer of an upstream that speaks chat itself, read as events."""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

from moonbase.chat.events import ArgumentsDelta, ChatEvent, ReasoningDelta, TextDelta
from moonbase.dialects.openai.client.answer import AnswerReader
from moonbase.dialects.openai.client.failure import broken, refused
from moonbase.engines.pipe import Pipe
from moonbase.engines.upstream.events import EventReader
from moonbase.engines.upstream.exchange import Exchange, Headers
from moonbase.errors import ApiError, EngineUnavailable, UpstreamFailed

_MAX_WAITING = 256 * 1024  # bytes that wait for the reader before the socket is left alone
_MAX_WHOLE = 16 * 1024 * 1024  # bytes of an answer that is no stream
_MAX_REFUSAL = 64 * 1024  # bytes of an error's body that are read
_MAX_PER_TOKEN = 128  # characters; hardly a vocabulary has longer tokens
_ALWAYS = 64 * 1024  # characters of output that are taken, however few tokens were asked for
_USAGE_PATIENCE = 5.0  # seconds in which the usage may follow an answer that has stopped
_LINGER = 1.0  # seconds in which a response may end after its answer has, so that its connection can be kept

_Kind = Literal["events", "whole", "refused"]


class ChatStream(Pipe[ChatEvent]):
    """An `EventStream`, and the sink of its response: bytes are kept as they come and read when the reader asks.

    Leaving it cancels the response unless the answer is complete. An answer that has no end, or another than it should,
    closes the connection. `exchange` is set by whoever opens it.
    """

    exchange: Exchange

    def __init__(
        self,
        reader: AnswerReader,
        choices: int,
        most: int,
        passed_on: str | None,
        told: Callable[[ApiError], ApiError],
        left: Callable[["ChatStream"], None],
        *,
        silent: bool = False,
    ) -> None:
        """`silent` says that no stream was asked for; some servers send one all the same.

        `most` is the tokens that the output of all choices can have: the answer fails where it is plainly longer.

        `told` maps a failure to the error that the client is shown; `left` is called when the stream is left.
        `passed_on` as for `refused`.
        """
        super().__init__()
        self.choices = choices
        self.silent = silent
        self._most = most
        self._room = max(most * _MAX_PER_TOKEN, choices * _ALWAYS)  # characters that may still come
        self._last_put: float | None = None
        self._reader = reader
        self._passed_on = passed_on
        self._told = told
        self._left = left
        self._events = EventReader()
        self._kind: _Kind = "events"
        self._status = 200
        self._retry_after: str | None = None
        self._chunks: list[bytes] = []
        self._size = 0  # of the chunks
        self._ended = False  # nothing more comes
        self._cut: UpstreamFailed | None = None
        self._error: ApiError | None = None
        self._failed = False
        self._patience: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left(self)
        if self._patience is not None:
            self._patience.cancel()
        if self._error is not None or not self._reader.complete:
            self._stop()
        elif self._ended:
            self.exchange.release()
        else:
            self.exchange.resume()
            self._linger = asyncio.get_running_loop().call_later(_LINGER, self.exchange.cancel)
        self._error = None  # its stack leads back to here, and to the request

    @property
    def last_put(self) -> float | None:
        """Now, while output waits for a reader that is busy: the upstream is not what is late then.

        What comes while the reader waits may hold no output, however much it is.
        """
        waits = self._chunks and self._kind == "events" and self._waiter is None
        return time.monotonic() if waits else self._last_put

    @property
    def open(self) -> bool:
        return not self.over

    @property
    def prompt_tokens(self) -> int:
        """As the upstream counts them once it has told, our own count before."""
        return self._reader.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """Known when the upstream tells, at the end of an answer as a rule."""
        return self._reader.cached_tokens

    @property
    def completion_tokens(self) -> int:
        """As the upstream counts them once it has told, an estimate from below before (`AnswerReader`).

        Of an answer that failed no more than there could be: it may have been far too long.
        """
        tokens = self._reader.completion_tokens
        return min(tokens, self._most) if self._failed else tokens

    @property
    def unbelieved(self) -> list[str]:
        """What the upstream has counted as it cannot be, by its names."""
        return self._reader.unbelieved

    def abort(self, error: ApiError) -> None:
        if self._reader.stopped:
            self._give_up_on_usage()
        elif self.open:
            self._error = error
            self._failed = self.over = True
            self._stop()
            self.arrived()

    # From the upstream

    def head(self, status: int, headers: Headers) -> None:
        self._status = status
        content_type = (headers.get("content-type") or "text/event-stream").partition(";")[0].strip().lower()
        if status != 200:
            self._kind = "refused"
            self._retry_after = headers.get("retry-after")
        elif content_type == "application/json":
            self._kind = "whole"
        elif content_type == "text/event-stream":
            if self.silent:  # a stream after all, which is as timely as any from here on
                self.silent = False
                self._last_put = time.monotonic()
        else:
            self._fail(broken(f"answered with {content_type[:40]!r} in the place of events"))
            self.arrived()

    def data(self, data: bytes) -> None:
        if self.over:
            return
        self._chunks.append(data)
        self._size += len(data)
        match self._kind:
            case "events":
                self.arrived()
                if self._size > _MAX_WAITING:
                    self.exchange.pause()
            case "whole" if self._size > _MAX_WHOLE:
                self._fail(broken(f"sent an answer of more than {_MAX_WHOLE} bytes"))
                self.arrived()
            case "refused" if self._size > _MAX_REFUSAL:
                self._stop()
                self.arrived()

    def end(self) -> None:
        """A refusal may be followed by another request; an answer that waits to be read has yet to show what it is."""
        self._ended = True
        if self._linger is not None:
            self._linger.cancel()
        elif self._kind != "refused":
            self.exchange.hold()
        self.arrived()

    def failed(self, error: UpstreamFailed) -> None:
        self._cut = error
        self.end()

    def _give_up_on_usage(self) -> None:
        """Every choice has its finish_reason, and the usage did not follow: what there is will do."""
        if self.open:
            self._stop()
            self.arrived()

    def take(self) -> list[ChatEvent]:
        """The events of all that has come. What breaks the answer is raised when there is no event before it."""
        events: list[ChatEvent] = []
        if self._chunks or self._ended:
            try:
                if self._kind == "events":
                    self._read_events(events)
                elif self._ended and self.open:
                    self._read_whole(events)
            except UpstreamFailed as error:
                self._fail(broken(error.reason))
            except ApiError as error:
                self._fail(error)
            for event in events:
                if type(event) is TextDelta or isinstance(event, ReasoningDelta | ArgumentsDelta):  # nearly all are
                    self._room -= len(event.text)
            if self._room < 0:
                self._cut_excess(events)
            if self._reader.stopped:
                self._stopped()
        if events:
            self._last_put = time.monotonic()
        elif self._error is not None:
            raise self._error
        return events

    def _cut_excess(self, events: list[ChatEvent]) -> None:
        """Fail, for this is more than the tokens asked for can be, and keep the events up to there."""
        while events and self._room < 0:
            event = events.pop()
            if isinstance(event, TextDelta | ReasoningDelta | ArgumentsDelta):
                self._room += len(event.text)
        self._fail(broken(f"sent more output than {self._most} tokens can be"))

    def _stopped(self) -> None:
        """Every choice has its finish_reason; the usage may have come with it, or follow."""
        if self._reader.complete:
            self.over = True
        elif self._patience is None and self.open:
            self._patience = asyncio.get_running_loop().call_later(_USAGE_PATIENCE, self._give_up_on_usage)

    def _read_events(self, events: list[ChatEvent]) -> None:
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        if self._size > _MAX_WAITING and not self._ended:
            self.exchange.resume()
        self._size = 0
        for payload in self._events.feed(data):
            self._reader.feed(payload, events)
        if self._ended and self.open:
            self._end(events)

    def _read_whole(self, events: list[ChatEvent]) -> None:
        body = b"".join(self._chunks)
        self._chunks.clear()
        if self._kind == "refused":
            raise refused(self._status, body, retry_after=self._retry_after, passed_on=self._passed_on)
        if self._cut is not None:
            raise EngineUnavailable() from self._cut
        self._reader.whole(body, events)

    def _end(self, events: list[ChatEvent]) -> None:
        """The response is over: the answer is too when all but its usage came."""
        try:
            self._reader.end(events)
        except ApiError:
            if self._cut is None:
                raise
        else:
            return
        raise EngineUnavailable() from self._cut

    def _fail(self, error: ApiError) -> None:
        """End the answer, and the connection with it: what misbehaved is not used again."""
        if self._error is None:
            self._error = self._told(error)
            self._failed = self.over = True
        self._chunks.clear()
        self._stop()

    def _stop(self) -> None:
        """Nothing more is wanted from the upstream."""
        self._ended = True
        self.exchange.cancel()
