from typer.testing import CliRunner

from moonbase import __version__
from moonbase.cli import app

cli = CliRunner()


def test_the_version_is_printed() -> None:
    result = cli.invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"moonbase {__version__}\n")


def test_an_unknown_command_is_refused() -> None:
    assert cli.invoke(app, ["nonsense"]).exit_code == 2
