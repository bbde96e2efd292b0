"""The proxy that the environment names for an address."""

import base64
import urllib.request
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from moonbase.engines.upstream.address import Address, parse_address
from moonbase.errors import ConfigurationError


class Proxy(Struct, frozen=True):
    """`authorization` is the value of `Proxy-Authorization`, a secret, or None."""

    host: str
    port: int
    authorization: str | None

    def __repr__(self) -> str:
        return f"Proxy({self.host!r}, {self.port})"


def proxy_for(address: Address) -> Proxy | None:
    """What `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` say, as urllib reads them; never a proxy for loopback.

    Raises `ConfigurationError` for a proxy that is not spoken to in plain HTTP, or no address.
    """
    url = urllib.request.getproxies().get(address.scheme)
    if not url or address.loopback or urllib.request.proxy_bypass(address.name_and_port):
        return None
    return _parse(url, f"{address.scheme.upper()}_PROXY")


def _parse(url: str, variable: str) -> Proxy:
    """Errors name the variable and not its value, which may hold a password."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        userinfo, _, netloc = parts.netloc.rpartition("@")
        where = parse_address(f"{parts.scheme}://{netloc}")
    except (ValueError, ConfigurationError):
        raise ConfigurationError(f"{variable} is not an address such as http://proxy.example.com:3128") from None
    if where.scheme != "http":
        raise ConfigurationError(f"{variable} names a proxy that is not spoken to in plain HTTP")
    authorization = None
    if userinfo:
        user, _, password = userinfo.partition(":")
        credentials = f"{unquote(user)}:{unquote(password)}".encode()
        authorization = f"Basic {base64.b64encode(credentials).decode()}"
    return Proxy(where.host, where.port, authorization)
