"""One request and its response, as the caller holds it."""

from collections.abc import Callable, Iterator
from typing import Protocol

from moonbase.errors import UpstreamFailed


class Headers:
    """A response's headers."""

    __slots__ = ("_names", "_raw")

    def __init__(self, raw: list[tuple[bytes, bytes]]) -> None:
        """`raw` has its names in lower case."""
        self._raw = raw
        self._names = [name for name, _ in raw]

    def get(self, name: str) -> str | None:
        """The value of a header by its name in any case; values of one that came repeatedly, joined by commas."""
        wanted = name.lower().encode()
        if wanted not in self._names:
            return None
        return b", ".join([value for name, value in self._raw if name == wanted]).decode("latin-1")

    def __contains__(self, name: str) -> bool:
        return name.lower().encode() in self._names

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Names in lower case, and values, as they came."""
        return ((name.decode("latin-1"), value.decode("latin-1")) for name, value in self._raw)


class Sink(Protocol):
    """Takes a response as it comes, called from the event loop. Its methods must not raise or wait.

    The calls are `head`, any number of `data`, `end`; or `failed` instead of the rest at any point.
    Nothing comes after `end`, `failed` or `Exchange.cancel`. No call is made before `stream` returns.

    No other exchange gets the connection before `end` has returned: a sink that cancels up to then, because of what
    the response says, closes it. One that has not judged by then calls `Exchange.hold`.
    """

    def head(self, status: int, headers: Headers) -> None: ...

    def data(self, data: bytes) -> None:
        """What one read from the socket brought of the body; never empty."""
        ...

    def end(self) -> None:
        """The response is complete."""
        ...

    def failed(self, error: UpstreamFailed) -> None: ...


class _Nobody:
    """The sink of an exchange that is over."""

    def head(self, status: int, headers: Headers) -> None: ...
    def data(self, data: bytes) -> None: ...
    def end(self) -> None: ...
    def failed(self, error: UpstreamFailed) -> None: ...


NOBODY = _Nobody()


class Carrier(Protocol):
    """The connection that an exchange runs on."""

    def abandon(self) -> None: ...
    def release(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class Exchange:
    """A request under way. The caller may end it at any time, or let it wait."""

    __slots__ = ("_withdraw", "body", "carrier", "head", "held", "paused", "sink")

    def __init__(self, head: bytes, body: bytes | None, sink: Sink, withdraw: Callable[["Exchange"], None]) -> None:
        """`withdraw` takes it back while it has no connection yet."""
        self.head = head
        self.body = body
        self.sink: Sink = sink
        self.carrier: Carrier | None = None
        self.held = False
        self.paused = False
        self._withdraw = withdraw

    def end(self) -> None:
        """For the connection: the response is complete. As a rule the sink holds the exchange: here it is let go."""
        sink, self.sink = self.sink, NOBODY
        sink.end()

    def fail(self, error: UpstreamFailed) -> None:
        """For the connection: there will be no more of a response."""
        sink, self.sink = self.sink, NOBODY
        sink.failed(error)

    def cancel(self) -> None:
        """End it: the connection is aborted at once, so that the server stops its work. Idempotent.

        After the response's end it does that only while it is held.
        """
        self.sink = NOBODY
        carrier, self.carrier = self.carrier, None
        if carrier is not None:
            carrier.abandon()
        else:
            self._withdraw(self)

    def hold(self) -> None:
        """Called up to `Sink.end`: keep the connection from others after it, until `release` or `cancel`.

        One that is held for longer than an unused one is kept is closed.
        """
        self.held = True

    def release(self) -> None:
        """Called after the response's end: the connection may serve others. Idempotent."""
        carrier, self.carrier = self.carrier, None
        if carrier is not None:
            carrier.release()

    def pause(self) -> None:
        """Stop reading from the socket. What has been read is still delivered."""
        self.paused = True
        if self.carrier is not None:
            self.carrier.pause()

    def resume(self) -> None:
        self.paused = False
        if self.carrier is not None:
            self.carrier.resume()

    def flow(self, on: bool) -> None:
        """Go on reading, or pause: for `Generation`."""
        if on:
            self.resume()
        else:
            self.pause()
