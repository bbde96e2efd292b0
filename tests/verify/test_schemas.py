"""Which lines of a folder are parameters to try."""

import json
from pathlib import Path
from typing import Any

import pytest

from moonbase.verify.schemas import read_cases

USUAL = {"type": "object", "properties": {"x": {"type": "string"}}}


@pytest.mark.parametrize(
    "odd",
    [
        {"type": "object", "properties": {"x": {"$ref": "#/$defs/y"}}},
        {"type": "object", "properties": {"x": {"$ref": "#/$defs/y/properties/z"}}, "$defs": {"y": USUAL}},
        {"type": "object", "properties": {"x": {"type": "string", "pattern": "("}}},
        {"type": "object", "properties": {"x": {"type": "nothing"}}},
    ],
    ids=["no such definition", "a path into a definition", "no pattern", "no type"],
)
def test_what_no_server_has_to_take_is_left_out(tmp_path: Path, odd: dict[str, Any]) -> None:
    lines = [json.dumps(schema) for schema in (USUAL, odd)]
    (tmp_path / "valid.jsonl").write_text("\n".join(lines))
    cases, left_out = read_cases(tmp_path)
    assert [case.schema for case in cases] == [USUAL]
    assert left_out == 1


@pytest.mark.parametrize("pattern", ["(?=x)y", r"\bword\b", "a*"])
def test_a_pattern_that_cannot_be_enforced_is_tried_all_the_same(tmp_path: Path, pattern: str) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "pattern": pattern}}}
    (tmp_path / "valid.jsonl").write_text(json.dumps(schema))
    cases, left_out = read_cases(tmp_path)
    assert [case.schema for case in cases] == [schema]
    assert left_out == 0
