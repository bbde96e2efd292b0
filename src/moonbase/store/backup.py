"""Copy a SQLite database while it is in use."""

import os
import sqlite3
from pathlib import Path

from moonbase.errors import BackupFailed


def backup(source: Path, target: Path) -> None:
    """Write a consistent copy of `source` to the new file `target`, readable by its owner only.

    Blocks; other connections may go on reading and writing meanwhile. Raises `BackupFailed`.
    """
    if not source.is_file():
        raise BackupFailed(f"{source}: there is no database yet")
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError as error:
        raise BackupFailed(f"{target}: exists already; name a new file") from error
    except OSError as error:
        raise BackupFailed(f"{target}: cannot be created ({error.strerror}); name a file that can") from error
    try:
        _copy(source, target)
    except (sqlite3.Error, OSError) as error:
        target.unlink()
        raise BackupFailed(f"{target}: the copy of {source} failed ({error}) and was removed") from error


def _copy(source: Path, target: Path) -> None:
    connection = sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        connection.execute("VACUUM INTO ?", (str(target),))
    finally:
        connection.close()
    with target.open("rb") as copy:
        os.fsync(copy.fileno())
