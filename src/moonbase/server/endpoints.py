"""The endpoints: they convert, the service decides."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias, TypeVar

import msgspec

from moonbase.accounts.accounts import Accounts, bearer, credential
from moonbase.catalog.catalog import Catalog
from moonbase.chat.events import ChatEvent
from moonbase.config import Settings
from moonbase.dialects.base import Head
from moonbase.dialects.openai.models import ModelEntry, encode_balance, encode_models
from moonbase.errors import ApiError, EngineUnavailable, InvalidAuthentication, PermissionDenied
from moonbase.router.router import Router
from moonbase.server.admin import encode_list
from moonbase.server.exchange import Exchange, Header
from moonbase.server.openapi import document
from moonbase.server.query import UsageParameters, decode_query
from moonbase.service.chat import Answer, ChatService
from moonbase.service.ids import Ids
from moonbase.service.models import served_models
from moonbase.service.views import RequestUsageView, UsageView
from moonbase.store.records import Caller, Endpoint

T = TypeVar("T")
Events: TypeAlias = list[ChatEvent]

_LARGE_BODY = 256 * 1024
_LARGEST_HEADER = 2048


class ChatEndpoint:
    """Answers to conversations: POST /v1/chat/completions (moonshot-api.md 1 to 3), /anthropic/v1/messages (8)."""

    def __init__(self, name: Literal["chat", "messages"], accounts: Accounts, chat: ChatService, ids: Ids) -> None:
        """`name` is what keys call it that do not open everything."""
        self._name: Endpoint = name
        self._accounts = accounts
        self._chat = chat
        self._ids = ids

    async def __call__(self, exchange: Exchange) -> None:
        caller = await _enter(self._accounts, exchange, self._name)
        with self._accounts.admit(caller) as admission:
            request = await _decoded(exchange.dialect.decode, await exchange.body())
            with (
                exchange.while_connected(),
                await self._chat.open(admission, request, exchange.arrival) as answer,
            ):
                exchange.model = answer.model.id
                exchange.on_leave = answer.abandon
                events = await answer.read()  # nothing is sent before this: a failure is still a status
                stream, asked, include_usage = request.stream, request.model, request.include_usage
                del request
                exchange.release()
                if stream:
                    await self._stream(exchange, asked, answer, events, include_usage=include_usage)
                else:
                    await self._whole(exchange, asked, answer, events)

    async def _stream(
        self, exchange: Exchange, asked: str, answer: Answer, events: list[ChatEvent], *, include_usage: bool
    ) -> None:
        began = exchange.arrival.at // 1000
        encoder = exchange.dialect.stream(self._head(exchange, asked, answer, began, include_usage=include_usage))
        await exchange.start([(b"cache-control", b"no-cache"), *_answer_headers(answer)])

        http = exchange.http

        def deliver(events: Events) -> bool:
            """A client that reads slowly makes the task wait, and with it whatever sends events."""
            if http.paused:
                return False
            if data := encoder.encode(events):  # the Messages API holds some back
                http.write(data)
            return True

        try:
            while events:
                data = encoder.encode(events)
                await answer.settle()
                await exchange.send(data, more=True)
                events = await answer.read(deliver)
        except ApiError as error:
            await exchange.send(encoder.error(error), more=False)
            raise
        except asyncio.CancelledError:
            if not answer.abandoned:  # the server stops, and the client shall know that this is not the end
                await exchange.send(encoder.error(EngineUnavailable()), more=False)
            raise
        await exchange.send(encoder.done(), more=False)

    async def _whole(self, exchange: Exchange, asked: str, answer: Answer, events: list[ChatEvent]) -> None:
        everything: list[ChatEvent] = []

        def deliver(events: Events) -> bool:
            everything.extend(events)
            return True

        while events:
            everything += events
            events = await answer.read(deliver)
        body = exchange.dialect.whole(self._head(exchange, asked, answer, int(time.time())), everything)
        await answer.settle()
        await exchange.respond(body, headers=_answer_headers(answer))

    def _head(
        self, exchange: Exchange, asked: str, answer: Answer, created: int, *, include_usage: bool = False
    ) -> Head:
        """`asked` is the id that the client asked for."""
        return Head(
            id=self._ids.completion(exchange.arrival.at // 1000),
            created=created,
            model=asked,
            served_by=answer.served_by,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            include_usage=include_usage,
        )


class CountEndpoint:
    """The tokens of a prompt: POST /v1/tokenizers/estimate-token-count, /anthropic/v1/messages/count_tokens."""

    def __init__(self, accounts: Accounts, chat: ChatService) -> None:
        self._accounts = accounts
        self._chat = chat

    async def __call__(self, exchange: Exchange) -> None:
        caller = await _enter(self._accounts, exchange, "tokens")
        request = await _decoded(exchange.dialect.decode_count, await exchange.body())
        tokens = await self._chat.count(caller, request)
        await exchange.respond(exchange.dialect.count(tokens), headers=[])


class AccountEndpoints:
    """The small authenticated endpoints (moonshot-api.md 4 and 5.2)."""

    def __init__(self, accounts: Accounts, catalog: Catalog, router: Router) -> None:
        self._accounts = accounts
        self._catalog = catalog
        self._router = router

    async def models(self, exchange: Exchange) -> None:
        """GET /v1/models: the ids, with the windows and abilities of what really serves them."""
        caller = await _enter(self._accounts, exchange, "models")
        entries = [
            ModelEntry(
                id=served.model.id,
                created=served.model.created,
                context_length=served.window,
                supports_image_in=served.capabilities.image_in,
                supports_video_in=served.capabilities.video_in,
                supports_reasoning=served.capabilities.reasoning,
                served_by=served.served_by,
            )
            for served in served_models(self._catalog, self._router, caller)
        ]
        await exchange.respond(encode_models(entries), headers=[])

    async def balance(self, exchange: Exchange) -> None:
        """GET /v1/users/me/balance: cash and vouchers."""
        caller = await _enter(self._accounts, exchange, "balance")
        balance = await self._accounts.balance(caller.organization_id)
        body = encode_balance(balance.available_nano, balance.voucher_nano, balance.cash_nano)
        await exchange.respond(body, headers=[])


class UsageEndpoints:
    """What the caller's own organization used."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def sums(self, exchange: Exchange) -> None:
        """GET /v1/usage."""
        caller = await _enter(self._accounts, exchange, "usage")
        wanted = decode_query(UsageParameters, exchange)
        reports = await self._accounts.usage(caller.organization_id)
        found = await reports.sums(
            wanted.groups,
            first=wanted.first,
            last=wanted.last,
            now=exchange.arrival.at,
            project_id=wanted.project_id,
            key_id=wanted.key_id,
            model=wanted.model,
        )
        await exchange.respond(encode_list([UsageView.of(sums) for sums in found]), headers=[])

    async def request(self, exchange: Exchange) -> None:
        """GET /v1/usage/{id}: of one request, by the id in its answer's `Msh-Request-Id`."""
        caller = await _enter(self._accounts, exchange, "usage")
        reports = await self._accounts.usage(caller.organization_id)
        record = await reports.request(exchange.scope["path_params"]["id"])
        await exchange.respond(msgspec.json.encode(RequestUsageView.of(record)), headers=[])


