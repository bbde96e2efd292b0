"""A small blocking client for chat completions, on the standard library alone: the command line's."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from typing import IO, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct, field

from moonbase.errors import ConfigurationError, EndpointFailed

_TIMEOUT = 600.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Seconds of silence after which a server counts as gone. A long prompt on a small machine is silent for minutes."""

_MAX_ERROR_BYTES = 64 * 1024


class Turn(Struct, frozen=True):
    role: Literal["system", "user", "assistant"]
    content: str


class Piece(Struct, frozen=True):
    """What one event of an answer brought."""

    text: str
    reasoning: str
    finish_reason: str | None


class _Request(Struct, frozen=True, kw_only=True, omit_defaults=True):
    model: str
    messages: list[Turn]
    stream: bool
    temperature: float | None = None
    max_tokens: int | None = None


class _Text(Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(Struct, frozen=True):
    """A server that does not stream sends `message` instead of `delta`."""

    delta: _Text | None = None
    message: _Text | None = None
    finish_reason: str | None = None


class _ErrorBody(Struct, frozen=True):
    message: str | None = None


class _Chunk(Struct, frozen=True):
    """Servers disagree about where an error's sentence is."""

    choices: list[_Choice] = field(default_factory=list)
    error: _ErrorBody | str | None = None
    message: str | None = None
    detail: str | None = None

    @property
    def failure(self) -> str | None:
        inner = self.error.message if isinstance(self.error, _ErrorBody) else self.error
        return inner or self.message or self.detail


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another address."""

    def redirect_request(self, *_: object) -> None:
        return None


class Endpoint:
    """A server's address, the key for it and the choices that all questions share."""

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        model: str,
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """Raises `ConfigurationError` for what cannot be an address or a key."""
        self.base_url = base_url.rstrip("/")
        self.model = model
        self._api_key = api_key
        self._temperature = temperature
        self._max_tokens = max_tokens
        try:
            parts = urlsplit(base_url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable or not base_url.isascii() or any(c.isspace() for c in base_url):
            raise ConfigurationError(f"--base-url: {base_url!r} is not an address such as http://127.0.0.1:8000/v1")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key.strip()):
            raise ConfigurationError("--api-key: an API key holds no blanks and no special characters")
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if urlsplit(base_url).hostname in _LOOPBACK:
            handlers.append(urllib.request.ProxyHandler({}))  # a key for this machine is not a proxy's business
        self._opener = urllib.request.build_opener(*handlers)

    def ask(self, turns: list[Turn]) -> Generator[Piece, None, None]:
        """The answer, piece by piece. Close the generator to stop it. Raises `EndpointFailed`."""
        finished = False
        try:
            with self._open(turns) as response:
                for data in _events(response):
                    if data == b"[DONE]":
                        return
                    chunk = _chunk(data)
                    if chunk.failure:
                        raise EndpointFailed(f"The server broke off: {chunk.failure}")
                    for choice in chunk.choices[:1]:
                        finished = finished or choice.finish_reason is not None
                        text = choice.delta or choice.message or _Text()
                        yield Piece(text.content or "", text.reasoning_content or "", choice.finish_reason)
        except (OSError, http.client.HTTPException) as error:
            raise EndpointFailed(f"The connection to {self.base_url} broke ({_reason(error)})") from error
        if not finished:
            raise EndpointFailed(f"{self.base_url} ended the answer before it was complete")

    def _open(self, turns: list[Turn]) -> http.client.HTTPResponse:
        body = _Request(
            model=self.model,
            messages=turns,
            stream=True,
            temperature=self._temperature,
            max_tokens=self._max_tokens,
        )
        try:
            content = msgspec.json.encode(body)
        except UnicodeEncodeError as error:
            raise EndpointFailed("The question holds bytes that are not text") from error
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream", "User-Agent": "moonbase"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key.strip()}"
        request = urllib.request.Request(f"{self.base_url}/chat/completions", data=content, headers=headers)
        try:
            response: http.client.HTTPResponse = self._opener.open(request, timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            with error:
                raise EndpointFailed(self._refusal(error)) from None
        except (OSError, http.client.HTTPException) as error:
            raise EndpointFailed(
                f"{self.base_url} cannot be reached ({_reason(error)}); start a server with `moonbase serve`"
                " or name another with --base-url"
            ) from error
        return response

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        try:
            sentence = msgspec.json.decode(error.read(_MAX_ERROR_BYTES), type=_Chunk).failure
        except (msgspec.MsgspecError, OSError, http.client.HTTPException):
            sentence = None
        said = f"{self.base_url} answered {error.code}: {sentence or error.reason or 'no reason given'}"
        if error.code == 401:
            return f"{said}; give --api-key or set MOONSHOT_API_KEY"
        if location := error.headers.get("Location"):
            return f"{said}, to {location}; give the right --base-url"
        return said


def _events(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The data of server-sent events; the whole body where a server does not stream.

    Lines are decoded whole, so a character is never cut.
    """
    if response.headers.get_content_type() == "application/json":
        yield response.read()
        return
    data: list[bytes] = []
    for line in _lines(response):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            yield b"\n".join(data)
            data = []
    if data:
        yield b"\n".join(data)


def _lines(response: IO[bytes]) -> Iterator[bytes]:
    while line := response.readline():
        yield line.rstrip(b"\r\n")


def _chunk(data: bytes) -> _Chunk:
    try:
        return msgspec.json.decode(data, type=_Chunk)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EndpointFailed(f"The server sent what is no chat completion ({error})") from error


def _reason(error: Exception) -> str:
    """The cause in a few words, without Python's wrapping."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return f"no answer for {_TIMEOUT:g} seconds"
    return inner.strerror if isinstance(inner, OSError) and inner.strerror else str(inner)
