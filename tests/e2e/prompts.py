"""What prompts cost: the template that `echo` and `chaos` speak by default, added up turn by turn.

K2-0905 of kimi-protocol.md 2.1 and 2.2, written down here a second time so that the server is held to it. Every
control token is one token and every text between two of them is encoded alone.
"""

from collections.abc import Callable

SYSTEM = "You are Kimi, an AI assistant created by Moonshot AI."


def four_bytes(text: str) -> int:
    """Tokens of a text where no vocabulary is: four bytes each, the last one maybe less."""
    return -(-len(text.encode()) // 4)


def prompt_tokens(
    text: str, *, author: str = "assistant", said: str = "", count: Callable[[str], int] = four_bytes
) -> int:
    """The prompt of one user message, `text`, which an answer by `author` follows that begins with `said`."""
    system = turn(SYSTEM, "system", count) + count("\n")  # that nobody asked for, and its line's end
    begun = 1 + count(author) + 1 + count(said)  # <|im_assistant|> author <|im_middle|> said
    return system + turn(text, "user", count) + begun


def turn(text: str, author: str, count: Callable[[str], int]) -> int:
    """`<|im_…|>` author `<|im_middle|>` text `<|im_end|>`."""
    return 1 + count(author) + 1 + count(text) + 1
