"""A request's head."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, get_args

from moonbase.engines.upstream.address import Address, is_target
from moonbase.engines.upstream.proxy import Proxy

Method = Literal["GET", "POST", "PUT", "DELETE"]

_KEPT = 64  # heads of the latest kinds of requests, which mostly are few
_METHODS = frozenset(get_args(Method))
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # latin-1 without control characters
_OURS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class HeadWriter:
    """Writes the heads of all requests to one address; what they share is encoded once."""

    def __init__(self, address: Address, headers: Mapping[str, str], proxy: Proxy | None) -> None:
        """`headers` go with every request. Raises `ValueError` as `write` does."""
        absolute = proxy is not None and address.scheme == "http"
        self._prefix = (f"http://{address.authority}" if absolute else "") + address.prefix
        own = {"host": address.authority, "accept-encoding": "identity"}
        if proxy is not None and proxy.authorization is not None and absolute:
            own["proxy-authorization"] = proxy.authorization
        common = _encode(headers, _OURS)
        names = {name.lower() for name in headers}
        if "user-agent" not in names:
            own["user-agent"] = "moonbase"
        self._shared = _encode(own, frozenset()) + common
        self._taken = _OURS | names
        self._begun = lru_cache(maxsize=_KEPT)(self._begin)

    def write(self, method: Method, path: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
        """The head up to its blank line. `path` comes after the address's own.

        Raises `ValueError` for a header that is malformed, ours to set, or among those that every request
        has, and for a path that cannot stand in a request line. The error never repeats a value.
        """
        head = self._begun(method, path, tuple(headers.items()))
        if body is None and method == "GET":
            return head + b"\r\n"
        return b"%bcontent-length: %d\r\n\r\n" % (head, len(body or b""))

    def _begin(self, method: Method, path: str, headers: tuple[tuple[str, str], ...]) -> bytes:
        if method not in _METHODS:
            raise ValueError(f"{method!r} is not a method of this client")
        if not is_target(path):
            raise ValueError(f"{path!r} is not a path")
        line = f"{method} {self._prefix}{path} HTTP/1.1\r\n".encode()
        return line + self._shared + _encode(dict(headers), self._taken)


def _encode(headers: Mapping[str, str], taken: frozenset[str]) -> bytes:
    """Raises `ValueError` for what could not be told from another header, and for names that are `taken`."""
    lines: dict[str, str] = {}
    for name, value in headers.items():
        lower = name.lower()
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a header name")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"the header {name} holds control characters or is not latin-1")
        if lower in taken:
            raise ValueError(f"the header {name} is set already")
        if lower in lines:
            raise ValueError(f"the header {name} is given twice")
        lines[lower] = f"{name}: {value}\r\n"
    return "".join(lines.values()).encode("latin-1")
