"""Server-sent events out of the bytes of a response."""

from moonbase.errors import UpstreamFailed

_BOM = b"\xef\xbb\xbf"
_CR, _LF = b"\r\n"


class EventReader:
    """Reads the `data:` of events, however the bytes are cut.

    Follows the event stream format of the HTML standard: lines end in LF, CR or CRLF, several data lines
    of an event are joined by LF, comments and all other fields are ignored, and an event without its
    blank line at the end of the stream is none.
    """

    def __init__(self, limit: int = 4 * 1024 * 1024) -> None:
        """`limit` bounds a line, and the data of an event, in bytes."""
        self._limit = limit
        self._first = True
        self._after_cr = False
        self._held = False  # whether anything below is not empty, or the last byte was a CR
        self._line: list[bytes] = []
        self._line_size = 0
        self._data: list[bytes] = []
        self._data_size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The data of all events that are complete now.

        Raises `UpstreamFailed` for a line or an event over the limit; the reader is of no use afterwards.
        """
        if self._held or not data.startswith(b"data: ") or _CR in data or len(data) > self._limit:
            return self._feed_lines(data)
        if data.find(b"\n") == len(data) - 2 and data[-1] == _LF:  # one whole event of one line
            self._first = False
            return [data[6:-2]]
        if data.endswith(b"\n\n"):
            events = data[6:-2].split(b"\n\ndata: ")
            if data.count(b"\n") == 2 * len(events):  # several such
                self._first = False
                return events
        return self._feed_lines(data)

    def _feed_lines(self, data: bytes) -> list[bytes]:
        if not data:
            return []
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        events: list[bytes] = []
        lines = data.split(b"\n")
        rest = lines.pop()
        if lines:
            self._line.append(lines[0])
            lines[0] = b"".join(self._line)
            self._line.clear()
            self._line_size = 0
            for line in lines:
                self._take(line, events)
        if rest:
            self._line.append(rest)
            self._line_size += len(rest)
            self._check(self._line_size)
        self._held = bool(self._line or self._data or self._after_cr)
        return events

    def _take(self, line: bytes, events: list[bytes]) -> None:
        self._check(len(line))
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
                self._data_size = 0
        elif line.startswith(b"data:"):
            self._add(line[6:] if line.startswith(b"data: ") else line[5:])
        elif line == b"data":
            self._add(b"")

    def _add(self, text: bytes) -> None:
        self._data.append(text)
        self._data_size += len(text) + 1
        self._check(self._data_size)

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise UpstreamFailed(f"an event of the stream is larger than {self._limit} bytes", began=True)
