"""`echo`: repeats the last user message word by word, or plays raw output from a script.

A product feature: the demo, the load target and the engine of tests that are not about a model.
It constrains nothing while it generates; what a request demands is validated afterwards.
"""

import re
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from moonbase.config import EchoSettings
from moonbase.engines.base import EngineDescription, GenerateRequest, Generation, Tokenizer
from moonbase.engines.playback import Pieces, Playback, cut, words
from moonbase.errors import ConfigurationError


class EchoEngine:
    """Has no window of its own: every public id keeps its nominal one."""

    description = EngineDescription(name="echo", model="echo", window=None, validates_only=True, reads_text=True)
    ready = True
    running = 0
    waiting = 0

    def __init__(self, settings: EchoSettings, tokenizer: Tokenizer, markers: tuple[str, ...]) -> None:
        """`markers` are the control tokens of scripts. Raises `ConfigurationError` for one that cannot be played."""
        self._settings = settings
        self._tokenizer = tokenizer
        self._script = None if settings.script is None else Script(Path(settings.script), tokenizer, markers)

    async def start(self) -> None:
        """Nothing to make ready."""

    def generate(self, request: GenerateRequest) -> Generation:
        pieces = None if self._script is None else self._script.output(request.user_text, request.turn)
        kept, finish = cut(words(request, self._tokenizer) if pieces is None else pieces, request.max_tokens)
        return Playback(
            kept,
            finish,
            choices=request.sampling.n,
            first_delay=self._settings.first_delay,
            delay=self._settings.delay,
        ).generation

    async def close(self) -> None:
        """Nothing to end: a generation ends with its reader."""


class Line(Struct, forbid_unknown_fields=True):
    """One line of a `.jsonl` script: the raw output that follows the user message `user`, or one that ends with it.

    Of several, each follows the answer before it, as in a loop of tool calls; the last is repeated.
    """

    user: str
    output: str | Annotated[list[str], Meta(min_length=1)]

    @property
    def outputs(self) -> list[str]:
        return [self.output] if isinstance(self.output, str) else self.output


class Script:
    """Raw outputs: a text that is played for every request, or a `.jsonl` file with one for each user message.

    Markers become control tokens, everything else is one piece a token, so that characters may be cut anywhere.
    """

    def __init__(self, file: Path, tokenizer: Tokenizer, markers: tuple[str, ...]) -> None:
        """Raises `ConfigurationError` when the file cannot be read."""
        try:
            text = file.read_text(encoding="utf-8")
            lines = msgspec.json.Decoder(Line).decode_lines(text) if file.suffix == ".jsonl" else None
        except OSError as error:
            raise ConfigurationError(f"echo.script: {file} cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"echo.script: {file} is not UTF-8 text") from error
        except msgspec.DecodeError as error:
            raise ConfigurationError(f"echo.script: {file} is not lines of user and output: {error}") from error
        self._tokenizer = tokenizer
        self._markers = re.compile(f"({'|'.join(map(re.escape, markers))})") if markers else None
        self._always = self._pieces(text) if lines is None else None
        self._by_user = {line.user: [self._pieces(output) for output in line.outputs] for line in lines or ()}

    def output(self, user_text: str, turn: int) -> Pieces | None:
        """What is played after `user_text` and `turn` answers to it, None when the script has nothing for it."""
        if self._always is not None:
            return self._always
        outputs = self._by_user.get(user_text) or next(
            (outputs for user, outputs in self._by_user.items() if user and user_text.endswith(user)), None
        )
        return None if outputs is None else outputs[min(turn, len(outputs) - 1)]

    def _pieces(self, text: str) -> Pieces:
        pieces: Pieces = []
        for number, part in enumerate(self._markers.split(text) if self._markers else [text]):
            if number % 2:
                pieces += self._marker(part)
            else:
                pieces += [[token] for token in self._tokenizer.encode_plain(part)]
        return pieces

    def _marker(self, literal: str) -> Pieces:
        try:
            return [[self._tokenizer.control(literal)]]
        except KeyError:
            return [[token] for token in self._tokenizer.encode_plain(literal)]
