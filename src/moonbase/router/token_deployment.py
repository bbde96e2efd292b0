"""A format, a tokenizer and an engine put together: conversations to token ids, token ids to events."""

import contextlib
from types import TracebackType
from typing import Self

from moonbase.catalog.model import Capabilities
from moonbase.chat.constraint import Constraint
from moonbase.chat.events import (
    ChatEvent,
    EngineFinish,
    Finished,
    FinishReason,
    OutputEvent,
    TextDelta,
    ToolCallStarted,
    Usage,
)
from moonbase.chat.prompt import Segment
from moonbase.chat.request import ChatRequest, Conversation, Sampling
from moonbase.config import EngineSettings
from moonbase.engines.base import Delta, Engine, GenerateRequest, Generation, TokenIds, Tokenizer
from moonbase.engines.grammar import Grammar, Grammars
from moonbase.engines.pipe import Pipe
from moonbase.errors import ApiError, InvalidRequest
from moonbase.formats.base import Format, Parser
from moonbase.formats.output import OutputDecoder, StopStrings
from moonbase.router.encoding import ConversationEncoder


class TokenDeployment:
    """A `Deployment` of our own: the engine gets and gives token ids and knows neither messages nor text.

    The engine is started and closed with it. Formats render text only so far, so images are refused.
    """

    renders = True

    def __init__(
        self, name: str, format: Format, tokenizer: Tokenizer, engine: Engine, settings: EngineSettings
    ) -> None:
        """Of `settings`, `enforce` and the time limits count here.

        Raises `KeyError` for a control token that the format needs and the tokenizer lacks.
        """
        for control in format.controls:
            tokenizer.control(control)
        self.name = name
        self.enforces = settings.enforce
        self.limits = settings
        self.capabilities = Capabilities(reasoning=format.reasons, tools=True)
        self._format = format
        self._tokenizer = tokenizer
        self._engine = engine
        self._encoder = ConversationEncoder(format, tokenizer)
        self._stop_ids = tuple(single_tokens(tokenizer, format.stop_controls).values())
        marker_ids = single_tokens(tokenizer, format.markers)
        self._marker_ids = {number: literal for literal, number in marker_ids.items()}
        dialect = engine.description.dialect
        self._grammars = None if dialect is None else Grammars(dialect)
        spelled = engine.description.spells_markers
        self._text_markers = tuple([literal for literal in format.markers if spelled or literal not in marker_ids])

    @property
    def ready(self) -> bool:
        return self._engine.ready

    @property
    def running(self) -> int:
        return self._engine.running

    @property
    def waiting(self) -> int:
        return self._engine.waiting

    @property
    def own_window(self) -> int | None:
        return self._engine.description.window

    async def start(self) -> None:
        await self._engine.start()

    async def close(self) -> None:
        await self._engine.close()

    async def prepare(self, request: ChatRequest, conversation: Conversation, scope: str) -> "PreparedPrompt":
        told = self.enforces or self._engine.description.validates_only  # what only validates may know what is asked
        constraint = self._constraint(conversation) if told else None
        grammar = None
        if constraint is not None and self._grammars is not None:
            grammar = await self._grammars.prepare(constraint)
        ids = await self._encoder.encode(conversation, scope)
        return PreparedPrompt(self, ids, request.stop, conversation, constraint, grammar, scope)

    def _constraint(self, conversation: Conversation) -> Constraint | None:
        """What the engine is to enforce; a free answer needs no enforcing where the engine cannot."""
        constraint = self._format.constraint(conversation)
        if constraint is None:
            return None
        description = self._engine.description
        if description.validates_only or description.dialect is not None:
            return constraint
        if conversation.content is not None:
            raise InvalidRequest(f"response_format is not supported: {self.name} cannot be held to a schema")
        if conversation.tools and conversation.tool_choice.kind != "none":
            raise InvalidRequest(f"tools is not supported: {self.name} cannot be held to their schemas")
        return None

    def open(self, prompt: "PreparedPrompt", request_id: str, sampling: Sampling, max_tokens: int) -> "TokenStream":
        """Start generating. Raises `ApiError` when the engine cannot take it."""
        generation = self._engine.generate(
            GenerateRequest(
                request_id=request_id,
                prompt_ids=prompt.ids,
                sampling=sampling,
                max_tokens=max_tokens,
                stop_ids=self._stop_ids,
                constraint=prompt.constraint,
                grammar=prompt.grammar,
                cache_scope=prompt.scope,
                user_text=prompt.conversation.user_text if self._engine.description.reads_text else "",
                turn=prompt.conversation.turn,
            )
        )
        choices = [self._choice(prompt, number, max_tokens) for number in range(sampling.n)]
        return TokenStream(generation, choices, len(prompt.ids))

    def _choice(self, prompt: "PreparedPrompt", number: int, max_tokens: int) -> "_Choice":
        looks = prompt.conversation.tools or self._format.reasons  # else what spells a marker is just text
        decoder = OutputDecoder(self._tokenizer.decode, self._marker_ids, self._text_markers if looks else ())
        stops = StopStrings(prompt.stop) if prompt.stop else None
        parser = self._format.parser(prompt.conversation, number)
        return _Choice(number, decoder, parser, stops, room=max_tokens, prompt_tokens=len(prompt.ids))


