"""JSON values of the wrong kind, in the service's words (moonshot-api.md 9.5)."""

import re

from moonbase.errors import InvalidRequest, WrongType

_VALIDATION = re.compile(r"Expected `(?P<expected>[^`]*)`, got `(?P<got>[^`]*)`(?: - at `\$\.?(?P<path>[^`]*)`)?")
_GO_TYPES = {"str": "string", "int": "int", "float": "float64", "bool": "bool", "array": "array"}
_KINDS = {"str": "string", "int": "number", "float": "number"}


def wrong_type(text: str, prefix: str = "") -> InvalidRequest:
    """The error for msgspec's validation sentence; `prefix` is the path to what was decoded, with its last dot."""
    match = _VALIDATION.match(text)
    if match is None:
        reason, _, path = text.partition(" - at `$.")
        return InvalidRequest(f"the `{prefix}{_dotted(path.rstrip('`'))}` field in the request is illegal: {reason}")
    expected = match["expected"].split(" | ")[0]
    got = _KINDS.get(match["got"], match["got"])
    if not match["path"]:
        return InvalidRequest(f"the request body must be a JSON object, and {got} is not acceptable")
    return WrongType(prefix + _dotted(match["path"]), _GO_TYPES.get(expected, "dict[string,interface]"), got)


def _dotted(path: str) -> str:
    """`messages[0].content[1].text` to `messages.0.content.1.text`; map keys are shown as `*`."""
    return path.replace("[...]", ".*").replace("[", ".").replace("]", "")
