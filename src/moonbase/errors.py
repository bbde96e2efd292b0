"""Everything that can go wrong and is told to somebody.

::

    MoonbaseError
    ├── ConfigurationError              stops the start; one sentence that names the key
    ├── ModelFileError                  a model file is missing, damaged or of the wrong kind
    ├── WorkerDied                      an engine's process ended; becomes EngineUnavailable
    ├── WriteOffRefused                 leases that cannot be written off
    ├── BackupFailed                    a copy of the database could not be made
    ├── EndpointFailed                  a server that we are a client of refused or failed
    ├── UpstreamFailed                  a response of an upstream did not come or broke off
    ├── CountersAway                    Redis does not count; each process does alone, or LimitsUnavailable
    └── ApiError                        an answer to a client: status, type, sentence
        ├── InvalidRequest              400  invalid_request_error
        │   ├── WrongType               400  a JSON value of the wrong kind
        │   ├── InvalidField            400  a value that administration cannot take
        │   ├── FatalRequest            400  a request that ended the engine twice
        │   ├── ContentFiltered         400  content_filter
        │   └── PromptTooLong           400  prompt over the model's window
        ├── IncorrectApiKey             401  incorrect_api_key_error       no or ill-formed credential
        ├── InvalidAuthentication       401  invalid_authentication_error  unknown or revoked key
        ├── PermissionDenied            403  permission_denied_error       a key that does not open this endpoint
        ├── ModelNotFound               404  resource_not_found_error
        ├── NotFound                    404  resource_not_found_error      an id that names nothing
        │   └── UnknownOperation        404  resource_not_found_error      a path that the admin API has not
        ├── RequestTimeout              408  request_timeout_error
        ├── Conflict                    409  conflict_error                what is there does not allow the change
        │   └── BalanceTooLow           409  a change of a balance would take what is spoken for
        ├── RequestTooLarge             413  invalid_request_error
        ├── HostNotAllowed              421  invalid_request_error
        ├── EngineOverloaded            429  engine_overloaded_error
        ├── RateLimited                 429  rate_limit_reached_error      Retry-After
        ├── InsufficientBalance         429  exceeded_current_quota_error
        ├── ServerError                 500  server_error                  ours: the log knows more
        ├── InvalidOutput               500  unexpected_output             the model broke its constraint
        ├── EngineUnavailable           503  server_unavailable            Retry-After
        ├── DatabaseUnavailable         503  server_unavailable            Retry-After; the cause says why
        ├── LimitsUnavailable           503  server_unavailable            Retry-After
        └── GenerationTimeout           504  server_unavailable            first token, idle or total limit

A leaf carries data and builds the service's sentence from it (moonshot-api.md 9.3). It knows no
envelope: each dialect renders `status`, `type` and `sentence` in its own shape.
"""

from decimal import Decimal
from typing import ClassVar, Literal

LimitScope = Literal["organization", "project", "key"]
LimitKind = Literal["concurrency", "RPM", "TPM", "TPD"]

_COOLDOWN = 1  # seconds, whatever is left of the window (moonshot-api.md 11.2)
_LONGEST_SENTENCE = 2_000  # characters


class MoonbaseError(Exception):
    """Base of the tree."""


class ConfigurationError(MoonbaseError):
    """A setting is missing, unknown or malformed. The message names its key."""


class ModelFileError(MoonbaseError):
    """A model file cannot be used. The message says which and what to do."""


class WorkerDied(MoonbaseError):
    """An engine's worker process ended while it was needed."""


class WriteOffRefused(MoonbaseError):
    """The leases of a process cannot be written off. The message says why and what to do."""


class BackupFailed(MoonbaseError):
    """The database could not be copied. The message names the file and what to do."""


class EndpointFailed(MoonbaseError):
    """A server that we are a client of refused, failed or cannot be reached. The message says what to do."""


