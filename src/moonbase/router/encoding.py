"""Conversations to token ids, with what was encoded before remembered."""

import asyncio
from array import array
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

from moonbase.chat.prompt import Control, Prompt, Segment
from moonbase.chat.request import Conversation
from moonbase.engines.base import TokenIds, Tokenizer
from moonbase.formats.base import Format
from moonbase.formats.recent import Recent

_MANY = 2_000  # messages and calls; rendering as many takes some milliseconds
_LARGE_TOOLS = 128 * 1024  # characters of declarations; new ones take some milliseconds
_IN_THREAD = 64 * 1024  # characters; longer texts would hold the event loop for more than a few milliseconds
_AT_ONCE = 2_000  # segments looked up or put together between two turns of the event loop
_ENTRY_BYTES = 300  # of an entry beside its text and its ids
_CACHE_BYTES = 64 * 1024 * 1024

T = TypeVar("T")


class ConversationEncoder:
    """Renders a conversation and encodes the prompt. Images count nothing here."""

    def __init__(self, format: Format, tokenizer: Tokenizer) -> None:
        self._format = format
        self._encoder = PromptEncoder(tokenizer)

    async def encode(self, conversation: Conversation, scope: str) -> TokenIds:
        """The prompt's token ids; `scope` as in `PromptEncoder`. Raises `InvalidRequest` as the format does."""
        if _is_large(conversation):
            prompt = await asyncio.to_thread(self._format.render, conversation)
        else:
            prompt = self._format.render(conversation)
        return await self._encoder.encode(prompt, scope)


def _is_large(conversation: Conversation) -> bool:
    """Whether rendering may hold the event loop for more than a few milliseconds."""
    count = len(conversation.messages) + sum([len(message.tool_calls) for message in conversation.messages])
    return count > _MANY or sum([len(tool.declaration) for tool in conversation.tools]) > _LARGE_TOOLS


class PromptEncoder:
    """Encodes segments, long ones in a thread, and keeps encoded segments in an LRU bounded in bytes.

    Entries are found only in the scope (organization) that made them, so that timing tells nobody
    what others have sent.
    """

    def __init__(self, tokenizer: Tokenizer, max_bytes: int = _CACHE_BYTES) -> None:
        self._tokenizer = tokenizer
        self._cache: Recent[tuple[str, str], TokenIds] = Recent(max_bytes)
        self._controls: dict[str, TokenIds] = {}

    async def encode(self, prompt: Prompt, scope: str) -> TokenIds:
        """The prompt's token ids. What is not known and together long is encoded in one thread.

        Of many segments the event loop gets its turn between some and some.
        """
        parts: list[TokenIds | None] = []
        async for segments in _in_turns(prompt):
            parts += [self._find(segment, scope) for segment in segments]
        places = [place for place, part in enumerate(parts) if part is None]
        unknown = [segment for place in places if isinstance(segment := prompt[place], str)]
        if sum([len(text) for text in unknown]) > _IN_THREAD:
            encoded = await asyncio.to_thread(self._encode_all, unknown)
        else:
            encoded = self._encode_all(unknown)
        async for news in _in_turns(list(zip(places, unknown, encoded, strict=True))):
            for place, text, found in news:
                parts[place] = found
                self._cache.keep((scope, text), found, _size(text, found))
        ids = array("I")
        async for known in _in_turns(parts):
            for part in known:
                assert part is not None
                ids += part
        return ids

    def _find(self, segment: Segment, scope: str) -> "TokenIds | None":
        if isinstance(segment, Control):
            return self._control(segment.name)
        return self._cache.get((scope, segment))

    def _control(self, name: str) -> TokenIds:
        ids = self._controls.get(name)
        if ids is None:
            ids = self._controls[name] = array("I", [self._tokenizer.control(name)])
        return ids

    def _encode_all(self, texts: list[str]) -> list[TokenIds]:
        return [self._tokenizer.encode_plain(text) for text in texts]


async def _in_turns(items: Sequence[T]) -> AsyncIterator[Sequence[T]]:
    """Some at a time, and other tasks' turns in between."""
    for first in range(0, len(items), _AT_ONCE):
        if first:
            await asyncio.sleep(0)
        yield items[first : first + _AT_ONCE]


def _size(text: str, ids: TokenIds) -> int:
    return _ENTRY_BYTES + text.__sizeof__() + ids.itemsize * len(ids)
