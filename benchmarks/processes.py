"""What processes cost, as the system counts it."""

import os
from pathlib import Path


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for each in found:
        for task in _tasks(each):
            found += map(int, _read(task / "children").split())
    return found


def cpu_seconds(*pids: int) -> float:
    """CPU time of processes, their ended threads included."""
    return sum(map(_cpu_seconds, pids))


def memory_mb(*pids: int) -> float:
    """Resident memory of processes; what they share counts for each."""
    found = [_read(Path(f"/proc/{pid}/status")).partition("VmRSS:")[2].split() for pid in pids]
    return sum(int(words[0]) for words in found if words) / 1024


def open_files(*pids: int) -> int:
    """File descriptors of processes, sockets among them."""
    return sum(len(_entries(Path(f"/proc/{pid}/fd"))) for pid in pids)


def _cpu_seconds(pid: int) -> float:
    stat = _read(Path(f"/proc/{pid}/stat")).rpartition(") ")[2].split()
    if not stat:
        return 0.0
    ticks = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
    precise = sum(int((_read(task / "schedstat").split() or ["0"])[0]) for task in _tasks(pid)) / 1e9
    return max(precise, ticks)


def _tasks(pid: int) -> list[Path]:
    return _entries(Path(f"/proc/{pid}/task"))


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return ""
