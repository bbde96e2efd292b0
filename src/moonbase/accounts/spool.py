"""What a gateway process owes the database, on disk, so that its death loses no charge.

A spool is a folder `PROCESS_ID` with a file `lock`, which the process holds locked as long as it lives, and
numbered segments. A segment is a sequence of frames: the length and the CRC-32 of a payload, four bytes each
(little-endian), then the payload in MessagePack. Of a request's frames the last one counts.
"""

import datetime
import errno
import fcntl
import logging
import os
import secrets
import shutil
import socket
import struct
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from moonbase.accounts.pricing import cost
from moonbase.accounts.tokens import MOST
from moonbase.catalog.prices import Price
from moonbase.store.records import Settlement

log = logging.getLogger(__name__)

_HEAD = struct.Struct("<II")
_SEGMENT_BYTES = 4 * 1024 * 1024
_LOCK = "lock"
_SUFFIX = ".spool"
_NEW = ".new-"  # in front of a folder that is not locked yet


class _Settled(Struct, tag="settled", array_like=True):
    """The request is over, and this is its record."""

    record: Settlement


class _Begun(Struct, tag="begun", array_like=True):
    """The request goes on; what it has used so far, as its record should the process die now."""

    record: Settlement


class _Went(Struct, tag="went", array_like=True):
    """A request that has begun has used so many tokens by now."""

    request_id: str
    miss: int
    hit: int
    output: int


class _Mark(Struct):
    """How far a running request is: its record as it was first marked, and what it has used since."""

    record: Settlement
    latest: _Went | None = None

    @property
    def now(self) -> Settlement:
        return self.record if self.latest is None else _after(self.record, self.latest)


class _Segment(Struct):
    """A file of a spool; `owed` counts the settlements in it that the database lacks, `began` the bytes of the marks
    that it began with.
    """

    path: Path
    file: int
    size: int = 0
    began: int = 0
    owed: int = 0

    def full(self, size: int) -> bool:
        """Whether `size` bytes were added, and as many as it began with: else many marks are mostly written anew."""
        return self.size - self.began > max(size, self.began)

    def remove(self) -> None:
        os.close(self.file)
        self.path.unlink(missing_ok=True)


