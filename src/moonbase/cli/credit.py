"""`moonbase credit`: the money of organizations."""

from typing import TYPE_CHECKING, Annotated

import typer

from moonbase.cli.administration import BeforeOption, NoteOption, administer, one_of, request
from moonbase.cli.options import ConfigOption
from moonbase.cli.tables import FormatOption, print_fields, print_rows

if TYPE_CHECKING:
    from moonbase.accounts.credit import Standing

app = typer.Typer(name="credit", help="Credit organizations; show their money.", no_args_is_help=True)

_Organization = Annotated[str, typer.Argument(metavar="ORG_ID", help="The organization's id, `org-…`.")]
_Amount = Annotated[str, typer.Argument(metavar="AMOUNT", help="In its currency: a decimal with at most nine places.")]
_Voucher = Annotated[
    bool, typer.Option("--voucher", help="A voucher instead of cash: spent first, counts for no tier.")
]
_Once = Annotated[
    str | None,
    typer.Option("--idempotency-key", help="The same command with the same key is carried out once.", metavar="TEXT"),
]
_COLUMNS = ("id", "kind", "cash", "voucher", "note", "created_at")


@app.command()
def add(
    organization_id: _Organization,
    amount: _Amount,
    voucher: _Voucher = False,
    note: Annotated[str, typer.Option("--note", help="What for, for the books.")] = "",
    once: _Once = None,
    config_file: ConfigOption = None,
) -> None:
    """Credit an organization. Cash may raise its tier."""
    from moonbase.accounts.requests import NewCredit

    new = request(NewCredit, amount=amount, kind=_kind(voucher), note=note)
    _tell(administer(config_file, lambda administration: administration.credit.add(organization_id, new, once=once)))


@app.command()
def take(
    organization_id: _Organization,
    amount: _Amount,
    note: NoteOption,
    voucher: _Voucher = False,
    once: _Once = None,
    config_file: ConfigOption = None,
) -> None:
    """Take money back, as far as no running request may need it."""
    from moonbase.accounts.requests import NewCorrection

    new = request(NewCorrection, amount=f"-{amount}", kind=_kind(voucher), note=note)
    _tell(
        administer(config_file, lambda administration: administration.credit.correct(organization_id, new, once=once))
    )


@app.command()
def show(organization_id: _Organization, format: FormatOption = None, config_file: ConfigOption = None) -> None:
    """Show the balance of an organization, as far as its usage is recorded."""
    from moonbase.service.views import BalanceView

    standing = administer(config_file, lambda administration: administration.credit.balance(organization_id))
    print_fields(BalanceView.of(standing), format)


@app.command()
def entries(
    organization_id: _Organization,
    kind: Annotated[
        str | None, typer.Option("--kind", help="Only credit, usage or correction.", metavar="KIND")
    ] = None,
    before: BeforeOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many.", metavar="N")] = 100,
    format: FormatOption = None,
    config_file: ConfigOption = None,
) -> None:
    """List what changed the balance of an organization, the newest first."""
    from moonbase.service.views import EntryView
    from moonbase.store.records import EntryKind

    only: EntryKind | None = None if kind is None else one_of("--kind", kind, EntryKind)
    found = administer(
        config_file,
        lambda administration: administration.credit.entries(organization_id, kind=only, before=before, limit=limit),
    )
    print_rows([EntryView.of(entry) for entry in found], _COLUMNS, format)


def _kind(voucher: bool) -> str:
    return "voucher" if voucher else "cash"


def _tell(standing: "Standing") -> None:
    """How an organization stands after a change."""
    from moonbase.service.views import BalanceView

    now = BalanceView.of(standing)
    typer.echo(
        f"{standing.organization.name} ({now.currency}, tier {standing.organization.tier}): "
        f"cash {now.cash}, voucher {now.voucher}, available {now.available}",
        err=True,
    )
