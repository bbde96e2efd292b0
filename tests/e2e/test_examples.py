"""Every program of `examples/`, and those in the documents, against a real server; what each must print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.conftest import RunNode, StartServer
from tests.e2e.server import K2, Server

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

PYTHON = {
    "first_chat.py": r"What is the capital of France\?\n\d+ tokens\n",
    "streaming.py": r"Count to five\.\n\d+ tokens\n",
    "tool_loop.py": r"get_weather:0: get_weather\(\{'city': '.*'\}\)\n(?s:.*)\S\n",
    "json_schema.py": r"(?s:.*) (France|Japan|Peru) \d+\n",
    "long_document.py": r"What does the document .*\n.*exceeded model token limit: 131072 \(requested: \d{6}\)\n",
    "image.py": r"Invalid request: the message at position 0 has an image, which chaos cannot see\n",
    "messages.py": r"\d+ tokens to read\nWhat's .*\nWhat's .*\n(get_weather:\d get_weather \{'city': '.*'\}\n)+",
    "litellm_library.py": r"What is the capital of France\?\nWhat is the capital of France\?\n",
    "langchain_chat.py": r"What is the capital of France\?\nCount to five\.\n(get_weather \{'city': '.*'\}\n)+",
}
NODE = {
    "first_chat.mjs": r"What is the capital of France\?\n\d+ tokens\n",
    "streaming.mjs": r"Count to five\.\n\d+ tokens\n",
    "tool_loop.mjs": r"get_weather:0: get_weather\(.*\)\n(?s:.*)\S\n",
    "json_schema.mjs": r"(?s:.*) (France|Japan|Peru)\n",
    "messages.mjs": r"What is the capital of France\?\nWhat is the capital of France\?\n\d+ tokens\n",
}
CURL = {
    "first_chat.sh": r'\{"id":"chatcmpl-.*"content":"What is the capital of France\?".*\}',
    "streaming.sh": r'data: \{(?s:.*)"content":"five\."(?s:.*)data: \[DONE\]\n\n',
    "tool_call.sh": r'\{.*"finish_reason":"tool_calls".*\}',
    "json_schema.sh": r'\{.*\\"country\\":.*(France|Japan|Peru).*\}',
    "image.sh": r'\{"error":\{"message":"Invalid request: the message at position 0 has an image, .*\}\}',
    "messages.sh": r'\{"id":".*"type":"message".*"text":"What is the capital of France\?".*\}',
}
DOCUMENTS = {
    "README.md": r"What is the capital of France\?\nFunction\(arguments='\{.*\}', name='get_weather'\)\n",
    "docs/guides/tools.md": r"What's the weather in Tokyo\?\n",
    "docs/guides/messages-api.md": r"What is the capital of France\?\n",
}


@pytest.fixture(scope="module")
def server(start_module_server: StartServer) -> Server:
    """Answers what is demanded at once, and repeats the question where nothing is."""
    return start_module_server("--set", "chaos.fault_rate=0", engine="chaos")


def run(server: Server, *command: str) -> str:
    """What a program for the Kimi API prints."""
    environ = os.environ | server.client_environ
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_program_is_run_here() -> None:
    there = {file.name for file in EXAMPLES.rglob("*") if file.suffix in (".py", ".mjs", ".sh")}
    assert there == {*PYTHON, *NODE, *CURL, "claude_code.sh"}  # that one: tests/e2e/test_claude_code.py


@pytest.mark.parametrize("name", [*PYTHON, *CURL])
def test_a_program_prints_what_its_reader_expects(server: Server, name: str) -> None:
    python = name.endswith(".py")
    command = [sys.executable, "python"] if python else ["sh", "curl"]
    command[1] = str(EXAMPLES / command[1] / name)
    printed = run(server, *command)
    assert re.fullmatch((PYTHON if python else CURL)[name], printed), printed


@pytest.mark.parametrize("name", NODE)
def test_a_node_program_prints_what_its_reader_expects(server: Server, run_node: RunNode, name: str) -> None:
    printed = run_node(server, EXAMPLES / "node" / name)
    assert re.fullmatch(NODE[name], printed), printed


@pytest.mark.parametrize(("small", "background"), [("", K2), ("moonshot-v1-8k", "moonshot-v1-8k")])
def test_claude_code_may_be_given_a_smaller_model_for_the_background(
    server: Server, small: str, background: str
) -> None:
    script = str(EXAMPLES / "claude_code.sh")
    told = run(server, "env", "-u", "MODEL", "CLAUDE=env", f"SMALL_MODEL={small}", "sh", script).splitlines()
    assert {f"ANTHROPIC_MODEL={K2}", f"ANTHROPIC_DEFAULT_HAIKU_MODEL={background}"} <= set(told)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_blocks_of_a_document_are_a_program(server: Server, name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8").replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    printed = run(server, sys.executable, "-c", "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)))
    assert re.fullmatch(DOCUMENTS[name], printed), printed
