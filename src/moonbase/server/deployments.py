"""Makes the deployment that a table of settings describes: engine, tokenizer and format, not yet started."""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from moonbase.catalog.catalog import Catalog
from moonbase.catalog.model import Weights
from moonbase.catalog.weights import DEFAULT_WEIGHTS, locate, verify
from moonbase.config import EngineSettings, FormatName, Settings
from moonbase.engines.base import Engine, Tokenizer
from moonbase.engines.chaos import ChaosEngine
from moonbase.engines.echo import EchoEngine
from moonbase.engines.kept_server import KeptServer, Program, ServerKeeper
from moonbase.engines.supervisor import Supervisor
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.engines.worker_link import WorkerClient, WorkerKeeper
from moonbase.errors import ConfigurationError, ModelFileError
from moonbase.formats.base import Format
from moonbase.formats.hermes.format import Hermes
from moonbase.formats.kimi_k2.format import KimiK2
from moonbase.router.chat_deployment import ChatDeployment, Target
from moonbase.router.deployment import Deployment
from moonbase.router.encoding import ConversationEncoder
from moonbase.router.token_deployment import TokenDeployment, single_tokens

_DEFAULT_FORMAT: FormatName = "kimi-k2-0905"
_MOONSHOT_URL = "https://api.moonshot.ai/v1"


KeptEngine = Supervisor | KeptServer


class SharedEngines(Struct, frozen=True):
    """Who keeps the processes of engines that another process of ours started, by the engine's table in the settings:
    workers, each for the client that it is given, and servers.
    """

    workers: Mapping[str, Callable[[WorkerClient], WorkerKeeper]]
    servers: Mapping[str, ServerKeeper]


NOT_SHARED = SharedEngines({}, {})


class _Recipe:
    """What a maker has at hand. `key` is the settings' table, for errors."""

    def __init__(
        self,
        key: str,
        engine: EngineSettings,
        settings: Settings,
        catalog: Catalog,
        cache: Path,
        shared: SharedEngines = NOT_SHARED,
    ) -> None:
        self.key = key
        self.engine = engine
        self.settings = settings
        self.catalog = catalog
        self.cache = cache
        self.shared = shared


def keep_engines(settings: Settings, catalog: Catalog, cache: Path) -> dict[str, KeptEngine]:
    """What keeps the engines that gateways are to share, by the table that describes each, not yet started.

    Raises `ConfigurationError` or `ModelFileError` naming what is wrong.
    """
    kept: dict[str, KeptEngine] = {}
    for key, engine in settings.engines.items():
        recipe = _Recipe(key, engine, settings, catalog, cache)
        if engine.name == "openvino":
            kept[key] = _openvino_worker(recipe)
        elif engine.name in ("llamacpp", "vllm", "sglang") and engine.url is None:
            kept[key] = KeptServer(_server_program(recipe))
    return kept


async def start_all(starts: Iterable[Coroutine[None, None, None]]) -> None:
    """All side by side. Raises the first error."""
    try:
        async with asyncio.TaskGroup() as starting:
            for start in starts:
                starting.create_task(start)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures


def build_deployment(
    key: str,
    engine: EngineSettings,
    settings: Settings,
    catalog: Catalog,
    cache: Path,
    shared: SharedEngines = NOT_SHARED,
) -> Deployment:
    """The deployment that `engine`, the table `key`, describes. It keeps the engine's process if nobody shares it.

    Raises `ConfigurationError` or `ModelFileError` naming what is wrong.
    """
    makers: dict[str, Callable[[_Recipe], Deployment]] = {
        "echo": _echo,
        "chaos": _chaos,
        "openvino": _openvino,
        "llamacpp": _token_server,
        "vllm": _token_server,
        "sglang": _token_server,
        "openai": _openai,
        "moonshot": _moonshot,
    }
    return makers[engine.name](_Recipe(key, engine, settings, catalog, cache, shared))


def _echo(recipe: _Recipe) -> Deployment:
    tokenizer = _counting_tokenizer(recipe)
    format = _format(recipe.engine.format or _DEFAULT_FORMAT, tokenizer)
    return _deployment(recipe, "echo", format, tokenizer, EchoEngine(recipe.settings.echo, tokenizer, format.markers))


def _chaos(recipe: _Recipe) -> Deployment:
    tokenizer = _counting_tokenizer(recipe)
    format = _format(recipe.engine.format or _DEFAULT_FORMAT, tokenizer)
    return _deployment(recipe, "chaos", format, tokenizer, ChaosEngine(recipe.settings.chaos, tokenizer))


