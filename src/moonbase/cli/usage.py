"""`moonbase usage`: what was used, and what it cost."""

import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moonbase.cli.administration import administer, one_of
from moonbase.cli.options import ConfigOption
from moonbase.cli.tables import FormatOption, print_fields, print_rows

if TYPE_CHECKING:
    from moonbase.accounts.administration import Administration
    from moonbase.store.records import UsageSums

_COUNTS = ("currency", "requests", "failed", "prompt_miss", "prompt_hit", "prompt_write", "output", "cost")
_IDS = {"organization": "organization_id", "project": "project_id", "key": "key_id"}


def usage(
    by: Annotated[
        str,
        typer.Option(
            "--by", help="day, hour, organization, project, key, model; several with commas.", metavar="NAMES"
        ),
    ] = "day",
    first: Annotated[
        str | None, typer.Option("--from", help="First day (UTC); by default 30 days back.", metavar="DATE")
    ] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last day (UTC); by default today.", metavar="DATE")] = None,
    organization_id: Annotated[
        str | None, typer.Option("--org", help="Only of this organization.", metavar="ORG_ID")
    ] = None,
    project_id: Annotated[
        str | None, typer.Option("--project", help="Only of this project.", metavar="PROJECT_ID")
    ] = None,
    key_id: Annotated[str | None, typer.Option("--key", help="Only of this key.", metavar="KEY_ID")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Only of this model.", metavar="ID")] = None,
    request_id: Annotated[
        str | None, typer.Option("--request", help="The usage of one request instead.", metavar="REQUEST_ID")
    ] = None,
    format: FormatOption = None,
    config_file: ConfigOption = None,
) -> None:
    """Show what was used: requests, tokens and cost, by the day they began.

    By the hour for at most seven days. Prompt tokens are prompt_miss,
    prompt_hit (read from a cache) and prompt_write together.
    """
    from moonbase.accounts.changes import milliseconds
    from moonbase.service.views import RequestUsageView, UsageView
    from moonbase.store.rollups import Group

    if request_id is not None:
        record = administer(config_file, lambda administration: administration.usage.request(request_id))
        print_fields(RequestUsageView.of(record), format)
        return
    groups: list[Any] = [one_of("--by", name.strip(), Group) for name in by.split(",")]
    since = None if first is None else day("--from", first)
    until = None if last is None else day("--to", last)

    async def use(administration: "Administration") -> "list[UsageSums]":
        return await administration.usage.sums(
            groups,
            first=since,
            last=until,
            now=milliseconds(),
            organization_id=organization_id,
            project_id=project_id,
            key_id=key_id,
            model=model,
        )

    columns = [*[_IDS.get(group, group) for group in groups], *_COUNTS]
    print_rows([UsageView.of(sums) for sums in administer(config_file, use)], columns, format)


def day(option: str, text: str) -> datetime.date:
    """The day that `text` names."""
    import msgspec

    try:
        return msgspec.convert(text, datetime.date)
    except msgspec.ValidationError:
        raise typer.BadParameter("must be a day such as 2026-12-31", param_hint=option) from None
