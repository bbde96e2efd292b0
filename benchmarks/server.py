"""Starts a real server for a benchmark and reads what it costs."""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import processes


class Server:
    """A running `moonbase serve`: where it listens, its first key, its process."""

    def __init__(self, process: subprocess.Popen[str], host: str, port: int, key: str) -> None:
        self.process = process
        self.host = host
        self.port = port
        self.key = key

    def post(self, body: dict[str, Any], path: str = "/v1/chat/completions") -> http.client.HTTPResponse:
        """Send a request and return its response, read up to the headers."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=600)
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        return connection.getresponse()

    def cpu_seconds(self) -> float:
        """CPU time of the gateway process, its ended threads included; the worker's is not."""
        return processes.cpu_seconds(self.process.pid)

    def memory_mb(self) -> float:
        """Resident memory of the gateway process."""
        return processes.memory_mb(self.process.pid)


@contextmanager
def running(*arguments: str, cache: Path | None = None) -> Iterator[Server]:
    """A server with a new home and, unless given, a new cache; stopped on leaving."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "MOONBASE_HOME": f"{folder}/home"}
        if cache is not None:
            environment["MOONBASE_CACHE"] = str(cache)
        command = [sys.executable, "-m", "moonbase", "serve", "--port", "0", "--set", "log.level=warning", *arguments]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            address = ""
            while not address:
                line = process.stderr.readline()
                if not line:
                    raise SystemExit("the server did not start")
                if "serves the Kimi API at" in line:
                    address = line.split("http://")[1].split("/")[0]
            host, _, port = address.rpartition(":")
            yield Server(process, host, int(port), process.stdout.readline().strip())
        finally:
            process.terminate()
            process.communicate()  # reads what is left and closes the pipes


def wait_until_idle(server: Server) -> None:
    """Wait until the gateway has used next to no CPU for a moment."""
    before = server.cpu_seconds()
    while True:
        time.sleep(0.3)
        now = server.cpu_seconds()
        if now - before < 0.005:
            return
        before = now