class OperationEndpoints:
    """Health, metrics and the description of the interface, without an account."""

    def __init__(self, settings: Settings, router: Router, exposition: Callable[[], Awaitable[bytes]]) -> None:
        """`exposition` gives the metrics in Prometheus' text format."""
        self._document = msgspec.json.encode(document())
        self._token = settings.metrics.token
        self._router = router
        self._exposition = exposition

    async def healthz(self, exchange: Exchange) -> None:
        """The process answers."""
        await exchange.respond(b'{"status":"ok"}', headers=[])

    async def readyz(self, exchange: Exchange) -> None:
        """Requests would be accepted now, for some models at least; else 503 with Retry-After."""
        if not any(deployment.ready for deployment in self._router.deployments):
            raise EngineUnavailable(retry_after=1)
        await exchange.respond(b'{"status":"ready"}', headers=[])

    async def metrics(self, exchange: Exchange) -> None:
        """Prometheus metrics, for holders of `metrics.token`."""
        given = bearer(exchange.header(b"authorization"))
        if self._token is None or not secrets.compare_digest(given.encode(), self._token.encode()):
            raise InvalidAuthentication
        body = await self._exposition()
        await exchange.respond(body, content_type=b"text/plain; version=0.0.4; charset=utf-8", headers=[])

    async def openapi(self, exchange: Exchange) -> None:
        """GET /openapi.json."""
        await exchange.respond(self._document, headers=[])


async def _enter(accounts: Accounts, exchange: Exchange, endpoint: Endpoint) -> Caller:
    """Who asks, by the header that the dialect has keys in. Raises `PermissionDenied` for a key that is not for it."""
    api_key = exchange.header(b"x-api-key") if exchange.dialect.takes_api_key else None
    secret = credential(exchange.header(b"authorization"), api_key)
    exchange.caller = caller = await accounts.authenticate(secret, exchange.currency)
    if caller.endpoints is not None and endpoint not in caller.endpoints:
        raise PermissionDenied
    return caller


async def _decoded(decode: Callable[[bytes], T], body: bytes) -> T:
    """Decode a large body in a thread: it may hold hundreds of thousands of messages."""
    if len(body) < _LARGE_BODY:
        return decode(body)
    return await asyncio.to_thread(decode, body)


def _answer_headers(answer: Answer) -> list[Header]:
    headers = [(b"moonbase-served-by", answer.served_by.encode())]
    if answer.cached_tokens:
        headers.append((b"msh-context-cache-token-saved", b"%d" % answer.cached_tokens))
    if answer.adapted:
        headers.append((b"moonbase-adapted", _header_value(answer.adapted)))
    if answer.warnings:
        headers.append((b"msh-schema-warning", _header_value(answer.warnings)))
    return headers


def _header_value(texts: list[str]) -> bytes:
    """As much as a header can hold. The texts may quote what a client sent, so nothing but printable ASCII stays."""
    value = ", ".join(texts).encode("ascii", "backslashreplace")[:_LARGEST_HEADER]
    return bytes([byte if 0x20 <= byte < 0x7F else 0x3F for byte in value])
