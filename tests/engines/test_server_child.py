"""Engines whose server is a child of ours: how it is started, and what happens when it dies or hangs. The servers are
small ones."""

import asyncio
import os
import signal
import sys
from array import array
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.engines.token_server import collect, request, running, until

from moonbase.config import EngineSettings
from moonbase.engines.sglang import sglang_engine
from moonbase.engines.token_server import TokenServerEngine
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
from moonbase.engines.upstream.client import UpstreamClient
from moonbase.engines.vllm import vllm_engine
from moonbase.errors import EngineUnavailable, FatalRequest

pytestmark = pytest.mark.anyio

DEADLY, PARALYSING = 666, 777
SAMPLES = Path(__file__).with_name("vllm_samples")
SERVER = (
    f"DEADLY, PARALYSING = {DEADLY}, {PARALYSING}\n"
    + """import http.server, json, os, sys, threading
from pathlib import Path

samples, port = Path(sys.argv[1]), int(sys.argv[sys.argv.index("--port") + 1])
authorization = "Bearer " + os.environ["VLLM_API_KEY"]
paralysed = threading.Event()

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # as vLLM's: prompts come over connections that looks have left open

    def do_GET(self):
        if paralysed.is_set():
            threading.Event().wait()
        if self.path == "/health":
            self.answer(b"")
        else:
            self.answer((samples / "models.json").read_bytes())

    def do_POST(self):
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        if DEADLY in prompt:
            server.socket.close()  # first of all, so that the same prompt sent anew meets nobody
            os._exit(1)
        if PARALYSING in prompt:
            paralysed.set()
            threading.Event().wait()
        self.answer((samples / "stream.txt").read_bytes())

    def answer(self, body):
        allowed = self.path == "/health" or self.headers["Authorization"] == authorization
        body = body if allowed else b""
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
server.serve_forever()
"""
)
# SGLang, too, serves from processes that it spawns, which import its main module again.
SGLANG = """import argparse, http.server, multiprocessing

parser = argparse.ArgumentParser()
for option in ("--api-key", "--model-path", "--host", "--port", "--served-model-name", "--max-running-requests"):
    parser.add_argument(option, required=True)
options = parser.parse_args()

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        allowed = self.path == "/health" or self.headers["Authorization"] == "Bearer " + options.api_key
        body = b'{"data": [{"id": "k2", "max_model_len": 8192}]}' if allowed else b""
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

def serve():
    http.server.ThreadingHTTPServer(("127.0.0.1", int(options.port)), Handler).serve_forever()

if __name__ == "__main__":
    print(f"server_args={options}", flush=True)
    server = multiprocessing.get_context("spawn").Process(target=serve)
    server.start()
    server.join()
"""


def install(program: str, python: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program on the PATH that pip seems to have installed; `python` is what its Python runs, as a shell does."""
    for name, text in (("python", f'#!/bin/sh\n{python} "$@"\n'), (program, f"#!{folder}/python\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


async def statuses(engine: TokenServerEngine, *paths: str) -> list[int]:
    """What somebody without our key is answered."""
    found = []
    async with UpstreamClient(engine.url) as stranger:
        for path in paths:
            async with stranger.request("GET", path) as response:
                found.append(response.status)
    return found


def family(pid: int) -> list[int]:
    children = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid, *[member for child in children for member in family(child)]]


def shown(engine: TokenServerEngine, file: str) -> list[str]:
    """What the system shows of the server's processes in a file."""
    assert engine.server_pid is not None
    return [Path(f"/proc/{pid}/{file}").read_bytes().decode() for pid in family(engine.server_pid)]


def key_of(engine: TokenServerEngine, variable: str) -> str:
    return dict(line.partition("=")[::2] for line in shown(engine, "environ")[0].split("\0"))[variable]


@pytest.fixture
async def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TokenServerEngine]:
    server = tmp_path / "server.py"
    server.write_text(SERVER)
    install("vllm", f"exec {sys.executable} {server} {SAMPLES}", tmp_path, monkeypatch)
    settings = EngineSettings(name="vllm", hang_timeout=1)
    async with running(vllm_engine(settings, ApproximateTokenizer(), tmp_path)) as engine:
        yield engine


async def test_a_server_answers_nobody_but_us_and_its_key_is_not_shown(engine: TokenServerEngine) -> None:
    assert await statuses(engine, "/health", "/v1/models") == [200, 401]
    key = key_of(engine, "VLLM_API_KEY")
    assert len(key) >= 32
    assert not any(key in line for line in shown(engine, "cmdline"))
    assert (await collect(engine.generate(request(max_tokens=4)))).finish == {0: "length"}