class UpstreamFailed(MoonbaseError):
    """An upstream's response did not come, broke off or breaks the protocol.

    `reason` is a sentence for the log, without secrets or content; `began` tells whether any byte of
    the response had come: while it is False, another upstream may be asked.
    """

    def __init__(self, reason: str, *, began: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.began = began


class CountersAway(MoonbaseError):
    """Redis cannot be reached or refuses. `__cause__` is the driver's error."""


class ApiError(MoonbaseError):
    """An error that a client is told.

    `status` is the HTTP status, `type` the service's error type, `retry_after` the seconds after
    which the same request may succeed (None: no promise, no header).
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    retry_after: int | None = None

    @property
    def reason(self) -> str:
        """Why, in a few fixed words, for the log: nothing that a client or a model sent."""
        return self.type

    @property
    def sentence(self) -> str:
        """What the client is told. It may quote what a client or a model sent, so all that is too long is cut off."""
        whole = str(self)
        return whole if len(whole) <= _LONGEST_SENTENCE else whole[: _LONGEST_SENTENCE - 1] + "…"


class InvalidRequest(ApiError):
    """The request cannot be served as it is. `detail` names the field."""

    status = 400
    type = "invalid_request_error"

    def __init__(self, detail: str, *, prefix: bool = True) -> None:
        """`prefix=False` is for the texts that the service prints without `Invalid request: `."""
        super().__init__(f"Invalid request: {detail}" if prefix else detail)


class WrongType(InvalidRequest):
    """A JSON value of the wrong kind, in the words of moonshot-api.md 9.5."""

    def __init__(self, path: str, expected: str, got: str) -> None:
        super().__init__(
            f"the `{path}` field in the request (expected type {expected}) is illegal, and {got} is not acceptable"
        )
        self.path = path


class InvalidField(InvalidRequest):
    """A value that cannot be taken, as `reason` says: `must …`, `is …`."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"`{field}` {reason}")
        self.field = field


class PromptTooLong(InvalidRequest):
    """The prompt, or the prompt plus an explicit output limit, exceeds the window (tokens)."""

    def __init__(self, window: int, requested: int) -> None:
        super().__init__(f"Your request exceeded model token limit: {window} (requested: {requested})")
        self.window = window
        self.requested = requested


class FatalRequest(InvalidRequest):
    """The engine died twice while it ran this very request."""

    def __init__(self) -> None:
        super().__init__("this request was running when the engine ended, twice; it is refused for ten minutes")


class ContentFiltered(InvalidRequest):
    """What answers refuses the content of the request, or of its own answer (moonshot-api.md 9.3)."""

    type = "content_filter"

    def __init__(self) -> None:
        super().__init__("The request was rejected because it was considered high risk", prefix=False)


class IncorrectApiKey(ApiError):
    status = 401
    type = "incorrect_api_key_error"

    def __init__(self) -> None:
        super().__init__("Incorrect API key provided")


class InvalidAuthentication(ApiError):
    status = 401
    type = "invalid_authentication_error"

    def __init__(self) -> None:
        super().__init__("Invalid Authentication")


class PermissionDenied(ApiError):
    """The key is good, but not for this endpoint (moonshot-api.md 9.3)."""

    status = 403
    type = "permission_denied_error"

    def __init__(self) -> None:
        super().__init__("The API you are accessing is not open")


class ModelNotFound(ApiError):
    status = 404
    type = "resource_not_found_error"

    def __init__(self, model: str) -> None:
        super().__init__(f"Not found the model {model} or Permission denied")
        self.model = model


class NotFound(ApiError):
    """There is no `what` (organization, project, key, …) of this id, or it is somebody else's."""

    status = 404
    type = "resource_not_found_error"

    def __init__(self, what: str, id: str) -> None:
        super().__init__(f"there is no {what} {id!r}")
        self.what = what


class UnknownOperation(NotFound):
    """A path or method of the admin API that there is not. The message says what there is."""

    def __init__(self, message: str) -> None:
        ApiError.__init__(self, message)
        self.what = "operation"


class Conflict(ApiError):
    """A change that what is there does not allow. The message says what is in the way."""

    status = 409
    type = "conflict_error"


class BalanceTooLow(Conflict):
    """A balance cannot be lowered by so much. `free_nano` is what no request that runs now may cost."""

    def __init__(self, free_nano: int) -> None:
        free = Decimal(free_nano).scaleb(-9).normalize()
        super().__init__(f"`amount` is too much: {free:f} can be taken away, the rest is for what runs now")
        self.free_nano = free_nano


class RequestTimeout(ApiError):
    status = 408
    type = "request_timeout_error"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The request body did not arrive within {seconds:g} seconds")


class RequestTooLarge(ApiError):
    status = 413
    type = "invalid_request_error"

    def __init__(self, limit: int) -> None:
        super().__init__(f"Request exceeds the maximum size of {limit} bytes")


class HostNotAllowed(ApiError):
    """421 rather than 400: the request reached a server that does not answer for that name."""

    status = 421
    type = "invalid_request_error"

    def __init__(self) -> None:
        super().__init__("Invalid request: the `Host` header names a host that this server does not answer for")


class EngineOverloaded(ApiError):
    """The service sends no Retry-After here (moonshot-api.md 9.2); some upstreams do."""

    status = 429
    type = "engine_overloaded_error"

    def __init__(self, retry_after: int | None = None) -> None:
        super().__init__("The engine is currently overloaded, please try again later")
        self.retry_after = retry_after


class RateLimited(ApiError):
    """A limit of the organization, the project or the key is reached (moonshot-api.md 9.3).

    `current` is what the count would be with this request, `limit` what it may be. The sentences on organizations and
    on a project's tokens are the service's; the others follow them.
    """

    status = 429
    type = "rate_limit_reached_error"

    def __init__(
        self, organization_id: str, key_id: str, *, scope: LimitScope, kind: LimitKind, current: int, limit: int
    ) -> None:
        again = f", please try again after {_COOLDOWN} seconds"
        if kind in ("concurrency", "RPM"):
            reached = f"max {kind}: {limit}{again}"
        elif scope == "organization":
            reached = f"{kind} rate limit, current:{current}, limit:{limit}"
        else:
            reached = f"{kind} rate limit, current: {current}, limit: {limit}{again}"
        super().__init__(f"Your account {organization_id}<{key_id}> request reached {scope} {reached}")
        self.retry_after = _COOLDOWN
        self._limit = f"{scope} {kind}"

    @property
    def reason(self) -> str:
        return f"{self.type}: {self._limit}"


class InsufficientBalance(ApiError):
    """The organization has less money than the request may cost (moonshot-api.md 9.3)."""

    status = 429
    type = "exceeded_current_quota_error"

    def __init__(self, organization_id: str, key_id: str) -> None:
        super().__init__(
            f"Your account {organization_id} <{key_id}> is suspended due to insufficient balance, "
            "please recharge your account or check your plan and billing details"
        )


class ServerError(ApiError):
    def __init__(self) -> None:
        super().__init__("Internal server error")


class InvalidOutput(ApiError):
    """The model's output breaks what the request demanded of it (`reason` names the rule)."""

    status = 500
    type = "unexpected_output"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The model's output is not valid: {reason}")


class EngineUnavailable(ApiError):
    status = 503
    type = "server_unavailable"

    def __init__(self, retry_after: int = 5) -> None:
        super().__init__("The engine is not available, please try again later")
        self.retry_after = retry_after


class DatabaseUnavailable(ApiError):
    """The database cannot be reached, is locked, full or damaged. `__cause__` is the driver's error."""

    status = 503
    type = "server_unavailable"

    def __init__(self, retry_after: int = 5) -> None:
        super().__init__("The database is not available, please try again later")
        self.retry_after = retry_after


class LimitsUnavailable(ApiError):
    """Nobody can say whether a limit is reached, and the operator wants no guesses."""

    status = 503
    type = "server_unavailable"

    def __init__(self, retry_after: int = 1) -> None:
        super().__init__("The rate limits cannot be checked, please try again later")
        self.retry_after = retry_after


class GenerationTimeout(ApiError):
    """`limit` is `first token`, `idle` or `total`; `seconds` its configured value."""

    status = 504
    type = "server_unavailable"

    def __init__(self, limit: str, seconds: float) -> None:
        super().__init__(f"The engine exceeded the {limit} time limit of {seconds:g} seconds")
