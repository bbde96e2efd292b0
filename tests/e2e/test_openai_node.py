"""The openai package for Node, unmodified."""

import json
from pathlib import Path

from tests.e2e.conftest import RunNode
from tests.e2e.prompts import prompt_tokens
from tests.e2e.server import Server


def test_a_node_program_completes_a_chat_a_stream_a_schema_and_an_error(echo: Server, run_node: RunNode) -> None:
    result = json.loads(run_node(echo, Path(__file__).parent / "node" / "sdk.mjs"))
    assert len(result.pop("requestId")) == 36
    assert result.pop("models") > 10
    assert result == {
        "chat": "Hello there, 世界",
        "tokens": prompt_tokens("Hello there, 世界") + 2 + 2 + 2,
        "pieces": ["one ", "two ", "three"],
        "streamTokens": prompt_tokens("one two three") + 1 + 1 + 2,
        "folded": "four five",
        "age": 12,
        "refused": {
            "bad": True,
            "status": 400,
            "error": {"message": "Invalid request: messages must not be empty", "type": "invalid_request_error"},
        },
    }
