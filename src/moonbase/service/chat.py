"""The chat use case: from a decoded request to events, with limits held and the account settled."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Self

from msgspec import Struct, structs

from moonbase.accounts.ledger import Ledger, Reservation, counted
from moonbase.accounts.limits import Admission
from moonbase.accounts.prices import Prices
from moonbase.catalog import rules
from moonbase.catalog.catalog import Catalog
from moonbase.catalog.model import Model
from moonbase.chat.events import ChatEvent, Finished
from moonbase.chat.request import ChatRequest, Conversation, ImagePart, Message
from moonbase.config import EngineSettings, Mode, Settings
from moonbase.engines.pipe import Deliver
from moonbase.errors import GenerationTimeout, InvalidOutput, InvalidRequest, PromptTooLong
from moonbase.formats.schemas.book import SchemaBook
from moonbase.router.deployment import Deployment, EventStream, PreparedChat
from moonbase.router.deployment import window as real_window
from moonbase.router.router import Router
from moonbase.service.demand import Demand, OutputChecks
from moonbase.service.hygiene import without_changing_lines
from moonbase.service.models import permitted
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
        deployment: Deployment,
        metrics: ModelMetrics,
        arrival: Arrival,
        demand: Demand,
        reservation: Reservation,
        stream: EventStream,
    ) -> None:
        self.model = model
        self.served_by = deployment.name
        self.adapted = demand.adapted
        self.warnings = demand.warnings
        self.outcome: Outcome = "cancelled"
        self.abandoned = False
        self.complete = False
        self.first_token_at: int | None = None
        self._checks = demand.checks()
        self._enforces = deployment.enforces
        self._broken: InvalidOutput | None = None
        self._stream = stream
        self._metrics = metrics
        self._reservation = reservation
        self._last = arrival.monotonic
        self._tokens = 0
        self._deliver: Deliver[ChatEvent] | None = None

    @property
    def prompt_tokens(self) -> int:
        """Ours to count; an upstream that counts itself may tell another number at the end."""
        return self._stream.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens from the cache; known from the first read on, of some upstreams at the end only."""
        return self._stream.cached_tokens

    def abandon(self) -> None:
        """The client has left: what was generated until then is its to pay."""
        self.abandoned = True

    async def read(self, deliver: Deliver[ChatEvent] | None = None) -> list[ChatEvent]:
        """All events that have come, waiting for at least one; an empty list after the last.

        While it waits, events that end no choice are given to `deliver` as they come, and what it declines is returned
        with the others. Raises the `ApiError` that ended the answer early: the engine's, a time limit's, or
        `InvalidOutput` when the output is not what the request demanded; and what `deliver` raises.
        """
        if self._broken is not None:
            raise self._broken
        if self.complete:
            return []
        self._deliver = deliver
        events = await self._stream.read(None if deliver is None else self._delivered)
        if not events:
            return events
        first = self.first_token_at is None
        if first:
            self.first_token_at = time.time_ns() // 1_000_000
            now = time.monotonic()
            self._metrics.time_to_first_token.observe(now - self._last)
            self._last = now
            self._tokens = self._stream.completion_tokens
        else:
            self._count()
        if self._checks is not None:
            events = await self._checked(self._checks, events, first=first)
        if self._broken is None and isinstance(events[-1], Finished) and not self._stream.open:
            self.outcome = events[-1].reason
            self.complete = True
        return events

    def _delivered(self, events: list[ChatEvent]) -> bool:
        """Ends are declined: what comes with them is checked and settled before it is sent."""
        for event in events:
            if type(event) is Finished:
                return False
        assert self._deliver is not None
        if not self._deliver(events):
            return False
        self._count()
        if self._checks is not None:
            self._checks.gather(events)
        return True

    def _count(self) -> None:
        """Tell metrics and ledger of the tokens that came with the latest events."""
        now = time.monotonic()
        tokens = self._stream.completion_tokens
        if new := tokens - self._tokens:
            self._metrics.inter_token.observe((now - self._last) / new, new)
            self._tokens = tokens
            self._reservation.mark(tokens)
        self._last = now

    async def settle(self) -> None:
        """Charge a complete answer. For when it is encoded and the client has not all of it yet.

        So nothing that a client has whole is ever unpaid, and what cannot be encoded is not paid.
        """
        if self.complete and not self._reservation.settled:
            self.end()
            await self._reservation.ledger.durable()

    def end(self, *, failed: bool = False) -> None:
        """Charge what was generated; of an answer that failed, nothing."""
        used = counted(self._reservation.request_id, self._stream)
        self._metrics.ended("failed" if failed else self.outcome, used.prompt, used.cached, used.output)
        if not failed:
            self._reservation.settle(used, outcome=self.outcome, first_token_at=self.first_token_at)

    async def _checked(self, checks: OutputChecks, events: list[ChatEvent], *, first: bool) -> list[ChatEvent]:
        """The events, without the end of a choice that is not what was demanded; the next `read` raises then.

        Such output is counted, and it is the client's to see where nothing held the model to the demand. What breaks
        it before anything was delivered (`first`) is raised at once, so that it is a status.
        """
        violations = await checks.follow(events)
        self._metrics.invalid_outputs += len(violations)
        if not violations or not self._enforces:
            return events
        self._broken = InvalidOutput(next(iter(violations.values())))
        kept = [event for event in events if not (isinstance(event, Finished) and event.choice in violations)]
        if first or not kept:
            raise self._broken
        return kept


