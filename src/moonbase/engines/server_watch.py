"""A server behind HTTP that an engine talks to: started here or not, and whether it can work, as it says itself."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from moonbase.engines.process import ServerProcess
from moonbase.engines.suspects import Suspects
from moonbase.engines.upstream.client import UpstreamClient
from moonbase.errors import ConfigurationError, ModelFileError, UpstreamFailed, WorkerDied

_log = logging.getLogger(__name__)

_PROBE_SECONDS = 5.0  # between two looks at a server that is ready, and the longest that one takes
_RETRY_SECONDS = 0.5  # between two looks at one that is not
_LOAD_SECONDS = 3600.0  # hundreds of gigabytes take their time
_MAX_FACTS = 1024 * 1024  # bytes


class ServerWatch:
    """Looks at a server from `start` to `close`; it opens and closes the client, too.

    `ready` is whether it can work. `sure` is False from a request that failed on to the next look: the server may be
    gone, so what can wait had better do so. `suspects` is told here of the deaths of a server started here.
    """

    def __init__(
        self,
        name: str,
        url: str,
        client: UpstreamClient,
        *,
        facts_path: str,
        learn: Callable[[bytes], None],
        hang_timeout: float,
        on_ready: Callable[[], None] | None = None,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`learn` gets what the server says of itself at `facts_path` whenever it has become ready, and may raise
        `ConfigurationError`; `on_ready` is called after every look that found it so. Its readiness is at `/health`.
        `command` starts the server here, with nothing but `environment`; it is started anew when it ends, or once it
        could work and has then not answered for `hang_timeout` seconds.
        """
        self._name = name
        self._url = url
        self._client = client
        self._facts_path = facts_path
        self._learn = learn
        self._on_ready = on_ready
        self._hang_timeout = hang_timeout
        self._process: ServerProcess | None = None
        if command is not None:
            self._process = ServerProcess(
                name, command, self._probe, environment=environment or {}, load_timeout=_LOAD_SECONDS
            )
        self._task: asyncio.Task[None] | None = None
        self._look = asyncio.Event()
        self._open = False
        self._heard = 0.0
        self._answered = 0.0
        self._lives = 0
        self._trouble = ""
        self.suspects = Suspects()
        self.ready = False
        self.sure = True

    @property
    def pid(self) -> int | None:
        """The process that holds the server started here on its leash; None while there is none."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the server and wait until it is ready, or look once for one that others have started.

        Raises `ModelFileError` when a server started here ends instead, `ConfigurationError` when what answers is no
        such server or does not let us in.
        """
        await self._client.__aenter__()
        self._open = True
        try:
            if self._process is not None:
                await self._process.start()
            else:
                await self._probe()
        except WorkerDied as error:
            raise ModelFileError(f"the {self._name} server ended before it could work: {error}") from error
        except (UpstreamFailed, TimeoutError) as error:
            self._tell(_words(error))
        self._task = asyncio.create_task(self._keep_looking())

    async def close(self) -> None:
        """End a server started here. Idempotent."""
        self.ready = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._process is not None:
            await self._process.close()
        if self._open:
            self._open = False
            await self._client.__aexit__(None, None, None)

    def heard(self) -> None:
        """The server shows that it works: tokens flow."""
        self._heard = time.monotonic()

    def lost(self, error: UpstreamFailed) -> None:
        """A request did not get through, or its answer broke off: see at once whether the server is there."""
        _log.warning("%s: %s", self._url, error.reason)
        self.sure = False
        self.ready = self.ready and error.began
        self.look()

    def look(self) -> None:
        """Look at once."""
        self._look.set()

    async def _keep_looking(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PROBE_SECONDS if self.ready else _RETRY_SECONDS):
                    await self._look.wait()
            alarmed = self._look.is_set()
            self._look.clear()
            if self.ready and not alarmed and time.monotonic() - self._heard < _PROBE_SECONDS:
                continue  # a server that is busy may answer nothing else
            try:
                await self._probe()
            except (UpstreamFailed, TimeoutError, ConfigurationError) as error:
                self.ready = False
                self._tell(_words(error))
                self._end_if_hung()

    async def _probe(self) -> bool:
        """Find out whether the server is ready.

        Raises `UpstreamFailed` or `TimeoutError` when there is no answer, `ConfigurationError` when it is no such
        server or does not let us in.
        """
        async with asyncio.timeout(_PROBE_SECONDS):
            status, _ = await self._get("/health")
            if status == 404:
                raise ConfigurationError(
                    f"{self._url}: there is no {self._name} server; its url has no path such as /v1"
                )
            if status == 200 and not self.ready:
                status, body = await self._get(self._facts_path)
                if status in (401, 403):
                    raise ConfigurationError(f"{self._url}: the server demands another api_key")
                self._learn(body)
        self.ready = status == 200
        if self.ready:
            self._found()
        else:
            self._tell(f"its /health answers {status}")
        return self.ready

    def _tell(self, trouble: str) -> None:
        """Log why the server cannot be used, once."""
        if trouble != self._trouble and self._process is None:
            _log.warning("%s cannot be used: %s", self._url, trouble)
        self._trouble = trouble

    def _found(self) -> None:
        if self._trouble and self._process is None:
            _log.info("%s can be used", self._url)
        self._trouble = ""
        lives = 0 if self._process is None else self._process.restarts
        self.suspects.settle(died=lives != self._lives)
        self._lives = lives
        self._answered = time.monotonic()
        self.sure = True
        if self._on_ready is not None:
            self._on_ready()

    def _end_if_hung(self) -> None:
        """A server that loads is not meant: that it takes too long is seen by who started it."""
        if self._process is None or self._process.restarts != self._lives:
            return
        silent = time.monotonic() - max(self._heard, self._answered) > self._hang_timeout
        if silent and self._process.end_life():
            _log.error("the %s server has not answered for %g s; it is ended", self._name, self._hang_timeout)

    async def _get(self, path: str) -> tuple[int, bytes]:
        async with self._client.request("GET", path) as response:
            return response.status, await response.body(_MAX_FACTS)


def _words(error: Exception) -> str:
    return str(error) or f"it does not answer within {_PROBE_SECONDS:g} s"
