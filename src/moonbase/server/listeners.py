"""The sockets that a server listens at."""

import contextlib
import socket
import sys

from moonbase.config import ServerSettings
from moonbase.errors import ConfigurationError


def bind_all(settings: ServerSettings, stack: contextlib.ExitStack) -> list[list[socket.socket]]:
    """For each gateway its own sockets, of each port one, the main port first; `stack` closes them.

    They are bound and do not listen yet: clients are refused, not kept waiting, until the model is loaded. What is sent
    to the socket of a gateway that has died waits for its successor, as long as it is open here too. Raises
    `ConfigurationError` for a port that is not free.
    """
    wanted = [("server.port", settings.port)]
    if settings.china_port is not None:
        wanted.append(("server.china_port", settings.china_port))
    ports = [_bind_shared(key, settings.host, port, settings.workers, stack) for key, port in wanted]
    return [list(sockets) for sockets in zip(*ports, strict=True)]


def _bind_shared(key: str, host: str, port: int, count: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Sockets among which the system spreads connections; where it cannot (elsewhere than on Linux), the same one."""
    if sys.platform != "linux":
        return [stack.enter_context(_bind(key, host, port))] * count
    if port:
        _claim(key, host, port, stack)
    if count > 1:
        _bind(key, host, port).close()  # sharing would let us in beside another server of the same user
    sockets: list[socket.socket] = []
    for _ in range(count):
        sockets.append(stack.enter_context(_bind(key, host, port, shared=count > 1)))
        port = sockets[0].getsockname()[1]
    return sockets


def _claim(key: str, host: str, port: int, stack: contextlib.ExitStack) -> None:
    """Keep other servers of ours away: until one listens, the system would let both have the port."""
    claim = stack.enter_context(socket.socket(socket.AF_UNIX))
    try:
        claim.bind(f"\0moonbase-{host[:80]}-{port}")  # a name without a file, which ends with us
    except OSError as error:
        raise _refused(key, host, port, error) from error


def _bind(key: str, host: str, port: int, *, shared: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
        return listener
    except OSError as error:
        listener.close()
        raise _refused(key, host, port, error) from error


def _refused(key: str, host: str, port: int, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{key}: cannot listen on {host} port {port} ({error.strerror}); "
        f"stop what uses it or choose another{' with --port' if key == 'server.port' else ''}"
    )
