"""What the engine's prefix cache probably holds.

OpenVINO reuses cached blocks without saying how many, so the worker keeps a shadow of its block table: which
blocks were computed, least recently used first out. OpenVINO shares its blocks between organizations; the
shadow does not, so an organization is only told of, and only pays less for, what it computed itself.
"""

from array import array
from collections import OrderedDict

from moonbase.engines.base import TokenIds


class PrefixShadow:
    """Sizes are in tokens unless they say blocks. What is unknown counts as a miss."""

    def __init__(self, blocks: int, block_size: int) -> None:
        """`blocks` is how many the engine has, for all scopes together."""
        self._limit = blocks
        self._block_size = block_size
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def cached(self, scope: str, prompt: TokenIds) -> int:
        """How many leading tokens of `prompt` are cached: whole blocks, and never the last token."""
        found = 0
        for key in self._keys(scope, prompt, (len(prompt) - 1) // self._block_size):
            if key not in self._blocks:
                break
            self._blocks.move_to_end(key)
            found += 1
        return found * self._block_size

    def record(self, scope: str, tokens: TokenIds) -> None:
        """The engine has computed `tokens`; its whole blocks are cached from now on."""
        for key in self._keys(scope, tokens, len(tokens) // self._block_size):
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        while len(self._blocks) > self._limit:
            self._blocks.popitem(last=False)

    def _keys(self, scope: str, tokens: TokenIds, count: int) -> list[int]:
        """One key per block, which stands for the block and all before it."""
        data, width = tokens.tobytes(), self._block_size * array("I").itemsize
        key, keys = hash(scope), []
        for start in range(0, count * width, width):
            key = hash((key, data[start : start + width]))
            keys.append(key)
        return keys