def _openvino(recipe: _Recipe) -> Deployment:
    with _openvino_installed(recipe):
        from moonbase.engines.openvino.engine import OpenVINOEngine
        from moonbase.engines.tokenizers.huggingface import HuggingFaceTokenizer

    path, weights = _model_file(recipe)
    tokenizer = HuggingFaceTokenizer.read(path)
    engine = OpenVINOEngine(recipe.engine, path, recipe.shared.workers.get(recipe.key), recipe.cache)
    name = recipe.engine.format or (weights.format if weights else "hermes")
    format = _format(name, tokenizer, weights, spells_markers=engine.description.spells_markers)
    return _deployment(recipe, weights.title if weights else path.stem, format, tokenizer, engine)


def _openvino_worker(recipe: _Recipe) -> Supervisor:
    with _openvino_installed(recipe):
        from moonbase.engines.openvino.engine import Witness, openvino_worker

    return openvino_worker(recipe.engine, _model_file(recipe)[0], Witness(), recipe.cache)


@contextlib.contextmanager
def _openvino_installed(recipe: _Recipe) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{recipe.key}.name: the openvino engine needs the package {error.name}; "
            f"install it with: {sys.executable} -m pip install 'moonbase[openvino]'"
        ) from error


def _token_server(recipe: _Recipe) -> Deployment:
    """An engine behind HTTP that takes token ids, at a URL or started here."""
    from moonbase.engines.tokenizers.kimi import KimiTokenizer

    settings = recipe.engine
    path, weights = _model_file(recipe) if _has_files(recipe) else (None, None)
    tokenizer = _tokenizer_of_server(recipe, path)
    kind: FormatName = _DEFAULT_FORMAT if isinstance(tokenizer, KimiTokenizer) else "hermes"
    format = _format(settings.format or (weights.format if weights else kind), tokenizer, weights)
    with _naming(recipe):
        engine = _server_engine(settings.name)(settings, tokenizer, path, recipe.shared.servers.get(recipe.key))
    name = weights.title if weights else path.stem if path else settings.model or settings.name
    return _deployment(recipe, name, format, tokenizer, engine)


def _server_engine(name: str) -> "Callable[[EngineSettings, Tokenizer, Path | None, ServerKeeper | None], Engine]":
    match name:
        case "llamacpp":
            from moonbase.engines.llamacpp.engine import llamacpp_engine

            return llamacpp_engine
        case "vllm":
            from moonbase.engines.vllm import vllm_engine

            return vllm_engine
        case _:
            from moonbase.engines.sglang import sglang_engine

            return sglang_engine


def _server_program(recipe: _Recipe) -> Program:
    """What is started where an engine behind HTTP has no url."""
    path, _ = _model_file(recipe)
    with _naming(recipe):
        match recipe.engine.name:
            case "llamacpp":
                from moonbase.engines.llamacpp.engine import llamacpp_program

                return llamacpp_program(recipe.engine, path, recipe.settings.server.workers)
            case "vllm":
                from moonbase.engines.vllm import vllm_program

                return vllm_program(recipe.engine, path)
            case _:
                from moonbase.engines.sglang import sglang_program

                return sglang_program(recipe.engine, path)


@contextlib.contextmanager
def _naming(recipe: _Recipe) -> Iterator[None]:
    """Errors in the settings of an engine name its table."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"{recipe.key}: {error}") from error


def _has_files(recipe: _Recipe) -> bool:
    """Whether `model` must be a file or folder here: for a server at a URL it may be the model's id there."""
    model = recipe.engine.model
    return recipe.engine.url is None or (model is not None and Path(model).expanduser().exists())


def _tokenizer_of_server(recipe: _Recipe, model: Path | None) -> Tokenizer:
    """From `vocabulary`, else from the model's files, else the Kimi vocabulary in the cache."""
    from moonbase.engines.tokenizers.model import read_tokenizer

    if recipe.engine.vocabulary is not None:
        return _named_vocabulary(recipe, recipe.engine.vocabulary)
    if model is not None:
        return read_tokenizer(model)
    if (tokenizer := _kimi_vocabulary(recipe)) is not None:
        return tokenizer
    raise ConfigurationError(
        f"{recipe.key}.vocabulary: must name the folder or GGUF file that has the vocabulary of the model at the url"
    )


def _openai(recipe: _Recipe) -> Deployment:
    assert recipe.engine.url is not None, "the settings demand it"
    target = Target(
        upstream="openai",
        url=recipe.engine.url,
        api_key=recipe.engine.api_key,
        model=recipe.engine.model or "",
        patience=recipe.engine.total_timeout,
    )
    return _chat_deployment(recipe, target, None)


