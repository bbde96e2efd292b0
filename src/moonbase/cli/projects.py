"""`moonbase projects`: what groups keys and usage inside an organization."""

from typing import Annotated

import typer

from moonbase.cli.administration import (
    ConcurrencyOption,
    NameOption,
    NewNameOption,
    RpmOption,
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

app = typer.Typer(name="projects", help="Create, list, change and delete projects.", no_args_is_help=True)

_Project = Annotated[str, typer.Argument(metavar="PROJECT_ID", help="The project's id, `proj-…`.")]
_COLUMNS = ("id", "organization_id", "name", "limits", "created_at")


@app.command()
def create(
    organization_id: Annotated[str, typer.Option("--org", help="The organization's id.", metavar="ORG_ID")],
    name: NameOption,
    concurrency: ConcurrencyOption = None,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    tpd: TpdOption = None,
    config_file: ConfigOption = None,
) -> None:
    """Create a project and print its id."""
    from moonbase.accounts.requests import NewProject

    limits = caps(concurrency, rpm, tpm, tpd)
    new = request(NewProject, organization_id=organization_id, name=name, limits=limits)
    made = administer(config_file, lambda administration: administration.projects.create(new))
    typer.echo(made.id)
    typer.echo(f"Created the project {name} of {organization_id}.", err=True)


@app.command("list")
def list_(
    organization_id: Annotated[
        str | None, typer.Option("--org", help="Only those of this organization.", metavar="ORG_ID")
    ] = None,
    format: FormatOption = None,
    config_file: ConfigOption = None,
) -> None:
    """List the projects."""
    found = administer(config_file, lambda administration: administration.projects.list(organization_id))
    print_rows(found, _COLUMNS, format)


@app.command()
def show(project_id: _Project, format: FormatOption = None, config_file: ConfigOption = None) -> None:
    """Show one project."""
    print_fields(administer(config_file, lambda administration: administration.projects.show(project_id)), format)


@app.command()
def update(
    project_id: _Project,
    name: NewNameOption = None,
    concurrency: ConcurrencyOption = None,
    rpm: RpmOption = None,
    tpm: TpmOption = None,
    tpd: TpdOption = None,
    config_file: ConfigOption = None,
) -> None:
    """Change a project. Running servers follow within two seconds."""
    from moonbase.accounts.requests import ProjectChanges

    wanted = changes(ProjectChanges, caps(concurrency, rpm, tpm, tpd), **given(name=name))
    administer(config_file, lambda administration: administration.projects.update(project_id, wanted))
    typer.echo(f"Changed {project_id}.", err=True)


@app.command()
def delete(project_id: _Project, config_file: ConfigOption = None) -> None:
    """Delete a project that never had a key."""
    administer(config_file, lambda administration: administration.projects.delete(project_id))
    typer.echo(f"Deleted {project_id}.", err=True)
