"""Where an upstream is."""

import ipaddress
import re
from typing import Literal
from urllib.parse import urlsplit

from msgspec import Struct

from moonbase.errors import ConfigurationError

_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_MAX_NAME = 253
_TARGET = re.compile(r"[\x21-\x22\x24-\x7e]*")  # visible ASCII without `#`
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Address(Struct, frozen=True):
    """An origin and the path that all requests to it begin with (no slash at its end).

    `host` is a name or an IP address without brackets.
    """

    scheme: Literal["http", "https"]
    host: str
    port: int
    prefix: str

    @property
    def authority(self) -> str:
        """Host and port as they stand in a `Host` header."""
        return self.name_and_port if self.port != _DEFAULT_PORTS[self.scheme] else self._name

    @property
    def name_and_port(self) -> str:
        return f"{self._name}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether it is this machine."""
        if self.host.lower().rstrip(".") == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def _name(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def parse_address(url: str) -> Address:
    """The address that a base URL names. Raises `ConfigurationError` for everything else.

    A user name, a query or a fragment is refused: the first is a secret in the wrong place, the others
    would be lost. An error repeats the URL only where it cannot hold a secret.
    """
    if "@" in url:
        raise ConfigurationError("an upstream URL may not hold a user name or password")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ConfigurationError(f"{url!r} is not an address such as http://127.0.0.1:8000/v1") from error
    if parts.scheme not in ("http", "https") or not _is_host(host) or port == 0 or not _TARGET.fullmatch(url):
        raise ConfigurationError(f"{url!r} is not an address such as http://127.0.0.1:8000/v1")
    if "?" in url:
        raise ConfigurationError("an upstream URL may not hold a query")
    scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
    return Address(scheme, host, port or _DEFAULT_PORTS[scheme], parts.path.rstrip("/"))


def is_target(path: str) -> bool:
    """Whether `path` can stand in a request line: it begins with a slash, no blanks, no fragment, ASCII."""
    return path.startswith("/") and _TARGET.fullmatch(path) is not None


def _is_host(host: str) -> bool:
    if ":" in host:
        try:
            return ipaddress.IPv6Address(host).scope_id is None
        except ValueError:
            return False
    return len(host) <= _MAX_NAME and _NAME.fullmatch(host) is not None
