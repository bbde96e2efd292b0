import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from moonbase.cli.chat import chat
from moonbase.errors import ConfigurationError, EndpointFailed

APP = typer.Typer()
APP.command()(chat)
PROGRAM = "import typer; from moonbase.cli.chat import chat; typer.run(chat)"


def frame(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


ANSWER = [
    frame({"role": "assistant", "content": ""}),
    frame({"reasoning_content": "hmm"}),
    b": a comment\r\n\r\n",
    frame({"content": "你好, "}),
    frame({"content": "мир 🌍"}),
    frame({}, "stop"),
    b'data: {"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":1}}\n\n',
    b"data: [DONE]\n\n",
]


class Server(ThreadingHTTPServer):
    """Answers each question as its last message says, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.hung_up = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        self.server.keys.append(self.headers["Authorization"])
        match request["messages"][-1]["content"]:
            case "refuse":
                body = {"error": {"message": "Invalid Authentication", "type": "invalid_authentication_error"}}
                self.reply(401, json.dumps(body).encode())
            case "moved":
                self.reply(308, b"", "https://example.org/v1/chat/completions")
            case "whole":
                choice = {"message": {"role": "assistant", "content": "all at once"}, "finish_reason": "stop"}
                self.reply(200, json.dumps({"choices": [choice]}).encode())
            case "fail":
                self.stream([*ANSWER[:4], b'data: {"error":{"message":"engine lost"}}\n\n'])
            case "cut":
                self.stream(ANSWER[:4])
            case "long":
                self.stream([frame({"content": "never"}), frame({}, "length"), b"data: [DONE]\n\n"])
            case "colour":
                self.stream([frame({"content": "\x1b[31mred"}), frame({}, "stop")])
            case "forever":
                self.stream(ANSWER[:4], last=False)
                while True:
                    try:
                        self.send(b": still here\n\n")
                    except OSError:
                        self.server.hung_up.set()
                        return
                    time.sleep(0.02)
            case _:
                self.stream(ANSWER)

    def reply(self, status: int, body: bytes, location: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if location:
            self.send_header("Location", location)
        self.end_headers()
        self.wfile.write(body)

    def stream(self, frames: list[bytes], *, last: bool = True) -> None:
        """In HTTP chunks of seven bytes, which cut lines and characters anywhere."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        data = b"".join(frames)
        for start in range(0, len(data), 7):
            self.send(data[start : start + 7])
        if last:
            self.wfile.write(b"0\r\n\r\n")

    def send(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("MOONSHOT_API_KEY", raising=False)
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


def ask(server: Server, *arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(APP, ["--base-url", server.url, *arguments], input=stdin)


def test_one_question_prints_the_answer_without_the_thoughts_and_exits(server: Server) -> None:
    result = ask(server, "hello")
    assert (result.exit_code, result.stdout) == (0, "你好, мир 🌍\n")
    assert server.requests == [
        {"model": "kimi-k2-0905-preview", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    ]
    assert server.keys == [None]


def test_options_and_key_reach_the_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONSHOT_API_KEY", "sk-1")
    ask(server, "--model", "m", "--system", "s", "--temperature", "0", "--max-tokens", "7", "q")
    assert server.requests[0] == {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
        "stream": True,
        "temperature": 0.0,
        "max_tokens": 7,
    }
    assert server.keys == ["Bearer sk-1"]


def test_the_environment_names_the_server_as_it_does_for_other_programs(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONSHOT_API_BASE", server.url)
    assert CliRunner().invoke(APP, ["hello"]).stdout == "你好, мир 🌍\n"
    assert "MOONSHOT_API_BASE" in CliRunner().invoke(APP, ["--help"]).stdout


def test_standard_input_is_the_question_when_it_is_no_terminal(server: Server) -> None:
    ask(server, stdin="what is\nthis? é\n")
    assert server.requests[0]["messages"] == [{"role": "user", "content": "what is\nthis? é"}]
    assert "the question is empty" in ask(server, stdin="\n").stderr


def test_a_server_that_does_not_stream_is_understood(server: Server) -> None:
    assert ask(server, "whole").stdout == "all at once\n"


def test_an_answer_that_hit_the_limit_says_so_on_standard_error(server: Server) -> None:
    result = ask(server, "long")
    assert (result.stdout, result.stderr) == ("never\n", "(stopped at the output limit; --max-tokens raises it)\n")


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("refuse", "answered 401: Invalid Authentication; give --api-key or set MOONSHOT_API_KEY"),
        ("moved", "to https://example.org/v1/chat/completions; give the right --base-url"),
        ("fail", "The server broke off: engine lost"),
        ("cut", "ended the answer before it was complete"),
    ],
)
def test_an_error_is_one_sentence_with_the_servers_message(server: Server, question: str, sentence: str) -> None:
    error = ask(server, question).exception
    assert isinstance(error, EndpointFailed)
    assert str(error).endswith(sentence)


def test_no_server_names_the_command_that_starts_one() -> None:
    error = CliRunner().invoke(APP, ["--base-url", "http://127.0.0.1:9/v1", "q"]).exception
    assert isinstance(error, EndpointFailed)
    assert str(error).startswith("http://127.0.0.1:9/v1 cannot be reached (Connection refused); start a server with")


@pytest.mark.parametrize("url", ["", "ftp://h/v1", "http://", "http://h:x/v1", "http://h:99999", "http://h/ v1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    error = CliRunner().invoke(APP, ["--base-url", url, "q"]).exception
    assert isinstance(error, ConfigurationError)
    assert str(error).startswith("--base-url: ")


@pytest.mark.parametrize("key", ["a b", "a\nb", "ключ"])
def test_what_is_no_key_is_refused_and_not_shown(key: str) -> None:
    error = CliRunner().invoke(APP, ["--api-key", key, "q"]).exception
    assert str(error) == "--api-key: an API key holds no blanks and no special characters"


class Terminal:
    """The command in a real terminal."""

    def __init__(self, url: str) -> None:
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "--base-url", url],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "dumb", "LC_ALL": "C.UTF-8"},
        )
        os.close(slave)
        self.seen = ""

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> str:
        """What came up to and with `text`."""
        deadline = time.monotonic() + 20
        while text not in self.seen:
            ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come after {self.seen!r}"
            self.seen += os.read(self._master, 65536).decode("utf-8", "replace")
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def end(self) -> int:
        code = self._process.wait(20)
        os.close(self._master)
        return code


def test_a_conversation_keeps_its_history_survives_errors_and_ctrl_c_and_starts_afresh(server: Server) -> None:
    terminal = Terminal(server.url)
    terminal.wait_for("> ")
    terminal.type("hello\n")
    terminal.wait_for("🌍\r\n> ")
    terminal.type("refuse\n")
    terminal.wait_for("MOONSHOT_API_KEY\r\n> ")
    terminal.type("forever\n")
    terminal.wait_for("你好")
    terminal.interrupt()
    terminal.wait_for("> ")
    assert server.hung_up.wait(5)
    terminal.type("colour\n")
    assert "\x1b[31m" not in terminal.wait_for("[31mred")
    terminal.type("/new\nagain\n")
    terminal.wait_for("🌍\r\n> ")
    terminal.type("\x04")
    terminal.wait_for("\n")
    assert terminal.end() == 0
    asked = [[message["content"] for message in request["messages"]] for request in server.requests]
    answer = "你好, мир 🌍"
    assert asked == [
        ["hello"],
        ["hello", answer, "refuse"],
        ["hello", answer, "forever"],
        ["hello", answer, "forever", "你好, ", "colour"],
        ["again"],
    ]


def test_any_locale_prints_the_answer_as_utf_8(server: Server) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--base-url", server.url, "hi"],
        env={**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        capture_output=True,
        check=True,
    )
    assert finished.stdout.decode() == "你好, мир 🌍\n"
