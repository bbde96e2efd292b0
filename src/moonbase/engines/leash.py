"""Runs a command that must not outlive whoever started this: `python -m moonbase.engines.leash SECONDS COMMAND …`.

When standard input ends, the command and whatever it has started are asked to end, and after SECONDS killed. For
servers that start processes of their own, and know nothing of us.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LOOK = 0.1
_IGNORED = (signal.SIGINT, signal.SIGTERM)  # told to the whole group; our parent ends us when it has finished


def main() -> None:
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what the command leaves behind becomes our child

    def before_command() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_DFL)

    process = subprocess.Popen(  # kept, because it would reap the command when it is dropped
        sys.argv[2:], stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=before_command
    )
    ended: dict[int, int] = {}
    while process.pid not in ended and not select.select([sys.stdin], [], [], _LOOK)[0]:
        _reap(ended)
    _end(ended, float(sys.argv[1]))
    sys.exit(ended.get(process.pid, 1))


def _reap(ended: dict[int, int]) -> bool:
    """Note the children that have ended, with their exit codes as a shell has them. Whether there are others."""
    try:
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            code = os.waitstatus_to_exitcode(found[1])
            ended[found[0]] = code if code >= 0 else 128 - code
    except ChildProcessError:
        return False
    return True


def _end(ended: dict[int, int], patience: float) -> None:
    """End all that is left: children first, who tell their own; what those leave behind is ours in the next look."""
    deadline = time.monotonic() + patience
    asked: set[int] = set()
    while _reap(ended):
        late = time.monotonic() > deadline
        for pid in _children():
            if late or pid not in asked:
                asked.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(_LOOK)


def _children() -> list[int]:
    """Those that the system lists; it may miss one while another ends."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


if __name__ == "__main__":
    main()