class ChatService:
    """Answers chat requests of callers that have been let in."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        router: Router,
        ledger: Ledger,
        prices: Prices,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._router = router
        self._ledger = ledger
        self._prices = prices
        self._metrics = metrics
        self._schemas = SchemaBook()

    async def open(
        self, admission: Admission, request: ChatRequest, arrival: Arrival
    ) -> AbstractContextManager[Answer]:
        """Make `request` ready to run, which entering what is returned does; it has to be entered.

        Everything it holds is released, and the account settled, on leaving. Tokens generated until then are billed,
        unless the answer failed for a reason of ours. What the answer does not need of the request is let go.
        Both raise `ApiError` for whatever is wrong before the first event.
        """
        caller = admission.caller
        model = permitted(self._catalog, caller, request.model)
        demand = await self._demand(request, model, self._settings.mode)
        request = self._translated(request, model, demand)
        sampling = rules.sampling(model, request.sampling, thinks=demand.thinks)
        deployment = self._router.pick(model)
        _refuse_images(request.messages, deployment)
        metrics = self._metrics.model(model.id)
        conversation, removed = _stable(demand.conversation, deployment)
        if removed:
            metrics.removed_lines += removed
            demand.adapted.append(f"system.removed_lines={removed}")
        prompt = await deployment.prepare(request, conversation, caller.organization_id)
        max_tokens = self._output_limit(request, model, deployment, prompt, demand.adapted)
        await admission.charge(prompt.tokens + max_tokens * sampling.n)
        billed = model.tier_for(prompt.tokens + max_tokens)
        today = datetime.fromtimestamp(arrival.at / 1000, UTC).date()
        reservation = await self._ledger.reserve(
            caller,
            request_id=arrival.request_id,
            model=billed.id,
            served_by=deployment.name,
            price=self._prices.price(billed, today, caller.currency),
            prompt_tokens=prompt.tokens,
            max_tokens=max_tokens * sampling.n,
            started_at=arrival.at,
        )
        run = partial(prompt.open, arrival.request_id, sampling=sampling, max_tokens=max_tokens)
        answer = partial(Answer, model, deployment, metrics, arrival, demand, reservation)
        return _running(run, answer, reservation, deployment.limits)

    def _translated(self, request: ChatRequest, model: Model, demand: Demand) -> ChatRequest:
        """The request with its sampling in the model's terms.

        In lenient mode what a model fixes is no reason to refuse a program that speaks the Messages API.
        """
        if not request.messages_api:
            return request
        options = rules.from_messages(model, request.sampling, thinks=demand.thinks)
        if self._settings.mode == "lenient":
            options, fixed = rules.without_fixed(model, options, thinks=demand.thinks)
            demand.adapted += [f"{name}={value:g}" for name, value in fixed.items()]
        return structs.replace(request, sampling=options)

    async def _demand(self, request: ChatRequest, model: Model, mode: Mode) -> Demand:
        """Schemas that take long are read in a thread."""
        if self._schemas.takes_long(request):
            return await asyncio.to_thread(Demand, request, model, mode, self._schemas)
        return Demand(request, model, mode, self._schemas)

    async def count(self, caller: Caller, request: ChatRequest) -> int:
        """Tokens that the prompt of `request` would have, by the tokenizer that serves the model."""
        model = permitted(self._catalog, caller, request.model)
        deployment = self._router.serves(model)
        _refuse_images(request.messages, deployment)
        demand = await self._demand(request, model, mode="lenient")
        conversation, _ = _stable(demand.conversation, deployment)
        return (await deployment.prepare(request, conversation, caller.organization_id)).tokens

    def _output_limit(
        self,
        request: ChatRequest,
        model: Model,
        deployment: Deployment,
        prompt: PreparedChat,
        adapted: list[str],
    ) -> int:
        """Output tokens this request may have. A prompt is never cut: one that does not fit is refused.

        An estimate neither refuses a prompt nor limits an answer: whoever answers knows better.
        """
        window = real_window(deployment, model.window)
        if prompt.estimated:
            return min(model.max_output if request.max_tokens is None else request.max_tokens, window)
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


@contextmanager
def _running(
    run: Callable[[], EventStream],
    answer_of: Callable[[EventStream], Answer],
    reservation: Reservation,
    limits: EngineSettings,
) -> Iterator[Answer]:
    with reservation, run() as stream, _Watchdog(stream, limits):
        reservation.follow(stream)
        answer = answer_of(stream)
        del run, answer_of  # they hold the request, which may be large, and an answer may run for an hour
        failed = True
        try:
            yield answer
            failed = False
        finally:
            if not reservation.settled:
                answer.end(failed=failed and not answer.abandoned)


def _stable(conversation: Conversation, deployment: Deployment) -> tuple[Conversation, int]:
    """The conversation without the lines that would keep its prompt out of a prefix cache, and how many they were."""
    if not (deployment.renders and deployment.limits.stable_prefix):
        return conversation, 0
    messages, removed = without_changing_lines(conversation.messages)
    return (structs.replace(conversation, messages=messages), removed) if removed else (conversation, 0)


def _refuse_images(messages: tuple[Message, ...], deployment: Deployment) -> None:
    if deployment.capabilities.image_in:
        return
    for message in messages:
        if any(isinstance(part, ImagePart) for part in message.content):
            place = f"the message at position {message.position}"
            raise InvalidRequest(f"{place} has an image, which {deployment.name} cannot see")


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
        if self._stream.silent:
            return total
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
