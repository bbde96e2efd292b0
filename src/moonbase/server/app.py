"""The ASGI application: every request gets ids, a host check, an endpoint and exactly one answer."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from moonbase.config import Settings
from moonbase.dialects.base import Dialect
from moonbase.dialects.errors import encode_unknown_path
from moonbase.errors import (
    ApiError,
    EngineUnavailable,
    HostNotAllowed,
    InvalidRequest,
    RateLimited,
    RequestTimeout,
    RequestTooLarge,
    ServerError,
    UnknownOperation,
)
from moonbase.server.exchange import BodyBudget, ClientGone, Exchange, Header
from moonbase.server.hosts import AllowedHosts
from moonbase.server.regions import Regions
from moonbase.service.ids import Ids
from moonbase.telemetry import Metrics

Endpoint = Callable[[Exchange], Awaitable[None]]


class Served(Struct, frozen=True):
    """One route. Whatever is wrong with a request to `path` is told in its dialect."""

    method: str
    path: str
    endpoint: Endpoint
    dialect: Dialect


log = logging.getLogger("moonbase.requests")


def build_app(settings: Settings, routes: list[Served], default: Dialect, metrics: Metrics, ids: Ids) -> ASGIApp:
    """Put the endpoints behind the checks and the error handling all of them share.

    `default` is the dialect on paths that do not exist.
    """
    router = Router(
        [Route(each.path, _Adapter(each.endpoint), methods=[each.method]) for each in routes],
        redirect_slashes=False,
    )
    dialects = {each.path: each.dialect for each in routes}
    fixed = {(each.method, each.path): each.endpoint for each in routes if "{" not in each.path}
    app: ASGIApp = Gateway(settings, fixed, router, dialects, default, metrics, ids)
    if settings.server.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=settings.server.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[
                "msh-request-id",
                "x-msh-trace-id",
                "moonbase-served-by",
                "moonbase-adapted",
                "msh-schema-warning",
            ],
        )
    return app


class _Adapter:
    """An endpoint as the plain ASGI application that a Starlette route calls."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._endpoint(scope["moonbase.exchange"])


class Gateway:
    """The outermost edge: whatever happens inside becomes one well-formed answer and one log line."""

    def __init__(
        self,
        settings: Settings,
        fixed: Mapping[tuple[str, str], Endpoint],
        router: Router,
        dialects: Mapping[str, Dialect],
        default: Dialect,
        metrics: Metrics,
        ids: Ids,
    ) -> None:
        """`fixed` are the endpoints by method and path; whatever has a path of another kind is found by `router`."""
        self._limits = settings.server
        self._fixed = fixed
        self._router = router
        self._dialects = dialects
        self._default = default
        self._metrics = metrics
        self._ids = ids
        self._bodies = BodyBudget(settings.server.max_bodies_bytes)
        allowed = (*settings.server.allowed_hosts, *settings.server.china_hosts)
        self._hosts = AllowedHosts(allowed, settings.server.host)
        self._regions = Regions(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        dialect = self._dialects.get(scope["path"], self._default)
        request_id, trace_id = self._ids.request(), self._ids.trace()
        currency = self._regions.currency(scope)
        exchange = Exchange(scope, receive, send, dialect, self._limits, self._bodies, request_id, trace_id, currency)
        scope["moonbase.exchange"] = exchange
        scope["app"] = self  # makes Starlette raise for a wrong method instead of answering itself
        try:
            self._check_host(exchange)
            endpoint = self._fixed.get((scope["method"], scope["path"]))
            if endpoint is not None:
                await endpoint(exchange)
            else:
                await self._router(scope, receive, send)
        except HTTPException:
            await self._unknown_path(exchange)
        except ApiError as error:
            await self._refuse(exchange, error)
        except ClientGone:
            exchange.status = 499
        except asyncio.CancelledError:  # the grace of a shutdown is over
            await self._refuse(exchange, EngineUnavailable())
        except Exception:
            log.exception("request failed", extra={"fields": {"request_id": exchange.arrival.request_id}})
            await self._refuse(exchange, ServerError())
        finally:
            exchange.release()
            self._record(exchange)

    def _check_host(self, exchange: Exchange) -> None:
        hosts = [value for name, value in exchange.scope["headers"] if name == b"host"]
        if len(hosts) > 1:  # something in front may have gone by the other one (RFC 9112 3.2)
            raise InvalidRequest("there is more than one `Host` header")
        if not hosts or not self._hosts.allows(str(hosts[0], "latin-1")):
            raise HostNotAllowed

    async def _refuse(self, exchange: Exchange, error: ApiError) -> None:
        exchange.refusal = error.reason
        if exchange.finished:
            return  # a stream told its client in its last frame
        if exchange.response_started:
            raise error  # all that is left is to cut the connection
        headers: list[Header] = []
        if error.retry_after is not None:
            headers.append((b"retry-after", b"%d" % error.retry_after))
        if isinstance(error, RateLimited):
            headers += [(b"x-retry-after", headers[0][1]), (b"msh-cooldown-seconds", headers[0][1])]
        if isinstance(error, RequestTooLarge | RequestTimeout):
            headers.append((b"connection", b"close"))
        await exchange.respond(exchange.dialect.error(error), status=error.status, headers=headers)

    async def _unknown_path(self, exchange: Exchange) -> None:
        """In the service's words, but for the admin API, which is ours."""
        if exchange.path.startswith("/admin/"):
            sentence = f"there is no {exchange.method} {exchange.path}; /openapi.json has what there is"
            await self._refuse(exchange, UnknownOperation(sentence))
            return
        agent = (exchange.header(b"user-agent") or "").encode("latin-1").decode(errors="replace")
        await exchange.respond(encode_unknown_path(exchange.method, exchange.path, agent), status=404, headers=[])

    def _record(self, exchange: Exchange) -> None:
        status = exchange.status or 499
        self._metrics.response(status)
        if log.isEnabledFor(logging.INFO):
            log.info(
                "%s %s %d",
                exchange.method,
                exchange.scope["raw_path"].decode("ascii"),  # still percent-encoded: cannot break a line
                status,
                extra={
                    "fields": {
                        "request_id": exchange.arrival.request_id,
                        "organization": exchange.caller.organization_id if exchange.caller is not None else None,
                        "key": exchange.caller.key_id if exchange.caller is not None else None,
                        "model": exchange.model,
                        "error": exchange.refusal,
                        "ms": round((time.monotonic() - exchange.arrival.monotonic) * 1000, 1),
                    }
                },
            )
