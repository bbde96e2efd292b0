import asyncio
import resource
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import URL, text
from tests.postgres_child import PostgresChild

from moonbase.errors import ConfigurationError, DatabaseUnavailable
from moonbase.store.database import Database, database_url
from moonbase.store.migrate import migrate

pytestmark = pytest.mark.anyio


def test_the_default_is_a_file_in_the_home_folder(tmp_path: Path) -> None:
    assert str(database_url(None, tmp_path)) == f"sqlite+aiosqlite:///{tmp_path}/moonbase.db"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("sqlite:////x.db", "sqlite+aiosqlite:////x.db"),
        ("postgres://u@h/d", "postgresql+asyncpg://u@h/d"),
        ("postgresql://u@h:1/d", "postgresql+asyncpg://u@h:1/d"),
    ],
)
def test_usual_urls_get_the_asynchronous_driver(given: str, used: str, tmp_path: Path) -> None:
    assert database_url(given, tmp_path).render_as_string() == used


@pytest.mark.parametrize("url", ["", "moonbase.db", "mysql://h/d", "sqlite://", "sqlite:///:memory:", "postgresql://h"])
def test_a_url_that_cannot_work_is_refused_by_its_key(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^database\.url: "):
        database_url(url, tmp_path)


async def test_only_the_owner_can_read_the_files(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    await migrate(database_url(None, home))
    async with Database(database_url(None, home)) as database, database.write() as connection:
        await connection.execute(text("CREATE TABLE t (n INTEGER)"))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [home, *home.iterdir()]}
    assert modes == {
        "home": 0o700,
        "moonbase.db": 0o600,
        "moonbase.db-wal": 0o600,
        "moonbase.db-shm": 0o600,
        "moonbase.db.lock": 0o600,
    }


async def test_a_server_that_hangs_is_away_until_it_answers_again() -> None:
    with PostgresChild() as postgres:
        async with Database(postgres.url) as database:

            async def work() -> None:
                async with database.write() as connection:
                    await connection.execute(text("SELECT 1"))

            await work()
            with postgres.hanging():
                found = await asyncio.gather(*[work() for _ in range(40)], return_exceptions=True)
            assert {type(each) for each in found} == {DatabaseUnavailable}
            await work()
            await database.close()
            with postgres.hanging(), pytest.raises(ConfigurationError, match=r"cannot be used \(no answer\)"):
                await database.open()


async def test_many_that_want_to_be_alone_leave_others_room(database: Database) -> None:
    async def alone() -> None:
        async with database.exclusive() as connection:
            await connection.execute(text("SELECT 1"))
            await asyncio.sleep(0.01)

    waiting = [asyncio.create_task(alone()) for _ in range(100)]
    await asyncio.sleep(0.02)
    async with database.read() as connection:
        await connection.execute(text("SELECT 1"))
    assert sum(task.done() for task in waiting) < 50
    await asyncio.gather(*waiting)


async def test_who_waits_to_be_alone_does_not_wait_for_ever(database: Database) -> None:
    async with database.exclusive():
        with pytest.raises(DatabaseUnavailable):
            async with database.exclusive(timeout=0.05):
                pass
    async with database.exclusive(timeout=5) as connection:
        await connection.execute(text("SELECT 1"))


async def test_an_exception_undoes_the_transaction(database: Database) -> None:
    async def write_and_fail() -> None:
        async with database.write() as connection:
            await connection.execute(text("DELETE FROM alembic_version"))
            raise KeyError

    with pytest.raises(KeyError):
        await write_and_fail()
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM alembic_version"))).scalar_one() == 1


async def test_read_then_write_transactions_wait_for_each_other(url: URL) -> None:
    async with Database(url) as first, Database(url) as second:
        async with first.write() as connection:
            await connection.execute(text("CREATE TABLE t (n INTEGER)"))
            await connection.execute(text("INSERT INTO t VALUES (0)"))

        async def add(database: Database) -> None:
            async with database.exclusive() as connection:
                n = (await connection.execute(text("SELECT n FROM t"))).scalar_one()
                await connection.execute(text("UPDATE t SET n = :n"), {"n": n + 1})

        await asyncio.gather(*(add(database) for database in [first, second] * 5))
        async with first.read() as connection:
            assert (await connection.execute(text("SELECT n FROM t"))).scalar_one() == 10


async def _refusal(url: URL) -> str:
    with pytest.raises(ConfigurationError) as refused:
        await migrate(url)
    return str(refused.value)


async def test_a_file_that_is_no_database_is_named_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "moonbase.db"
    file.write_bytes(b"hello " * 1000)
    assert await _refusal(database_url(None, tmp_path)) == (
        f"{file} is not an SQLite database; restore a backup or set MOONBASE_HOME or database.url to another place"
    )


async def test_a_truncated_file_counts_as_damaged(tmp_path: Path) -> None:
    file = tmp_path / "moonbase.db"
    await migrate(database_url(None, tmp_path))
    file.write_bytes(file.read_bytes()[:-20_000])
    assert f"{file} is damaged; restore a backup" in await _refusal(database_url(None, tmp_path))


async def test_a_home_that_cannot_be_made_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sentence = await _refusal(database_url(None, tmp_path / "file" / "home"))
    assert sentence.startswith(f"{tmp_path}/file/home/moonbase.db cannot be used (Not a directory); make")
    assert sentence.endswith("set MOONBASE_HOME or database.url to another place")


async def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "moonbase.db").mkdir()
    assert "moonbase.db cannot be used (it is a folder)" in await _refusal(database_url(None, tmp_path))


async def test_a_full_disk_is_a_sentence_at_the_start(tmp_path: Path) -> None:
    script = (
        "import asyncio, pathlib; from moonbase.store.database import database_url as u;"
        "from moonbase.store.migrate import migrate;"
        f"asyncio.run(migrate(u(None, pathlib.Path({str(tmp_path)!r}))))"
    )
    limit = (40_000, 40_000)  # bytes a file may grow to: the write beyond fails
    child = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-B", "-c", script],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    sentence = child.stderr.splitlines()[-1]
    assert sentence.startswith(f"moonbase.errors.ConfigurationError: {tmp_path}/moonbase.db cannot be ")
    assert sentence.endswith("or set MOONBASE_HOME or database.url to another place")


async def test_a_server_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    pytest.importorskip("asyncpg")
    sentence = await _refusal(database_url("postgresql://someone:hush@127.0.0.1:1/d", tmp_path))
    assert sentence.startswith("database.url: postgresql+asyncpg://someone:***@127.0.0.1:1/d cannot be used")


async def test_a_database_locked_by_another_program_is_unavailable(tmp_path: Path) -> None:
    url = database_url(None, tmp_path)
    await migrate(url)
    async with Database(url.update_query_dict({"timeout": "0.05"})) as database:
        other = sqlite3.connect(tmp_path / "moonbase.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseUnavailable):
            async with database.write():
                pass
        other.close()
