import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moonbase.cli.keys import app as keys
from moonbase.cli.ledger import app
from moonbase.errors import ConfigurationError, InvalidField, WriteOffRefused

cli = CliRunner()


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sqlite3.Connection:
    """A database with one organization that has 100 nano-units, of which a lost process holds 60."""
    monkeypatch.setenv("MOONBASE_HOME", str(tmp_path))
    cli.invoke(keys, ["create", "--name", "laptop"])
    connection = sqlite3.connect(tmp_path / "moonbase.db", isolation_level=None)
    (organization,) = connection.execute("SELECT id FROM organization").fetchone()
    connection.execute("UPDATE balance SET cash_nano = 100, leased_nano = 60")
    connection.execute("INSERT INTO entry VALUES (1, ?, 'credit', 100, 0, '', 0)", (organization,))
    connection.execute("INSERT INTO lease VALUES (?, 'host-1-abc', 60, 0)", (organization,))
    return connection


def test_books_that_agree_are_said_to(database: sqlite3.Connection) -> None:
    result = cli.invoke(app, ["check"])
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == (
        "Every balance, lease, charge and rollup agrees with what it is made of (organizations: 1, usage records: 0).\n"
    )
    database.close()


@pytest.mark.parametrize("command", ["check", "leases"])
def test_where_there_is_no_database_nothing_is_said_to_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("MOONBASE_HOME", str(tmp_path / "elsewhere"))
    result = cli.invoke(app, [command])
    assert isinstance(result.exception, ConfigurationError)
    assert str(result.exception).startswith(f"there is no database at {tmp_path / 'elsewhere' / 'moonbase.db'}; ")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("note", ["", " ", "a\nb", "x" * 501])
def test_a_write_off_says_why_in_one_line(database: sqlite3.Connection, note: str) -> None:
    result = cli.invoke(app, ["write-off", "host-1-abc", "--note", note])
    assert isinstance(result.exception, InvalidField)
    assert database.execute("SELECT amount_nano FROM lease").fetchall() == [(60,)]
    database.close()


def test_books_that_do_not_agree_are_an_exit_code_and_a_line_that_says_where(database: sqlite3.Connection) -> None:
    database.execute("UPDATE balance SET cash_nano = 101")
    (organization,) = database.execute("SELECT id FROM organization").fetchone()
    result = cli.invoke(app, ["check"])
    assert result.exit_code == 1
    assert result.stdout == f"{organization}\tcash of the balance against its entries\t101\t100\n"
    assert result.stderr == "1 sums do not agree (organization, what, stored, computed).\n"
    database.close()


def test_what_a_lost_process_holds_is_listed_and_can_be_written_off(database: sqlite3.Connection) -> None:
    (organization,) = database.execute("SELECT id FROM organization").fetchone()
    assert cli.invoke(app, ["leases"]).stdout == f"{organization}\thost-1-abc\t0.00000006\t1970-01-01T00:00:00Z\n"
    result = cli.invoke(app, ["write-off", "host-1-abc", "--note", "the disk burnt"])
    assert (result.exit_code, result.stderr) == (0, f"Gave 0.00000006 back to {organization}.\n")
    assert cli.invoke(app, ["leases"]).stdout == ""
    assert cli.invoke(app, ["check"]).exit_code == 0
    assert isinstance(cli.invoke(app, ["write-off", "host-1-abc", "--note", "again"]).exception, WriteOffRefused)
    database.close()