async def test_sglang_gets_its_key_where_nobody_else_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    package = tmp_path / "packages" / "sglang"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "launch_server.py").write_text(SGLANG)
    install("sglang", f"PYTHONPATH={package.parent} exec {sys.executable}", tmp_path, monkeypatch)
    async with running(sglang_engine(EngineSettings(name="sglang"), ApproximateTokenizer(), tmp_path)) as engine:
        assert isinstance(engine, TokenServerEngine)
        assert engine.description.window == 8192
        assert await statuses(engine, "/health", "/v1/models") == [200, 401]
        key = key_of(engine, "MOONBASE_SGLANG_KEY")
        assert not any(key in line for line in shown(engine, "cmdline"))
    assert "api_key='***'" in caplog.text
    assert key not in caplog.text
    assert set(key) <= set("0123456789abcdef"), "one that begins with a dash would be taken for an option"


@pytest.mark.parametrize(
    ("arguments", "warned"), [((), True), (("--trust-remote-code",), False), (("--no-trust-remote-code",), False)]
)
async def test_code_of_a_model_runs_only_where_somebody_has_said_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    arguments: tuple[str, ...],
    warned: bool,
) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    model = tmp_path / "model"
    model.mkdir()
    (model / "tokenization_kimi.py").touch()
    install("vllm", f"exec {sys.executable} {tmp_path}/server.py {SAMPLES}", tmp_path, monkeypatch)
    settings = EngineSettings(name="vllm", arguments=arguments)
    async with running(vllm_engine(settings, ApproximateTokenizer(), model)) as engine:
        assert isinstance(engine, TokenServerEngine)
        trusted = any("\0--trust-remote-code\0" in line for line in shown(engine, "cmdline"))
    assert trusted == (arguments == ("--trust-remote-code",))
    assert ('add "--trust-remote-code" to the arguments' in caplog.text) == warned


async def falls(engine: TokenServerEngine, *tokens: int) -> None:
    answer = await collect(engine.generate(request(prompt=array("I", tokens))))
    assert isinstance(answer.error, EngineUnavailable)
    assert not engine.ready
    await until(lambda: engine.ready, seconds=30)


async def test_a_request_that_two_servers_died_of_is_refused_and_others_are_not(engine: TokenServerEngine) -> None:
    first = engine.url
    await falls(engine, DEADLY)
    assert engine.url != first, "somebody may have taken the port meanwhile"
    await falls(engine, DEADLY)
    with pytest.raises(FatalRequest):
        engine.generate(request(prompt=array("I", [DEADLY])))
    assert (await collect(engine.generate(request(max_tokens=4)))).finish == {0: "length"}


async def test_a_server_that_does_not_answer_any_more_is_replaced(engine: TokenServerEngine) -> None:
    before = engine.server_pid
    await falls(engine, PARALYSING)
    assert engine.server_pid != before
    assert (await collect(engine.generate(request(max_tokens=4)))).finish == {0: "length"}


async def test_between_two_lives_nobody_is_asked_anything_and_each_has_its_own_key(engine: TokenServerEngine) -> None:
    asked: list[str] = []

    async def squat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.read(4096)).decode())
        writer.close()

    first = key_of(engine, "VLLM_API_KEY")
    await falls(engine, DEADLY)
    assert key_of(engine, "VLLM_API_KEY") != first
    port = int(engine.url.rpartition(":")[2])
    await collect(engine.generate(request(prompt=array("I", [DEADLY]))))
    await until(lambda: engine.server_pid is None)
    async with await asyncio.start_server(squat, "127.0.0.1", port):
        await until(lambda: engine.server_pid is not None)
    assert asked == []


def only_server(engine: TokenServerEngine) -> tuple[int, int]:
    """The process that holds the server on its leash, and the server."""
    assert engine.server_pid is not None
    leash, server = family(engine.server_pid)
    return leash, server


async def test_a_server_that_dies_idle_is_not_ready_until_the_next_one_is(engine: TokenServerEngine) -> None:
    leash, server = only_server(engine)
    os.kill(server, signal.SIGKILL)
    await until(lambda: engine.server_pid not in (None, leash))
    assert not engine.ready
    await until(lambda: engine.ready, seconds=30)
    assert (await collect(engine.generate(request(max_tokens=4)))).finish == {0: "length"}


async def test_a_request_that_met_nobody_is_no_suspect(engine: TokenServerEngine) -> None:
    met_nobody = 0
    while met_nobody < 2:
        leash, server = only_server(engine)
        os.kill(leash, signal.SIGSTOP)  # so that we do not notice
        os.kill(server, signal.SIGKILL)
        await until(lambda pid=server: ") Z " in Path(f"/proc/{pid}/stat").read_text())
        await asyncio.sleep(0.1)
        if engine.ready:  # else a look at the server came first
            answer = await collect(engine.generate(request(max_tokens=4)))
            assert isinstance(answer.error, EngineUnavailable)
            met_nobody += 1
        os.kill(leash, signal.SIGCONT)
        await until(lambda pid=leash: engine.server_pid not in (None, pid))
        await until(lambda: engine.ready, seconds=30)
    assert (await collect(engine.generate(request(max_tokens=4)))).finish == {0: "length"}
