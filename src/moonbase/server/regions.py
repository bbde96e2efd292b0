"""Which region's organizations a request is for: the host that it names says so, or the port that it came to."""

from starlette.types import Scope

from moonbase.config import Currency, Settings
from moonbase.server.hosts import host_name


class Regions:
    """The region china at its hosts and its port, everywhere else that of `billing.currency`."""

    def __init__(self, settings: Settings) -> None:
        self._elsewhere = settings.billing.currency
        self._hosts = frozenset([name.lower() for name in settings.server.china_hosts])
        self._port = settings.server.china_port

    def currency(self, scope: Scope) -> Currency:
        """What the organizations pay in whose keys are good for this request."""
        if self._port is not None and scope["server"][1] == self._port:
            return "CNY"
        if self._hosts:
            for name, value in scope["headers"]:
                if name == b"host" and host_name(str(value, "latin-1")) in self._hosts:
                    return "CNY"
        return self._elsewhere
