"""Halves of surrogate pairs in JSON text: JavaScript programs cut strings inside them."""

import re


def mended(data: bytes) -> bytes:
    """`data` with every escaped half of a surrogate pair as U+FFFD, which is what the service takes it for."""
    return _SURROGATES.sub(_mend, data) if b"\\ud" in data or b"\\uD" in data else data


# An escaped surrogate, or a pair of them, after an even number of backslashes.
_SURROGATES = re.compile(
    rb"(?<!\\)((?:\\\\)*)(?:(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


def _mend(match: re.Match[bytes]) -> bytes:
    """A whole pair as it is; half of one as U+FFFD."""
    return match[0] if match[2] else match[1] + rb"\ufffd"
