"""How quick and how small is the gateway without engine and vocabulary, and the command line?

`python -m benchmarks.startup [--runs 5]`
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from urllib.error import URLError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "MOONBASE_HOME": folder, "MOONBASE_CACHE": folder}
        ready = [_serve(environment) for _ in range(runs + 1)][1:]  # the first makes the database
    print(f"serve --engine echo: ready in {_spread([r[0] for r in ready])} s")
    print(f"                     using {_spread([r[1] for r in ready])} s of CPU")
    print(f"                     resident {_spread([r[2] for r in ready])} MB")
    print(f"moonbase --help:     {_spread([_help() for _ in range(runs)])} s of CPU")


def _serve(environment: dict[str, str]) -> tuple[float, float, float]:
    """Seconds to /readyz, CPU seconds until then, resident MB."""
    port = 18_181
    began = time.monotonic()
    command = [sys.executable, "-m", "moonbase", "serve", "--engine", "echo", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz")
                break
            except URLError:
                time.sleep(0.005)
        seconds = time.monotonic() - began
        cpu = sum(int(n) for n in Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()[11:13])
        status = Path(f"/proc/{process.pid}/status").read_text()
        resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
        return seconds, cpu / os.sysconf("SC_CLK_TCK"), resident
    finally:
        process.terminate()
        process.wait()


def _help() -> float:
    before = os.times()
    subprocess.run([sys.executable, "-m", "moonbase", "--help"], stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} (min {min(values):.2f}, max {max(values):.2f})"


if __name__ == "__main__":
    main()
