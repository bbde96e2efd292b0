"""`moonbase orgs`: the organizations, who pay."""

from typing import Annotated

import typer

from moonbase.cli.administration import (
    ConcurrencyOption,
    NameOption,
    NewNameOption,
    RpmOption,
    TierOption,
    TpdOption,
    TpmOption,
    administer,
    caps,
    changes,
    given,
    request,
)
from moonbase.cli.options import ConfigOption
from moonbase.cli.tables import FormatOption, print_fields, print_rows

app = typer.Typer(name="orgs", help="Create, list, change and delete organizations.", no_args_is_help=True)

_Organization = Annotated[str, typer.Argument(metavar="ORG_ID", help="The organization's id, `org-…`.")]
_COLUMNS = ("id", "name", "region", "tier", "postpaid", "limits", "created_at")


@app.command()
def create(
    name: NameOption,
    region: Annotated[
        str | None,
        typer.Option(
            "--region", help="global pays in USD, china in CNY; by default as billing.currency.", metavar="NAME"
        ),
    ] = None,
    tier: TierOption = None,
    postpaid: Annotated[
        bool, typer.Option("--postpaid", help="Never refused for its balance; no limits of a tier.")
    ] = False,
    concurrency: ConcurrencyOption = None,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    tpd: TpdOption = None,
    config_file: ConfigOption = None,
) -> None:
    """Create an organization and print its id."""
    from moonbase import config
    from moonbase.accounts.organizations import region as region_of
    from moonbase.accounts.requests import NewOrganization

    new = request(
        NewOrganization,
        name=name,
        region=region or region_of(config.load(config_file).billing.currency),
        postpaid=postpaid,
        limits=caps(concurrency, rpm, tpm, tpd),
        **given(tier=tier),
    )
    made = administer(config_file, lambda administration: administration.organizations.create(new), makes=True)
    typer.echo(made.id)
    typer.echo(f"Created the organization {name}, which pays in {made.currency}.", err=True)


@app.command("list")
def list_(format: FormatOption = None, config_file: ConfigOption = None) -> None:
    """List the organizations."""
    from moonbase.service.views import OrganizationView

    found = administer(config_file, lambda administration: administration.organizations.list())
    print_rows([OrganizationView.of(each) for each in found], _COLUMNS, format)


@app.command()
def show(organization_id: _Organization, format: FormatOption = None, config_file: ConfigOption = None) -> None:
    """Show one organization."""
    from moonbase.service.views import OrganizationView

    found = administer(config_file, lambda administration: administration.organizations.show(organization_id))
    print_fields(OrganizationView.of(found), format)


@app.command()
def update(
    organization_id: _Organization,
    name: NewNameOption = None,
    tier: TierOption = None,
    postpaid: Annotated[
        bool | None,
        typer.Option("--postpaid/--prepaid", help="Whether it may owe money, and has no limits of a tier."),
    ] = None,
    concurrency: ConcurrencyOption = None,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    tpd: TpdOption = None,
    config_file: ConfigOption = None,
) -> None:
    """Change an organization. Running servers follow within two seconds."""
    from moonbase.accounts.requests import OrganizationChanges

    limits = caps(concurrency, rpm, tpm, tpd)
    wanted = changes(OrganizationChanges, limits, **given(name=name, tier=tier, postpaid=postpaid))
    administer(config_file, lambda administration: administration.organizations.update(organization_id, wanted))
    typer.echo(f"Changed {organization_id}.", err=True)


@app.command()
def delete(organization_id: _Organization, config_file: ConfigOption = None) -> None:
    """Delete an organization that has no projects, entries or usage."""
    administer(config_file, lambda administration: administration.organizations.delete(organization_id))
    typer.echo(f"Deleted {organization_id}.", err=True)
