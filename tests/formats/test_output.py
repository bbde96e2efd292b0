"""Token ids in pieces to segments, text in pieces to text without stops: any cutting gives the same."""

from itertools import chain, groupby

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.formats.outputs import cuts, pieces

from moonbase.chat.prompt import Control, Segment
from moonbase.formats.output import OutputDecoder, StopStrings

MARKERS = ("<call>", "</call>", "[世]")
BEGIN, END = 256, 257
IDS = {BEGIN: "<call>", END: "</call>"}

alphabet = st.text("ab世🤔", max_size=30)
stops = st.lists(st.text("ab世🤔", min_size=1, max_size=5), max_size=5).map(tuple)
characters = st.text("<cal>/[]世🤔", min_size=1, max_size=8).map(lambda text: list(text.encode()))
token_ids = st.lists(characters | st.sampled_from([[BEGIN], [END]])).map(lambda parts: [*chain(*parts)])
spelled = st.lists(st.sampled_from(MARKERS) | st.text("<cal>/[]世🤔", max_size=5)).map("".join)


def decoded(decoder: OutputDecoder, pieces: list[list[int]]) -> list[Segment]:
    """The segments, texts that follow one another joined; every token is counted once."""
    found: list[Segment] = []
    counted = 0
    for segments, tokens in [(decoder.feed(piece), decoder.tokens) for piece in pieces] + [
        (decoder.flush(), decoder.tokens)
    ]:
        assert len(segments) == len(tokens)
        found += segments
        counted += sum(tokens)
    if found:
        assert counted == sum([len(piece) for piece in pieces])
    assert "" not in found
    return joined(found)


def joined(segments: list[Segment]) -> list[Segment]:
    found: list[Segment] = []
    for is_text, group in groupby(segments, lambda segment: isinstance(segment, str)):
        run = list(group)
        found += ["".join(map(str, run))] if is_text else run
    return found


def split(text: str) -> list[Segment]:
    """The text with the leftmost markers taken out, one after the other."""
    places = [(text.find(marker), marker) for marker in MARKERS if marker in text]
    if not places:
        return [text] if text else []
    at, marker = min(places)
    return joined([*split(text[:at]), Control(marker), *split(text[at + len(marker) :])])


@given(token_ids, cuts)
def test_any_cutting_of_tokens_gives_the_same_segments(whole: list[int], at: list[int]) -> None:
    expected: list[Segment] = []
    for is_text, group in groupby(whole, lambda token: token < 256):
        run = list(group)
        expected += [bytes(run).decode(errors="replace")] if is_text else [Control(IDS[token]) for token in run]
    assert decoded(OutputDecoder(bytes, IDS), pieces(whole, at)) == expected


@given(spelled, cuts)
@example("<<call>", [1])
@example("<call<call>", [5, 6])
@example("[世世]", [2])
def test_markers_that_the_vocabulary_lacks_are_found_in_the_text(text: str, at: list[int]) -> None:
    assert decoded(OutputDecoder(bytes, {}, MARKERS), pieces(list(text.encode()), at)) == split(text)


@given(st.binary(), cuts)
def test_bytes_that_are_no_text_become_replacement_characters(data: bytes, at: list[int]) -> None:
    expected = data.decode(errors="replace")
    assert decoded(OutputDecoder(bytes, IDS), pieces(list(data), at)) == ([expected] if expected else [])


@given(st.text(), cuts)
def test_nothing_is_held_but_half_a_character(text: str, at: list[int]) -> None:
    decoder = OutputDecoder(bytes, IDS)
    given_so_far, shown = b"", ""
    for piece in pieces(list(text.encode()), at):
        given_so_far += bytes(piece)
        shown += "".join([str(segment) for segment in decoder.feed(piece)])
        assert shown == given_so_far.decode(errors="ignore")
    assert decoder.flush() == []


@pytest.mark.parametrize("text", ["é", "世", "🤔", "👩‍👩‍👧‍👦", "e\u0301"])
def test_every_single_cut_inside_a_character_is_harmless(text: str) -> None:
    data = list(text.encode())
    for at in range(len(data) + 1):
        assert decoded(OutputDecoder(bytes, IDS, ("<x>",)), [data[:at], data[at:]]) == [text]


def test_a_character_of_three_tokens_comes_with_the_last() -> None:
    vocabulary = {5885: b"\xf0\x9f", 97: b"\xa4", 242: b"\x94"}  # kimi-protocol.md 1.3
    decoder = OutputDecoder(lambda ids: b"".join([vocabulary[token] for token in ids]), IDS)
    assert [decoder.feed([token]) for token in vocabulary] == [[], [], ["🤔"]]
    assert decoder.tokens == [3]


def test_a_character_cut_short_is_shown_as_such() -> None:
    decoder = OutputDecoder(bytes, IDS)
    assert decoder.feed(list("世界".encode()[:4])) == ["世"]
    assert decoder.flush() == ["\ufffd"]
    assert decoder.feed([*"世".encode()[:2], BEGIN]) == ["\ufffd", Control("<call>")]


def test_text_that_spells_a_token_stays_text() -> None:
    assert OutputDecoder(bytes, IDS, ("[世]",)).feed(list(b"<call></call>")) == ["<call></call>"]


def test_the_beginning_of_a_spelled_marker_is_held_back_until_it_is_decided() -> None:
    decoder = OutputDecoder(bytes, IDS, ("<think>",))
    found = [decoder.feed(list(text)) for text in (b"a <th", b"i", b"s> <think", b"> b<")]
    assert found == [["a "], [], ["<this> "], [Control("<think>"), " b"]]
    assert decoder.feed([BEGIN]) == ["<", Control("<call>")]


def test_tokens_are_counted_segment_by_segment() -> None:
    decoder = OutputDecoder(bytes, IDS, ("<x>",))
    begin, end = map(Control, IDS.values())
    assert decoder.feed([*b"abc", BEGIN, *b"de", END, END, *b"f"]) == ["abc", begin, "de", end, end, "f"]
    assert decoder.tokens == [3, 1, 2, 1, 1, 1]
    decoder.feed([*b"a<x"])
    assert decoder.tokens == [3]
    decoder.feed([*b">b"])
    assert decoder.tokens == [2, 0]


def expected(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """What comes before the stop string that is complete first; of two that end together, the longer."""
    found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    _, start, stop = min(found)
    return text[:start], stop


@given(alphabet, stops, cuts)
@example("ab", ("ab", "b"), [1])
@example("abab", ("abab", "ba"), [])
@example("abab", ("abab", "ba"), [3])
@example("aab", ("ab",), [1, 2])
def test_any_cutting_gives_the_text_before_the_first_stop(text: str, stops: tuple[str, ...], at: list[int]) -> None:
    finder = StopStrings(stops)
    parts = [finder.feed(piece) for piece in pieces(text, at)]
    parts.append(finder.flush())
    assert ("".join(parts), finder.matched) == expected(text, stops)


@given(alphabet, stops, cuts)
def test_nothing_more_comes_after_a_stop(text: str, stops: tuple[str, ...], at: list[int]) -> None:
    finder = StopStrings(stops)
    for piece in pieces(text, at):
        matched = finder.matched
        assert not (finder.feed(piece) and matched)
    if finder.matched:
        assert finder.flush() == ""


def test_the_beginning_of_a_stop_is_held_back_until_it_is_decided() -> None:
    finder = StopStrings(("STOP",))
    assert [finder.feed(text) for text in ("go ST", "O", "x ", "STO")] == ["go ", "", "STOx ", ""]
    assert finder.flush() == "STO"
    assert not finder.matched
