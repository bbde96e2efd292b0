"""The contract of a served model: all of it that `service` sees."""

from types import TracebackType
from typing import Protocol, Self

from moonbase.catalog.model import Capabilities
from moonbase.chat.events import ChatEvent
from moonbase.chat.request import ChatRequest, Conversation, Sampling
from moonbase.config import EngineSettings
from moonbase.engines.pipe import Deliver
from moonbase.errors import ApiError


class EventStream(Protocol):
    """An answer read as events. A context manager: leaving it cancels what still runs."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @property
    def silent(self) -> bool:
        """Whether nothing can be heard of it before its end."""
        ...

    @property
    def last_put(self) -> float | None:
        """`time.monotonic()` of the latest output, None before the first."""
        ...

    @property
    def open(self) -> bool:
        """Whether more output is to come."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, as whatever answers counts them."""
        ...

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from a cache; known from the first read on."""
        ...

    @property
    def completion_tokens(self) -> int:
        """Output tokens received so far, of all choices."""
        ...

    def abort(self, error: ApiError) -> None:
        """Cancel what still runs; the reader gets what has come, then `error`."""
        ...

    async def read(self, deliver: Deliver[ChatEvent] | None = None) -> list[ChatEvent]:
        """All events that have come, waiting for at least one; an empty list after the last.

        While it waits, events are given to `deliver` as they come, and only what that declines is returned. Raises the
        `ApiError` that the answer failed with, and what `deliver` raises.
        """
        ...


class PreparedChat(Protocol):
    """A request that is ready to run."""

    @property
    def tokens(self) -> int:
        """Tokens of the prompt."""
        ...

    @property
    def estimated(self) -> bool:
        """Whether `tokens` is an estimate: only what answers can say then what fits, and hears the client's limit."""
        ...

    def open(self, request_id: str, *, sampling: Sampling, max_tokens: int) -> EventStream:
        """Start generating. Raises `ApiError` when it cannot be taken on."""
        ...


class Deployment(Protocol):
    """What answers for one or more public ids. Its owner starts and closes it.

    `name` is how the banner, `/v1/models` and `Moonbase-Served-By` show it. Where `enforces` is true, tool calls and
    JSON answers are held to their schemas; else what comes is passed on as it is. One that `renders` makes the prompt
    here, of the conversation; another passes the request on.
    """

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def enforces(self) -> bool: ...

    @property
    def renders(self) -> bool: ...

    @property
    def limits(self) -> EngineSettings:
        """The settings that hold its time limits."""
        ...

    @property
    def ready(self) -> bool:
        """Whether requests would be accepted now."""
        ...

    @property
    def running(self) -> int:
        """Choices being generated."""
        ...

    @property
    def waiting(self) -> int:
        """Choices accepted and not yet started."""
        ...

    @property
    def own_window(self) -> int | None:
        """Prompt plus completion in tokens; None has no limit of its own."""
        ...

    async def start(self) -> None:
        """Make it ready. Raises `ModelFileError` or `ConfigurationError` when it can never be."""
        ...

    async def close(self) -> None:
        """End what it started. Idempotent."""
        ...

    async def prepare(self, request: ChatRequest, conversation: Conversation, scope: str) -> PreparedChat:
        """Render and count. `conversation` is what `request` comes to; `scope` keeps caches of organizations apart.

        Raises `InvalidRequest` when the answer cannot be held to what the request demands.
        """
        ...


def window(deployment: Deployment, nominal: int) -> int:
    """Tokens that a model of this nominal window really has there, prompt plus completion."""
    own = deployment.own_window
    return nominal if own is None else min(nominal, own)
