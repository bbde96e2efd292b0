"""Which `Host` headers this server answers for: what keeps web pages from reaching it by DNS rebinding."""

import re

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?", re.IGNORECASE)
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def host_name(host: str) -> str | None:
    """The name in the value of a `Host` header, in lower case; None for a malformed one."""
    match = _HOST.fullmatch(host)
    return None if match is None else match["name"].lower()


class AllowedHosts:
    """Loopback names, the address listened on, and what is configured (`*.example.com` covers subdomains)."""

    def __init__(self, configured: tuple[str, ...], listening_on: str) -> None:
        own = f"[{listening_on}]" if ":" in listening_on else listening_on
        names = {name.lower() for name in (*_LOOPBACK, own, *configured)}
        self._any = "*" in names
        self._exact = {name for name in names if not name.startswith("*.")}
        self._suffixes = tuple([name[1:] for name in names if name.startswith("*.")])
        self._seen: set[str] = set()

    def allows(self, host: str) -> bool:
        """Whether a request with this `Host` is ours; a malformed one is not."""
        if host in self._seen:
            return True
        name = host_name(host)
        if name is None:
            return False
        allowed = self._any or name in self._exact or (bool(self._suffixes) and name.endswith(self._suffixes))
        if allowed and len(self._seen) < 64:
            self._seen.add(host)
        return allowed
