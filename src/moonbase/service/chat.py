"""The chat use case: from a decoded request to events, with limits held and the account settled."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from msgspec import Struct

from moonbase.accounts.accounts import Accounts
from moonbase.catalog import rules
from moonbase.catalog.catalog import Catalog
from moonbase.catalog.model import Model
from moonbase.chat.events import ChatEvent, Finished, TextDelta
from moonbase.chat.request import ChatRequest, ImagePart, Message
from moonbase.config import EngineSettings, Settings
from moonbase.errors import GenerationTimeout, InvalidRequest, PromptTooLong
from moonbase.formats.response_format import OutputRule, output_rule
from moonbase.router.deployment import EventStream, PreparedPrompt, TokenDeployment
from moonbase.router.router import Router
from moonbase.store.records import Caller, Outcome
from moonbase.telemetry import Metrics, ModelMetrics


class Arrival(Struct, frozen=True):
    """When and as what a request came: `at` in unix milliseconds, `monotonic` in seconds of that clock."""

    request_id: str
    at: int
    monotonic: float


class Answer:
    """The answer to one request, read as events until an empty list."""

    def __init__(
        self,
        model: Model,
        deployment: TokenDeployment,
        stream: EventStream,
        metrics: ModelMetrics,
        arrival: Arrival,
        adapted: list[str],
        rule: OutputRule | None,
    ) -> None:
        """`adapted` names what was changed about the request, `rule` is what the output is checked against."""
        self.model = model
        self.served_by = deployment.name
        self.adapted = adapted
        self.outcome: Outcome = "cancelled"
        self.abandoned = False
        self.first_token_at: int | None = None
        self._rule = rule
        self._stream = stream
        self._metrics = metrics
        self._last = arrival.monotonic
        self._tokens = 0
        self._texts: dict[int, list[str]] = {}

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens from the cache; known from the first read on."""
        return self._stream.cached_tokens

    def abandon(self) -> None:
        """The client has left: what was generated until then is its to pay."""
        self.abandoned = True

    async def read(self) -> list[ChatEvent]:
        """All events that have come, waiting for at least one; an empty list after the last.

        Raises the `ApiError` that ended the answer early: the engine's, a time limit's, or
        `InvalidOutput` when the output is not what the request demanded.
        """
        events = await self._stream.read()
        now = time.monotonic()
        if not events:
            return events
        if self.first_token_at is None:
            self.first_token_at = time.time_ns() // 1_000_000
            self._metrics.time_to_first_token.observe(now - self._last)
        elif new := self._stream.completion_tokens - self._tokens:
            self._metrics.inter_token.observe((now - self._last) / new, new)
        self._last = now
        self._tokens = self._stream.completion_tokens
        if self._rule is not None:
            self._check(self._rule, events)
        if isinstance(events[-1], Finished) and not self._stream.open:
            self.outcome = events[-1].reason
        return events

    def _check(self, rule: OutputRule, events: list[ChatEvent]) -> None:
        for event in events:
            if isinstance(event, TextDelta):
                self._texts.setdefault(event.choice, []).append(event.text)
            elif event.reason == "stop":
                rule.check("".join(self._texts.get(event.choice, ())))


