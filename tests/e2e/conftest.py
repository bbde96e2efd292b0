"""Servers for the end-to-end tests: one for all that need nothing special, and others on demand."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.server import Server, cache_with_kimi_vocabulary, kimi_vocabulary

StartServer = Callable[..., Server]


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
