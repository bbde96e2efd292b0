"""What a server of this dialect says when it fails, as errors of our tree (moonshot-api.md 9).

Errors come out with an `UpstreamFailed` as their cause: it says for the log what the client is not told.
"""

from typing import Any

import msgspec
from msgspec import Struct

from moonbase.errors import (
    ApiError,
    ContentFiltered,
    EngineOverloaded,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
    UpstreamFailed,
)

_MAX_TYPE = 64  # characters of a foreign error type that the log is shown


class ErrorDetail(Struct):
    message: str | None = None
    type: str | None = None
    code: int | str | None = None


class ErrorBody(Struct):
    """The shapes in use: an object under `error` or a text there, the object itself, and FastAPI's `detail`."""

    error: ErrorDetail | str | None = None
    object: str | None = None
    message: str | None = None
    type: str | None = None
    code: int | str | None = None
    detail: Any = None


_decode = msgspec.json.Decoder(ErrorBody).decode

_STATUSES = {
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "content_filter": 400,
    "resource_not_found_error": 404,
    "engine_overloaded_error": 429,
    "rate_limit_reached_error": 429,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "exceeded_current_quota_error": 429,
    "insufficient_quota": 429,
}
"""Of errors that come inside a stream and have none."""


def broken(reason: str) -> ApiError:
    """For a response that breaks off or is not what was asked for."""
    return _because(EngineUnavailable(), reason)


def refused(status: int, body: bytes, *, retry_after: str | None, passed_on: str | None) -> ApiError:
    """For an answer whose status is not 200.

    `retry_after` is its header; `passed_on` the model's id when the client chose it, None when the operator did.
    """
    try:
        wire = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        wire = ErrorBody()
    return _error(status, wire, retry_after, passed_on)


def reported(wire: ErrorBody, *, passed_on: str | None) -> ApiError:
    """For an error inside a stream."""
    detail = _detail(wire)
    status = _STATUSES.get(detail.type or "", 500)
    if isinstance(detail.code, int) and 400 <= detail.code < 600:
        status = detail.code
    return _error(status, wire, None, passed_on)


def _error(status: int, wire: ErrorBody, retry_after: str | None, passed_on: str | None) -> ApiError:
    """A refused key is the operator's matter, and so is a spent account: no client is told that it is at fault."""
    detail = _detail(wire)
    shown = "".join([letter for letter in (detail.type or "")[:_MAX_TYPE] if letter.isalnum() or letter in "._-"])
    reason = f"answered {status} {shown}".rstrip()
    seconds = _seconds(retry_after)
    match status:
        case 400 | 413 | 422:
            if detail.type == "content_filter" or detail.code == "content_filter":
                return _because(ContentFiltered(), reason)
            sentence = detail.message or "Invalid request: what answers for this model refuses it"
            return _because(InvalidRequest(sentence, prefix=False), reason)
        case 404 if passed_on is not None and _names_a_model(wire):
            return _because(ModelNotFound(passed_on), reason)
        case 429:
            return _because(EngineOverloaded(retry_after=seconds), reason)
        case _:
            return _because(EngineUnavailable() if seconds is None else EngineUnavailable(seconds), reason)


def _names_a_model(wire: ErrorBody) -> bool:
    """Whether a 404 is about the model; one about the path has another envelope (moonshot-api.md 9.4)."""
    return isinstance(wire.error, ErrorDetail) or wire.object == "error"


def _detail(wire: ErrorBody) -> ErrorDetail:
    match wire.error:
        case ErrorDetail():
            return wire.error
        case str():
            return ErrorDetail(wire.error, wire.type, wire.code)
        case None:
            detail = wire.detail if isinstance(wire.detail, str) else None
            return ErrorDetail(wire.message or detail, wire.type, wire.code)


def _because(error: ApiError, reason: str) -> ApiError:
    error.__cause__ = UpstreamFailed(reason, began=True)
    return error


def _seconds(retry_after: str | None) -> int | None:
    """The header's number; a date says nothing that a client needs."""
    text = (retry_after or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else None
