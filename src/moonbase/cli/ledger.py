"""`moonbase ledger`: prove that the books agree, and settle what a lost machine leaves behind."""

from typing import TYPE_CHECKING, Annotated

import typer

from moonbase.cli.administration import actor
from moonbase.cli.database import with_database
from moonbase.cli.options import ConfigOption
from moonbase.cli.tables import FormatOption, print_rows

if TYPE_CHECKING:
    from moonbase.config import Settings
    from moonbase.store.database import Database
    from moonbase.store.ledger import Imbalance
    from moonbase.store.records import Lease

app = typer.Typer(name="ledger", help="Check the ledger; settle what a lost machine left.", no_args_is_help=True)


@app.command()
def check(config_file: ConfigOption = None) -> None:
    """Recompute every balance, lease, charge and rollup from its parts; exit code 1 when anything does not agree.

    Safe while servers run. Tab-separated lines name what is wrong; money is in nano-units.
    """
    from moonbase.store.ledger import count_checked, find_imbalances

    async def find(database: "Database", _: "Settings") -> "tuple[tuple[int, int], list[Imbalance]]":
        async with database.snapshot() as connection:
            return await count_checked(connection), await find_imbalances(connection)

    (organizations, records), found = with_database(config_file, find)
    for each in found:
        typer.echo(f"{each.organization_id}\t{each.what}\t{each.stored}\t{each.computed}")
    if found:
        typer.echo(f"{len(found)} sums do not agree (organization, what, stored, computed).", err=True)
        raise typer.Exit(1)
    looked_at = f"organizations: {organizations:,}, usage records: {records:,}"
    typer.echo(f"Every balance, lease, charge and rollup agrees with what it is made of ({looked_at}).", err=True)


@app.command()
def leases(format: FormatOption = None, config_file: ConfigOption = None) -> None:
    """List the money that processes hold of organizations, in their currencies; the oldest change first."""
    from moonbase.service.views import LeaseView
    from moonbase.store.ledger import list_leases

    async def find(database: "Database", _: "Settings") -> "list[Lease]":
        async with database.read() as connection:
            return await list_leases(connection)

    found = with_database(config_file, find)
    print_rows([LeaseView.of(each) for each in found], LeaseView.__struct_fields__, format)


@app.command("write-off")
def write_off(
    process_id: Annotated[str, typer.Argument(metavar="PROCESS_ID", help="As `moonbase ledger leases` shows it.")],
    note: Annotated[str, typer.Option("--note", help="Why, for the entries that record it.")],
    config_file: ConfigOption = None,
) -> None:
    """Give back what a process had leased whose machine is lost for good.

    What it served and had not recorded yet is charged to nobody. Where the machine comes back, start a server on it
    instead: it takes over everything.
    """
    from moonbase import config
    from moonbase.accounts import ledger
    from moonbase.accounts.changes import Changes
    from moonbase.service.views import amount
    from moonbase.store.database import spool_folder

    async def run(database: "Database", _: "Settings") -> "list[Lease]":
        spools = spool_folder(database.url, config.home())
        return await ledger.write_off(Changes(database, actor()), spools, process_id, note)

    for each in with_database(config_file, run):
        typer.echo(f"Gave {amount(each.amount_nano)} back to {each.organization_id}.", err=True)
