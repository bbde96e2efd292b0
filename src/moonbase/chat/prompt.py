"""A prompt before it is tokenised: segments that keep control tokens and text apart."""

from msgspec import Struct


class Control(Struct, frozen=True, tag="control"):
    """One control token, named by its literal, such as `<|im_end|>`."""

    name: str


Segment = str | Control


class Prompt(Struct, frozen=True):
    """Segments in order. A `str` is plain text whatever it looks like: it never becomes control tokens.

    `user_text` is the last user message, for engines that answer from text (`echo`).
    """

    segments: tuple[Segment, ...]
    user_text: str