class ChatService:
    """Answers chat requests of callers that have been let in."""

    def __init__(
        self, settings: Settings, catalog: Catalog, router: Router, accounts: Accounts, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._router = router
        self._accounts = accounts
        self._metrics = metrics

    @asynccontextmanager
    async def open(self, caller: Caller, request: ChatRequest, arrival: Arrival) -> AsyncIterator[Answer]:
        """Run `request`; everything it holds is released, and the account settled, on leaving.

        Tokens generated until then are billed, unless the answer failed for a reason of ours.
        Raises `ApiError` for whatever is wrong before the first event.
        """
        model = self._catalog.resolve(request.model)
        sampling = rules.sampling(model, request.sampling)
        rule = output_rule(request.response_format)
        adapted: list[str] = []
        if rule is not None and request.messages[-1].partial:
            rule = None  # the output continues a text of the client's: alone it is no JSON
            adapted.append("response_format=text")
        if rule is not None and rule.left_out:
            adapted.append(f"response_format.left_out={'+'.join(rule.left_out)}")
        constraint = rule.constraint if rule is not None else None
        deployment = self._router.pick(model, constraint)
        _refuse_images(request.messages, deployment)
        prompt = await deployment.encode(request.messages, caller.organization_id)
        max_tokens = self._output_limit(request, model, deployment, prompt, adapted)
        billed = model.tier_for(prompt.tokens + max_tokens)
        today = datetime.fromtimestamp(arrival.at / 1000, UTC).date()
        metrics = self._metrics.model(model.id)
        with (
            self._accounts.reserve(
                caller,
                request_id=arrival.request_id,
                model=billed.id,
                served_by=deployment.name,
                price=billed.price_on(today, caller.currency),
                prompt_tokens=prompt.tokens,
                max_tokens=max_tokens * sampling.n,
                started_at=arrival.at,
            ) as reservation,
            deployment.open(
                arrival.request_id,
                prompt,
                sampling=sampling,
                max_tokens=max_tokens,
                stop=request.stop,
                constraint=constraint,
            ) as stream,
            _Watchdog(stream, self._settings.engine),
        ):
            if rule is not None and request.stop:
                rule = None  # a stop string may end it anywhere, as asked
                adapted.append("response_format.validation=off")
            answer = Answer(model, deployment, stream, metrics, arrival, adapted, rule)
            failed = True
            try:
                yield answer
                failed = False
            finally:
                failed = failed and not answer.abandoned
                cached, output = stream.cached_tokens, stream.completion_tokens
                metrics.ended("failed" if failed else answer.outcome, prompt.tokens, cached, output)
                if not failed:
                    reservation.settle(
                        miss=prompt.tokens - cached,
                        hit=cached,
                        write=0,
                        output=output,
                        outcome=answer.outcome,
                        first_token_at=answer.first_token_at,
                    )

    async def count(self, caller: Caller, model_id: str, messages: tuple[Message, ...]) -> int:
        """Tokens that `messages` would be as a prompt, by the tokenizer that serves the model."""
        deployment = self._router.serves(self._catalog.resolve(model_id))
        _refuse_images(messages, deployment)
        return (await deployment.encode(messages, caller.organization_id)).tokens

    def _output_limit(
        self,
        request: ChatRequest,
        model: Model,
        deployment: TokenDeployment,
        prompt: PreparedPrompt,
        adapted: list[str],
    ) -> int:
        """Output tokens this request may have. A prompt is never cut: one that does not fit is refused."""
        window = deployment.window(model.window)
        room = window - prompt.tokens
        if room < 1:
            raise PromptTooLong(window, max(prompt.tokens, window + 1))
        if request.max_tokens is None:
            return min(model.max_output, room)
        if request.max_tokens <= room:
            return request.max_tokens
        if self._settings.mode == "strict":
            raise PromptTooLong(window, prompt.tokens + request.max_tokens)
        adapted.append(f"max_tokens={room}")
        return room


def _refuse_images(messages: tuple[Message, ...], deployment: TokenDeployment) -> None:
    if deployment.capabilities.image_in:
        return
    for position, message in enumerate(messages):
        if any(isinstance(part, ImagePart) for part in message.content):
            raise InvalidRequest(f"the message at position {position} has an image, which {deployment.name} cannot see")


class _Watchdog:
    """Ends a stream that exceeds a time limit, with one timer that is set again only when it fires.

    The first time it fires after the shortest limit, since nobody tells it when the first token comes.
    """

    def __init__(self, stream: EventStream, limits: EngineSettings) -> None:
        self._stream = stream
        self._limits = limits
        self._started = time.monotonic()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Self:
        limits = self._limits
        nearest = min(limits.queue_timeout, limits.idle_timeout, limits.total_timeout)
        self._timer = self._loop.call_later(nearest, self._check)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    def _left(self) -> tuple[float, str, float]:
        """Seconds to the nearest limit, its name and its length."""
        now = time.monotonic()
        limits = self._limits
        total = (self._started + limits.total_timeout - now, "total", limits.total_timeout)
        last = self._stream.last_put
        if last is None:
            return min(total, (self._started + limits.queue_timeout - now, "first token", limits.queue_timeout))
        return min(total, (last + limits.idle_timeout - now, "idle", limits.idle_timeout))

    def _check(self) -> None:
        if not self._stream.open:
            return
        left, limit, seconds = self._left()
        if left <= 0:
            self._stream.abort(GenerationTimeout(limit, seconds))
        else:
            soon = min(left, self._limits.idle_timeout)
            self._timer = self._loop.call_later(soon, self._check)
