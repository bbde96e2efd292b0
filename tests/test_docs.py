"""The documentation names everything that there is, and nothing that there is not."""

import re
from pathlib import Path

import msgspec
import pytest

from moonbase import config
from moonbase.server.openapi import document
from moonbase.telemetry import Metrics

ROOT = Path(__file__).parent.parent
SETTINGS = (ROOT / "docs/reference/settings.md").read_text(encoding="utf-8")
COMPATIBILITY = (ROOT / "docs/reference/compatibility.md").read_text(encoding="utf-8")
OPERATING = (ROOT / "docs/guides/operating.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("row", config.describe(), ids=lambda row: row[0])
def test_every_setting_is_documented_with_its_default(row: tuple[str, str, str, str]) -> None:
    key, environment, default, text = row
    shown = f"`{default}`" if default else "none"
    assert f"| `{key}` | `{environment}` | {shown} | {text} |" in SETTINGS


def test_no_setting_is_documented_that_does_not_exist() -> None:
    documented = set(re.findall(r"^\| `([a-z_.]+)` \| `MOONBASE_", SETTINGS, re.MULTILINE))
    assert documented == {row[0] for row in config.describe()}


@pytest.mark.parametrize("field", [field.name for field in msgspec.structs.fields(config.ModelOverride)])
def test_every_field_of_a_model_override_is_documented(field: str) -> None:
    assert f"| `{field}` |" in SETTINGS


@pytest.mark.parametrize("path", list(document()["paths"]))
def test_every_endpoint_is_in_the_compatibility_table(path: str) -> None:
    assert f"{path}`" in COMPATIBILITY


def test_the_tests_that_the_compatibility_table_names_exist() -> None:
    for name in re.findall(r"`(e2e/\w+\.py)`", COMPATIBILITY):
        assert (ROOT / "tests" / name).is_file(), name


def test_the_functions_that_the_compatibility_table_names_exist() -> None:
    sources = [file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py")]
    defined = {name for source in sources for name in re.findall(r"def (test_\w+)\(", source)}
    assert set(re.findall(r"`(test_\w+)`", COMPATIBILITY)) <= defined


def test_every_row_about_a_field_names_its_test() -> None:
    for section in COMPATIBILITY.split("\n## "):
        if section.startswith("Fields"):
            for row in [line for line in section.splitlines() if line.startswith(("| `", "| block"))]:
                assert re.search(r"`test_\w+` \|$", row), row


def test_every_metric_is_documented() -> None:
    metrics = Metrics()
    metrics.model("m").ended("stop", 1, 1, 1)
    metrics.response(200)
    names = set(re.findall(r"^# TYPE (\w+) ", metrics.exposition().decode(), re.MULTILINE))
    for name in names:
        assert f"`{name}`" in OPERATING


@pytest.mark.parametrize("file", [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md"], ids=lambda file: file.name)
def test_relative_links_lead_to_files(file: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", file.read_text(encoding="utf-8")):
        assert (file.parent / target).exists(), target
