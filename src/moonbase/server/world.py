"""Builds everything a server needs, in one place, and takes it down again."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from msgspec import Struct
from starlette.types import ASGIApp

from moonbase.accounts.accounts import Accounts
from moonbase.accounts.changes import Changes, milliseconds
from moonbase.accounts.keys import Keys
from moonbase.accounts.limits import Counters
from moonbase.accounts.shared_counters import SharedCounters
from moonbase.catalog.catalog import Catalog, load_catalog
from moonbase.config import LimitsSettings, Settings
from moonbase.dialects.anthropic.dialect import MESSAGES, Anthropic
from moonbase.dialects.openai.dialect import OpenAI
from moonbase.router.deployment import Deployment
from moonbase.router.router import Router
from moonbase.server.admin import admin_endpoints
from moonbase.server.app import Served, build_app
from moonbase.server.deployments import NOT_SHARED, SharedEngines, build_deployment, start_all
from moonbase.server.endpoints import AccountEndpoints, ChatEndpoint, CountEndpoint, OperationEndpoints, UsageEndpoints
from moonbase.service.chat import ChatService
from moonbase.service.ids import Ids
from moonbase.store.database import Database, database_url, spool_folder
from moonbase.store.shared_counters import SharedStore
from moonbase.telemetry import Metrics


class Summary(Struct, frozen=True):
    """What serves: `default` is the name of the deployment for all models without one of their own.

    `window` is its own one in tokens, None without limit; `ready` is whether it can be reached; `others` is how many
    more deployments there are.
    """

    default: str
    window: int | None
    ready: bool
    others: int


class World(Struct, frozen=True):
    """A server ready to listen."""

    app: ASGIApp
    router: Router

    def summary(self) -> Summary:
        default = self.router.default
        others = len(list(self.router.deployments)) - 1
        return Summary(default.name, default.own_window, default.ready, others)


async def first_key(settings: Settings, home: Path) -> str | None:
    """The secret made at the first start of a database, once; else None.

    For the end of a start: one that fails must not have made a key. Raises `ConfigurationError`.
    """
    async with Database(database_url(settings.database.url, home)) as database:
        changes = Changes(database, "moonbase", milliseconds)
        return await Keys(changes, currency=settings.billing.currency, models=()).first_start()


@asynccontextmanager
async def build_world(
    settings: Settings,
    home: Path,
    cache: Path,
    metrics: Metrics,
    exposition: Callable[[], Awaitable[bytes]],
    shared: SharedEngines = NOT_SHARED,
) -> AsyncIterator[World]:
    """Open the database, start the engine, put the layers together; leaving takes all down in reverse.

    `metrics` are counted here, `exposition` gives those of all processes of the server, and `shared` are the engines
    that another process keeps. The database has all tables. Raises `ConfigurationError` or `ModelFileError` for what
    stops a start.
    """
    url = database_url(settings.database.url, home)
    catalog = load_catalog(settings.models)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(url))
        accounts = await stack.enter_async_context(
            Accounts(
                database,
                spool_folder(url, home),
                durability=settings.billing.durability,
                grace=settings.database.grace,
                counters=await _open_counters(settings.limits, metrics, stack),
            )
        )
        router = await _start_deployments(settings, catalog, cache, shared, stack)
        ids = Ids()
        chat = ChatService(settings, catalog, router, accounts.ledger, accounts.prices, metrics)
        for deployment in router.deployments:
            metrics.gauge("moonbase_running", "Choices being generated.", deployment.name, _running(deployment))
            metrics.gauge("moonbase_waiting", "Choices waiting for their turn.", deployment.name, _waiting(deployment))
        openai, anthropic = OpenAI(), Anthropic()
        account_endpoints = AccountEndpoints(accounts, catalog, router)
        usage = UsageEndpoints(accounts)
        operations = OperationEndpoints(settings, router, exposition)
        chats, messages = ChatEndpoint("chat", accounts, chat, ids), ChatEndpoint("messages", accounts, chat, ids)
        counts = CountEndpoint(accounts, chat)
        routes = [
            Served("POST", "/v1/chat/completions", chats, openai),
            Served("GET", "/v1/models", account_endpoints.models, openai),
            Served("POST", "/v1/tokenizers/estimate-token-count", counts, openai),
            Served("GET", "/v1/users/me/balance", account_endpoints.balance, openai),
            Served("GET", "/healthz", operations.healthz, openai),
            Served("GET", "/readyz", operations.readyz, openai),
            Served("GET", "/openapi.json", operations.openapi, openai),
            Served("GET", "/v1/usage", usage.sums, openai),
            Served("GET", "/v1/usage/{id}", usage.request, openai),
            *[Served("POST", path, messages, anthropic) for path in MESSAGES],
            *[Served("POST", f"{path}/count_tokens", counts, anthropic) for path in MESSAGES],
        ]
        for operation, endpoint in admin_endpoints(accounts, database, catalog, settings.billing.currency):
            routes.append(Served(operation.method, operation.path, endpoint, openai))
        if settings.metrics.token is not None:
            routes.append(Served("GET", "/metrics", operations.metrics, openai))
        yield World(build_app(settings, routes, openai, metrics, ids), router)


async def _open_counters(settings: LimitsSettings, metrics: Metrics, stack: AsyncExitStack) -> Counters | None:
    """The counters that processes share, None where there are none; `stack` closes them."""
    if settings.redis_url is None:
        return None
    counters = SharedCounters(
        SharedStore(settings.redis_url), clock=milliseconds, metrics=metrics, without_redis=settings.without_redis
    )
    return await stack.enter_async_context(counters)


async def _start_deployments(
    settings: Settings, catalog: Catalog, cache: Path, shared: SharedEngines, stack: AsyncExitStack
) -> Router:
    """All deployments, started side by side; `stack` closes them."""
    built = {
        key: build_deployment(key, engine, settings, catalog, cache, shared) for key, engine in settings.engines.items()
    }
    for deployment in built.values():
        stack.push_async_callback(deployment.close)
    await start_all(deployment.start() for deployment in built.values())
    by_model = {
        model_id: built[f"deployments.{override.deployment}"]
        for model_id, override in settings.models.items()
        if override.deployment is not None
    }
    return Router(built["engine"], by_model)


def _running(deployment: Deployment) -> Callable[[], float]:
    return lambda: deployment.running


def _waiting(deployment: Deployment) -> Callable[[], float]:
    return lambda: deployment.waiting
