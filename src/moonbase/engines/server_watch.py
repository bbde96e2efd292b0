"""A server behind HTTP that an engine talks to: where it is now, and whether it can work, as it says itself."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from moonbase.config import EngineSettings
from moonbase.engines.base import GenerateRequest
from moonbase.engines.kept_server import PROBE_SECONDS, ServerKeeper, ServerLife, ask, later
from moonbase.engines.suspects import Suspects
from moonbase.engines.upstream.client import UpstreamClient
from moonbase.engines.upstream.limits import UpstreamLimits
from moonbase.errors import (
    ConfigurationError,
    EngineUnavailable,
    FatalRequest,
    ModelFileError,
    UpstreamFailed,
    WorkerDied,
)

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5  # between two looks at one that is not
_LEAST_REQUESTS = 1024  # at once: a server at a URL may run more of them than `max_running` says
_LOOKS = 2  # at once, at a server that is being started anew
RESTART_SECONDS = 5
"""After which clients are told to come back while a server is away."""


class ServerWatch:
    """Looks at a server from `start` to `close`; it makes, opens and closes the client, too.

    `sure` is False after a failed request until the next look: the server may be gone, so queued requests stay queued
    meanwhile. `suspects` is told here of the deaths of a server that is kept for us. `most_requests` is how many may be
    under way at once: looks have connections beside them, so that no crowd hides the server.
    """

    def __init__(
        self,
        name: str,
        server: str | ServerKeeper,
        settings: EngineSettings,
        *,
        facts_path: str,
        learn: Callable[[bytes], None],
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        """`learn` gets what the server says of itself at `facts_path` whenever it has become ready, and may raise
        `ConfigurationError`; `on_ready` is called after every look that found it so. Its readiness is at `/health`.
        `server` is the URL of one that others have started, or who keeps one for us. That is told to end it when it
        could work and has then not answered for `settings.hang_timeout` seconds.

        Raises `ConfigurationError` for a bad URL.
        """
        self._name = name
        self._facts_path = facts_path
        self._learn = learn
        self._on_ready = on_ready
        self._hang_timeout = settings.hang_timeout
        self.most_requests = max(_LEAST_REQUESTS, settings.max_running + settings.max_waiting)
        self._limits = UpstreamLimits(
            first_byte_timeout=settings.total_timeout,
            idle_timeout=settings.total_timeout,
            max_connections=self.most_requests + _LOOKS,
        )
        self._client: UpstreamClient | None = None
        self._keeper: ServerKeeper | None = None
        self._life: ServerLife | None = None
        if isinstance(server, str):
            self.url = server
            self._client = self._connected(settings.api_key)
        else:
            self.url = ""  # until it lives
            self._keeper = server
            self._keeper.on_change(self.look)
        self._task: asyncio.Task[None] | None = None
        self._look = asyncio.Event()
        self._open = False
        self._heard = 0.0
        self._answered = 0.0
        self._last_life = 0
        self._trouble = ""
        self._can_work = False
        self.suspects = Suspects() if self._keeper is None else self._keeper.suspects
        self.sure = True

    @property
    def ready(self) -> bool:
        """Whether the server can work."""
        return self._can_work and self._lives

    @property
    def client(self) -> UpstreamClient:
        """The client of the server as it lives now; there is one once it has been ready."""
        assert self._client is not None
        return self._client

    @property
    def pid(self) -> int | None:
        """The process that holds a server kept here on its leash; None while there is none."""
        return None if self._keeper is None else self._keeper.pid

    async def start(self) -> None:
        """Wait for a server that is kept here, or look once for one that others have started.

        Raises `ModelFileError` when the kept one ends instead, `ConfigurationError` when what answers is no such server
        or does not let us in.
        """
        try:
            if self._keeper is not None:
                await self._keeper.start()
            else:
                await self.client.__aenter__()
                self._open = True
            if await self._follow():
                await self._probe()
        except WorkerDied as error:
            raise ModelFileError(f"the {self._name} server ended before it could work: {error}") from error
        except UpstreamFailed as error:
            self._tell(error.reason)
        self._task = asyncio.create_task(self._keep_looking())

    async def close(self) -> None:
        """End a server that is kept here. Idempotent."""
        self._can_work = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._keeper is not None:
            await self._keeper.close()
        if self._open:
            self._open = False
            await self.client.__aexit__(None, None, None)

    def admit(self, request: GenerateRequest) -> None:
        """Raises `EngineUnavailable` while the server is away or loads its model, and `FatalRequest` for a request that
        servers kept for us died of.
        """
        if not self.ready:
            raise EngineUnavailable(RESTART_SECONDS)
        if self.suspects.fatal(request):
            raise FatalRequest

    def heard(self) -> None:
        """The server shows that it works: tokens flow."""
        self._heard = time.monotonic()

    def lost(self, error: UpstreamFailed, request: GenerateRequest, *, kept: bool) -> None:
        """The request did not get through, or its answer broke off: see at once whether the server is there.

        `kept` is whether it was sent over a connection that was there before. When such a one breaks, it is sent anew
        where nobody may listen any more; a request that met nothing else than that is no suspect.
        """
        log.warning("%s: %s", self.url, error.reason)
        if kept or not isinstance(error.__cause__, ConnectionRefusedError):
            self.suspects.fell(request)
        self.sure = False
        self._can_work = self._can_work and error.began
        self.look()

    def look(self) -> None:
        """Look at once."""
        self._look.set()

    def _connected(self, key: str | None) -> UpstreamClient:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return UpstreamClient(self.url, headers=headers, limits=self._limits)

    @property
    def _lives(self) -> bool:
        """False between two lives of a server that is kept for us, when anybody may listen where it did, and in a new
        life until `_follow`.
        """
        return self._keeper is None or (self._life is not None and self._keeper.life == self._life)

    async def _follow(self) -> bool:
        """Talk to the server where it is now. Whether it lives."""
        if self._keeper is None or self._lives:
            return True
        self._can_work = False
        self._life = self._keeper.life
        if self._life is None:
            return False
        self.url = self._life.url
        before, self._client = self._client, self._connected(self._life.key)
        await self._client.__aenter__()
        self._open = True
        if before is not None:
            await before.__aexit__(None, None, None)
        return True

    async def _keep_looking(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE_SECONDS if self.ready else _RETRY_SECONDS):
                    await self._look.wait()
            alarmed = self._look.is_set()
            self._look.clear()
            if not await self._follow():
                continue
            began = time.monotonic()
            if self.ready and not alarmed and began - self._heard < PROBE_SECONDS:
                continue  # a server that is busy may answer nothing else
            try:
                await self._probe()
            except UpstreamFailed as error:
                if isinstance(error.__cause__, TimeoutError) and self._heard > began:
                    self._found()
                else:
                    self._missed(error.reason)
            except ConfigurationError as error:
                self._missed(str(error))
            except Exception:  # a bug; the task must live on, or what was seen last would count for ever
                log.exception("%s cannot be looked at", self.url)
                self._missed("looking at it fails")

    async def _probe(self) -> bool:
        """Find out whether the server is ready.

        Raises `UpstreamFailed` when there is no answer in time, `ConfigurationError` when it is no such server or does
        not let us in.
        """
        status, _ = await ask(self.client, "/health")
        if status == 404:
            raise ConfigurationError(f"{self.url}: there is no {self._name} server; its url has no path such as /v1")
        if status == 200 and not self.ready:
            status, body = await ask(self.client, self._facts_path)
            if status in (401, 403):
                raise ConfigurationError(f"{self.url}: the server demands another api_key")
            if later(status):
                raise UpstreamFailed(f"{self._facts_path} answers {status}", began=True)
            self._learn(body)
        if status == 200:
            self._found()
        else:
            self._tell(f"its /health answers {status}")
            self._can_work = False
        return self.ready

    def _tell(self, trouble: str) -> None:
        """Log why the server cannot be used, once. That one which is kept for us does not answer yet is no trouble."""
        if trouble != self._trouble and (self._keeper is None or self.ready):
            log.warning("%s cannot be used: %s", self.url, trouble)
            self._trouble = trouble

    def _found(self) -> None:
        """It answers, or is too busy to answer a look while tokens flow."""
        if self._trouble:
            log.info("%s can be used", self.url)
        self._trouble = ""
        life = 0 if self._life is None else self._life.number
        self.suspects.settle(died=None if life == self._last_life else self._last_life)
        self._last_life = life
        self._answered = time.monotonic()
        self._can_work = self.sure = True
        if self._on_ready is not None:
            self._on_ready()

    def _missed(self, trouble: str) -> None:
        """It did not answer, or not as one that can be used. One that has not answered in this life is not hung."""
        self._tell(trouble)
        self._can_work = False
        if self._keeper is None or self._life is None or self._life.number != self._last_life:
            return
        silent = time.monotonic() - max(self._heard, self._answered) > self._hang_timeout
        if silent and self._keeper.end(self._life.number):
            log.error("the %s server has answered nothing for %g s; it is ended", self._name, self._hang_timeout)
