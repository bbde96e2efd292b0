"""Rows for people and for programs."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


class Format(StrEnum):
    table = "table"
    csv = "csv"
    json = "json"


FormatOption = Annotated[
    Format | None,
    typer.Option("--format", help="By default a table on a terminal, tab-separated lines in a pipe."),
]


def print_rows(rows: Sequence[Any], columns: Sequence[str], format: Format | None) -> None:
    """Print structs; JSON has all their fields, the rest those that `columns` names."""
    import msgspec

    if format is Format.json:
        typer.echo(msgspec.json.encode(rows).decode())
        return
    cells = [[_cell(name, row.get(name)) for name in columns] for row in map(_fields, rows)]
    if format is Format.csv:
        _print_csv([list(columns), *cells])
    elif format is Format.table or sys.stdout.isatty():
        _print_table(columns, cells)
    else:
        for line in cells:
            typer.echo("\t".join(line))


def print_fields(row: Any, format: Format | None) -> None:
    """Print one struct, a line per field."""
    import msgspec

    if format is Format.json:
        typer.echo(msgspec.json.encode(row).decode())
        return
    pairs = [[name, _cell(name, value)] for name, value in _fields(row).items()]
    if format is Format.csv:
        _print_csv([["field", "value"], *pairs])
    elif format is Format.table or sys.stdout.isatty():
        _print_table(["field", "value"], pairs)
    else:
        for pair in pairs:
            typer.echo("\t".join(pair))


def time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds // 1000, UTC).isoformat().replace("+00:00", "Z")


def _fields(row: Any) -> dict[str, Any]:
    import msgspec

    return msgspec.json.decode(msgspec.json.encode(row), type=dict[str, Any])


def _cell(name: str, value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int() if name == "at" or name.endswith("_at"):
            return time(value)
        case Mapping():
            return " ".join([f"{key}={_plain(inner)}" for key, inner in value.items() if inner is not None])
        case str():
            return value
        case Iterable():
            return ",".join(map(str, value))
        case _:
            return str(value)


def _plain(value: Any) -> str:
    import msgspec

    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _print_csv(lines: list[list[str]]) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerows([[_inert(cell) for cell in line] for line in lines])


def _inert(cell: str) -> str:
    """What a spreadsheet would take for a formula begins with an apostrophe; numbers stay."""
    return f"'{cell}" if cell.startswith(_FORMULA) and not _NUMBER.fullmatch(cell) else cell


def _print_table(columns: Sequence[str], cells: list[list[str]]) -> None:
    """One that is wider than the terminal goes on in the next line: nothing is cut off."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    for line in cells:
        table.add_row(*map(Text, line))
    console = Console()
    needed = Measurement.get(Console(width=10_000), console.options.update(max_width=10_000), table).maximum
    Console(width=max(console.width, needed)).print(table)
