import sqlite3
import stat
from pathlib import Path

import pytest

from moonbase.errors import BackupFailed
from moonbase.store.backup import backup
from moonbase.store.database import Database, database_url
from moonbase.store.migrate import head, migrate

pytestmark = pytest.mark.anyio


async def test_the_copy_holds_what_was_committed_while_the_database_is_in_use(tmp_path: Path) -> None:
    url = database_url(None, tmp_path)
    await migrate(url)
    async with Database(url) as database, database.write():
        backup(tmp_path / "moonbase.db", tmp_path / "copy.db")
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600
    copy = sqlite3.connect(tmp_path / "copy.db")
    assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [(head(),)]
    assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    copy.close()


async def test_a_copy_can_be_put_in_the_place_of_the_original(tmp_path: Path) -> None:
    await migrate(database_url(None, tmp_path))
    (tmp_path / "other").mkdir()
    backup(tmp_path / "moonbase.db", tmp_path / "other" / "moonbase.db")
    await migrate(database_url(None, tmp_path / "other"))


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "source").touch()
    (tmp_path / "target").write_text("precious")
    with pytest.raises(BackupFailed, match="exists already"):
        backup(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "precious"


def test_a_failed_copy_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("not a database " * 100)
    with pytest.raises(BackupFailed, match="file is not a database"):
        backup(tmp_path / "source", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_missing_database_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackupFailed, match="there is no database yet"):
        backup(tmp_path / "source", tmp_path / "target")
    (tmp_path / "source").touch()
    with pytest.raises(BackupFailed, match="cannot be created"):
        backup(tmp_path / "source", tmp_path / "no" / "target")
