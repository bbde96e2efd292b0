"""An engine whose server is a child of ours: what it does when the server dies or hangs. The server is a small one."""

import sys
from array import array
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.engines.token_server import collect, request, running, until

from moonbase.config import EngineSettings
from moonbase.engines.token_server import TokenServerEngine
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer
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
paralysed = threading.Event()

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if paralysed.is_set():
            threading.Event().wait()
        self.answer((samples / "models.json").read_bytes() if self.path == "/v1/models" else b"")

    def do_POST(self):
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        if DEADLY in prompt:
            os._exit(1)
        if PARALYSING in prompt:
            paralysed.set()
            threading.Event().wait()
        self.answer((samples / "stream.txt").read_bytes())

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
)


@pytest.fixture
async def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TokenServerEngine]:
    server = tmp_path / "server.py"
    server.write_text(SERVER)
    for name, text in (
        ("python", f'#!/bin/sh\nexec {sys.executable} {server} {SAMPLES} "$@"\n'),
        ("vllm", f"#!{tmp_path}/python\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    settings = EngineSettings(name="vllm", hang_timeout=1)
    async with running(vllm_engine(settings, ApproximateTokenizer(), tmp_path)) as engine:
        yield engine


async def falls(engine: TokenServerEngine, *tokens: int) -> None:
    answer = await collect(engine.generate(request(prompt=array("I", tokens))))
    assert isinstance(answer.error, EngineUnavailable)
    assert not engine.ready
    await until(lambda: engine.ready, seconds=30)


async def test_a_request_that_two_servers_died_of_is_refused_and_others_are_not(engine: TokenServerEngine) -> None:
    await falls(engine, DEADLY)
    await falls(engine, DEADLY)
    with pytest.raises(FatalRequest):
        engine.generate(request(prompt=array("I", [DEADLY])))
    assert (await collect(engine.generate(request(max_tokens=4)))).finish == {0: "length"}


async def test_a_server_that_does_not_answer_any_more_is_replaced(engine: TokenServerEngine) -> None:
    before = engine.server_pid
    await falls(engine, PARALYSING)
    assert engine.server_pid != before
    assert (await collect(engine.generate(request(max_tokens=4)))).finish == {0: "length"}
