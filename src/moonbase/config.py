"""One settings tree, declared once, frozen after the start.

A setting's value comes from the flag, else the environment, else the configuration file, else the
default below. The file key `[server] port` is `MOONBASE_SERVER_PORT` in the environment and
`--set server.port=…` on the command line; the table in docs/reference/settings.md is made from
these fields. An unknown or malformed value raises `ConfigurationError` naming the key.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta, Struct, field

from moonbase.errors import ConfigurationError

Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Share = Annotated[float, Meta(ge=0, le=1)]
MachineFault = Literal["slow_first_token", "stall", "cut", "death", "malformed"]
ModelFault = Literal[
    "undeclared_tool",
    "invalid_arguments",
    "broken_arguments",
    "missing_call",
    "parallel_calls",
    "leaked_marker",
    "prose_answer",
    "invalid_answer",
    "empty_answer",
    "cut_short",
]
Fault = MachineFault | ModelFault
EngineName = Literal["openvino", "llamacpp", "vllm", "sglang", "openai", "moonshot", "echo", "chaos"]
FormatName = Literal[
    "hermes",
    "kimi-k2-0711",
    "kimi-k2-0905",
    "kimi-k2-thinking",
    "kimi-k2.5-first",
    "kimi-k2.5",
    "kimi-k2.6",
    "kimi-k2.7-code",
]
Mode = Literal["lenient", "strict"]
Currency = Literal["USD", "CNY"]
Durability = Literal["process", "disk"]
WithoutRedis = Literal["local", "refuse"]


def _d(text: str) -> Meta:
    return Meta(description=text)


class _Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Unknown keys are mistakes, not extensions."""


class ServerSettings(_Section, frozen=True):
    host: Annotated[str, _d("Address to listen on.")] = "127.0.0.1"
    port: Annotated[Port, _d("Port to listen on; 0 takes a free one.")] = 8000
    workers: Annotated[
        Count, _d("Gateway processes that share the port and the engines; several need limits.redis_url.")
    ] = 1
    public: Annotated[bool, _d("Allow an address that other machines can reach.")] = False
    allowed_hosts: Annotated[
        tuple[str, ...], _d("Host names answered besides the loopback names; `*.example.com` covers subdomains.")
    ] = ()
    china_hosts: Annotated[
        tuple[str, ...],
        _d("Host names at which the keys of organizations of the region `china` are good; answered too."),
    ] = ()
    china_port: Annotated[
        Port | None, _d("Another port to listen on, for the keys of the region `china`; none by default.")
    ] = None
    cors_origins: Annotated[tuple[str, ...], _d("Origins that browsers may call from; none by default.")] = ()
    trusted_proxies: Annotated[tuple[str, ...], _d("Proxy addresses whose X-Forwarded-* headers are believed.")] = ()
    tls_certificate: Annotated[str | None, _d("PEM file with the certificate chain.")] = None
    tls_key: Annotated[str | None, _d("PEM file with the private key.")] = None
    max_body_bytes: Annotated[Count, _d("Largest request body.")] = 100 * 1024 * 1024
    max_header_bytes: Annotated[Count, _d("Largest request head: request line and headers.")] = 32 * 1024
    header_timeout: Annotated[Seconds, _d("Seconds in which a request's head must arrive.")] = 10.0
    body_timeout: Annotated[Seconds, _d("Seconds in which a request's body must arrive.")] = 60.0
    write_timeout: Annotated[Seconds, _d("Seconds that a client may leave what it is sent unread.")] = 120.0
    max_bodies_bytes: Annotated[Count, _d("Bytes of all request bodies that are held at once.")] = 1024 * 1024 * 1024
    shutdown_grace: Annotated[Seconds, _d("Seconds that open answers get to finish after SIGTERM.")] = 30.0


