"""`moonbase chat`: a chat in the terminal with any server that speaks the OpenAI dialect."""

import io
import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moonbase.cli.endpoint import Endpoint, Turn

_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""Characters with which an answer could steer the terminal."""


def chat(
    question: Annotated[str | None, typer.Argument(help="One question; without it, a chat starts.")] = None,
    base_url: Annotated[
        str, typer.Option(envvar="MOONSHOT_API_BASE", help="Address of the server, `/v1` included.")
    ] = "http://127.0.0.1:8000/v1",
    api_key: Annotated[str | None, typer.Option(envvar="MOONSHOT_API_KEY", help="API key.", show_default=False)] = None,
    model: Annotated[str, typer.Option(help="Model id to ask for.")] = "kimi-k2-0905-preview",
    system: Annotated[str | None, typer.Option(help="System message.", show_default=False)] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature; the model's own by default.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer; the model's own by default.", show_default=False)
    ] = None,
) -> None:
    """Chat with a model. Answers appear as they are written.

    Standard input that is not a terminal is read as the question. In a chat, /new forgets what was
    said, /exit or Ctrl-D leaves, Ctrl-C stops the answer.
    """
    from moonbase.cli.endpoint import Endpoint, Turn

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an answer may hold what the locale cannot show
            stream.reconfigure(encoding="utf-8", errors="replace")
    endpoint = Endpoint(base_url, api_key, model=model, temperature=temperature, max_tokens=max_tokens)
    start = [Turn("system", system)] if system is not None else []
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.buffer.read().decode("utf-8", "replace").strip()
    if question is None:
        _converse(endpoint, start)
    elif not question.strip():
        raise typer.BadParameter("the question is empty")
    else:
        _print_answer(endpoint, [*start, Turn("user", question)], [])


def _converse(endpoint: "Endpoint", start: list["Turn"]) -> None:
    """Ask and answer until the user leaves."""
    from moonbase.cli.endpoint import Turn
    from moonbase.errors import EndpointFailed

    with suppress(ImportError):
        import readline  # noqa: F401  (gives `input` arrow keys and a history)
    typer.echo(f"{endpoint.model} at {endpoint.base_url}. /new starts afresh, Ctrl-D leaves.", err=True)
    history = list(start)
    while True:
        try:
            line = input("> ").strip()
        except KeyboardInterrupt:
            typer.echo()
            continue
        except EOFError:
            typer.echo()
            return
        if line == "/exit":
            return
        if line == "/new":
            history = list(start)
        elif line.startswith("/"):
            typer.echo("There are /new and /exit.", err=True)
        elif line:
            asked = [*history, Turn("user", line)]
            answer: list[str] = []
            try:
                with suppress(KeyboardInterrupt):
                    _print_answer(endpoint, asked, answer)
            except EndpointFailed as error:
                typer.echo(error, err=True)
            else:  # what Ctrl-C left of an answer counts; a question without any answer does not
                history = [*asked, Turn("assistant", "".join(answer))] if answer else history


def _print_answer(endpoint: "Endpoint", turns: list["Turn"], answer: list[str]) -> None:
    """Print the answer while it arrives, and collect it in `answer` for the case that it is interrupted."""
    thinking = False
    finish_reason = None
    show_thoughts = sys.stdout.isatty()
    try:
        with closing(endpoint.ask(turns)) as pieces:
            for piece in pieces:
                if piece.reasoning and show_thoughts:
                    thinking = True
                    _write(piece.reasoning, dim=True)
                if piece.text:
                    _write("\n\n" if thinking and not answer else "")
                    answer.append(piece.text)
                    _write(piece.text)
                finish_reason = piece.finish_reason or finish_reason
    finally:
        if answer or thinking:
            _write("\n")
    if finish_reason == "length":
        typer.echo("(stopped at the output limit; --max-tokens raises it)", err=True)


def _write(text: str, *, dim: bool = False) -> None:
    if sys.stdout.isatty():
        text = text.translate(_CONTROLS)
        text = f"\x1b[2m{text}\x1b[0m" if dim else text
    sys.stdout.write(text)
    sys.stdout.flush()
