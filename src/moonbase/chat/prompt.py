"""A prompt before it is tokenised: segments that keep control tokens and text apart."""

from msgspec import Struct


class Control(Struct, frozen=True, tag="control"):
    """One control token, named by its literal, such as `<|im_end|>`."""

    name: str


Segment = str | Control
Prompt = tuple[Segment, ...]
"""In order. A `str` is plain text whatever it looks like: it never becomes control tokens."""
