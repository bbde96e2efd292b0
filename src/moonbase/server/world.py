"""Builds everything a server needs, in one place, and takes it down again."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from msgspec import Struct
from starlette.types import ASGIApp

from moonbase.accounts.accounts import Accounts
from moonbase.catalog.catalog import Catalog, load_catalog
from moonbase.catalog.weights import locate, verify
from moonbase.config import Settings
from moonbase.engines.base import Tokenizer
from moonbase.engines.chaos import ChaosEngine
from moonbase.engines.echo import EchoEngine
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.errors import ConfigurationError, ModelFileError
from moonbase.formats.hermes import Hermes
from moonbase.router.deployment import TokenDeployment
from moonbase.router.router import Router
from moonbase.server.app import Routes, build_app
from moonbase.server.endpoints import AccountEndpoints, ChatEndpoint, OperationEndpoints
from moonbase.service.chat import ChatService
from moonbase.service.ids import Ids
from moonbase.store.database import Database, database_url
from moonbase.store.migrate import migrate
from moonbase.telemetry import Metrics


class World(Struct, frozen=True):
    """A server ready to listen. `first_key` is the secret made at the first start of a database, else None."""

    app: ASGIApp
    deployment: TokenDeployment
    first_key: str | None


@asynccontextmanager
async def build_world(settings: Settings, home: Path, cache: Path, metrics: Metrics) -> AsyncIterator[World]:
    """Open the database, start the engine, put the layers together; leaving takes all down in reverse.

    Raises `ConfigurationError` or `ModelFileError` for what stops a start.
    """
    url = database_url(settings.database.url, home)
    await migrate(url)
    catalog = load_catalog(settings.models)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(url))
        accounts = await stack.enter_async_context(Accounts(database, currency=settings.billing.currency))
        deployment = _deployment(settings, catalog, cache)
        stack.push_async_callback(deployment.engine.close)
        await deployment.engine.start()
        first_key = await accounts.keys.first_start()  # last: a start that fails must not have made a key
        router = Router(deployment)
        ids = Ids()
        chat = ChatService(settings, catalog, router, accounts, metrics)
        engine = deployment.engine
        metrics.gauge("moonbase_running", "Choices being generated.", deployment.name, lambda: engine.running)
        metrics.gauge("moonbase_waiting", "Choices waiting for their turn.", deployment.name, lambda: engine.waiting)
        account_endpoints = AccountEndpoints(accounts, catalog, router, chat)
        operations = OperationEndpoints(settings, router, metrics)
        routes: Routes = [
            ("POST", "/v1/chat/completions", ChatEndpoint(accounts, chat, ids)),
            ("GET", "/v1/models", account_endpoints.models),
            ("POST", "/v1/tokenizers/estimate-token-count", account_endpoints.estimate),
            ("GET", "/v1/users/me/balance", account_endpoints.balance),
            ("GET", "/healthz", operations.healthz),
            ("GET", "/readyz", operations.readyz),
            ("GET", "/openapi.json", operations.openapi),
        ]
        if settings.metrics.token is not None:
            routes.append(("GET", "/metrics", operations.metrics))
        yield World(build_app(settings, routes, metrics, ids), deployment, first_key)


def _deployment(settings: Settings, catalog: Catalog, cache: Path) -> TokenDeployment:
    """The deployment of the configured engine, not yet started."""
    makers: dict[str, Callable[[Settings, Catalog, Path], TokenDeployment]] = {
        "echo": _echo,
        "chaos": _chaos,
        "openvino": _openvino,
    }
    return makers[settings.engine.name](settings, catalog, cache)


def _echo(settings: Settings, catalog: Catalog, cache: Path) -> TokenDeployment:
    tokenizer = _text_tokenizer(cache)
    return TokenDeployment("echo", Hermes(), tokenizer, EchoEngine(settings.echo, tokenizer))


def _chaos(settings: Settings, catalog: Catalog, cache: Path) -> TokenDeployment:
    tokenizer = _text_tokenizer(cache)
    return TokenDeployment("chaos", Hermes(), tokenizer, ChaosEngine(settings.chaos, tokenizer))


def _text_tokenizer(cache: Path) -> Tokenizer:
    """The Kimi vocabulary when it is in the cache, so that counts are Kimi's; else four bytes a token."""
    vocabulary = cache / "vocabularies" / "kimi-k2" / "tiktoken.model"
    if not vocabulary.is_file():
        return ApproximateTokenizer()
    from moonbase.engines.tokenizers.kimi import KimiTokenizer

    beyond = 163_840  # ChatML's control tokens are not in the vocabulary; they count as one token each
    return KimiTokenizer(vocabulary, {"<|im_start|>": beyond, "<|endoftext|>": beyond + 1})


def _openvino(settings: Settings, catalog: Catalog, cache: Path) -> TokenDeployment:
    try:
        from moonbase.engines.openvino.engine import OpenVINOEngine
        from moonbase.engines.tokenizers.huggingface import HuggingFaceTokenizer
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"engine.name: the openvino engine needs the package {error.name}; "
            "install it with: pip install 'moonbase[openvino]'"
        ) from error
    name = settings.engine.model
    path = locate(name, catalog, cache)
    weights = catalog.weights.get(name)
    if path is None and weights is not None:
        raise ModelFileError(f"engine.model: {name} is not in the cache; fetch it with: moonbase models pull {name}")
    if path is None:
        raise ModelFileError(f"engine.model: {name} is no file and no name that `moonbase models list` shows")
    if weights is not None:
        verify(path, weights)
    tokenizer = HuggingFaceTokenizer.read(path)
    engine = OpenVINOEngine(settings.engine, path)
    try:
        return TokenDeployment(weights.title if weights else path.stem, Hermes(), tokenizer, engine)
    except KeyError as error:
        raise ModelFileError(f"{path}: the vocabulary lacks {error}, which ChatML models have") from error
