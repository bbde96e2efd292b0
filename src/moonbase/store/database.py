"""One database, SQLite or PostgreSQL: where it is, its connections, and what its refusals mean."""

import asyncio
import errno
import fcntl
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, event, make_url, text
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NotSupportedError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from moonbase.errors import ConfigurationError, DatabaseUnavailable

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}
_BUSY_TIMEOUT = 5.0  # seconds a statement waits for another process's write
_SQLITE_CACHE = 512  # KiB for each connection; what it has not, the system's cache of files has
_CONNECT_TIMEOUT = 5.0  # seconds a PostgreSQL server may take to let us in
_ANSWER_TIMEOUT = 10.0  # seconds a PostgreSQL server may take for a transaction of a few short statements
_CLOSE_TIMEOUT = 5.0  # seconds it may take to say goodbye
_LOCK_TIMEOUT = 60.0  # seconds to wait for another process's migration, or for other administrators' changes
_LOCK_POLL = 0.02
_ADVISORY_LOCK = 0x6D6F6F6E62617365  # "moonbase"
_BEGIN = "sqlite_begin"

_ELSEWHERE = "or set MOONBASE_HOME or database.url to another place"
_SQLITE_SENTENCES = {
    "SQLITE_NOTADB": f"is not an SQLite database; restore a backup {_ELSEWHERE}",
    "SQLITE_CORRUPT": f"is damaged; restore a backup {_ELSEWHERE}",
    "SQLITE_FULL": f"cannot be written because the disk is full; free some space {_ELSEWHERE}",
    "SQLITE_IOERR": f"cannot be read or written (disk I/O error); free some space, check the disk {_ELSEWHERE}",
    "SQLITE_BUSY": f"is locked by another process; stop that one {_ELSEWHERE}",
    "SQLITE_READONLY": f"cannot be written; make the file and its folder writable {_ELSEWHERE}",
    "SQLITE_CANTOPEN": f"cannot be opened; make the file and its folder writable {_ELSEWHERE}",
}


def database_url(url: str | None, home: Path) -> URL:
    """Where the database is: the setting `database.url`, else a SQLite file in `home`.

    Raises `ConfigurationError` for what is neither a SQLite file nor a PostgreSQL server.
    """
    if url is None:
        return URL.create("sqlite+aiosqlite", database=str(home / "moonbase.db"))
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError("database.url: is not a URL such as sqlite:////var/lib/moonbase.db") from None
    driver = _DRIVERS.get(parsed.drivername)
    if driver is None:
        raise ConfigurationError(f"database.url: {parsed.drivername} is not supported; use sqlite or postgresql")
    if not parsed.database or parsed.database == ":memory:":
        raise ConfigurationError("database.url: names no database; it ends in a file (SQLite) or a name (PostgreSQL)")
    return parsed.set(drivername=driver)


def spool_folder(url: URL, home: Path) -> Path:
    """Where the processes of this host keep what they owe the database at `url`; another database has another."""
    return home / "spool" / hashlib.sha256(url.render_as_string().encode()).hexdigest()[:16]


