"""`moonbase prices`: what tokens cost."""

from typing import TYPE_CHECKING, Annotated

import typer

from moonbase.cli.administration import administer, given, one_of, request
from moonbase.cli.options import ConfigOption
from moonbase.cli.tables import FormatOption, print_rows

if TYPE_CHECKING:
    from moonbase.accounts.administration import Administration

app = typer.Typer(name="prices", help="Set, list and remove prices.", no_args_is_help=True)

_Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model's id, as usage records name it.")]
_Currency = Annotated[str, typer.Option("--currency", help="USD or CNY.", metavar="NAME")]
_Since = Annotated[str, typer.Option("--since", help="The day (UTC) from which on it holds.", metavar="DATE")]
_COLUMNS = ("model", "currency", "since", "miss", "hit", "write", "output")


@app.command("set")
def set_(
    model: _Model,
    currency: _Currency,
    since: _Since,
    miss: Annotated[str, typer.Option("--miss", help="1M prompt tokens.", metavar="AMOUNT")],
    output: Annotated[str, typer.Option("--output", help="1M output tokens.", metavar="AMOUNT")],
    hit: Annotated[
        str | None, typer.Option("--hit", help="1M cached prompt tokens; else as --miss.", metavar="AMOUNT")
    ] = None,
    write: Annotated[
        str | None, typer.Option("--write", help="1M prompt tokens written to a cache.", metavar="AMOUNT")
    ] = None,
    config_file: ConfigOption = None,
) -> None:
    """Set the prices of a model from a day on. Running servers use them within two seconds.

    What is billed already keeps the price it was billed at.
    """
    from moonbase.accounts.requests import NewPrice

    optional = given(hit=hit, write=write)
    new = request(NewPrice, model=model, currency=currency, since=since, miss=miss, output=output, **optional)
    administer(config_file, lambda administration: administration.prices.set(new), makes=True)
    typer.echo(f"{model} costs that in {currency} from {since} on.", err=True)


@app.command("list")
def list_(
    model: Annotated[str | None, typer.Option("--model", help="Only those of this model.", metavar="ID")] = None,
    format: FormatOption = None,
    config_file: ConfigOption = None,
) -> None:
    """List the prices: the catalog's, and those that were set; the later ones of a model hold from their day on."""
    from moonbase.service.views import PriceView

    found = administer(config_file, lambda administration: administration.prices.list())
    rows = [PriceView.of(row) for row in found if model in (None, row.model)]
    print_rows(rows, _COLUMNS, format)


@app.command()
def remove(model: _Model, currency: _Currency, since: _Since, config_file: ConfigOption = None) -> None:
    """Remove a price that was set; the one before it holds again."""
    from moonbase.cli.usage import day
    from moonbase.config import Currency

    first = day("--since", since)
    paid_in: Currency = one_of("--currency", currency, Currency)

    async def use(administration: "Administration") -> None:
        await administration.prices.remove(model, paid_in, first)

    administer(config_file, use)
    typer.echo(f"Removed the price of {model} in {currency} since {since}.", err=True)
