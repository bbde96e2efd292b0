"""`$ref` in Moonshot Flavored JSON Schema: `#`, or a definition of the root and what lies inside it."""

import re
from typing import Any
from urllib.parse import unquote

DEFINITION = "#/$defs/"


def parts(reference: str) -> tuple[str, ...]:
    """The keys that `reference` names, from the root on: a JSON pointer as a URI fragment (RFC 6901, section 6)."""
    return tuple([unquote(part).replace("~1", "/").replace("~0", "~") for part in reference.split("/")[1:]])


def target(root: dict[str, Any], reference: str) -> dict[str, Any] | None:
    """The schema that `reference` names, None where there is none.

    Only places that hold schemas count, so whoever has checked all schemas of `root` has checked this one.
    """
    schema: Any = root
    rest = list(reversed(parts(reference)))
    while rest and isinstance(schema, dict):
        keyword = rest.pop()
        inner = schema.get(keyword)
        match keyword:
            case "$defs" | "properties" if rest and isinstance(inner, dict):
                schema = inner.get(rest.pop())
            case "anyOf" if rest and isinstance(inner, list):
                schema = _item(inner, rest.pop())
            case "items" | "additionalProperties":
                schema = inner
            case _:
                return None
    return schema if isinstance(schema, dict) else None


def _item(items: list[Any], index: str) -> Any:
    known = re.fullmatch("0|[1-9][0-9]{0,8}", index) is not None and int(index) < len(items)
    return items[int(index)] if known else None
