import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moonbase.cli.db import app
from moonbase.cli.keys import app as keys
from moonbase.errors import BackupFailed

cli = CliRunner()


def test_a_backup_holds_the_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONBASE_HOME", str(tmp_path))
    cli.invoke(keys, ["create", "--name", "laptop"])
    assert cli.invoke(app, ["backup", str(tmp_path / "copy.db")]).exit_code == 0
    copy = sqlite3.connect(tmp_path / "copy.db")
    assert copy.execute("SELECT name FROM key").fetchall() == [("laptop",)]
    copy.close()


def test_postgresql_is_left_to_its_own_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONBASE_DATABASE_URL", "postgresql://h/d")
    error = cli.invoke(app, ["backup", "copy.db"]).exception
    assert isinstance(error, BackupFailed)
    assert "pg_dump" in str(error)
