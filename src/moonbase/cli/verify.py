"""`moonbase verify`: examine an OpenAI-compatible endpoint as Moonshot's verifiers do, and its contract."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from moonbase.verify.report import Report, Selection
    from moonbase.verify.run import Examination

_EVERY = 10.0  # seconds between two lines about how far it is
_SHOWN = 3  # findings of one check in the table
_FORCED = "Schemas"
_VENDOR = "Vendor verifier"
_PROMPTS = "Prompt tokens"
_OUTPUT = "Output"


def verify(
    url: Annotated[str, typer.Argument(help="Address of the endpoint, `/v1` included.", metavar="URL")],
    model: Annotated[str, typer.Option(help="Model id to ask for.")],
    api_key: Annotated[
        str | None, typer.Option(envvar="MOONSHOT_API_KEY", help="API key.", show_default=False, show_envvar=True)
    ] = None,
    thinking: Annotated[
        Literal["never", "optional", "always"], typer.Option(help="Whether the model thinks before it answers.")
    ] = "never",
    fixed: Annotated[
        list[str] | None,
        typer.Option(help="A parameter with one allowed value, such as temperature=1. Repeat.", metavar="NAME=VALUE"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Output limit of the requests made here.", metavar="N", min=1)] = 2000,
    extra_body: Annotated[
        str | None, typer.Option(help="Fields to add to every request.", metavar="JSON", show_default=False)
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at a time.", metavar="N", min=1)] = 4,
    retries: Annotated[
        int, typer.Option(help="Times to ask again after 429 or a broken connection.", metavar="N", min=0)
    ] = 5,
    timeout: Annotated[
        float, typer.Option(help="Seconds of silence that end a request.", metavar="SECONDS", min=0.001)
    ] = 600.0,
    ca_file: Annotated[
        Path | None, typer.Option(help="Certificates (PEM) to trust.", metavar="FILE", show_default=False)
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Run these checks only, such as 'tools.*'. Repeat.", metavar="CHECK")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Leave out these checks. Repeat.", metavar="CHECK")] = None,
    schemas: Annotated[
        Path | None,
        typer.Option(
            "--schemas",
            "--walle",
            help="Folder of .jsonl files with a JSON Schema a line: call a tool of each.",
            metavar="DIR",
            show_default=False,
            rich_help_panel=_FORCED,
        ),
    ] = None,
    count: Annotated[
        int,
        typer.Option(help="Calls to ask for; 0 is two of each schema.", metavar="N", min=0, rich_help_panel=_FORCED),
    ] = 0,
    choice: Annotated[
        Literal["named", "required", "auto"],
        typer.Option(help="The tool_choice of these calls.", rich_help_panel=_FORCED),
    ] = "named",
    min_finished: Annotated[
        float,
        typer.Option(
            help="Share of answers that must end before max_tokens.",
            metavar="SHARE",
            min=0,
            max=1,
            rich_help_panel=_FORCED,
        ),
    ] = 0.8,
    requests: Annotated[
        Path | None,
        typer.Option(
            help="Requests of the vendor verifier, a JSON object a line.",
            metavar="FILE",
            show_default=False,
            rich_help_panel=_VENDOR,
        ),
    ] = None,
    results: Annotated[
        Path, typer.Option(help="Where its results go.", metavar="FILE", rich_help_panel=_VENDOR)
    ] = Path("results.jsonl"),
    summary: Annotated[
        Path, typer.Option(help="Where its summary goes.", metavar="FILE", rich_help_panel=_VENDOR)
    ] = Path("summary.json"),
    incremental: Annotated[
        bool,
        typer.Option("--incremental", help="Keep good results of an earlier run.", rich_help_panel=_VENDOR),
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Results of the official service, for F1.",
            metavar="FILE",
            show_default=False,
            rich_help_panel=_VENDOR,
        ),
    ] = None,
    min_f1: Annotated[
        float | None,
        typer.Option(
            help="F1 to exceed; by default 0.73 for a model that thinks, else 0.8.",
            metavar="SHARE",
            min=0,
            max=1,
            show_default=False,
            rich_help_panel=_VENDOR,
        ),
    ] = None,
    min_accuracy: Annotated[
        float,
        typer.Option(help="Share of valid calls to reach.", metavar="SHARE", min=0, max=1, rich_help_panel=_VENDOR),
    ] = 1.0,
    temperature: Annotated[
        float | None,
        typer.Option(help="In place of the requests' own.", metavar="N", show_default=False, rich_help_panel=_VENDOR),
    ] = None,
    requests_max_tokens: Annotated[
        int | None,
        typer.Option(
            help="In place of the requests' own.", metavar="N", min=1, show_default=False, rich_help_panel=_VENDOR
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            help="Format that the model is spoken with, such as kimi-k2-0905: count prompts as its template does.",
            show_default=False,
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(
            help="The Kimi vocabulary: tiktoken.model or its folder.",
            metavar="PATH",
            show_default=False,
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Cases, a JSON object a line: messages, tools, expected.",
            metavar="FILE",
            show_default=False,
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    json: Annotated[
        str | None,
        typer.Option(
            help="Write the report as JSON; - is standard output, in place of the table.",
            metavar="FILE|-",
            show_default=False,
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
) -> None:
    """Examine an OpenAI-compatible endpoint: its contract, its tool calls, its prompts.

    Without files, about fifty checks of the Kimi API's contract run. What each of them means is in
    docs/guides/verifying.md.

    Exits with 0 when no check failed, 1 when one did, 2 when the endpoint cannot be examined. Ctrl-C ends it with
    what was found until then, and 130.
    """
    from rich.console import Console

    from moonbase.verify.endpoint import Access
    from moonbase.verify.probe import ModelTraits
    from moonbase.verify.prompt_tokens import PromptCounter, prompt_cases
    from moonbase.verify.report import Selection
    from moonbase.verify.run import Examination, check_names
    from moonbase.verify.schemas import SchemaPlan, read_cases
    from moonbase.verify.vendor import VendorPlan

    console = Console(stderr=True, highlight=False)
    extra = _object("--extra-body", extra_body)
    if (revision is None) != (vocabulary is None):
        raise typer.BadParameter("--revision and --vocabulary go together")
    if requests is None and (against is not None or incremental):
        raise typer.BadParameter("--against and --incremental are for --requests")
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key.strip()):
        raise typer.BadParameter("an API key holds no blanks and no special characters", param_hint="--api-key")
    traits = ModelTraits(thinking=thinking, fixed=_fixed(fixed or []), max_tokens=max_tokens)
    selection = Selection(tuple(only or ()), tuple(skip or ()))
    _refuse_unknown(selection, check_names(traits))
    cases, left_out = ((), 0) if schemas is None else read_cases(schemas)
    if left_out:
        console.print(
            f"{left_out} of {left_out + len(cases)} schemas cannot be parameters of a tool; they are left out."
        )
    counter = None if revision is None or vocabulary is None else PromptCounter(revision, vocabulary)
    overrides = {"temperature": temperature, "max_tokens": requests_max_tokens}
    off: dict[str, Any] = {"thinking": {"type": "disabled"}} if thinking == "optional" and choice != "auto" else {}
    wanted = Examination(
        url=url,
        access=Access(
            model=model,
            api_key=api_key.strip() if api_key else None,
            extra=extra,
            concurrency=concurrency,
            retries=retries,
        ),
        traits=traits,
        selection=selection,
        timeout=timeout,
        ca_file=None if ca_file is None else str(ca_file),
        schemas=SchemaPlan(
            cases=cases, count=count, choice=choice, max_tokens=max_tokens, min_finished=min_finished, extra=off
        )
        if cases
        else None,
        vendor=VendorPlan(
            requests=requests,
            output=results,
            summary=summary,
            overrides={name: value for name, value in overrides.items() if value is not None},
            extra=extra,
            incremental=incremental,
            against=against,
            min_f1=min_f1 if min_f1 is not None else 0.8 if thinking == "never" else 0.73,
            min_accuracy=min_accuracy,
        )
        if requests is not None
        else None,
        prompts=prompt_cases(counter, prompts),
    )
    report = _run(wanted, console)
    if json is not None:
        _write_json(report, json)
    if json != "-":
        _print(report)
    if report.interrupted:
        typer.echo("moonbase: interrupted; this is what was found until then", err=True)
        raise typer.Exit(130)
    if not report.passed:
        raise typer.Exit(1)


def _refuse_unknown(selection: "Selection", names: list[str]) -> None:
    """Patterns that could never match, with the name that may be meant."""
    from difflib import get_close_matches

    for pattern in selection.unmatched(names):
        near = get_close_matches(pattern, names, n=1)
        meant = f"did you mean {near[0]!r}?" if near else "the names are in docs/guides/verifying.md"
        raise typer.BadParameter(f"there is no check {pattern!r}; {meant}", param_hint="--only, --skip")


def _run(wanted: "Examination", console: "Console") -> "Report":
    """The report; exits where there can be none."""
    import asyncio

    from moonbase.errors import EndpointFailed

    try:
        report = asyncio.run(_examine(wanted, console))
    except EndpointFailed as error:
        typer.echo(_visible(f"moonbase: {wanted.url} {error}"), err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        typer.echo("moonbase: interrupted", err=True)
        raise typer.Exit(130) from None
    if not report.results and not report.interrupted:
        raise typer.BadParameter("none of the chosen checks applies to this model and the files given")
    return report


async def _examine(wanted: "Examination", console: "Console") -> "Report":
    """Show how far it is where somebody looks."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from moonbase.verify.run import examine

    if not console.is_terminal:
        return await examine(wanted, _Lines(console).section)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:

        def section(name: str, steps: int) -> "Callable[[], None]":
            bar = bars.add_task(name, total=steps)
            return lambda: bars.advance(bar)

        return await examine(wanted, section)