class Spool:
    """The spool of this process. A context manager; leaving it removes the folder when nothing need be kept.

    Methods block for as long as a write to the page cache takes. A write that the disk refuses is logged and sets
    `failing`, until `rewrite` succeeds; it raises nothing, since what was served must still reach the database.
    """

    def __init__(self, root: Path, *, segment_bytes: int = _SEGMENT_BYTES) -> None:
        """`root` holds the spools of all processes of this host that share a database."""
        self.process_id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.failing = False
        self.keep = True
        """Whether the folder stays even when nothing in it is owed: the process may have leases."""
        self._root = root
        self._folder = root / self.process_id
        self._segment_bytes = segment_bytes
        self._encoder = msgspec.msgpack.Encoder()
        self._lock = -1
        self._number = 0
        self._segments: deque[_Segment] = deque()
        self._marks: dict[str, _Mark] = {}
        self._gathered: list[bytes] | None = None  # frames that are to be written together

    def __enter__(self) -> Self:
        """Raises `OSError` when the folder cannot be made or written."""
        new = self._root / f"{_NEW}{self.process_id}"
        new.mkdir(mode=0o700, parents=True)
        self._lock = os.open(new / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        new.rename(self._folder)  # from here on others may take it for one that its process left
        self._segments.append(self._next_segment([]))
        return self

    def __exit__(self, *_: object) -> None:
        owes = self.keep or self.failing or self._marks or any(segment.owed for segment in self._segments)
        for segment in self._segments:
            os.close(segment.file)
        if not owes:
            shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)

    def settle(self, record: Settlement) -> None:
        """Append the record of a request that is over. Raises `ValueError` for one that no database can hold."""
        self._marks.pop(record.request_id, None)
        try:
            self._append(_Settled(record))
        except (OverflowError, UnicodeEncodeError) as error:
            raise ValueError(f"no database can hold it: {error}") from error
        self._segments[-1].owed += 1

    def begin(self, record: Settlement) -> None:
        """Append the first progress mark of a request: its record if no other frame follows."""
        self._marks[record.request_id] = _Mark(record)
        self._append(_Begun(record))

    def go_on(self, request_id: str, *, miss: int, hit: int, output: int) -> None:
        """Append a further progress mark of a request that has begun: its tokens by now."""
        went = self._marks[request_id].latest = _Went(request_id, miss, hit, output)
        self._append(went)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is appended inside goes to the file in one write, when the block ends."""
        gathered: list[bytes] = []
        self._gathered = gathered
        try:
            yield
        finally:
            self._gathered = None
            if gathered:
                self._put(b"".join(gathered))

    def drop(self, count: int) -> None:
        """The oldest `count` settlements are in the database."""
        for segment in list(self._segments):
            written = min(count, segment.owed)
            segment.owed -= written
            count -= written
            if segment.owed == 0 and segment is not self._segments[-1]:
                self._segments.remove(segment)
                segment.remove()

    def syncer(self) -> Callable[[], None]:
        """What brings all that was appended to the disk itself; it blocks, for a thread, and may raise `OSError`."""
        files = [os.dup(segment.file) for segment in self._segments]

        def sync() -> None:
            try:
                for file in files:
                    os.fdatasync(file)
            finally:
                for file in files:
                    os.close(file)

        return sync

    def rewrite(self, owed: Iterable[Settlement]) -> None:
        """Write all that is owed and all marks anew, if the disk lets us; what was there before goes."""
        settlements = [_Settled(record) for record in owed]
        try:
            segment = self._next_segment(settlements)
        except OSError:
            return
        segment.owed = len(settlements)
        for old in self._segments:
            old.remove()
        self._segments = deque([segment])
        self.failing = False
        log.warning("the spool %s can be written again", self._folder)

    def _append(self, frame: Struct) -> None:
        data = self._framed(frame)
        if self._gathered is not None:
            self._gathered.append(data)
        else:
            self._put(data)

    def _put(self, data: bytes) -> None:
        if self.failing:
            return
        try:
            if self._segments[-1].full(self._segment_bytes):
                self._segments.append(self._next_segment([]))
                self.drop(0)
            _write(self._segments[-1], data)
        except OSError as error:
            self.failing = True
            log.error("the spool %s cannot be written (%s); nothing is served until it can", self._folder, error)

    def _next_segment(self, settlements: list[_Settled]) -> _Segment:
        """A new file, which begins with the marks, so that older ones can go when the database has what they hold."""
        frames = [*settlements, *[_Begun(mark.now) for mark in self._marks.values()]]
        self._number += 1
        path = self._folder / f"{self._number:08}{_SUFFIX}"
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        segment = _Segment(path, os.open(path, flags, 0o600))
        try:
            _write(segment, b"".join(map(self._framed, frames)))
        except OSError:
            segment.remove()
            raise
        segment.began = segment.size
        return segment

    def _framed(self, frame: Struct) -> bytes:
        payload = self._encoder.encode(frame)
        return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


class LeftSpool:
    """The spool of a process that has died.

    `records` is one record for each request in it: the settlement, else the last progress mark. It is `damaged` when
    bytes in it cannot be read; a frame cut short at the end is no damage, its request was not over.
    """

    def __init__(self, folder: Path) -> None:
        self.process_id = folder.name
        self.damaged = False
        self._folder = folder
        self.records = self._read()

    def remove(self) -> None:
        """All of it is in the database."""
        shutil.rmtree(self._folder)

    def set_aside(self) -> Path:
        """Keep a damaged spool where nobody looks for work, and return that place."""
        return self._folder.rename(self._folder.with_name(f".damaged-{self.process_id}"))

    def _read(self) -> list[Settlement]:
        latest: dict[str, Settlement] = {}
        settled: set[str] = set()
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            for frame in self._frames(path):
                request_id = frame.request_id if isinstance(frame, _Went) else frame.record.request_id
                if request_id in settled:
                    continue
                match frame:
                    case _Went() if request_id in latest:
                        latest[request_id] = _after(latest[request_id], frame)
                    case _Begun(record) | _Settled(record):
                        latest[request_id] = record
                if isinstance(frame, _Settled):
                    settled.add(request_id)
        return list(latest.values())

    def _frames(self, path: Path) -> Iterator["_Settled | _Begun | _Went"]:
        data = path.read_bytes()
        decoder = msgspec.msgpack.Decoder(_Settled | _Begun | _Went)
        start = 0
        while len(data) - start >= _HEAD.size:
            length, checksum = _HEAD.unpack_from(data, start)
            start += _HEAD.size
            payload = data[start : start + length]
            if len(payload) < length:
                return
            start += length
            try:
                if zlib.crc32(payload) != checksum:
                    raise msgspec.DecodeError("wrong checksum")
                yield decoder.decode(payload)
            except msgspec.DecodeError as error:
                self.damaged = True
                log.error("%s: the frame that ends at byte %d cannot be read: %s", path, start, error)
                return


def left_spools(root: Path) -> Generator[LeftSpool, None, None]:
    """The spools of processes that live no more, each nobody else's until the next is asked for. Raises `OSError`."""
    if not root.is_dir():
        return
    for folder in sorted(root.iterdir()):
        if folder.name.startswith("."):
            continue
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # somebody else has just removed it
        try:
            if _locked(lock) and folder.exists():
                yield LeftSpool(folder)
        finally:
            os.close(lock)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(segment: _Segment, data: bytes) -> None:
    """All or nothing."""
    if os.write(segment.file, data) < len(data):
        os.ftruncate(segment.file, segment.size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    segment.size += len(data)


def _after(record: Settlement, went: _Went) -> Settlement:
    """The record of a request that has used so much by now."""
    price = Price(
        since=datetime.date.min,
        miss=record.price_miss,
        hit=record.price_hit,
        write=record.price_write,
        output=record.price_output,
    )
    exact = cost(price, miss=went.miss, hit=went.hit, write=record.prompt_write, output=went.output)
    return replace(record, prompt_miss=went.miss, prompt_hit=went.hit, output=went.output, cost_nano=min(exact, MOST))
