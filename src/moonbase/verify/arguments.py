"""Arguments of calls: valid under a schema, or at least the beginning of JSON."""

import json
from typing import Any

import jsonschema_rs
from msgspec import Struct

from moonbase.formats.schemas.shapes import AnyValue, Array, Choice, Graph, Node, Object, Reference, String

Verdict = str | None
"""Why something is wrong; None when it is right."""

_ENDINGS = (
    *("", '"', '":0', ":0", "0", '"":0', '""'),
    *('n"', '0"', '00"', '000"', '0000"', 'n":0', '0":0', '00":0', '000":0', '0000":0'),
    *("rue", "ue", "e", "alse", "lse", "se", "ull", "ll", "l"),
)
"""What may be missing of a value, key or literal before the brackets that are open."""


class SchemaCheck(Struct, frozen=True):
    """Whether texts are JSON that the schema `text` (JSON text) allows, the whole of it as the client wrote it."""

    validator: jsonschema_rs.Draft202012Validator

    @classmethod
    def of(cls, schema: Any) -> "SchemaCheck":
        """Raises `ValueError` for what is no JSON Schema."""
        if isinstance(schema, dict):  # a name of the dialect's own, which is no URI there
            schema = {key: value for key, value in schema.items() if key not in ("$id", "$schema")}
        try:
            return cls(jsonschema_rs.Draft202012Validator(schema))
        except jsonschema_rs.ValidationError as error:
            raise ValueError(error.message) from error

    def violation(self, text: str) -> Verdict:
        value, broken = parsed(text)
        if broken is not None:
            return broken
        try:
            error = next(self.validator.iter_errors(value), None)
        except UnicodeEncodeError:  # the validator cannot say what is wrong with half a character
            return "not what the schema allows"
        except ValueError:  # nor what is wrong with a value beyond its limit of recursion
            return "too deeply nested"
        return None if error is None else f"{error.message} at /{'/'.join(map(str, error.instance_path))}"


def parsed(text: str) -> tuple[Any, Verdict]:
    """The value of a JSON text, or why it is none."""
    try:
        return json.loads(text, parse_constant=_refuse), None
    except (ValueError, RecursionError) as error:
        return None, f"no JSON ({error})"


def begins_json(text: str) -> bool:
    """Whether `text` is the beginning of some JSON value, or all of one."""
    closing, inside = _open_brackets(text)
    if inside and text.endswith("\\") and (len(text) - len(text.rstrip("\\"))) % 2:
        text += "n"  # whatever escape it would have been
    if not text.strip():
        return True
    return any(parsed(text + ending + closing)[1] is None for ending in _ENDINGS)


def _open_brackets(text: str) -> tuple[str, bool]:
    """What closes the brackets that are open, innermost first, and whether the text ends inside a string."""
    closing: list[str] = []
    inside = escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif inside:
            escaped = character == "\\"
            inside = character != '"'
        elif character == '"':
            inside = True
        elif character in "{[":
            closing.append("}" if character == "{" else "]")
        elif character in "}]" and closing:
            closing.pop()
    return "".join(reversed(closing)), inside


def bounded(graph: Graph) -> bool:
    """Whether the schema itself bounds the size of its values. Numbers count as bounded: engines bound their digits."""
    names: dict[str, bool] = {}
    return _bounded(graph.definitions[""], graph, names)


def _bounded(node: Node, graph: Graph, names: dict[str, bool]) -> bool:
    match node:
        case AnyValue():
            return False
        case String(_, most):
            return most is not None
        case Array(item, _, most):
            return most is not None and (most == 0 or _bounded(item, graph, names))
        case Object(properties, extra):
            return extra is None and all(_bounded(each.value, graph, names) for each in properties)
        case Choice(branches):
            return all(_bounded(branch, graph, names) for branch in branches)
        case Reference(name):
            if name not in names:
                names[name] = False  # what leads back here has no end
                names[name] = _bounded(graph.definitions[name], graph, names)
            return names[name]
        case _:
            return True


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
