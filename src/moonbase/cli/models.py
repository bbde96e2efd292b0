"""`moonbase models`: what can be asked for, what can be run, and fetching the latter."""

import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from moonbase.cli.options import ConfigOption

if TYPE_CHECKING:
    from moonbase.catalog.model import Model, Weights
    from moonbase.catalog.weights import Pulled
    from moonbase.config import Currency

app = typer.Typer(no_args_is_help=True, help="List the models and fetch their weights.")

_Row = list[str]
_MODEL_COLUMNS = ["model", "window", "temperature", "input", "cached", "output"]
_WEIGHTS_COLUMNS = ["weights", "memory", "size", "window", "engine", "license", "state"]


@app.command("list")
def list_models(
    config_file: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the public model ids, and the weights that can answer for them.

    Tables on a terminal, tab-separated lines in a pipe. Prices are per 1M tokens. Memory is what
    weights need with some thousand tokens of context.
    """
    from moonbase import config
    from moonbase.catalog.catalog import load_catalog
    from moonbase.catalog.weights import locate

    settings = config.load(config_file)
    catalog = load_catalog(settings.models)
    cache, currency = config.cache(), settings.billing.currency
    present = {name: locate(name, catalog, cache) is not None for name in catalog.weights}
    if as_json:
        import msgspec

        listing = {
            "models": [_model_json(model, currency) for model in catalog.listed()],
            "weights": [_weights_json(weights, present[name]) for name, weights in catalog.weights.items()],
        }
        typer.echo(msgspec.json.format(msgspec.json.encode(listing)))
        return
    _table(f"Models (prices in {currency})", _MODEL_COLUMNS, [_model_row(m, currency) for m in catalog.listed()])
    _table(
        f"Weights (in {cache / 'models'})",
        _WEIGHTS_COLUMNS,
        [_weights_row(weights, present[name]) for name, weights in catalog.weights.items()],
    )


@app.command("pull")
def pull_weights(
    name: Annotated[str, typer.Argument(help="A name from `moonbase models list`.")] = "smollm2-135m",
) -> None:
    """Fetch weights into the cache and verify them. What is there already is only verified."""
    pulled = fetch(name)
    typer.echo(f"{pulled.path} is {'fetched' if pulled.fetched else 'present'}, verified")


def fetch(name: str) -> "Pulled":
    """Pull the weights of that name, with progress on standard error. Raises `ModelFileError`."""
    from moonbase import config
    from moonbase.catalog.catalog import load_catalog
    from moonbase.catalog.weights import pull
    from moonbase.errors import ModelFileError

    weights = load_catalog({}).weights.get(name)
    if weights is None:
        raise ModelFileError(f"There are no weights named {name}; `moonbase models list` shows the names")
    with _Bar() as bar:
        return pull(weights, config.cache(), bar.show)


class _Bar:
    """Rich's progress on standard error, started only when bytes are counted: before that, pip shows its own."""

    def __enter__(self) -> "_Bar":
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, step: str, done: int, total: int) -> None:
        if total == 0:
            self._progress.console.print(f"{step} ...", highlight=False)
        elif not self._progress.tasks:
            self._progress.start()
            self._progress.add_task(step, completed=done, total=total)
        else:
            self._progress.update(self._progress.tasks[0].id, completed=done)


def _table(title: str, columns: _Row, rows: list[_Row]) -> None:
    """A table for people; for programs a heading and tab-separated lines."""
    import sys

    if not sys.stdout.isatty():
        for row in (columns, *rows):
            typer.echo("\t".join(row))
        typer.echo()
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    typer.echo()


def _model_row(model: "Model", currency: "Currency") -> _Row:
    start = [model.id, str(model.window), f"{model.rules.temperature.default:g}"]
    if model.tiers:
        return [*start, "by size", "by size", "by size"]
    prices = _prices(model, currency)
    return [*start, prices["input"], prices["cached"], prices["output"]]


def _prices(model: "Model", currency: "Currency") -> dict[str, str]:
    from moonbase.catalog.prices import decimal

    price = model.price_on(datetime.datetime.now(datetime.UTC).date(), currency)
    return {"input": decimal(price.miss), "cached": decimal(price.hit), "output": decimal(price.output)}


def _model_json(model: "Model", currency: "Currency") -> dict[str, object]:
    return {
        "id": model.id,
        "window": model.window,
        "temperature": model.rules.temperature.default,
        "max_output": model.max_output,
        "currency": currency,
        "prices": None if model.tiers else _prices(model, currency),
        "tiers": [
            {"up_to": tier.up_to, "id": tier.model.id, "prices": _prices(tier.model, currency)} for tier in model.tiers
        ],
    }


def _weights_row(weights: "Weights", present: bool) -> _Row:
    return [
        weights.name,
        _gigabytes(weights.memory),
        _gigabytes(weights.size),
        str(weights.window),
        ", ".join(weights.engines),
        weights.license,
        _state(weights, present),
    ]


def _weights_json(weights: "Weights", present: bool) -> dict[str, object]:
    return {
        "name": weights.name,
        "title": weights.title,
        "memory": weights.memory,
        "size": weights.size,
        "window": weights.window,
        "engines": weights.engines,
        "license": weights.license,
        "languages": weights.languages,
        "state": _state(weights, present),
    }


def _state(weights: "Weights", present: bool) -> str:
    if weights.file is None:
        return "not fetched here"
    return "present" if present else "missing"


def _gigabytes(size: int) -> str:
    return f"{size / 10**9:.1f} GB" if size < 10**10 else f"{size / 10**9:,.0f} GB"
