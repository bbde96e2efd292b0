"""What an upstream may take of us: time, bytes, connections."""

from msgspec import Struct


class UpstreamLimits(Struct, frozen=True, kw_only=True):
    """Times are in seconds, sizes in bytes.

    `connect_timeout` covers name, TCP, proxy and TLS, and separately the wait for a free connection;
    `first_byte_timeout` runs from the end of the request to the complete head of the response;
    `idle_timeout` is the longest silence inside a response, and the longest that a server may leave
    a request body unread. A reader's own pause does not count.

    `keepalive` is how long an unused connection is kept: below the 5 s after which uvicorn, which most
    engines run on, closes it from its side. Over `max_connections` a request waits for one to become
    free. `max_head_bytes` bounds a response's head, and what its framing may take besides the body.
    """

    connect_timeout: float = 10.0
    first_byte_timeout: float = 300.0
    idle_timeout: float = 300.0
    keepalive: float = 4.0
    max_connections: int = 1024
    max_head_bytes: int = 64 * 1024
    max_headers: int = 256