class PreparedPrompt:
    """A rendered and tokenised conversation, and what its answer must be."""

    __slots__ = ("_deployment", "constraint", "conversation", "grammar", "ids", "scope", "stop")

    def __init__(
        self,
        deployment: TokenDeployment,
        ids: TokenIds,
        stop: tuple[str, ...],
        conversation: Conversation,
        constraint: Constraint | None,
        grammar: Grammar | None,
        scope: str,
    ) -> None:
        self._deployment = deployment
        self.ids = ids
        self.stop = stop
        self.conversation = conversation
        self.constraint = constraint
        self.grammar = grammar
        self.scope = scope

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def estimated(self) -> bool:
        return False

    def open(self, request_id: str, *, sampling: Sampling, max_tokens: int) -> "TokenStream":
        return self._deployment.open(self, request_id, sampling, max_tokens)


class TokenStream(Pipe[ChatEvent]):
    """An `EventStream` over an engine's generation."""

    silent = False

    def __init__(self, generation: Generation, choices: "list[_Choice]", prompt_tokens: int) -> None:
        super().__init__()
        self._generation = generation
        self._choices = choices
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        generation.listen(self.arrived)

    def __enter__(self) -> Self:
        self._generation.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._generation.__exit__(kind, error, trace)

    @property
    def last_put(self) -> float | None:
        return self._generation.last_put

    @property
    def open(self) -> bool:
        return self._generation.open

    @property
    def cached_tokens(self) -> int:
        return max([choice.cached for choice in self._choices])

    def abort(self, error: ApiError) -> None:
        self._generation.abort(error)

    def take(self) -> list[ChatEvent]:
        events: list[ChatEvent] = []
        while not events and (deltas := self._generation.take()):
            for delta in deltas:
                self._feed(delta, events)
        self.over = self._generation.over
        return events

    def _feed(self, delta: Delta, events: list[ChatEvent]) -> None:
        choice = self._choices[delta.choice]
        if choice.ended:
            return
        before = choice.tokens
        reason: FinishReason | None = choice.feed(delta, events)
        self.completion_tokens += choice.tokens - before
        if choice.ended:
            self._generation.stop(delta.choice)
        if reason == "stop" and choice.called:
            reason = "tool_calls"
        if reason is not None:
            usage = Usage(self.prompt_tokens, choice.tokens, choice.cached, choice.reasoning_tokens)
            events.append(Finished(delta.choice, reason, usage, choice.broken_calls, choice.stop))


class _Choice:
    """One choice's way from token ids to events. Stop strings count in its text, not in reasoning or arguments.

    What engines count is believed within bounds: no more than `room` tokens of output, nor than `prompt_tokens` from a
    cache.
    """

    __slots__ = (
        *("_decoder", "_number", "_parser", "_prompt_tokens", "_room", "_stops"),
        *("cached", "called", "ended", "reasoning_tokens", "tokens"),
    )

    def __init__(
        self,
        number: int,
        decoder: OutputDecoder,
        parser: Parser,
        stops: StopStrings | None,
        *,
        room: int,
        prompt_tokens: int,
    ) -> None:
        self._number = number
        self._room = room
        self._prompt_tokens = prompt_tokens
        self._decoder = decoder
        self._parser = parser
        self._stops = stops
        self.tokens = 0
        self.cached = 0
        self.reasoning_tokens = 0
        self.called = False
        """Whether a tool call was reported."""
        self.ended = False
        """Whether it has all it may have, so that the engine need not go on."""

    @property
    def stop(self) -> str | None:
        """The stop string that ended it."""
        return None if self._stops is None else self._stops.matched

    @property
    def broken_calls(self) -> int:
        """Tool calls that were begun and could not be reported."""
        return self._parser.dropped

    def feed(self, delta: Delta, events: list[ChatEvent]) -> EngineFinish | None:
        """Add the events of `delta`; how the choice ends, if it does."""
        ids, finish = delta.token_ids, delta.finish
        left = self._room - self.tokens
        if len(ids) > left:
            ids, finish, self.ended = ids[:left], "length", True
        self.tokens += len(ids)
        self.cached = min(max(self.cached + delta.cached_tokens, 0), self._prompt_tokens)
        found = self._parsed(self._decoder.feed(ids))
        if finish is not None:
            found += self._parsed(self._decoder.flush())
            found += self._parser.flush(complete=finish == "stop")
        if self._stops is None:
            self.called = self._parser.calls > 0
            events += found
            return finish
        self._cut(self._stops, found, events)
        if self._stops.matched is not None:
            self.ended = True
            return "stop"
        if finish is not None and (held := self._stops.flush()):
            events.append(TextDelta(self._number, held))
        return finish

    def _parsed(self, segments: list[Segment]) -> list[OutputEvent]:
        parser = self._parser
        if len(segments) < 2 and not parser.reasoning:
            return parser.feed(segments)
        found: list[OutputEvent] = []
        for segment, tokens in zip(segments, self._decoder.tokens, strict=True):
            if parser.reasoning and isinstance(segment, str):
                self.reasoning_tokens += tokens
            found += parser.feed([segment])
        return found

    def _cut(self, stops: StopStrings, found: list[OutputEvent], events: list[ChatEvent]) -> None:
        """Add what is outside any stop string. Text ends where another kind of output begins."""
        for event in found:
            text = stops.feed(event.text) if isinstance(event, TextDelta) else stops.flush()
            if text:
                events.append(TextDelta(self._number, text))
            if stops.matched is not None:
                return
            if not isinstance(event, TextDelta):
                events.append(event)
                self.called = self.called or isinstance(event, ToolCallStarted)


def single_tokens(tokenizer: Tokenizer, literals: tuple[str, ...]) -> dict[str, int]:
    """Those of `literals` that are one token each, with its id."""
    found: dict[str, int] = {}
    for literal in literals:
        with contextlib.suppress(KeyError):
            found[literal] = tokenizer.control(literal)
    return found
