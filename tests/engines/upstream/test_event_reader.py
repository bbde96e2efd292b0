"""Server-sent events: the same events however the bytes are cut."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moonbase.engines.upstream.events import EventReader
from moonbase.errors import UpstreamFailed

CASES = {
    "one": (b'data: {"a": 1}\n\n', [b'{"a": 1}']),
    "many": (b"data: 1\n\ndata: 2\n\ndata: [DONE]\n\n", [b"1", b"2", b"[DONE]"]),
    "carriage returns": (b"data: 1\r\rdata: 2\r\r", [b"1", b"2"]),
    "both": (b"data: 1\r\n\r\ndata: 2\r\n\r\n", [b"1", b"2"]),
    "mixed": (b"data: 1\r\n\ndata: 2\n\r\ndata: 3\r\r\n", [b"1", b"2", b"3"]),
    "several lines": (b"data: a\ndata: b\ndata\ndata:\ndata: c\n\n", [b"a\nb\n\n\nc"]),
    "one blank after the colon": (b"data:a\n\ndata:  b\n\ndata:\tc\n\n", [b"a", b" b", b"\tc"]),
    "empty data": (b"data:\n\ndata\n\ndata: \n\n", [b"", b"", b""]),
    "comments": (b": keep-alive\n\n:\n\ndata: 1\n: in between\ndata: 2\n\n", [b"1\n2"]),
    "other fields": (b"event: x\nid: 7\nretry: 3\ndata: 1\nfoo: bar\nfoo\n\n", [b"1"]),
    "no data": (b"event: ping\n\n\n\n", []),
    "no such field": (b"datax: 1\n data: 2\nDATA: 3\n\n", []),
    "byte order mark": (b"\xef\xbb\xbfdata: 1\n\ndata: 2\n\n", [b"1", b"2"]),
    "byte order mark later": (b"data: 1\n\n\xef\xbb\xbfdata: 2\n\n", [b"1"]),
    "byte order mark twice": (b"\xef\xbb\xbf\xef\xbb\xbfdata: 1\n\n", []),
    "half an event": (b"data: 1\n\ndata: 2\n", [b"1"]),
    "half a line": (b"data: 1\n\ndata: 2", [b"1"]),
    "blank lines": (b"\n\n\ndata: 1\n\n\n\ndata: 2\n\n\n", [b"1", b"2"]),
    "blank line first in a packet": (b"\ndata: 1\n\n", [b"1"]),
    "a comment among events": (b"data: 1\n\n: x\n\ndata: 2\n\n", [b"1", b"2"]),
    "an event of two lines among others": (b"data: 1\n\ndata: 2\ndata: 3\n\ndata: 4\n\n", [b"1", b"2\n3", b"4"]),
    "characters of all lengths": ("data: né 月 🌙\n\n".encode(), ["né 月 🌙".encode()]),
    "separators that are no line ends": ("data: a\u2028b\x0bc\x85d\n\n".encode(), ["a\u2028b\x0bc\x85d".encode()]),
    "a null": (b"data: \0\n\n", [b"\0"]),
}


def read(pieces: list[bytes], limit: int = 1000) -> list[bytes]:
    reader = EventReader(limit)
    return [event for piece in pieces for event in reader.feed(piece)]


@pytest.mark.parametrize("name", CASES)
def test_events_under_every_cut(name: str) -> None:
    stream, events = CASES[name]
    assert read([stream]) == events
    assert read([stream[i : i + 1] for i in range(len(stream))]) == events
    for first in range(len(stream) + 1):
        assert read([stream[:first], stream[first:]]) == events
        for second in range(first, len(stream) + 1):
            assert read([stream[:first], stream[first:second], stream[second:]]) == events


def reference(stream: bytes) -> list[bytes]:
    """The HTML standard's interpretation, line by line."""
    events: list[bytes] = []
    data: list[bytes] = []
    for line in re.split(rb"\r\n|\r|\n", stream.removeprefix(b"\xef\xbb\xbf"))[:-1]:
        name, _, value = line.partition(b":")
        if not line and data:
            events.append(b"\n".join(data))
            data = []
        elif name == b"data":
            data.append(value.removeprefix(b" "))
    return events


TOKENS = [b"\n", b"\r", b"\r\n", b"data", b"data:", b"data: ", b":", b" ", b"x", b"{}", b"\xef\xbb\xbf", b"id: 1"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(TOKENS), max_size=40), st.data())
def test_any_stream_under_any_cut_is_read_as_the_standard_says(tokens: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(tokens)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert read(pieces) == read([stream]) == reference(stream)


@pytest.mark.parametrize(
    "stream",
    [
        b"data: " + b"x" * 100 + b"\n\n",
        b"data: 1\n\n" * 3 + b"data: " + b"x" * 100 + b"\n\n",
        b": " + b"x" * 100,
        b"x" * 101,
        b"data: " + b"x" * 95,
        b"data: " + b"x" * 95 + b"\r\n",
        b"data: 12345678\n" * 12,
        b"data:\n" * 101,
    ],
)
def test_a_line_or_event_over_the_limit_fails_under_every_cut(stream: bytes) -> None:
    for pieces in ([stream], [stream[i : i + 1] for i in range(len(stream))], [stream[:50], stream[50:]]):
        with pytest.raises(UpstreamFailed, match="larger than 100 bytes"):
            read(pieces, limit=100)


def test_what_is_within_the_limit_passes() -> None:
    longest = b"data: " + b"x" * 94
    assert read([(longest + b"\n\n") * 3], limit=100) == [b"x" * 94] * 3
    assert read([longest, b"\n", b"\n"], limit=100) == [b"x" * 94]
    assert read([b": " + b"x" * 90 + b"\n"] * 50 + [b"data: 1\n\n"], limit=100) == [b"1"]


def test_a_long_line_in_small_pieces_costs_linear_time() -> None:
    """A reader that joins what it holds at every piece would copy half a terabyte here."""
    reader = EventReader(limit=1 << 23)
    reader.feed(b"data: ")
    for _ in range(1 << 17):
        assert reader.feed(b"x" * 60) == []
    assert [len(event) for event in reader.feed(b"\n\n")] == [60 << 17]
