"""Prompts to token ids, with what was encoded before remembered."""

import asyncio
from array import array
from collections import OrderedDict

from moonbase.chat.prompt import Control, Prompt, Segment
from moonbase.engines.base import TokenIds, Tokenizer

_IN_THREAD = 64 * 1024  # characters; longer texts would hold the event loop for more than a few milliseconds
_WORTH_KEEPING = 256  # characters; encoding less costs about what looking it up does
_CACHE_BYTES = 64 * 1024 * 1024


class PromptEncoder:
    """Encodes segments, long ones in a thread, and keeps encoded segments in an LRU bounded in bytes.

    Entries are found only in the scope (organization) that made them, so that timing tells nobody
    what others have sent.
    """

    def __init__(self, tokenizer: Tokenizer, max_bytes: int = _CACHE_BYTES) -> None:
        self._tokenizer = tokenizer
        self._cache: OrderedDict[tuple[str, str], TokenIds] = OrderedDict()
        self._bytes = 0
        self._max_bytes = max_bytes

    async def encode(self, prompt: Prompt, scope: str) -> TokenIds:
        """The prompt's token ids. What is not known and together long is encoded in one thread."""
        found = [self._find(segment, scope) for segment in prompt.segments]
        unknown = [
            segment
            for segment, known in zip(prompt.segments, found, strict=True)
            if known is None and isinstance(segment, str)
        ]
        if sum([len(segment) for segment in unknown]) > _IN_THREAD:
            encoded = iter(await asyncio.to_thread(self._encode_all, unknown))
        else:
            encoded = iter(self._encode_all(unknown))
        ids = array("I")
        for segment, known in zip(prompt.segments, found, strict=True):
            if known is None:
                assert isinstance(segment, str)
                known = next(encoded)
                self._keep((scope, segment), known)
            ids += known
        return ids

    def _find(self, segment: Segment, scope: str) -> "TokenIds | None":
        if isinstance(segment, Control):
            return array("I", [self._tokenizer.control(segment.name)])
        if len(segment) < _WORTH_KEEPING:
            return None
        known = self._cache.get((scope, segment))
        if known is not None:
            self._cache.move_to_end((scope, segment))
        return known

    def _encode_all(self, texts: list[str]) -> list[TokenIds]:
        return [self._tokenizer.encode_plain(text) for text in texts]

    def _keep(self, key: tuple[str, str], ids: TokenIds) -> None:
        size = _size(key[1], ids)
        if len(key[1]) < _WORTH_KEEPING or size > self._max_bytes or key in self._cache:
            return
        self._cache[key] = ids
        self._bytes += size
        while self._bytes > self._max_bytes:
            (_, text), dropped = self._cache.popitem(last=False)
            self._bytes -= _size(text, dropped)


def _size(text: str, ids: TokenIds) -> int:
    return text.__sizeof__() + ids.itemsize * len(ids)
