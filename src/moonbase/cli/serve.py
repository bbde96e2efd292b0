"""`moonbase serve`: start the server."""

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moonbase.cli.options import ConfigOption
from moonbase.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

    from moonbase.config import Settings
    from moonbase.server.world import Summary

_NO_TLS = (
    "Warning: other machines reach this server without TLS. "
    "Put a proxy with TLS in front or set server.tls_certificate."
)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (default 8000; 0 takes a free one).")] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Gateway processes that share the port and the engines (default 1).", metavar="N"),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Allow an address that other machines can reach.")] = False,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Engine: openvino (default), llamacpp, vllm, sglang, openai, moonshot, echo or chaos.", metavar="NAME"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="What the engine loads: a name from `moonbase models list`, or a path.", metavar="NAME|PATH"),
    ] = None,
    config_file: ConfigOption = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting, such as server.port=9000. May be repeated.", metavar="KEY=VALUE"),
    ] = None,
) -> None:
    """Serve the Kimi API.

    State lies under MOONBASE_HOME, models under MOONBASE_CACHE. The first start makes a database and
    prints an API key, once. All settings are listed in docs/reference/settings.md.
    """
    from moonbase import config, telemetry

    overrides = _assignments(assignments or [])
    flags = {
        "server.host": host,
        "server.port": port,
        "server.workers": workers,
        "engine.name": engine,
        "engine.model": model,
    }
    overrides |= {key: str(value) for key, value in flags.items() if value is not None}
    if public:
        overrides["server.public"] = "true"
    settings = config.load(config_file, overrides)
    telemetry.configure_logging(settings.log.level, settings.log.format)
    _prepare_models(settings)

    from moonbase.server.run import run

    keys = partial(_keys_command, config_file, overrides.get("database.url"))
    run(settings, config.home(), config.cache(), partial(_announce, settings, keys))


def _assignments(texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigurationError(f"--set {text}: must be KEY=VALUE, such as server.port=9000")
        found[key.strip()] = value
    return found


def _local_models(settings: "Settings") -> list[str]:
    """What engines are to load in processes of ours."""
    from moonbase.catalog.weights import DEFAULT_WEIGHTS

    return [
        engine.model or DEFAULT_WEIGHTS
        for engine in settings.engines.values()
        if engine.name in ("openvino", "llamacpp") and engine.url is None
    ]


def _prepare_models(settings: "Settings") -> None:
    """Fetch on first use what local engines need and the catalog knows, and say what they load."""
    from moonbase import config
    from moonbase.catalog.catalog import load_catalog
    from moonbase.catalog.weights import locate
    from moonbase.cli.models import fetch

    if not (names := _local_models(settings)):
        return
    catalog = load_catalog(settings.models)
    for name in names:
        if name in catalog.weights and locate(name, catalog, config.cache()) is None:
            fetch(name)
    for name in names:
        if locate(name, catalog, config.cache()) is not None:
            typer.echo(f"Loading {name} ...", err=True)


def _announce(
    settings: "Settings", keys: Callable[[str], str], summary: "Summary", base_url: str, first_key: str | None
) -> None:
    """The banner, on standard error. The first key goes to standard output when that is no terminal."""
    from rich.console import Console

    from moonbase import config
    from moonbase.store.database import Database, database_url

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    size = "the nominal window of each model" if summary.window is None else f"a window of {summary.window:,} tokens"
    workers = settings.server.workers
    by = "" if workers == 1 else f" with {workers} processes"
    console.print(f"\n[bold]Moonbase[/bold] serves the Kimi API at [bold]{base_url}[/bold]{by}  (stop with Ctrl-C)")
    which = "Every model id" if not summary.others else "Every model id without a deployment of its own"
    console.print(f"{which} is answered by [bold]{summary.default}[/bold], with {size}.")
    if not summary.ready:
        console.print(
            f"{summary.default} cannot be reached yet: requests get a 503 until it can. See the log.", style="yellow"
        )
    if settings.server.public and settings.server.tls_certificate is None:
        console.print(_NO_TLS, style="yellow")
    if settings.server.china_port is not None:
        console.print(f"Keys of the region china are good at port {settings.server.china_port}.")
    if settings.database.url is not None:
        console.print(f"Its database is {Database(database_url(settings.database.url, config.home()))}.", markup=False)
    _announce_key(console, keys, first_key)
    console.print("\nTry it:\n\n" + _example(base_url), markup=False)


def _announce_key(console: "Console", keys: Callable[[str], str], key: str | None) -> None:
    """`keys` gives the command line of a subcommand of `moonbase keys`."""
    if key is None:
        listing = keys("list")
        console.print(f"\nClients need a key. `{listing}` shows those that there are; a new one:\n", markup=False)
        console.print(f"  export MOONSHOT_API_KEY=$({keys('create')} --name NAME)", markup=False)
    elif sys.stdout.isatty():
        console.print("\nYour API key, shown only this once:\n")
        console.print(f"  export MOONSHOT_API_KEY={key}", markup=False)
    else:
        typer.echo(key)
        console.print("\nYour API key was written to standard output, this once. Put it into MOONSHOT_API_KEY.")


def _keys_command(config_file: Path | None, url: str | None, subcommand: str) -> str:
    """The command line of `moonbase keys` for the database of a server that was given this file and this URL."""
    from sqlalchemy import make_url

    environ = "" if url is None else f"MOONBASE_DATABASE_URL={shlex.quote(make_url(url).render_as_string())} "
    options = "" if config_file is None else f" --config {shlex.quote(str(config_file))}"
    return f"{environ}{_program()} keys {subcommand}{options}"


def _program() -> str:
    """The command by which this program was started, for a shell in the same folder."""
    started = sys.argv[0]
    if Path(started).name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m moonbase"
    found = shutil.which("moonbase")
    if found is not None and Path(found).resolve() == Path(started).resolve():
        return "moonbase"
    return shlex.quote(os.path.normpath(started))


def _example(base_url: str) -> str:
    body = (
        '{"model": "kimi-k2-0905-preview", "max_tokens": 64, "temperature": 0,\n'
        '       "messages": [{"role": "user", "content": "What is the capital of France?"}]}'
    )
    return (
        f"  curl {base_url}/chat/completions \\\n"
        '    -H "Authorization: Bearer $MOONSHOT_API_KEY" -H "Content-Type: application/json" \\\n'
        f"    -d '{body}'\n"
    )