class EngineSettings(_Section, frozen=True):
    name: Annotated[EngineName, _d("Engine that serves every model without a deployment of its own.")] = "openvino"
    model: Annotated[
        str | None,
        _d(
            "What the engine loads: a name from `moonbase models list` (by default smollm2-135m), a GGUF file or a "
            "model's folder. For `openai` and `moonshot`: the model's id there; by default the id asked for."
        ),
    ] = None
    url: Annotated[
        str | None, _d("Address of a running engine or service; without one, the engine is started here.")
    ] = None
    api_key: Annotated[str | None, _d("Key that the engine or service at `url` demands.")] = None
    format: Annotated[
        FormatName | None,
        _d("How the model is spoken with; by default as its weights say, else `hermes`; for `echo`, `kimi-k2-0905`."),
    ] = None
    vocabulary: Annotated[
        str | None,
        _d(
            "Folder with the model's vocabulary, when it does not lie with the model; for `echo` and `chaos`, the one "
            "that they count with."
        ),
    ] = None
    arguments: Annotated[
        tuple[str, ...], _d("More command-line arguments for an engine started here (vllm, sglang, llamacpp).")
    ] = ()
    enforce: Annotated[
        bool, _d("Hold tool calls and JSON answers to their schemas; `false` passes on what the model writes.")
    ] = True
    stable_prefix: Annotated[
        bool,
        _d(
            "Leave lines out of system prompts that clients change with every request, such as the one for Claude "
            "Code's billing: no prefix cache would match after them. Chat upstreams get them all the same."
        ),
    ] = True
    max_running: Annotated[Count, _d("Choices generated at once; more wait.")] = 32
    max_waiting: Annotated[Count, _d("Choices that may wait; more are refused as overloaded.")] = 256
    threads: Annotated[int, Meta(ge=0), _d("CPU threads of the embedded engine; 0 means one per core.")] = 0
    cache_bytes: Annotated[
        int, Meta(ge=0), _d("Memory for the embedded engine's KV cache; 0 means a quarter of what the machine allows.")
    ] = 0
    queue_timeout: Annotated[Seconds, _d("Seconds a request may wait for its turn and its first token.")] = 300.0
    idle_timeout: Annotated[Seconds, _d("Seconds between two tokens of a stream.")] = 120.0
    total_timeout: Annotated[Seconds, _d("Seconds that one answer may take.")] = 7200.0
    hang_timeout: Annotated[
        Seconds, _d("Seconds of silence after which a busy worker or a server started here is hung.")
    ] = 60.0


class EchoSettings(_Section, frozen=True):
    script: Annotated[str | None, _d("File whose content is played as raw model output instead of the echo.")] = None
    delay: Annotated[float, Meta(ge=0), _d("Seconds between two tokens.")] = 0.0
    first_delay: Annotated[float, Meta(ge=0), _d("Seconds before the first token.")] = 0.0


class ChaosSettings(_Section, frozen=True):
    seed: Annotated[int, _d("Seed of the faults; the same seed gives the same faults.")] = 0
    fault_rate: Annotated[Share, _d("Share of requests that meet a fault.")] = 0.5
    faults: Annotated[
        tuple[Fault, ...],
        _d("Kinds of faults to choose from."),
    ] = ("slow_first_token", "stall", "cut", "death", "malformed")
    slow_seconds: Annotated[Seconds, _d("Length of a slow first token.")] = 5.0


class DatabaseSettings(_Section, frozen=True):
    url: Annotated[str | None, _d("SQLAlchemy URL; by default a SQLite file under MOONBASE_HOME.")] = None
    grace: Annotated[Seconds, _d("Seconds that keys in use stay valid while the database is away.")] = 60.0


class BillingSettings(_Section, frozen=True):
    currency: Annotated[Currency, _d("Currency of prices and balances.")] = "USD"
    durability: Annotated[
        Durability,
        _d(
            "What a charge survives once its answer is complete: the death of the `process`, or the machine's (`disk`)."
        ),
    ] = "process"


class LimitsSettings(_Section, frozen=True):
    redis_url: Annotated[
        str | None,
        _d("Redis in which several processes count requests and tokens together; by default each counts alone."),
    ] = None
    without_redis: Annotated[
        WithoutRedis,
        _d("While Redis is away, each process counts alone (`local`), or what has limits is answered 503 (`refuse`)."),
    ] = "local"


