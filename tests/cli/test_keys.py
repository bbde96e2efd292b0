import hashlib
import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moonbase.cli.keys import app
from moonbase.cli.orgs import app as orgs
from moonbase.errors import NotFound

cli = CliRunner()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOONBASE_HOME", str(tmp_path))
    return tmp_path


def _create(name: str) -> str:
    return cli.invoke(app, ["create", "--name", name]).stdout


def test_create_prints_the_secret_and_nothing_else(home: Path) -> None:
    printed = _create("laptop")
    database = sqlite3.connect(home / "moonbase.db")
    assert database.execute("SELECT name, secret_hash FROM key").fetchall() == [
        ("laptop", hashlib.sha256(printed.removesuffix("\n").encode()).hexdigest())
    ]
    database.close()


def test_standard_error_says_where_a_database_is_made(home: Path) -> None:
    results = [cli.invoke(app, ["create", "--name", name]) for name in ("laptop", "phone")]
    made = f"Made the database {home / 'moonbase.db'}.\n"
    assert [result.stderr.startswith(made) for result in results] == [True, False]


def test_where_there_are_no_keys_standard_error_says_how_to_make_one() -> None:
    cli.invoke(orgs, ["create", "--name", "acme"])
    result = cli.invoke(app, ["list"])
    assert result.stdout == ""
    assert result.stderr.endswith("There are no keys; make one with `moonbase keys create --name NAME`.\n")
    assert cli.invoke(app, ["list", "--json"]).output == "[]\n"


def test_a_piped_list_is_tab_separated() -> None:
    secret = _create("laptop").strip()
    (line,) = cli.invoke(app, ["list"]).stdout.splitlines()
    key_id, name, hint, created, revoked = line.split("\t")
    assert (key_id[:3], name, hint, created[10], revoked) == ("ak-", "laptop", f"sk-…{secret[-4:]}", "T", "")


def test_a_list_can_be_json() -> None:
    _create("laptop")
    (key,) = json.loads(cli.invoke(app, ["list", "--json"]).stdout)
    assert list(key)[:6] == ["id", "project_id", "name", "hint", "created_at", "expires_at"]
    assert key["limits"] == {"concurrency": None, "rpm": None, "tpm": None, "tpd": None}


def test_a_revoked_key_is_listed_with_its_time() -> None:
    _create("laptop")
    (key,) = json.loads(cli.invoke(app, ["list", "--json"]).stdout)
    result = cli.invoke(app, ["revoke", key["id"]])
    assert (result.exit_code, result.stdout) == (0, "")
    (key,) = json.loads(cli.invoke(app, ["list", "--json"]).stdout)
    assert key["revoked_at"] >= key["created_at"]


def test_an_unknown_key_is_an_error_of_our_tree() -> None:
    _create("laptop")
    assert isinstance(cli.invoke(app, ["revoke", "ak-none"]).exception, NotFound)


@pytest.mark.parametrize("name", ["", " ", "two\nlines", "a\tb", "\x1b[31m"])
def test_a_name_that_would_garble_the_list_is_refused(name: str) -> None:
    assert cli.invoke(app, ["create", "--name", name]).exit_code == 2


def test_a_name_has_at_most_100_characters() -> None:
    assert cli.invoke(app, ["create", "--name", "x" * 100]).exit_code == 0
    result = cli.invoke(app, ["create", "--name", "x" * 101])
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(cli.invoke(app, ["list"]).stdout.splitlines()) == 1


def test_a_file_given_by_config_is_used(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    (tmp_path / "moonbase.toml").write_text(f'[database]\nurl = "sqlite:///{other}"\n')
    cli.invoke(app, ["create", "--name", "x", "--config", str(tmp_path / "moonbase.toml")])
    assert other.exists()
