"""One connection: at most one exchange at a time, one timer for all time limits."""

import asyncio
from time import monotonic
from typing import Literal, Protocol, cast

from moonbase.engines.upstream.exchange import Exchange
from moonbase.engines.upstream.limits import UpstreamLimits
from moonbase.engines.upstream.outbox import Outbox
from moonbase.engines.upstream.parser import PARSE_ERRORS, ParseError, ResponseParser
from moonbase.errors import UpstreamFailed

_SLICE = 256 * 1024  # of a request body, per turn of the event loop
_SMALL = 64 * 1024  # a body up to this travels in one write with its head

_Phase = Literal["idle", "send", "wait", "receive"]


class Owner(Protocol):
    """Who keeps connections between exchanges."""

    def released(self, connection: "Connection") -> None:
        """It is free for another exchange."""
        ...

    def lost(self, connection: "Connection", retry: Exchange | None) -> None:
        """It is closed. `retry` is to be sent again: the connection was not new, and no byte of an answer came."""
        ...


class Connection(asyncio.Protocol):
    """Runs exchanges over a transport that somebody else opens. `peer` names the server in errors."""

    __slots__ = (
        *("_besides_body", "_cut_short", "_exchange", "_limits", "_outbox", "_owner", "_parser", "_peer", "_phase"),
        *("_reading_paused", "_reused", "_silent", "_since", "_small", "_tick", "_timer", "_transport", "_unsent"),
        "_writing_paused",
    )

    def __init__(self, owner: Owner, peer: str, limits: UpstreamLimits, outbox: Outbox) -> None:
        self._owner = owner
        self._peer = peer
        self._limits = limits
        self._parser = ResponseParser(limits)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        # No limit is shorter, so one that begins after the timer was set cannot end before it fires.
        self._tick = min(limits.keepalive, limits.first_byte_timeout, limits.idle_timeout)
        self._exchange: Exchange | None = None
        self._phase: _Phase = "idle"
        self._since = 0.0  # when the phase began, or the last sign of life in it
        self._reused = False
        self._silent = True  # whether no byte has come in this exchange
        self._besides_body = 0  # bytes of the head that is being read, later of framing since the last piece of body
        self._outbox = outbox
        self._small = b""  # a whole request, to be sent at the end of the event loop's turn
        self._unsent: memoryview | None = None  # of the body of a large one
        self._cut_short = False  # whether a part of the request was never sent
        self._reading_paused = False
        self._writing_paused = False

    @property
    def usable(self) -> bool:
        """Whether nothing has been heard of its end."""
        return self._transport is not None and not self._transport.is_closing()

    def start(self, exchange: Exchange, *, reused: bool) -> None:
        """Send a request; its sink gets the response. The connection must be free and usable."""
        assert self._exchange is None
        assert self._transport is not None
        self._parser.begin()
        self._exchange = exchange
        self._reused = reused
        self._silent = True
        self._besides_body = 0
        self._since = monotonic()
        exchange.carrier = self
        if self._timer is None:  # no time counts before: it is for an exchange that a connection is made
            self._timer = asyncio.get_running_loop().call_later(self._tick, self._check_time)
        if exchange.paused:
            self.pause()
        body = exchange.body
        if body is None or len(body) <= _SMALL:
            self._phase = "wait"
            self._small = exchange.head + body if body else exchange.head
            self._outbox.add(self)
        else:
            self._phase = "send"
            self._transport.write(exchange.head)
            self._unsent = memoryview(body)
            self._send_more()

    def flush(self) -> None:
        small, self._small = self._small, b""
        if small and self._transport is not None and not self._transport.is_closing():
            self._transport.write(small)

    def abandon(self) -> None:
        """The exchange is not wanted any more."""
        self._detach()
        self.abort()

    def release(self) -> None:
        """The exchange is over, and whoever asked for it does not object to another on this connection."""
        if self.usable:
            self.resume()
            self._since = monotonic()
            self._owner.released(self)

    def pause(self) -> None:
        if not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._since = monotonic()
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close the socket now; the owner is told in the next turn of the event loop."""
        if self._transport is not None:
            self._transport.abort()

    def fail(self, reason: str, cause: BaseException | None = None) -> None:
        """End the exchange with an error, and the connection. `reason` goes on from the server's name."""
        exchange = self._detach()
        self.abort()
        if exchange is not None:
            error = UpstreamFailed(f"{self._peer} {reason}", began=not self._silent)
            error.__cause__ = cause
            exchange.fail(error)

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            self.abort()  # nobody asked: what comes cannot be matched to a request
            return
        parser = self._parser
        try:
            parser.feed(data)
        except PARSE_ERRORS as error:
            self._take_in(exchange, len(data), error)
            return
        if self._phase == "receive" and parser.chunks and not parser.complete:
            self._since = monotonic()
            self._besides_body = 0
            exchange.sink.data(parser.chunks.pop() if len(parser.chunks) == 1 else parser.take())
        else:
            self._take_in(exchange, len(data), None)

    def eof_received(self) -> None:
        self.abort()  # half a connection is of no use: connection_lost decides what its end means

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._exchange is None:
            self._owner.lost(self, None)
        elif self._reused and self._silent:
            self._owner.lost(self, self._detach())
        elif self._phase == "receive" and self._parser.until_close and exc is None:
            exchange = self._exchange
            self._detach()
            self._owner.lost(self, None)
            exchange.end()
        else:
            self._owner.lost(self, None)
            self.fail(self._how_it_broke(exc), exc)

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._send_more()

    # The states of an exchange

    def _send_more(self) -> None:
        """Write a slice of the body, and the next one in a later turn, unless the transport is full."""
        if self._unsent is None or self._writing_paused or self._transport is None or self._transport.is_closing():
            return
        self._since = monotonic()
        piece, rest = self._unsent[:_SLICE], self._unsent[_SLICE:]
        self._unsent = rest or None
        self._transport.write(piece)
        if self._unsent is None:
            self._phase = "wait"
        elif not self._writing_paused:
            asyncio.get_running_loop().call_soon(self._send_more)

    def _take_in(self, exchange: Exchange, size: int, fault: ParseError | None) -> None:
        """Go on after a read that was not simply more of the body."""
        parser = self._parser
        self._silent = False
        if self._phase == "receive":
            self._since = monotonic()
            self._besides_body += size
        elif parser.head_complete:
            self._take_head(exchange, self._besides_body + size)
        else:
            self._besides_body += size
        if parser.chunks and self._exchange is exchange:
            self._besides_body = 0
            if body := parser.take():
                exchange.sink.data(body)
        if self._exchange is not exchange:
            return
        if parser.complete:
            self._finish(exchange, fault)
        elif fault is not None:
            self.fail(f"sent what is no HTTP response: {fault}", fault)
        elif self._besides_body > self._limits.max_head_bytes:
            self.fail(f"sent more than {self._limits.max_head_bytes} bytes besides the response body")

    def _take_head(self, exchange: Exchange, received: int) -> None:
        parser = self._parser
        if objection := parser.objection(received):
            self.fail(objection)
            return
        self._cut_short = self._unsent is not None  # answered before it was asked: the rest is not wanted
        self._unsent = None
        exchange.body = None
        self._phase = "receive"
        self._since = monotonic()
        self._besides_body = 0
        exchange.sink.head(parser.status, parser.headers)

    def _finish(self, exchange: Exchange, fault: ParseError | None) -> None:
        """The response is complete; keep the connection if both sides are at a boundary, and the sink lets us.

        Until then it is idle, and still the exchange's to abandon.
        """
        assert self._transport is not None
        all_sent = not self._cut_short and not self._small and self._transport.get_write_buffer_size() == 0
        self._exchange = None
        self._phase = "idle"
        self._since = monotonic()
        if not all_sent or fault is not None or not self._parser.reusable:
            self.abort()
        exchange.end()
        if not exchange.held:
            exchange.release()

    def _how_it_broke(self, exc: Exception | None) -> str:
        where = "before it answered" if self._silent else "inside the response"
        if exc is None:
            return f"closed the connection {where}"
        cause = exc.strerror if isinstance(exc, OSError) and exc.strerror else type(exc).__name__
        return f"broke the connection {where} ({cause})"

    def _detach(self) -> Exchange | None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.carrier = None
        self._unsent = None
        self._phase = "idle"
        return exchange

    def _check_time(self) -> None:
        """Look at what is due, and come again when something may be."""
        limit = self._limits.idle_timeout
        if self._phase == "idle":
            limit = self._limits.keepalive
        elif self._phase == "wait":
            limit = self._limits.first_byte_timeout
        left = limit if self._reading_paused else self._since + limit - monotonic()
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(min(left, self._tick), self._check_time)
            return
        match self._phase:
            case "idle":
                self.abort()
            case "send":
                self.fail(f"read nothing of the request for {limit:g} s")
            case "wait":
                self.fail(f"did not answer within {limit:g} s")
            case "receive":
                self.fail(f"was silent for {limit:g} s inside the response")
