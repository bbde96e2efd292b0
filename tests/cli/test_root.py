import subprocess
import sys

import pytest
from typer.testing import CliRunner

from moonbase import __version__
from moonbase.cli import app

cli = CliRunner()


def test_the_version_is_printed() -> None:
    result = cli.invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"moonbase {__version__}\n")


def test_an_unknown_command_is_refused() -> None:
    assert cli.invoke(app, ["nonsense"]).exit_code == 2


@pytest.mark.parametrize(
    "arguments", [["ledger", "write-off", b"\xff", "--note", "x"], ["db", "backup", b"\xff"], ["serve", b"--name=\xff"]]
)
def test_an_argument_that_is_no_text_is_refused_by_its_bytes(arguments: list[str | bytes]) -> None:
    command = [sys.executable, "-m", "moonbase", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    argument = next(each for each in arguments if isinstance(each, bytes))
    assert (ended.returncode, ended.stderr) == (2, f"moonbase: the argument {argument!r} is not UTF-8\n")
