"""Programs that Kimi users have, as they are: they lie beside the checkout where there are any."""

import pytest
from tests.e2e.conftest import RunNode, StartServer
from tests.e2e.server import Server, program, run_program

PROGRAMS = ["chat.py", "chat_stream.py", "async_chat.py", "long_document.py", "litellm_completion.py", "curl.sh"]


@pytest.fixture(scope="module")
def speaking(start_module_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Answers in pieces of a token, as a model does: `echo` gives a word at a time, and `Hello!` is but one."""
    script = tmp_path_factory.mktemp("script") / "answer.txt"
    script.write_text("The moon is made of rock. 月球由岩石构成。", encoding="utf-8")
    return start_module_server("--set", f"echo.script={script}")


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_program_gets_what_its_user_would_accept(speaking: Server, name: str) -> None:
    run_program(speaking, name)


def test_the_node_program_gets_what_its_user_would_accept(speaking: Server, run_node: RunNode) -> None:
    assert run_node(speaking, program("chat_stream.mjs"))
