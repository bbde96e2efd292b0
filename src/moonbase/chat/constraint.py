"""What an output may be, as a tree that formats build and every engine compiles for itself.

Types here travel to engine workers as msgpack, so they hold plain data only. A marker is a control token of the
output, such as `<|tool_call_begin|>`: one token where the vocabulary has it, its characters where it has not.
"""

from msgspec import Struct


class AnyText(Struct, frozen=True, tag="any_text"):
    """Free text in which none of the markers `excludes` occurs."""

    excludes: tuple[str, ...] = ()


class ConstString(Struct, frozen=True, tag="const_string"):
    """Exactly these characters, none of them a marker."""

    value: str


class Digits(Struct, frozen=True, tag="digits"):
    """A decimal number without sign: one to nine digits."""


class Marker(Struct, frozen=True, tag="marker"):
    """One marker, named by its literal."""

    literal: str


class JsonSchema(Struct, frozen=True, tag="json_schema"):
    """One JSON value valid under `schema` (JSON text); with `spaced`, a space may follow each `:` and `,`."""

    schema: str
    spaced: bool = False


class Sequence(Struct, frozen=True, tag="sequence"):
    parts: tuple["Constraint", ...]


class Or(Struct, frozen=True, tag="or"):
    """One of `parts`."""

    parts: tuple["Constraint", ...]


class Optional(Struct, frozen=True, tag="optional"):
    """`part` or nothing."""

    part: "Constraint"


class Repeat(Struct, frozen=True, tag="repeat"):
    """`part` any number of times, also none."""

    part: "Constraint"


class Triggered(Struct, frozen=True, tag="triggered"):
    """Free text without the markers `excludes`, either to the end of the output or until the marker `trigger`.

    `then` follows the trigger, and the output ends after it.
    """

    trigger: str
    then: "Constraint"
    excludes: tuple[str, ...] = ()


Constraint = AnyText | ConstString | Digits | Marker | JsonSchema | Sequence | Or | Optional | Repeat | Triggered
