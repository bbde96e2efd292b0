"""A served model: a format, a tokenizer and an engine put together. All of a model that `service` sees."""

import asyncio
from types import TracebackType
from typing import Self

from moonbase.catalog.model import Capabilities
from moonbase.chat.constraint import Constraint
from moonbase.chat.events import ChatEvent, Finished, FinishReason, TextDelta, Usage
from moonbase.chat.request import Message, Sampling
from moonbase.engines.base import Delta, Engine, GenerateRequest, Generation, TokenIds, Tokenizer, constraint_kind
from moonbase.errors import ApiError
from moonbase.formats.base import Format
from moonbase.formats.output import OutputText
from moonbase.router.encoding import PromptEncoder

_MANY_MESSAGES = 2_000  # rendering as many takes some milliseconds


class TokenDeployment:
    """`name` is what answers, as the banner, `/v1/models` and `Moonbase-Served-By` show it.

    The engine belongs to whoever made it. Formats render text only so far, so images are refused.
    """

    capabilities = Capabilities()

    def __init__(self, name: str, format: Format, tokenizer: Tokenizer, engine: Engine) -> None:
        """Raises `KeyError` for a control token that the format needs and the tokenizer lacks."""
        for control in format.controls:
            tokenizer.control(control)
        self.name = name
        self.engine = engine
        self._format = format
        self._tokenizer = tokenizer
        self._encoder = PromptEncoder(tokenizer)
        self._stop_ids = tuple([tokenizer.control(control) for control in format.stop_controls])

    def window(self, nominal: int) -> int:
        """Tokens that a model of this nominal window really has here, prompt plus completion."""
        own = self.engine.description.window
        return nominal if own is None else min(nominal, own)

    def enforces(self, constraint: Constraint) -> bool:
        """Whether output can be held to the constraint: while it is generated, or by checking it afterwards."""
        description = self.engine.description
        return description.validates_only or constraint_kind(constraint) in description.constrains

    async def encode(self, messages: tuple[Message, ...], scope: str) -> "PreparedPrompt":
        """Render and tokenise. `scope` keeps caches of organizations apart."""
        if len(messages) > _MANY_MESSAGES:
            prompt = await asyncio.to_thread(self._format.render, messages)
        else:
            prompt = self._format.render(messages)
        return PreparedPrompt(await self._encoder.encode(prompt, scope), prompt.user_text, scope)

    def open(
        self,
        request_id: str,
        prompt: "PreparedPrompt",
        *,
        sampling: Sampling,
        max_tokens: int,
        stop: tuple[str, ...],
        constraint: Constraint | None,
    ) -> "EventStream":
        """Start generating. Raises `ApiError` when the engine cannot take it."""
        generation = self.engine.generate(
            GenerateRequest(
                request_id=request_id,
                prompt_ids=prompt.ids,
                sampling=sampling,
                max_tokens=max_tokens,
                stop_ids=self._stop_ids,
                constraint=constraint,
                cache_scope=prompt.scope,
                user_text=prompt.user_text,
            )
        )
        return EventStream(generation, self._tokenizer, len(prompt.ids), sampling.n, stop)


class PreparedPrompt:
    """A rendered and tokenised conversation."""

    __slots__ = ("ids", "scope", "user_text")

    def __init__(self, ids: TokenIds, user_text: str, scope: str) -> None:
        self.ids = ids
        self.user_text = user_text
        self.scope = scope

    @property
    def tokens(self) -> int:
        return len(self.ids)


class EventStream:
    """A generation read as events. A context manager: leaving it cancels what still runs."""

    def __init__(
        self, generation: Generation, tokenizer: Tokenizer, prompt_tokens: int, choices: int, stop: tuple[str, ...]
    ) -> None:
        self._generation = generation
        self._tokenizer = tokenizer
        self._prompt_tokens = prompt_tokens
        self._choices = [_Choice(stop) for _ in range(choices)]

    def __enter__(self) -> Self:
        self._generation.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._generation.__exit__(kind, error, trace)

    @property
    def last_put(self) -> float | None:
        """`time.monotonic()` of the engine's latest output, None before the first."""
        return self._generation.last_put

    @property
    def open(self) -> bool:
        """Whether the engine still owes output."""
        return self._generation.open

    @property
    def completion_tokens(self) -> int:
        """Output tokens received so far, of all choices."""
        return sum([choice.tokens for choice in self._choices])

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from the engine's cache; known from the first read on."""
        return max([choice.cached for choice in self._choices])

    def abort(self, error: ApiError) -> None:
        """Cancel what still runs; the reader gets what has come, then `error`."""
        self._generation.abort(error)

    async def read(self) -> list[ChatEvent]:
        """All events that have come, waiting for at least one; an empty list after the last.

        Raises the `ApiError` that the engine failed with.
        """
        while deltas := await self._generation.read():
            events: list[ChatEvent] = []
            for delta in deltas:
                self._feed(delta, events)
            if events:
                return events
        return []

    def _feed(self, delta: Delta, events: list[ChatEvent]) -> None:
        choice = self._choices[delta.choice]
        if choice.output.stopped:
            return
        choice.tokens += len(delta.token_ids)
        choice.cached += delta.cached_tokens
        text = choice.output.feed(self._tokenizer.decode(delta.token_ids))
        finish: FinishReason | None = delta.finish
        if choice.output.stopped:
            self._generation.stop(delta.choice)
            finish = "stop"
        elif finish is not None:
            text += choice.output.flush()
        if text:
            events.append(TextDelta(delta.choice, text))
        if finish is not None:
            events.append(Finished(delta.choice, finish, Usage(self._prompt_tokens, choice.tokens, choice.cached)))


class _Choice:
    __slots__ = ("cached", "output", "tokens")

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.output = OutputText(stop)
        self.tokens = 0
        self.cached = 0
