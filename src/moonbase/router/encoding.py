"""Prompts to token ids, with what was encoded before remembered."""

import asyncio
from array import array
from collections import OrderedDict

from moonbase.chat.prompt import Control, Prompt
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
        """The prompt's token ids (`array('I')`)."""
        ids = array("I")
        for segment in prompt.segments:
            if isinstance(segment, Control):
                ids.append(self._tokenizer.control(segment.name))
            elif len(segment) < _WORTH_KEEPING:
                ids += self._tokenizer.encode_plain(segment)
            else:
                ids += await self._remembered(segment, scope)
        return ids

    async def _remembered(self, text: str, scope: str) -> TokenIds:
        key = (scope, text)
        known = self._cache.get(key)
        if known is not None:
            self._cache.move_to_end(key)
            return known
        if len(text) > _IN_THREAD:
            ids = await asyncio.to_thread(self._tokenizer.encode_plain, text)
        else:
            ids = self._tokenizer.encode_plain(text)
        self._keep(key, ids)
        return ids

    def _keep(self, key: tuple[str, str], ids: TokenIds) -> None:
        size = _size(key[1], ids)
        if size > self._max_bytes or key in self._cache:
            return
        self._cache[key] = ids
        self._bytes += size
        while self._bytes > self._max_bytes:
            (_, text), dropped = self._cache.popitem(last=False)
            self._bytes -= _size(text, dropped)


def _size(text: str, ids: TokenIds) -> int:
    return text.__sizeof__() + ids.itemsize * len(ids)
