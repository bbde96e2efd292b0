"""The shell scripts, where they can be run without changing the checkout."""

import subprocess
from pathlib import Path


def test_install_refuses_what_it_does_not_know() -> None:
    script = Path(__file__).parent.parent / "scripts" / "install"
    result = subprocess.run([script, "--nonsense"], capture_output=True, text=True, timeout=10, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "usage: scripts/install [--dev]\n")
