"""Programs of PyPI that we are measured beside or tested with, each in an environment of its own."""

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

LITELLM = "litellm[proxy]==1.108.7"


def environment(requirement: str) -> Path:
    """A virtual environment with what is required, made once and kept in the share folder of our own.

    Raises `CalledProcessError`, whose `stderr` says why pip could not.
    """
    name = requirement.partition("[")[0].partition("=")[0]
    folder = Path(sys.prefix) / "share" / "moonbase-programs" / f"{name}-{_digest(requirement)}"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", requirement]
        subprocess.run(pip, capture_output=True, text=True, timeout=600, check=True)
        (folder / "installed").touch()
    return folder


def litellm_proxy(config: Path, port: int) -> list[str]:
    """The command that runs LiteLLM's proxy; raises as `environment` does."""
    program = environment(LITELLM) / "bin" / "litellm"
    where = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    return [str(program), *where, "--telemetry", "False"]


def _digest(requirement: str) -> str:
    return hashlib.sha256(requirement.encode()).hexdigest()[:12]
