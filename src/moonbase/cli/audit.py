"""`moonbase audit`: who changed what."""

from typing import Annotated

import typer

from moonbase.cli.administration import BeforeOption, administer
from moonbase.cli.options import ConfigOption
from moonbase.cli.tables import FormatOption, print_rows

_COLUMNS = ("id", "at", "actor", "action", "target", "detail")


def audit(
    target: Annotated[str | None, typer.Option("--target", help="Only what was done to this id.", metavar="ID")] = None,
    before: BeforeOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many.", metavar="N")] = 100,
    format: FormatOption = None,
    config_file: ConfigOption = None,
) -> None:
    """Show who changed what, the newest first."""
    found = administer(
        config_file, lambda administration: administration.audit_log(target=target, before=before, limit=limit)
    )
    print_rows(found, _COLUMNS, format)
