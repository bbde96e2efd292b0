"""Bytes in pieces to text in pieces: any cutting gives the same text."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moonbase.formats.output import OutputText, StopStrings

alphabet = st.text("ab世🤔", max_size=30)
stops = st.lists(st.text("ab世🤔", min_size=1, max_size=5), max_size=5).map(tuple)
cuts = st.lists(st.integers(0, 200), max_size=30)


def pieces(data: bytes, at: list[int]) -> list[bytes]:
    borders = [0, *sorted(cut % (len(data) + 1) for cut in at), len(data)]
    return [data[start:end] for start, end in pairwise(borders)]


def expected(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """What comes before the stop string that is complete first; of two that end together, the longer."""
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return (text[: min(found)[1]], True) if found else (text, False)


@given(alphabet, stops, cuts)
@example("ab", ("ab", "b"), [1])
@example("abab", ("abab", "ba"), [])
@example("abab", ("abab", "ba"), [3])
@example("aab", ("ab",), [1, 2])
def test_any_cutting_gives_the_text_before_the_first_stop(text: str, stops: tuple[str, ...], cuts: list[int]) -> None:
    output = OutputText(stops)
    parts = [output.feed(piece) for piece in pieces(text.encode(), cuts)]
    if not output.stopped:
        parts.append(output.flush())
    assert ("".join(parts), output.stopped) == expected(text, stops)


@given(alphabet, stops, cuts)
def test_nothing_more_comes_after_a_stop(text: str, stops: tuple[str, ...], cuts: list[int]) -> None:
    output = OutputText(stops)
    for piece in pieces(text.encode(), cuts):
        stopped = output.stopped
        assert not (output.feed(piece) and stopped)
    if output.stopped:
        assert output.flush() == ""


@given(st.text(), cuts)
def test_without_stops_nothing_is_held_but_half_a_character(text: str, cuts: list[int]) -> None:
    output = OutputText(())
    given_so_far, shown = b"", ""
    for piece in pieces(text.encode(), cuts):
        given_so_far += piece
        shown += output.feed(piece)
        assert shown == given_so_far.decode(errors="ignore")
    assert output.flush() == ""


@given(st.binary(), cuts)
def test_bytes_that_are_no_text_become_replacement_characters(data: bytes, cuts: list[int]) -> None:
    output = OutputText(())
    text = "".join([output.feed(piece) for piece in pieces(data, cuts)]) + output.flush()
    assert text == data.decode(errors="replace")


@pytest.mark.parametrize("text", ["é", "世", "🤔", "👩‍👩‍👧‍👦", "e\u0301"])
def test_every_single_cut_inside_a_character_is_harmless(text: str) -> None:
    data = text.encode()
    for at in range(len(data) + 1):
        output = OutputText(())
        first, second = output.feed(data[:at]), output.feed(data[at:])
        assert first + second + output.flush() == text
        assert "\ufffd" not in first + second


def test_a_character_cut_short_by_the_end_is_shown_as_such() -> None:
    output = OutputText(())
    assert output.feed("世界".encode()[:4]) == "世"
    assert output.flush() == "\ufffd"


def test_the_beginning_of_a_stop_is_held_back_until_it_is_decided() -> None:
    finder = StopStrings(("STOP",))
    assert [finder.feed(text) for text in ("go ST", "O", "x ", "STO")] == ["go ", "", "STOx ", ""]
    assert finder.flush() == "STO"
    assert not finder.matched
