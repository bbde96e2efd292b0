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
    ports = [_bind_shared("server.port", settings.host, settings.port, settings.workers)]
    if settings.china_port is not None:
        ports.append(_bind_shared("server.china_port", settings.host, settings.china_port, settings.workers))
    for port in ports:
        for listener in port:
            stack.enter_context(listener)
    return [list(sockets) for sockets in zip(*ports, strict=True)]


def _bind_shared(key: str, host: str, port: int, count: int) -> list[socket.socket]:
    """Sockets among which the system spreads connections; where it cannot (elsewhere than on Linux), the same one."""
    if count == 1 or sys.platform != "linux":
        return [_bind(key, host, port)] * count
    _bind(key, host, port).close()  # sharing would let us in beside another server of the same user
    sockets = [_bind(key, host, port, shared=True)]
    port = sockets[0].getsockname()[1]
    sockets += [_bind(key, host, port, shared=True) for _ in range(count - 1)]
    return sockets


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
        raise ConfigurationError(
            f"{key}: cannot listen on {host} port {port} ({error.strerror}); "
            f"stop what uses it or choose another{' with --port' if key == 'server.port' else ''}"
        ) from error
