"""From the bytes of a choice to its text: UTF-8 put together, stop strings taken out."""

import codecs


class StopStrings:
    """Finds the stop string that is complete first in a text that arrives in pieces. `feed` and `flush`.

    Of two that are complete at once the longer one counts. Text that could be the beginning of a
    stop string is held back until that is decided.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.matched = False

    def feed(self, text: str) -> str:
        """The text now known to be outside any stop string; after a match, nothing more."""
        if self.matched:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.matched, self._held = True, ""
            _, start = min(found)
            return text[:start]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, at the end of the output."""
        held, self._held = self._held, ""
        return held


class OutputText:
    """Bytes of one choice to text: never a broken character, never a stop string. `feed` and `flush`."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stops.matched

    def feed(self, data: bytes) -> str:
        return self._stops.feed(self._decoder.decode(data))

    def flush(self) -> str:
        """The rest, at the end of the output; a character cut short becomes U+FFFD."""
        text = self._stops.feed(self._decoder.decode(b"", final=True))
        return text + self._stops.flush()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
