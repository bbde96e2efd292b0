"""Constraints as OpenVINO takes them: the JSON text of an xgrammar structural tag.

The schemas in it become grammars here, in the gateway, because OpenVINO compiles inside its step and one
grammar that does not compile leaves its pipeline unusable. The tags themselves come from our formats.
"""

from typing import Any, assert_never

import msgspec

from moonbase.chat.constraint import (
    AnyText,
    Constraint,
    ConstString,
    JsonSchema,
    Regex,
    Sequence,
    Tag,
    TagsWithSeparator,
    TriggeredTags,
)
from moonbase.engines.schema import grammar


def structural_tag(constraint: Constraint) -> str:
    """What `StructuredOutputConfig.structural_tags_config` takes.

    Raises `InvalidRequest` for a JSON Schema that cannot be enforced.
    """
    return msgspec.json.encode({"type": "structural_tag", "format": _format(constraint)}).decode()


def _format(constraint: Constraint) -> dict[str, Any]:
    match constraint:
        case AnyText():
            return {"type": "any_text"}
        case ConstString(value):
            return {"type": "const_string", "value": value}
        case Regex(pattern):
            return {"type": "regex", "pattern": pattern}
        case JsonSchema(schema):
            return {"type": "grammar", "grammar": grammar(schema)}
        case Sequence(parts):
            return {"type": "sequence", "elements": [_format(part) for part in parts]}
        case Tag(begin, content, end):
            return {"type": "tag", "begin": begin, "content": _format(content), "end": end}
        case TriggeredTags(triggers, tags, at_least_one, stop_after_first):
            return {
                "type": "triggered_tags",
                "triggers": triggers,
                "tags": [_format(tag) for tag in tags],
                "at_least_one": at_least_one,
                "stop_after_first": stop_after_first,
            }
        case TagsWithSeparator(tags, separator, at_least_one, stop_after_first):
            return {
                "type": "tags_with_separator",
                "tags": [_format(tag) for tag in tags],
                "separator": separator,
                "at_least_one": at_least_one,
                "stop_after_first": stop_after_first,
            }
        case _:
            assert_never(constraint)
