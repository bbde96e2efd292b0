"""What an output may be: JSON Schemas and structural tags, in xgrammar's vocabulary.

Types here travel to engine workers as msgpack, so they hold plain data only.
"""

from msgspec import Struct


class AnyText(Struct, frozen=True, tag="any_text"):
    """Free text."""


class ConstString(Struct, frozen=True, tag="const_string"):
    value: str


class Regex(Struct, frozen=True, tag="regex"):
    pattern: str


class JsonSchema(Struct, frozen=True, tag="json_schema"):
    """Text that is one JSON value valid under `schema` (the schema's JSON text)."""

    schema: str


class Sequence(Struct, frozen=True, tag="sequence"):
    parts: tuple["Constraint", ...]


class Tag(Struct, frozen=True, tag="tag"):
    """`begin`, then `content`, then `end`."""

    begin: str
    content: "Constraint"
    end: str


class TriggeredTags(Struct, frozen=True, tag="triggered_tags"):
    """Free text until one of `triggers` appears; from there one of `tags`; then free text again."""

    triggers: tuple[str, ...]
    tags: tuple[Tag, ...]
    at_least_one: bool = False
    stop_after_first: bool = False


class TagsWithSeparator(Struct, frozen=True, tag="tags_with_separator"):
    tags: tuple[Tag, ...]
    separator: str
    at_least_one: bool = False
    stop_after_first: bool = False


Constraint = AnyText | ConstString | Regex | JsonSchema | Sequence | Tag | TriggeredTags | TagsWithSeparator
