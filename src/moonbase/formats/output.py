"""From the token ids of a choice to its text: UTF-8 put together, markers told from text, stop strings taken out."""

import codecs
import re
from collections.abc import Callable, Mapping

from moonbase.chat.prompt import Control, Segment


class OutputDecoder:
    """Token ids of one choice to segments: texts, never empty, and markers. `feed` and `flush`.

    A marker that is one token is known by its id; text that merely spells it stays text. A marker that the
    vocabulary lacks is found in the text, of which no more is held back than may be the beginning of one.
    A text never ends inside a character; what is no UTF-8 becomes U+FFFD.
    """

    def __init__(
        self, decode: Callable[[list[int]], bytes], marker_ids: Mapping[int, str], text_markers: tuple[str, ...] = ()
    ) -> None:
        """`decode` gives the bytes of tokens; of `text_markers` none occurs in another."""
        self._decode = decode
        self._controls = {token: Control(literal) for token, literal in marker_ids.items()}
        self._ids = frozenset(marker_ids)
        self._text_markers = text_markers
        self._begins = _any_of({marker[0] for marker in text_markers}).search
        self._marker = _any_of(set(text_markers))
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._inside = False  # a character
        self._held = ""
        self._owed = 0
        self._segments: list[Segment] = []
        self.tokens: list[int] = []
        """How many tokens each segment of the latest `feed` or `flush` took.

        Tokens that were held back count in the segment that they become part of. A delta in which a marker was found
        as text counts in the first segment that it completes.
        """

    def feed(self, token_ids: list[int]) -> list[Segment]:
        """The segments that are known now."""
        self._segments, self.tokens = [], []
        start = 0
        if not self._ids.isdisjoint(token_ids):
            for at, token in enumerate(token_ids):
                if token in self._ids:
                    self._text(token_ids[start:at])
                    self._end_text()
                    self._add(self._controls[token], 1)
                    start = at + 1
        self._text(token_ids[start:] if start else token_ids)
        return self._segments

    def flush(self) -> list[Segment]:
        """What was held back, at the end of the output; a character cut short becomes U+FFFD."""
        self._segments, self.tokens = [], []
        self._end_text()
        return self._segments

    def _text(self, token_ids: list[int]) -> None:
        """Tokens that are no markers."""
        data = self._decode(token_ids)
        if self._inside:
            text = self._characters(data)
        else:
            try:
                text = data.decode()
            except UnicodeDecodeError:
                text = self._characters(data)
        if self._held or self._begins(text):
            self._owed += len(token_ids)
            self._find_markers(self._held + text)
        else:
            self._add(text, len(token_ids))

    def _characters(self, data: bytes) -> str:
        """The whole characters of what may begin or end inside one."""
        text = self._utf8.decode(data)
        self._inside = bool(self._utf8.getstate()[0])
        return text

    def _find_markers(self, text: str) -> None:
        start = 0
        for found in self._marker.finditer(text):
            self._add(text[start : found.start()], 0)
            self._add(Control(found[0]), 0)
            start = found.end()
        rest = text[start:]
        shown = len(rest) - max([_overlap(rest, marker) for marker in self._text_markers])
        self._add(rest[:shown], 0)
        self._held = rest[shown:]

    def _end_text(self) -> None:
        """Give what is held back: whatever it began was cut off."""
        held, self._held = self._held, ""
        if self._inside:
            held += self._utf8.decode(b"", final=True)
            self._inside = False
        self._add(held, 0)

    def _add(self, segment: Segment, tokens: int) -> None:
        self._owed += tokens
        if segment:
            self._segments.append(segment)
            self.tokens.append(self._owed)
            self._owed = 0


class StopStrings:
    """Finds the stop string that is complete first in a text that arrives in pieces. `feed` and `flush`.

    Of two that are complete at once the longer one counts. Text that could be the beginning of a
    stop string is held back until that is decided.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.matched: str | None = None
        """The stop string that was found."""

    def feed(self, text: str) -> str:
        """The text now known to be outside any stop string; after a match, nothing more."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, start, self.matched = min(found)
            self._held = ""
            return text[:start]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, at the end of the output."""
        held, self._held = self._held, ""
        return held


def _any_of(texts: set[str]) -> re.Pattern[str]:
    """A pattern for any of `texts`; for none it matches nowhere."""
    return re.compile("|".join(map(re.escape, sorted(texts))) or "(?!)")


def _overlap(text: str, whole: str) -> int:
    """Length of the longest end of `text` that begins `whole` and is not all of it."""
    at = text.find(whole[0], max(0, len(text) - len(whole) + 1))
    while at >= 0:
        if whole.startswith(text[at:]):
            return len(text) - at
        at = text.find(whole[0], at + 1)
    return 0