class MetricsSettings(_Section, frozen=True):
    host: Annotated[str, _d("Address of the metrics listener.")] = "127.0.0.1"
    port: Annotated[Port | None, _d("Port of the metrics listener; none by default.")] = None
    token: Annotated[str | None, _d("Bearer token that opens /metrics on the main listener; none by default.")] = None


class LogSettings(_Section, frozen=True):
    level: Annotated[Literal["debug", "info", "warning", "error"], _d("Least severe records to write.")] = "info"
    format: Annotated[Literal["auto", "text", "json"], _d("`auto`: text to a terminal, else JSON.")] = "auto"


class ModelOverride(_Section, frozen=True):
    """One public model id as the operator wants it; what is absent stays as in the catalog."""

    alias_of: Annotated[str | None, _d("Another id whose definition this one takes over.")] = None
    deployment: Annotated[str | None, _d("Table under [deployments] that answers; by default [engine] does.")] = None
    window: Annotated[Count | None, _d("Window in tokens; never more than the serving model's own.")] = None
    max_output: Annotated[Count | None, _d("Default output limit in tokens.")] = None
    temperature: Annotated[Share | None, _d("Default temperature.")] = None
    price_miss: Annotated[str | None, _d("Price of 1M prompt tokens, as a decimal.")] = None
    price_hit: Annotated[str | None, _d("Price of 1M cached prompt tokens, as a decimal.")] = None
    price_output: Annotated[str | None, _d("Price of 1M output tokens, as a decimal.")] = None
    disabled: Annotated[bool, _d("Hide the id and answer 404 for it.")] = False


class Settings(_Section, frozen=True):
    mode: Annotated[
        Mode, _d("`lenient` adapts what it can and names it in Moonbase-Adapted; `strict` answers as the service did.")
    ] = "lenient"
    server: ServerSettings = ServerSettings()
    engine: EngineSettings = EngineSettings()
    echo: EchoSettings = EchoSettings()
    chaos: ChaosSettings = ChaosSettings()
    database: DatabaseSettings = DatabaseSettings()
    billing: BillingSettings = BillingSettings()
    limits: LimitsSettings = LimitsSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()
    models: Annotated[dict[str, ModelOverride], _d("Public model ids to add or change.")] = field(default_factory=dict)
    deployments: Annotated[
        dict[str, EngineSettings], _d("Further engines, with the keys of [engine], for models to name.")
    ] = field(default_factory=dict)

    @property
    def engines(self) -> dict[str, EngineSettings]:
        """All engines by the tables that describe them: `engine`, and `deployments.NAME` of each further one."""
        return {"engine": self.engine} | {f"deployments.{name}": engine for name, engine in self.deployments.items()}


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of the state (database): MOONBASE_HOME, else the platform's data folder."""
    return _folder(environ, "MOONBASE_HOME", "XDG_DATA_HOME", ".local/share")