class Database:
    """Connections to one database. An async context manager: `open` on entry, `close` on exit."""

    def __init__(self, url: URL) -> None:
        """`url` comes from `database_url`. Nothing is opened yet."""
        self.url = url
        self.path = Path(url.database or "").absolute() if url.drivername.startswith("sqlite") else None
        self._engine: AsyncEngine | None = None
        self._writer: AsyncEngine | None = None
        self._alone = asyncio.Lock()

    def __str__(self) -> str:
        """The file, or the URL without its password."""
        return self.url.render_as_string() if self.path is None else str(self.path)

    async def __aenter__(self) -> "Database":
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect, creating a missing SQLite file. Raises `ConfigurationError` saying what is wrong and what to do."""
        with self.at_start():
            if self.path is None:
                self._engine = _postgresql_engine(self.url)
            else:
                with _unavailable():
                    _create_file(self.path)
                self._engine = _sqlite_engine(self.url)
            # A SQLite transaction that begins as a reader may be refused its first write.
            self._writer = self._engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
            try:
                async with self._start_lock(), self.write() as connection:
                    await connection.execute(text("SELECT 1"))
            except BaseException:
                await self.close()
                raise

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        if self._engine is not None:
            engine, self._engine, self._writer = self._engine, None, None
            with suppress(TimeoutError):  # the server hangs, and its connections go with the process
                async with asyncio.timeout(_CLOSE_TIMEOUT):
                    await engine.dispose()

    def read(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A short transaction that only reads. Raises `DatabaseUnavailable`, also when no answer comes in time."""
        return self._transaction(self._engine, _ANSWER_TIMEOUT)

    def snapshot(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A transaction that reads the database as it is at one moment, for as long as it takes.

        Raises `DatabaseUnavailable`.
        """
        engine = self._engine
        if engine is not None and self.path is None:  # what SQLite does anyway
            engine = engine.execution_options(isolation_level="REPEATABLE READ")
        return self._transaction(engine, None)

    def write(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A short transaction, committed on leaving without an exception.

        Raises `DatabaseUnavailable`, also when no answer comes in time; nobody knows then whether it was committed.
        """
        return self._transaction(self._writer, _ANSWER_TIMEOUT)

    @asynccontextmanager
    async def exclusive(self, timeout: float | None = _LOCK_TIMEOUT) -> AsyncIterator[AsyncConnection]:
        """A write transaction that no other `exclusive` one overlaps, in any process.

        It may wait `timeout` seconds for its turn and take as long. Those of one process wait for each other outside
        the database, where they hold no connection that others need. Raises as `write`.
        """
        async with self._turn(timeout), self._start_lock(), self._transaction(self._writer, timeout) as connection:
            if self.path is None:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
            yield connection

    @asynccontextmanager
    async def _turn(self, timeout: float | None) -> AsyncIterator[None]:
        with _unavailable():
            async with asyncio.timeout(timeout):
                await self._alone.acquire()
        try:
            yield
        finally:
            self._alone.release()

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine | None, timeout: float | None) -> AsyncIterator[AsyncConnection]:
        """SQLite needs no `timeout`: it waits for nobody but another writer, and that has a limit of its own."""
        assert engine is not None, "the database is not open"
        with _unavailable():
            async with asyncio.timeout(timeout if self.path is None else None), engine.begin() as connection:
                yield connection

    @contextmanager
    def at_start(self) -> Iterator[None]:
        """Turn `DatabaseUnavailable` into the `ConfigurationError` that stops a start."""
        try:
            yield
        except DatabaseUnavailable as error:
            raise ConfigurationError(self._sentence(error.__cause__)) from error

    def _start_lock(self) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self.path is None else _file_lock(self.path.with_name(self.path.name + ".lock"))

    def _sentence(self, error: BaseException | None) -> str:
        reason = str(error.orig) if isinstance(error, DBAPIError) else getattr(error, "strerror", None) or str(error)
        reason = reason.rpartition(">: ")[2] or "no answer"  # asyncpg's errors come with their class in front
        if self.path is None:
            return f"database.url: {self} cannot be used ({reason}); check that the server runs and the URL is right"
        name = getattr(getattr(error, "orig", None), "sqlite_errorname", "")
        what = _SQLITE_SENTENCES.get("_".join(name.split("_")[:2]))
        return f"{self} {what or f'cannot be used ({reason}); make the file and its folder writable {_ELSEWHERE}'}"


def _sqlite_engine(url: URL) -> AsyncEngine:
    # isolation_level None: the driver starts no transactions of its own, `_begin` does.
    arguments: dict[str, Any] = {"isolation_level": None}
    if "timeout" not in url.query:
        arguments["timeout"] = _BUSY_TIMEOUT
    # The last connection used is the next: what it has of the file in memory is thrown away once another has written.
    engine = create_async_engine(url, hide_parameters=True, pool_use_lifo=True, connect_args=arguments)

    @event.listens_for(engine.sync_engine, "connect")
    def _connect(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute(f"PRAGMA cache_size = -{_SQLITE_CACHE}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))

    return engine


def _postgresql_engine(url: URL) -> AsyncEngine:
    try:
        return create_async_engine(
            url, hide_parameters=True, pool_pre_ping=True, connect_args={"timeout": _CONNECT_TIMEOUT}
        )
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "database.url: PostgreSQL needs more packages; install them with: "
            f"{sys.executable} -m pip install 'moonbase[postgres]'"
        ) from error


def _create_file(path: Path) -> None:
    """Make the file before SQLite would, so that only its owner can read it; -wal and -shm get the same mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if path.exists():
        if not os.access(path, os.R_OK | os.W_OK):  # SQLite would open it and refuse the first change only
            raise PermissionError(errno.EACCES, "Permission denied")
    else:  # closing a second descriptor of an open SQLite file would drop its locks
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


@asynccontextmanager
async def _file_lock(path: Path) -> AsyncIterator[None]:
    with _unavailable():
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        waited = 0.0
        while not _try_lock(descriptor):
            if waited > _LOCK_TIMEOUT:
                reason = TimeoutError("another process has been starting on it for a minute")
                raise DatabaseUnavailable from reason
            await asyncio.sleep(_LOCK_POLL)
            waited += _LOCK_POLL
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _unavailable() -> Iterator[None]:
    """Translate what the environment causes; what a statement of ours causes stays what it is."""
    try:
        yield
    except (IntegrityError, ProgrammingError, DataError, NotSupportedError):
        raise
    except DBAPIError as error:
        if _is_ours(error.orig):
            raise
        raise DatabaseUnavailable from error
    except (OSError, PoolTimeout) as error:
        raise DatabaseUnavailable from error


def _is_ours(error: BaseException | None) -> bool:
    """Whether a driver's error that has no class of its own is about a statement or its values (SQLSTATE 22…)."""
    if getattr(error, "sqlite_errorname", None) == "SQLITE_ERROR":
        return True
    return (getattr(error, "sqlstate", None) or "").startswith("22")
