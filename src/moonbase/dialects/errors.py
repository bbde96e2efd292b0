"""Bodies of errors as the service has them in every dialect (moonshot-api.md 9.1 and 9.4)."""

import msgspec

from moonbase.errors import ApiError

_encode = msgspec.json.Encoder().encode


def encode_error(error: ApiError) -> bytes:
    """The error body: two keys, message first, escaped as Go's encoder does (moonshot-api.md 9.1)."""
    return go_escaped(b'{"error":{"message":%b,"type":%b}}' % (_encode(error.sentence), _encode(error.type)))


def go_escaped(body: bytes) -> bytes:
    """JSON as the service's encoder writes that of errors."""
    return body.replace(b"&", b"\\u0026").replace(b"<", b"\\u003c").replace(b">", b"\\u003e")


def encode_unknown_path(method: str, path: str, user_agent: str) -> bytes:
    """The other envelope, for a path or method that does not exist (moonshot-api.md 9.4)."""
    return _encode(
        {
            "code": 5,
            "error": "url.not_found",
            "message": "没找到对象",
            "method": method,
            "scode": "0x5",
            "status": False,
            "ua": user_agent,
            "url": path,
        }
    )