def _moonshot(recipe: _Recipe) -> Deployment:
    """The official cloud, or a server that is the same to its clients. Prompts are counted with the vocabulary."""
    if recipe.engine.url is None and not recipe.engine.api_key:
        raise ConfigurationError(f"{recipe.key}.api_key: must be set for the engine moonshot")
    name = recipe.engine.model or ""
    known = recipe.catalog.models.get(name)
    target = Target(
        upstream="moonshot",
        url=recipe.engine.url or _MOONSHOT_URL,
        api_key=recipe.engine.api_key,
        model=name,
        switches=bool(name) and (known is None or known.thinking == "optional"),
        patience=recipe.engine.total_timeout,
    )
    tokenizer = _kimi_vocabulary(recipe)
    if tokenizer is None:
        return _chat_deployment(recipe, target, None)
    format = _format(recipe.engine.format or _DEFAULT_FORMAT, tokenizer)
    return _chat_deployment(recipe, target, ConversationEncoder(format, tokenizer))


def _chat_deployment(recipe: _Recipe, target: Target, encoder: ConversationEncoder | None) -> ChatDeployment:
    """Named by the model there; without one by its table, or by its kind when it is the only one."""
    table = target.upstream if recipe.key == "engine" else recipe.key.removeprefix("deployments.")
    with _naming(recipe):
        return ChatDeployment(target.model or table, target, recipe.engine, encoder)


def _deployment(recipe: _Recipe, name: str, format: Format, tokenizer: Tokenizer, engine: Engine) -> TokenDeployment:
    try:
        return TokenDeployment(name, format, tokenizer, engine, recipe.engine)
    except KeyError as error:
        raise ModelFileError(
            f"{recipe.key}: the vocabulary of {name} lacks {error}, which the format {format.name} needs"
        ) from error


def _format(
    name: FormatName, tokenizer: Tokenizer, weights: Weights | None = None, *, spells_markers: bool = False
) -> Format:
    """What `weights` and `spells_markers` say counts for `hermes` only: a Kimi revision says it itself."""
    if name != "hermes":
        return KimiK2(name)
    tokens = frozenset(single_tokens(tokenizer, Hermes.spelled))
    thinks, max_calls = (weights.thinks, weights.max_calls) if weights is not None else (False, None)
    return Hermes(tokens=tokens, thinks=thinks, max_calls=max_calls, spells_markers=spells_markers)


def _counting_tokenizer(recipe: _Recipe) -> Tokenizer:
    """From `vocabulary`, else the Kimi vocabulary in the cache, so that counts are Kimi's; else four bytes a token."""
    if recipe.engine.vocabulary is not None:
        return _named_vocabulary(recipe, recipe.engine.vocabulary)
    return _kimi_vocabulary(recipe) or ApproximateTokenizer()


def _named_vocabulary(recipe: _Recipe, name: str) -> Tokenizer:
    """What the setting `vocabulary` names."""
    from moonbase.engines.tokenizers.model import read_tokenizer

    try:
        return read_tokenizer(Path(name).expanduser())
    except ModelFileError as error:
        raise ModelFileError(f"{recipe.key}.vocabulary: {error}") from error


def _kimi_vocabulary(recipe: _Recipe) -> Tokenizer | None:
    vocabulary = recipe.cache / "vocabularies" / "kimi-k2" / "tiktoken.model"
    if not vocabulary.is_file():
        return None
    from moonbase.engines.tokenizers.kimi import KimiTokenizer

    beyond = 163_840  # ChatML's control tokens are not in the vocabulary; they count as one token each
    return KimiTokenizer(vocabulary, {"<|im_start|>": beyond, "<|endoftext|>": beyond + 1})


def _model_file(recipe: _Recipe) -> tuple[Path, Weights | None]:
    """The file or folder that `model` names, checked, and what the catalog knows of it."""
    if recipe.engine.model is None and recipe.engine.name not in recipe.catalog.weights[DEFAULT_WEIGHTS].engines:
        raise ConfigurationError(
            f"{recipe.key}.model: must be set to a model's folder for the engine {recipe.engine.name}, "
            f"or {recipe.key}.url to a running server"
        )
    name = recipe.engine.model or DEFAULT_WEIGHTS
    weights = recipe.catalog.weights.get(name)
    if weights is not None and recipe.engine.name not in weights.engines:
        suited = " or ".join(weights.engines)
        raise ConfigurationError(f"{recipe.key}.model: {name} is for {suited}, not for {recipe.engine.name}")
    path = locate(name, recipe.catalog, recipe.cache)
    if path is None and weights is not None:
        raise ModelFileError(
            f"{recipe.key}.model: {name} is not in the cache; fetch it with: moonbase models pull {name}"
        )
    if path is None and recipe.engine.name in ("vllm", "sglang"):
        raise ModelFileError(
            f"{recipe.key}.model: {name} is no folder; {recipe.engine.name} is started with a folder that has been "
            "downloaded, as with: hf download ORGANIZATION/MODEL --local-dir FOLDER"
        )
    if path is None:
        raise ModelFileError(f"{recipe.key}.model: {name} is no file and no name that `moonbase models list` shows")
    if weights is not None:
        verify(path, weights)
    return path, weights
