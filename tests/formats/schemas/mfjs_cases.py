"""The schema cases of ../shared/data/mfjs-cases, where they are beside the checkout."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.e2e.server import shared


class Invalid(NamedTuple):
    case: str  # suite and number of the line, from 0
    schema: str
    expect: str


def folder() -> Path:
    """Skips the test, loudly, where the cases are not."""
    path = shared("data", "mfjs-cases")
    if path is None:
        pytest.skip("LEFT OUT: the MFJS cases; there is no ../shared/data/mfjs-cases beside the checkout")
    return path


def valid() -> list[tuple[str, str]]:
    """Names and schema texts."""
    return [
        (f"{file.parent.name} {number}", line)
        for file in sorted(folder().glob("*/valid.jsonl"))
        for number, line in enumerate(file.read_text().splitlines())
    ]


def invalid() -> list[Invalid]:
    found = []
    for file in sorted(folder().glob("*/invalid.jsonl")):
        for number, line in enumerate(file.read_text().splitlines()):
            case = json.loads(line)
            found.append(Invalid(f"{file.parent.name} {number}", case["schema"], case["expect"]))
    return found
