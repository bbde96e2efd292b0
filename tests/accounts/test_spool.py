"""The spool: whatever moment its process dies at, what it wrote can be charged, and only once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.accounts.money import RECORD

from moonbase.accounts.spool import Spool, left_spools
from moonbase.store.records import Settlement


def _settled(request_id: str) -> Settlement:
    return replace(RECORD, request_id=request_id, outcome="stop")


def _left(root: Path) -> list[Settlement]:
    return [record for spool in left_spools(root) for record in spool.records]


def _files(root: Path) -> list[Path]:
    return sorted(root.rglob("*.spool"))


def test_a_spool_in_use_is_nobody_elses(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.settle(_settled("a"))
        assert list(left_spools(tmp_path)) == []
    assert _left(tmp_path) == [_settled("a")]


def test_nothing_is_left_when_nothing_is_owed(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.settle(_settled("a"))
        spool.drop(1)
        spool.keep = False
    assert list(tmp_path.iterdir()) == []


def test_a_spool_whose_process_may_have_leases_is_left_though_nothing_is_owed(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        process_id = spool.process_id
    assert [(left.process_id, left.records) for left in left_spools(tmp_path)] == [(process_id, [])]


def test_of_a_request_the_settlement_counts_and_else_the_last_mark(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.begin(RECORD)
        spool.go_on("r", miss=8, hit=2, output=128)
        spool.begin(replace(RECORD, request_id="s"))
        spool.settle(_settled("s"))
        spool.begin(replace(RECORD, request_id="t"))
    assert _left(tmp_path) == [
        replace(RECORD, prompt_miss=8, prompt_hit=2, output=128, cost_nano=8 + 1 + 3 * 128),
        _settled("s"),
        replace(RECORD, request_id="t"),
    ]


def test_segments_that_the_database_has_go_and_marks_outlive_them(tmp_path: Path) -> None:
    with Spool(tmp_path, segment_bytes=1_000) as spool:
        spool.begin(RECORD)
        for number in range(100):
            spool.go_on("r", miss=10, hit=0, output=65 + number)
            spool.settle(_settled(f"s{number}"))
        assert len(_files(tmp_path)) > 5
        spool.drop(99)
        assert len(_files(tmp_path)) <= 2
    left = {record.request_id: record for record in _left(tmp_path)}
    assert left["r"].output == 164
    assert left["s99"] == _settled("s99")


def test_many_marks_are_not_written_anew_with_each_more(tmp_path: Path) -> None:
    """More than a segment holds: thousands of answers at once."""
    with Spool(tmp_path, segment_bytes=1_000) as spool:
        for number in range(100):
            spool.begin(replace(RECORD, request_id=f"r{number}"))
        for output in range(65, 75):
            for number in range(100):
                spool.go_on(f"r{number}", miss=10, hit=0, output=output)
        assert int(_files(tmp_path)[-1].stem) < 15
    assert {(record.request_id, record.output) for record in _left(tmp_path)} == {(f"r{n}", 74) for n in range(100)}


def test_a_taken_over_spool_is_gone(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.settle(_settled("a"))
    for left in left_spools(tmp_path):
        left.remove()
    assert list(tmp_path.iterdir()) == []


def test_two_cannot_take_over_one_spool(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.settle(_settled("a"))
    first = left_spools(tmp_path)
    assert len(next(first).records) == 1
    assert list(left_spools(tmp_path)) == []
    first.close()
    assert len(list(left_spools(tmp_path))) == 1


def test_a_frame_cut_short_by_the_end_of_the_machine_is_no_damage(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.settle(_settled("a"))
        spool.settle(_settled("b"))
    (file,) = _files(tmp_path)
    whole = file.read_bytes()
    for length in range(len(whole) // 2, len(whole)):
        file.write_bytes(whole[:length])
        for left in left_spools(tmp_path):
            assert (left.records, left.damaged) == ([_settled("a")], False)


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0), bit=st.integers(0, 7))
def test_a_damaged_byte_is_noticed_and_never_charged(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    root = tmp_path_factory.mktemp("spool")
    with Spool(root) as spool:
        spool.settle(_settled("a"))
        spool.settle(_settled("b"))
    (file,) = _files(root)
    data = bytearray(file.read_bytes())
    data[place % len(data)] ^= 1 << bit
    file.write_bytes(data)
    (left,) = left_spools(root)
    assert all(record in (_settled("a"), _settled("b")) for record in left.records)
    assert len(left.records) < 2


def test_a_damaged_spool_set_aside_is_kept_and_not_looked_at_again(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.settle(_settled("a"))
    (file,) = _files(tmp_path)
    file.write_bytes(b"\x01\0\0\0\0\0\0\0x")
    for left in left_spools(tmp_path):
        assert left.damaged
        assert list(left.set_aside().glob("*.spool"))
    assert list(left_spools(tmp_path)) == []


def test_a_full_disk_is_noticed_and_everything_owed_is_written_when_it_has_room(tmp_path: Path) -> None:
    """A limit on the size of files is refused by the system as a full disk is: in the middle of a write."""
    script = """
import resource, signal, sys
from pathlib import Path
from tests.accounts.test_spool import RECORD, _settled
from moonbase.accounts.spool import Spool
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Spool(Path(sys.argv[1])) as spool:
    records = [_settled(str(number)) for number in range(10)]
    spool.begin(RECORD)
    spool.settle(records[0])
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
    for record in records[1:]:
        spool.settle(record)
    assert spool.failing
    spool.rewrite(records)
    assert spool.failing
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    spool.rewrite(records)
    assert not spool.failing
    spool.settle(_settled("last"))
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=30)
    assert [record.request_id for record in _left(tmp_path)] == [*map(str, range(10)), "r", "last"]


def test_what_a_killed_process_wrote_is_left(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from tests.accounts.test_spool import RECORD, _settled
from moonbase.accounts.spool import Spool
with Spool(Path(sys.argv[1])) as spool:
    spool.begin(RECORD)
    spool.settle(_settled("a"))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    child = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, timeout=30)
    assert child.returncode == -signal.SIGKILL
    assert _left(tmp_path) == [RECORD, _settled("a")]


def test_a_record_that_no_database_can_hold_is_refused(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        for bad in (replace(RECORD, output=2**80), replace(RECORD, model="\ud800")):
            with pytest.raises(ValueError, match="no database can hold it: "):
                spool.settle(bad)
        spool.settle(_settled("a"))
    assert _left(tmp_path) == [_settled("a")]


def test_a_folder_of_a_process_that_just_starts_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / ".new-host-1-abc").mkdir()
    (tmp_path / "host-2-abc").mkdir()
    assert list(left_spools(tmp_path)) == []
    assert list(left_spools(tmp_path / "missing")) == []


def test_only_its_owner_can_read_a_spool(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        spool.settle(_settled("a"))
        (file,) = _files(tmp_path)
        assert [os.stat(path).st_mode & 0o777 for path in (file.parent, file)] == [0o700, 0o600]
