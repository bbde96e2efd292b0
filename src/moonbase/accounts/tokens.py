"""How much of a model a request used, in numbers that can be true."""

import logging

from msgspec import Struct

MOST = 2**53  # of tokens, and of nano-units: what every reader of a number keeps exact

log = logging.getLogger(__name__)


class Tokens(Struct, frozen=True, kw_only=True, gc=False):
    """What a request used: `0 <= cached <= prompt`, and no count under 0 or over `MOST`."""

    prompt: int
    cached: int
    output: int

    def __post_init__(self) -> None:
        """Raises `ValueError` for counts that cannot be; `counted` takes any."""
        if not (0 <= self.cached <= self.prompt <= MOST and 0 <= self.output <= MOST):
            raise ValueError("impossible token counts")

    @classmethod
    def counted(cls, request_id: str, *, prompt: int, cached: int, output: int) -> "Tokens":
        """What an engine counted. What cannot be becomes the nearest that can, and is logged."""
        if 0 <= cached <= prompt <= MOST and 0 <= output <= MOST:
            return cls(prompt=prompt, cached=cached, output=output)
        believed = _up_to(MOST, prompt)
        tokens = cls(prompt=believed, cached=_up_to(believed, cached), output=_up_to(MOST, output))
        log.error("request %s: impossible token counts, recorded as %r", request_id, tokens)
        return tokens

    @property
    def uncached(self) -> int:
        return self.prompt - self.cached


def _up_to(most: int, count: int) -> int:
    return max(0, min(count, most))
