"""`echo`: repeats the last user message word by word, or plays raw output from a script.

A product feature: the demo, the load target and the engine of tests that are not about a model.
It constrains nothing while it generates; what a request demands is validated afterwards.
"""

from pathlib import Path

from moonbase.config import EchoSettings
from moonbase.engines.base import EngineDescription, GenerateRequest, Generation, Tokenizer
from moonbase.engines.playback import Pieces, Playback, cut, words
from moonbase.errors import ConfigurationError


class EchoEngine:
    """Has no window of its own: every public id keeps its nominal one."""

    description = EngineDescription(name="echo", model="echo", window=None, validates_only=True)
    ready = True
    running = 0
    waiting = 0

    def __init__(self, settings: EchoSettings, tokenizer: Tokenizer) -> None:
        """Raises `ConfigurationError` when the script cannot be read."""
        self._settings = settings
        self._tokenizer = tokenizer
        self._script = None if settings.script is None else script_pieces(settings.script, tokenizer)

    async def start(self) -> None:
        """Nothing to make ready."""

    def generate(self, request: GenerateRequest) -> Generation:
        pieces = self._script if self._script is not None else words(request, self._tokenizer)
        kept, finish = cut(pieces, request.max_tokens)
        return Playback(
            kept,
            finish,
            choices=request.sampling.n,
            first_delay=self._settings.first_delay,
            delay=self._settings.delay,
        ).generation

    async def close(self) -> None:
        """Nothing to end: a generation ends with its reader."""


def script_pieces(script: str, tokenizer: Tokenizer) -> Pieces:
    """The script's text, one piece a token, so that characters may be cut anywhere."""
    try:
        text = Path(script).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"echo.script: {script} cannot be read as UTF-8 text") from error
    return [[token] for token in tokenizer.encode_plain(text)]
