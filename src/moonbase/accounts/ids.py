"""Identifiers in the shapes of the service (moonshot-api.md 0.1 and 9.2), and secrets."""

import base64
import hashlib
import re
import secrets
import string
import time

_ALPHANUMERIC = string.ascii_letters + string.digits
_LOWER = string.ascii_lowercase + string.digits
_SECRET_LENGTH = 51
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def organization_id() -> str:
    return "org-" + secrets.token_hex(16)


def project_id() -> str:
    return "proj-" + secrets.token_hex(16)


def key_id() -> str:
    """The public name of a key, shown in error texts; not its secret."""
    return "ak-" + _random(_LOWER, 20)


def admin_key_id() -> str:
    """The public name of an administrator's key."""
    return "admin-" + _random(_LOWER, 20)


def is_id(text: str) -> bool:
    """Whether `text` can be an id at all; what cannot is not worth looking up."""
    return _ID.fullmatch(text) is not None


def uid() -> str:
    """An xid: 4 bytes of time and 8 of chance as 20 characters `[0-9a-v]`."""
    raw = int(time.time()).to_bytes(4, "big") + secrets.token_bytes(8)
    return base64.b32hexencode(raw).decode().rstrip("=").lower()


def secret() -> str:
    """285 bits of chance, so a plain hash protects it."""
    return "sk-" + _random(_ALPHANUMERIC, _SECRET_LENGTH - 3)


def admin_secret() -> str:
    """What opens the admin API, and nothing else."""
    return "adm-" + _random(_ALPHANUMERIC, _SECRET_LENGTH - 4)


def secret_hash(secret: str) -> str:
    """What is stored of a secret: its SHA-256 in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _random(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))
