"""The server under examination: requests to it, answers from it."""

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from moonbase.engines.upstream.client import Response, UpstreamClient
from moonbase.engines.upstream.events import EventReader
from moonbase.errors import EndpointFailed, UpstreamFailed
from moonbase.verify.answers import Answer, Json, error_message, items, mapping, streamed_choices, whole_choices

_MAX_BODY = 64 * 1024 * 1024
_FIRST_DELAY, _LONGEST_DELAY, _JITTER = 2.0, 60.0, 0.25  # as the vendor verifier waits (kimi-protocol.md 4.1)


class Access(Struct, frozen=True, kw_only=True):
    """How the server is spoken to. `extra` is merged into every request; `retries` bounds those of one request."""

    model: str
    api_key: str | None = None
    extra: Mapping[str, Any] = {}
    concurrency: int = 4
    retries: int = 5


class Endpoint:
    """Chat completions of one model. `requests` counts what was sent.

    A 429, and a response that does not come or breaks off, is asked for again after a growing delay.
    """

    def __init__(self, client: UpstreamClient, access: Access) -> None:
        """`client` is open."""
        self.model = access.model
        self.concurrency = access.concurrency
        self.requests = 0
        self._client = client
        self._access = access
        self._places = asyncio.Semaphore(access.concurrency)

    async def chat(self, fields: Json, *, key: str | None = "") -> Answer:
        """The answer to the request `fields`, which need no model. `key` "" is the endpoint's own, None sends none."""
        body = {"model": self.model} | fields | dict(self._access.extra)
        for attempt in range(self._access.retries + 1):
            async with self._places:
                answer, again = await self._once(body, key)
            if not again or attempt == self._access.retries:
                break
            delay = min(_FIRST_DELAY * 2**attempt, _LONGEST_DELAY)
            await asyncio.sleep(delay * (1 + random.uniform(0, _JITTER)))
        return answer

    async def introduce(self) -> None:
        """Ask one question to see that this is the server it should be.

        Raises `EndpointFailed` with what is wrong and what to do; the sentence goes on from the server's address.
        """
        question = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}
        answer, _ = await self._once({"model": self.model} | question | dict(self._access.extra), "")
        if answer.status == 0:
            raise EndpointFailed(f"does not answer: {answer.failure}")
        if answer.status in (401, 403):
            raise EndpointFailed(f"answered {answer.failure or answer.status}; give --api-key or set MOONSHOT_API_KEY")
        if answer.status == 404:
            models = await self._models()
            if models and self.model not in models:
                raise EndpointFailed(f"has no model {self.model!r}; it has {_some(models)}")
            raise EndpointFailed(f"has no chat endpoint ({answer.failure}); give its address with the `/v1`")
        if 300 <= answer.status < 400:
            raise EndpointFailed(f"answered {answer.status}, a redirect; give the address that it leads to")
        if not isinstance(answer.body, dict) or (answer.status == 200 and not answer.choices):
            raise EndpointFailed(f"is no OpenAI-compatible endpoint ({answer.failure or 'an answer without choices'})")

    async def _models(self) -> list[str]:
        try:
            async with self._client.request("GET", "/models", headers=self._headers("")) as response:
                body = msgspec.json.decode(await response.body(_MAX_BODY))
        except (UpstreamFailed, msgspec.DecodeError, UnicodeDecodeError):
            return []
        return [str(item.get("id")) for item in items(mapping(body).get("data"))]

    def _headers(self, key: str | None) -> dict[str, str]:
        key = self._access.api_key if key == "" else key
        return {"Authorization": f"Bearer {key}"} if key else {}

    async def _once(self, body: Json, key: str | None) -> tuple[Answer, bool]:
        """The answer, and whether asking again may give a better one."""
        self.requests += 1
        headers = {"Content-Type": "application/json"} | self._headers(key)
        reader = _Reader(body, self._access.api_key)
        try:
            async with self._client.request(
                "POST", "/chat/completions", headers=headers, body=msgspec.json.encode(body)
            ) as response:
                await reader.read(response)
        except UpstreamFailed as error:
            return reader.answer(str(error)), True
        return reader.answer(None), reader.status == 429


class _Reader:
    """Reads one response, keeping what came before it broke. `secret` is left out of what servers say."""

    def __init__(self, request: Json, secret: str | None) -> None:
        self._request = request
        self._secret = secret
        self.status = 0
        self._content_type = ""
        self._body: Any = None
        self._chunks: list[Any] = []
        self._done = False
        self._failure: str | None = None

    async def read(self, response: Response) -> None:
        self.status = response.status
        self._content_type = response.headers.get("content-type") or ""
        if self._content_type.startswith("text/event-stream"):
            events = EventReader(_MAX_BODY)
            while data := await response.read():
                for event in events.feed(data):
                    self._event(event)
        else:
            self._whole(await response.body(_MAX_BODY))

    def answer(self, broken: str | None) -> Answer:
        chunk_usage = [chunk["usage"] for chunk in self._chunks if isinstance(mapping(chunk).get("usage"), dict)]
        usage = chunk_usage[-1] if chunk_usage else mapping(self._body).get("usage")
        failure = broken or self._failure
        if failure is not None and self._secret:
            failure = failure.replace(self._secret, "…")
        return Answer(
            request=self._request,
            status=self.status,
            failure=failure,
            content_type=self._content_type,
            body=self._body,
            chunks=tuple(self._chunks),
            done=self._done,
            choices=streamed_choices(self._chunks) if self._chunks else whole_choices(self._body),
            usage=usage if isinstance(usage, dict) else None,
        )

    def _event(self, event: bytes) -> None:
        if event == b"[DONE]":
            self._done = True
            return
        chunk = self._decoded(event)
        if isinstance(chunk, dict) and "error" in chunk and "choices" not in chunk:
            self._failure = f"the stream ended in an error: {error_message(chunk)}"
        self._chunks.append(chunk)

    def _whole(self, data: bytes) -> None:
        self._body = self._decoded(data)
        if self.status != 200 and self._failure is None:
            self._failure = f"status {self.status}: {error_message(self._body) or 'no reason given'}"

    def _decoded(self, data: bytes) -> Any:
        try:
            return msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._failure = f"status {self.status}, what came is no JSON: {data[:80].decode(errors='replace')!r}"
            return None


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
