"""Raw outputs for parsers, cut in every way, as segments and through `OutputDecoder`."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st
from msgspec import Struct

from moonbase.chat.events import ArgumentsDelta, OutputEvent, ReasoningDelta, TextDelta, ToolCallStarted
from moonbase.chat.prompt import Control, Segment
from moonbase.formats.base import Parser
from moonbase.formats.output import OutputDecoder

CHOICE = 3

cuts = st.lists(st.integers(0, 10_000), max_size=12)


class Answer(Struct, frozen=True):
    """Events folded: a call is its id, its name and its arguments."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str, str], ...] = ()


def fold(events: list[OutputEvent]) -> Answer:
    """The answer that the events make, which must keep what their types promise."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[tuple[ToolCallStarted, list[str]]] = []
    for event in events:
        assert event.choice == CHOICE
        match event:
            case ReasoningDelta(text=text):
                assert not texts
                assert not calls
                thoughts.append(text)
            case TextDelta(text=text):
                assert not calls
                texts.append(text)
            case ToolCallStarted(index=index):
                assert index == len(calls)
                calls.append((event, []))
            case ArgumentsDelta(index=index, text=text):
                assert index == len(calls) - 1
                calls[index][1].append(text)
    assert all([*texts, *thoughts, *[part for _, parts in calls for part in parts]]), "an empty delta"
    found = tuple([(started.id, started.name, "".join(parts)) for started, parts in calls])
    return Answer("".join(texts), "".join(thoughts), found)


def segments(raw: str, markers: tuple[str, ...]) -> list[Segment]:
    """`raw` with every marker that it spells as a `Control`."""
    parts = re.split("|".join([f"({re.escape(marker)})" for marker in markers]), raw)
    return [Control(part) if part in markers else part for part in parts if part]


def parse(parser: Parser, pieces: list[list[Segment]], *, complete: bool = False) -> Answer:
    """What a parser makes of an output that was cut, or is `complete`."""
    events = [event for piece in pieces for event in parser.feed(piece)]
    events += parser.flush(complete=complete)
    answer = fold(events)
    assert parser.calls == len(answer.calls)
    return answer


def parse_tokens(
    parser: Parser,
    pieces: list[list[int]],
    ids: dict[int, str],
    text_markers: tuple[str, ...],
    *,
    complete: bool = False,
) -> Answer:
    decoder = OutputDecoder(bytes, ids, text_markers)
    decoded = [decoder.feed(piece) for piece in pieces]
    return parse(parser, [*decoded, decoder.flush()], complete=complete)


def characters(raw: list[Segment]) -> list[Segment]:
    """One segment a character; markers stay whole."""
    return [part for segment in raw for part in (segment if isinstance(segment, str) else [segment])]


def tokens(raw: list[Segment], ids: dict[int, str]) -> list[int]:
    """One token a byte and a marker that has an id; other markers are spelled."""
    by_literal = {literal: token for token, literal in ids.items()}
    found: list[int] = []
    for segment in raw:
        if isinstance(segment, Control) and segment.name in by_literal:
            found.append(by_literal[segment.name])
        else:
            found += (segment.name if isinstance(segment, Control) else segment).encode()
    return found


def marker_ids(markers: tuple[str, ...]) -> dict[int, str]:
    """Ids after those of the 256 bytes."""
    return dict(enumerate(markers, 256))


def pieces(whole: Any, at: list[int]) -> list[Any]:
    """A list or a text, cut at these places, counted round and round."""
    borders = [0, *sorted(cut % (len(whole) + 1) for cut in at), len(whole)]
    return [whole[start:end] for start, end in pairwise(borders)]


def every_cutting(whole: list[Any]) -> Iterator[list[list[Any]]]:
    """All at once, in two in every way, and one by one."""
    yield [whole]
    for at in range(1, len(whole)):
        yield [whole[:at], whole[at:]]
    yield [[one] for one in whole]