def cache(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of what can be fetched again (models): MOONBASE_CACHE, else the platform's cache folder."""
    return _folder(environ, "MOONBASE_CACHE", "XDG_CACHE_HOME", ".cache")


def load(
    file: Path | None = None, overrides: Mapping[str, str] | None = None, environ: Mapping[str, str] = os.environ
) -> Settings:
    """Read the settings: `overrides` (dotted key to text) over `environ` over `file` over the defaults."""
    tree: dict[str, Any] = {}
    if file is not None:
        tree = _read(file)
        _check_names(tree, Settings, str(file))
        _convert(tree, str(file), strict=True)
    for key, text in _from_environment(environ).items():
        _put(tree, key, text)
        _convert(tree, _environment_name(key))
    for key, text in (overrides or {}).items():
        _check_key(key)
        _put(tree, key, text)
        _convert(tree, key)
    settings = _convert(tree, "settings")
    _check(settings, tree)
    return settings


def describe() -> list[tuple[str, str, str, str]]:
    """Every setting as (key, environment name, default, help), for the documentation."""
    rows: list[tuple[str, str, str, str]] = []
    for key, (annotation, default) in _keys().items():
        help_text = next(m.description for m in get_args(annotation)[1:] if isinstance(m, Meta) and m.description)
        shown = "" if default is None else msgspec.json.encode(default).decode()
        rows.append((key, _environment_name(key), shown, help_text))
    return rows


def _folder(environ: Mapping[str, str], name: str, xdg: str, fallback: str) -> Path:
    if environ.get(name):
        return Path(environ[name]).expanduser().absolute()
    base = environ.get(xdg) or str(Path.home() / fallback)
    return Path(base) / "moonbase"


def _keys() -> dict[str, tuple[Any, Any]]:
    """Dotted key of every leaf setting to its annotation and default."""
    found: dict[str, tuple[Any, Any]] = {}

    def walk(section: type[Struct], prefix: str) -> None:
        hints = get_type_hints(section, include_extras=True)
        for info in msgspec.structs.fields(section):
            annotation = hints[info.name]
            if isinstance(annotation, type) and issubclass(annotation, Struct):
                walk(annotation, f"{prefix}{info.name}.")
            elif f"{info.name}." not in _TABLES:
                found[prefix + info.name] = (annotation, info.default)

    walk(Settings, "")
    return found


_TABLES = ("models.", "deployments.")  # tables of tables, whose names the operator chooses
_KUBERNETES = re.compile(r"MOONBASE_(SERVICE_|PORT)")  # what it sets in every pod for a service named moonbase


def _environment_name(key: str) -> str:
    return "MOONBASE_" + key.replace(".", "_").upper()


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    names = {_environment_name(key): key for key in _keys()}
    own = {"MOONBASE_HOME", "MOONBASE_CACHE", "MOONBASE_CONFIG"}
    for name in environ:
        if _KUBERNETES.match(name):
            continue
        if name.startswith("MOONBASE_") and name not in names and name not in own:
            raise _no_such(name, name, names)
    return {key: environ[name] for name, key in names.items() if name in environ}


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: is not valid TOML: {error}") from error
    except RecursionError as error:
        raise ConfigurationError(f"{file}: is nested too deeply") from error


def _check_names(table: Mapping[str, Any], section: type[Struct], where: str, path: tuple[str, ...] = ()) -> None:
    """Raises for the first key in the file `where` that is no setting; `path` leads to `table`."""
    fields = get_type_hints(section)
    for name, value in table.items():
        here = (*path, name)
        if name not in fields:
            raise _unquoted(where, here, value) or _no_such(f"{where}: {'.'.join(here)}", name, fields)
        if not isinstance(value, dict):
            continue
        if f"{name}." in _TABLES:
            for key, entry in value.items():
                if isinstance(entry, dict):
                    _check_names(entry, get_args(fields[name])[1], where, (*here, key))
        elif isinstance(fields[name], type) and issubclass(fields[name], Struct):
            _check_names(value, fields[name], where, here)


def _unquoted(where: str, path: tuple[str, ...], value: Any) -> ConfigurationError | None:
    """The error for a table in a table such as [models.ID], which has none: dots without quotes make one."""
    if not isinstance(value, dict) or not f"{path[0]}.".startswith(_TABLES):
        return None
    while len(value) == 1 and isinstance(inner := next(iter(value.values())), dict):
        path, value = (*path, *value), inner
    table, *parts = path
    name = ".".join(parts)
    return ConfigurationError(f'{where}: {table}.{name}: a name with a dot needs quotes: [{table}."{name}"]')


def _check_key(key: str) -> None:
    """Raises for a dotted key that is no setting."""
    if not key.startswith(_TABLES):
        if key not in _keys():
            raise _no_such(key, key, _keys())
        return
    table, _, rest = key.partition(".")
    name = rest.rpartition(".")[2]
    fields = get_type_hints(get_args(get_type_hints(Settings)[table])[1])
    if "." not in rest or name not in fields:
        raise _no_such(key, name, fields)


def _no_such(key: str, name: str, known: Iterable[str]) -> ConfigurationError:
    """The error for `key`, whose `name` is none of the `known` ones."""
    sentence = f"{key}: there is no such setting; docs/reference/settings.md lists them"
    close = difflib.get_close_matches(name, known, 1)
    return ConfigurationError(f"{sentence}. Did you mean `{close[0]}`?" if close else sentence)


def _put(tree: dict[str, Any], key: str, text: str) -> None:
    *sections, name = key.split(".")
    if key.startswith(_TABLES):  # a model id has dots of its own: models.<id>.<field>
        sections = [sections[0], ".".join(sections[1:])]
    for section in sections:
        tree = tree.setdefault(section, {})
    like = f"engine.{name}" if key.startswith("deployments.") else key
    annotation = _keys().get(like, (None, None))[0]
    is_list = annotation is not None and "tuple" in str(get_args(annotation)[0])
    tree[name] = [part.strip() for part in text.split(",") if part.strip()] if is_list else text


def _convert(tree: dict[str, Any], source: str, *, strict: bool = False) -> Settings:
    try:
        return msgspec.convert(tree, Settings, strict=strict)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        key = path.strip("`.").replace("models[...]", "models.<id>").replace("deployments[...]", "deployments.<name>")
        if reason.startswith("Invalid enum value"):
            reason += f"; choose from {', '.join(_choices(key))}"
        known = not key or key.startswith(source) or (key.startswith(_TABLES) and source.startswith(_TABLES))
        raise ConfigurationError(f"{source if known else f'{source}: {key}'}: {reason}") from error


def _choices(key: str) -> list[str]:
    """The values that a setting with a fixed few may have."""
    key = re.sub(r"^deployments\.<name>", "engine", key).partition("[")[0]
    annotation = _keys()[key][0]
    return re.findall(r"'([^']+)'", str(get_args(annotation)[0]))


def _check(settings: Settings, tree: Mapping[str, Any]) -> None:
    """What one field cannot say alone. `tree` is what was set."""
    for model_id, model in settings.models.items():
        if model.deployment is not None and model.deployment not in settings.deployments:
            raise ConfigurationError(
                f"models.{model_id}.deployment: there is no table [deployments.{model.deployment}]"
            )
    _check_engine("engine", settings.engine, tree.get("engine", {}))
    for name, engine in settings.deployments.items():
        _check_engine(f"deployments.{name}", engine, tree["deployments"][name])
    server = settings.server
    if (server.tls_certificate is None) != (server.tls_key is None):
        raise ConfigurationError("server.tls_certificate and server.tls_key must be set together")
    if server.china_port is not None and server.china_port in (0, server.port):
        raise ConfigurationError("server.china_port: must be a port of its own, and not 0")
    if server.workers > 1 and settings.limits.redis_url is None:
        raise ConfigurationError(
            "limits.redis_url: must be set when there is more than one of server.workers (--workers), so that they "
            "count requests and tokens together"
        )
    token = settings.metrics.token
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise ConfigurationError("metrics.token: must be printable ASCII text that is not empty")
    if not server.public and server.host not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigurationError(
            f"server.host: {server.host} can be reached from other machines; set server.public (--public) to allow it"
        )


def _check_engine(key: str, engine: EngineSettings, table: Mapping[str, Any]) -> None:
    if engine.name == "openai" and engine.url is None:
        raise ConfigurationError(f"{key}.url: must be set for the engine openai")
    if engine.url is not None and "name" not in table:
        raise ConfigurationError(f"{key} has no `name`, so it is {engine.name}, which takes no `url`")
    if engine.name in ("openvino", "echo", "chaos") and engine.url is not None:
        raise ConfigurationError(f"{key}.url: the engine {engine.name} runs here and has no address")
    if engine.api_key is not None and engine.url is None and engine.name != "moonshot":
        raise ConfigurationError(f"{key}.api_key: is for an engine with a url")
