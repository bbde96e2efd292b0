"""Claude Code, the real package, headless: with a home of its own and an otherwise empty environment."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import NodePackages, StartServer
from tests.e2e.server import Server

from moonbase.config import cache

pytestmark = pytest.mark.full

SETTINGS = Path(__file__).parents[2] / "examples" / "claude_code.sh"
PROMPT = "List the files here, then say DONE."
CALL = (
    "I will look.<|tool_calls_section_begin|><|tool_call_begin|>functions.Bash:0<|tool_call_argument_begin|>"
    '{"command": "touch made.txt; ls", "description": "List files"}<|tool_call_end|><|tool_calls_section_end|>'
)


@pytest.fixture(scope="module")
def packages() -> NodePackages:
    return NodePackages(Path(__file__).parent / "claude_code")


def run(packages: NodePackages, server: Server, folder: Path) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, the events it printed, and all its output."""
    home, work = folder / "home", folder / "work"
    for each in (home, work):
        each.mkdir()
    wrapper = packages.folder / "node_modules" / "@anthropic-ai" / "claude-code" / "cli-wrapper.cjs"
    claude = folder / "claude"
    claude.write_text(f'#!/bin/sh\nexec "{packages.node}" "{wrapper}" "$@"\n')
    claude.chmod(0o755)
    command = ["sh", str(SETTINGS), "-p", PROMPT, "--allowedTools", "Bash"]
    environ = {
        "HOME": str(home),
        "PATH": "/usr/bin:/bin",
        "CLAUDE": str(claude),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        **server.client_environ,
    }
    done = subprocess.run(
        [*command, "--output-format", "stream-json", "--verbose"],
        cwd=work,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return done.returncode, events, done.stdout + done.stderr


def test_it_calls_a_tool_and_answers(start_server: StartServer, packages: NodePackages, tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text(json.dumps({"user": PROMPT, "output": [CALL, "All listed. DONE"]}))
    server = start_server("--set", f"echo.script={script}")

    code, events, output = run(packages, server, tmp_path)

    assert code == 0, output
    assert (tmp_path / "work" / "made.txt").exists()
    content = [block for event in events if event["type"] == "assistant" for block in event["message"]["content"]]
    assert [block["type"] for block in content] == ["text", "tool_use", "text"]
    results = [block for event in events if event["type"] == "user" for block in event["message"]["content"]]
    assert [(block["tool_use_id"], block["content"]) for block in results] == [("Bash:0", "made.txt")]
    (end,) = [event for event in events if event["type"] == "result"]
    assert (end["is_error"], end["result"]) == (False, "All listed. DONE")
    asked = [line for line in server.log if line["message"].startswith("POST /anthropic/v1/messages")]
    assert {line["message"] for line in asked} == {"POST /anthropic/v1/messages 200"}


def test_the_default_model_refuses_what_is_over_its_window(
    start_server: StartServer, packages: NodePackages, tmp_path: Path
) -> None:
    pytest.importorskip("openvino_genai")
    server = start_server(engine=None, cache=cache())

    code, events, output = run(packages, server, tmp_path)

    assert code != 0
    assert "Your request exceeded model token limit: 8192 (requested: " in output
    assert events
