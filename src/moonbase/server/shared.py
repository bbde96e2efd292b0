"""A gateway's side of the engines that its parent keeps."""

from collections.abc import Callable
from pathlib import Path

from moonbase.engines.kept_server import ServerLife
from moonbase.engines.suspects import Suspects
from moonbase.engines.worker_link import WorkerClient, WorkerKeeper, WorkerLink
from moonbase.server.channel import Begin, End, Moved, ServerPlace, Testified, ToParent, WorkerPlace
from moonbase.server.deployments import SharedEngines

Send = Callable[[ToParent], None]


class RemoteServer:
    """A server that the parent keeps. Implements `ServerKeeper`."""

    pid = None

    def __init__(self, engine: str, life: ServerLife | None, suspects: Suspects, send: Send) -> None:
        self.suspects = suspects
        self.life = life
        self._engine = engine
        self._send = send
        self._told: list[Callable[[], None]] = []
        self._ended = 0

    def on_change(self, told: Callable[[], None]) -> None:
        self._told.append(told)

    def moved(self, life: ServerLife | None) -> None:
        """The parent says where the server is now."""
        self.life = life
        for told in self._told:
            told()

    def end(self, number: int) -> bool:
        if number <= self._ended:
            return False
        self._ended = number
        self._send(End(self._engine, number))
        return True

    async def start(self) -> None:
        """The parent has started it, or is starting it anew."""

    async def close(self) -> None:
        """The parent ends it."""


class Shared:
    """All engines that the parent keeps, as told in `Begin` and by `hear` later."""

    def __init__(self, begin: Begin, send: Send) -> None:
        self._settings = begin.settings
        self._send = send
        self._suspects: dict[str, Suspects] = {}
        self._servers: dict[str, RemoteServer] = {}
        self._workers: dict[str, Callable[[WorkerClient], WorkerKeeper]] = {}
        for engine, place in begin.engines.items():
            suspects = self._suspects[engine] = Suspects(self._teller(engine))
            match place:
                case WorkerPlace(address):
                    self._workers[engine] = self._linker(engine, Path(address), suspects)
                case ServerPlace(life):
                    self._servers[engine] = RemoteServer(engine, life, suspects, send)

    @property
    def engines(self) -> SharedEngines:
        return SharedEngines(self._workers, self._servers)

    def hear(self, message: Moved | Testified) -> None:
        match message:
            case Moved(engine, life):
                self._servers[engine].moved(life)
            case Testified(engine, testimony):
                self._suspects[engine].hear(testimony)

    def _teller(self, engine: str) -> Callable[..., None]:
        return lambda testimony: self._send(Testified(engine, testimony))

    def _linker(self, engine: str, address: Path, suspects: Suspects) -> Callable[[WorkerClient], WorkerKeeper]:
        hang_timeout = self._settings.engines[engine].hang_timeout

        def link(client: WorkerClient) -> WorkerLink:
            return WorkerLink(
                address, client, suspects, hang_timeout=hang_timeout, end=lambda pid: self._send(End(engine, pid))
            )

        return link