class _Lines:
    """How far it is, a line now and then: for logs."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._last = time.monotonic()

    def section(self, name: str, steps: int) -> "Callable[[], None]":
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            if done == steps or time.monotonic() - self._last > _EVERY:
                self._console.print(f"{name}: {done} of {steps}")
                self._last = time.monotonic()

        return step


def _object(option: str, text: str | None) -> dict[str, Any]:
    from msgspec import DecodeError
    from msgspec.json import decode

    try:
        return {} if text is None else decode(text, type=dict[str, Any])
    except DecodeError as error:
        raise typer.BadParameter(f"is no JSON object ({error})", param_hint=option) from error


def _fixed(texts: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not NAME=NUMBER", param_hint="--fixed") from None
        found[name.strip()] = int(number) if number.is_integer() else number
    return found


def _write_json(report: "Report", target: str) -> None:
    from msgspec import to_builtins
    from msgspec.json import encode, format

    from moonbase.errors import ConfigurationError

    text = format(encode(to_builtins(report) | {"passed": report.passed}), indent=2).decode() + "\n"
    if target == "-":
        typer.echo(text, nl=False)
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--json: {target} cannot be written ({error.strerror})") from error


def _print(report: "Report") -> None:
    """The table, then the figures of the sections that count, then one line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    colours = {"passed": "green", "warned": "yellow", "failed": "red", "skipped": "dim"}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("check", "", "what is expected, and what was seen"):
        table.add_column(name, overflow="fold", no_wrap=name != "what is expected, and what was seen")
    for result in report.results:
        told = Text(result.expected)
        for seen in result.seen[:_SHOWN]:
            told.append(f"\n{_visible(seen)}", style=colours[result.status])
        if len(result.seen) > _SHOWN:
            told.append(f"\nand {len(result.seen) - _SHOWN} more", style="dim")
        table.add_row(result.name, Text(result.status, style=colours[result.status]), told)
    console.print(table)
    for section, figures in report.figures.items():
        _print_figures(console, section, figures)
    counts = [f"{report.count(status)} {status}" for status in ("passed", "failed", "warned", "skipped")]
    console.print(f"\n{', '.join(counts)}: {report.requests} requests in {report.seconds:.1f} s", style="bold")
    if report.fixed_values:
        options = " ".join([f"--fixed {name}={value}" for name, value in report.fixed_values.items()])
        console.print(f"This model allows one value only: try {options}", soft_wrap=True)


def _print_figures(console: "Console", section: str, figures: Any) -> None:
    from rich.table import Table

    match section:
        case "schemas":
            table = Table("schemas", *figures, box=None, pad_edge=False)
            for name in figures["overall"]:
                table.add_row(name.replace("_", " "), *[str(counts[name]) for counts in figures.values()])
        case "vendor":
            table = Table("requests", "", box=None, pad_edge=False)
            for name, value in figures.items():
                table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
        case _:
            table = Table("prompt tokens", "expected", "got", box=None, pad_edge=False)
            for case in figures:
                table.add_row(case["case"], str(case["expected"]), str(case["got"]))
    console.print()
    console.print(table)


def _visible(text: str) -> str:
    """Without characters with which an answer could steer the terminal."""
    return "".join([character if character.isprintable() else "\ufffd" for character in text])
