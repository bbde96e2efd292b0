"""The tools as the prompt shows them: sorted JSON (kimi-protocol.md 2.4) or TypeScript (2.5).

Both are byte-equal to what Moonshot's Python code writes, so the standard library decodes and encodes here: how it
prints a float, a bound or a default is part of the text.
"""

import json
from operator import itemgetter
from typing import Any, Literal

from moonbase.chat.request import Tool
from moonbase.errors import InvalidRequest
from moonbase.formats.recent import Recent

_INDENT = "  "
_CACHE_CHARACTERS = 16 * 1024 * 1024
_BOUNDS = {
    "string": ("maxLength", "minLength", "pattern"),
    "number": ("maximum", "minimum"),
    "integer": ("maximum", "minimum"),
    "array": ("maxItems", "minItems"),
}
_WORDS = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "null": "null",
    "object": "{}",
    "array": "Array<any>",
}
_KINDS: dict[str, type | tuple[type, ...]] = {"string": str, "number": (int, float), "integer": int, "boolean": bool}


class Declarations:
    """Declares tools in one style and remembers what it wrote lately, bounded in characters.

    All clients share the memory, from any thread. Only an identical list finds an entry, so response times tell
    nothing to a client that does not have the list already.
    """

    def __init__(self, style: Literal["json", "typescript"], max_characters: int = _CACHE_CHARACTERS) -> None:
        self._style = style
        self._known: Recent[tuple[str, ...], str] = Recent(max_characters)

    def text(self, tools: tuple[Tool, ...]) -> str:
        """The declaration of all `tools`, of which there is at least one.

        Raises `InvalidRequest` for a declaration that no JSON decoder here can read.
        """
        key = tuple([tool.declaration for tool in tools])
        known = self._known.get(key)
        if known is None:
            known = self._declare(key)
            self._known.keep(key, known, sum(map(len, key)) + len(known))
        return known

    def _declare(self, declarations: tuple[str, ...]) -> str:
        try:
            tools = [json.loads(declaration, object_pairs_hook=_sorted) for declaration in declarations]
            text = json.dumps(tools, ensure_ascii=False, separators=(",", ":"))
            text.encode()
        except (ValueError, RecursionError) as error:  # endless digits, half a surrogate pair, very deep nesting
            raise InvalidRequest(f"tools cannot be read: {error}") from error
        if self._style == "typescript":
            return typescript(tools) or text
        return text


def _sorted(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(sorted(pairs, key=itemgetter(0)))


def typescript(tools: list[Any]) -> str:
    """The tools, whose keys are sorted, as one TypeScript namespace.

    Empty when there is none of type `function`, or when one cannot be written: the prompt shows JSON then.
    """
    functions = [tool["function"] for tool in tools if tool.get("type") == "function" and tool.get("function")]
    if not functions:
        return ""
    try:
        written = [_Function().text(function) for function in functions]
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        # Whatever the official code trips over, it falls back; a schema may hold anything anywhere.
        return ""
    return "\n".join(["# Tools\n", "## functions", "namespace functions {", *written, "}", ""])


class _Function:
    """Writes one function. Definitions are found on the way, so the order of the walk is part of the result."""

    def __init__(self) -> None:
        self._definitions: dict[str, Any] = {}
        self._recursive = False

    def text(self, function: dict[str, Any]) -> str:
        name = function.get("name", "function")
        fields, rest = self._members(function.get("parameters") or {}, "")
        parts: list[str] = []
        if self._recursive:
            parameters = "parameters"
            parts.append(f"interface parameters {_braces([text for _, _, text in fields], '')}")
        else:
            parameters = _object(fields, rest, "")
        for key, schema in list(self._definitions.items()):
            body = self._type(schema, "")
            parts += (*_comment(schema.get("description"), ""), f"interface {key} {body}")
        parts += (*_comment(function.get("description"), ""), f"type {name} = (_: {parameters}) => any;")
        return "\n".join(parts)

    def _members(self, schema: dict[str, Any], indent: str) -> tuple[list[tuple[bool, str, str]], str | None]:
        """The fields of an object as (optional, name, text), and what its other keys may hold."""
        inner = indent + _INDENT
        self._definitions |= schema.get("$defs") or {}
        rest = self._additional(schema.get("additionalProperties"), inner)
        properties = schema.get("properties", {})
        optional = set(properties) - set(schema.get("required", ()))
        fields = [
            (name in optional, name, self._field(name, name in optional, value, inner))
            for name, value in properties.items()
        ]
        return fields, rest

    def _additional(self, schema: Any, indent: str) -> str | None:
        match schema:
            case None:
                return None
            case True:
                return "any"
            case False:
                return "never"
            case dict():
                return self._type(schema, indent)
            case _:
                raise ValueError("additionalProperties is neither a schema nor true or false")

    def _field(self, name: str, optional: bool, schema: Any, indent: str) -> str:
        text = self._type(schema, indent)
        lines = _doc(schema, indent)
        default = schema.get("default") if isinstance(schema, dict) else None
        if default is not None:
            plain = repr(default) if isinstance(default, int | float) else json.dumps(default, ensure_ascii=False)
            lines.append(f"{indent}// Default: {plain}")
        return "\n".join([*lines, f"{indent}{name}{'?' if optional else ''}: {text}"])

    def _type(self, schema: Any, indent: str) -> str:
        if isinstance(schema, bool):
            return "any" if schema else "null"
        if not isinstance(schema, dict):
            raise TypeError("a schema is an object")
        if "$ref" in schema:
            return self._reference(schema["$ref"])
        if "anyOf" in schema:
            return " | ".join([self._type(member, indent) for member in schema["anyOf"]])
        if "enum" in schema:
            return _enum(schema)
        if "type" in schema:
            return self._typed(schema, schema["type"], indent)
        if schema:
            raise ValueError("a schema without a type")
        return "any"

    def _typed(self, schema: dict[str, Any], kind: Any, indent: str) -> str:
        if isinstance(kind, list):
            return " | ".join([_WORDS[word] for word in kind])
        match kind:
            case "object":
                return _object(*self._members(schema, indent), indent)
            case "array":
                return self._array(schema.get("items"), indent)
            case "integer":
                return "number"
            case _:
                return str(kind)

    def _array(self, items: Any, indent: str) -> str:
        if not items:
            return "Array<any>"
        inner = indent + _INDENT
        lines = _doc(items, inner)
        if not lines:
            return f"Array<{self._type(items, indent)}>"
        return "\n".join(["Array<", *lines, f"{inner}{self._type(items, inner)}", f"{indent}>"])

    def _reference(self, reference: str) -> str:
        if reference == "#":
            self._recursive = True
            return "parameters"
        name = reference.rsplit("/", 1)[-1]
        if not reference.startswith("#/$defs/") or not isinstance(self._definitions.get(name), dict):
            raise ValueError(f"{reference} is not found")
        return name


def _object(fields: list[tuple[bool, str, str]], rest: str | None, indent: str) -> str:
    """Required fields by name, then optional ones by name, then the other keys."""
    members = [text for _, _, text in sorted(fields)]
    if rest is not None:
        members.append(f"{indent}{_INDENT}[k: string]: {rest}")
    return _braces(members, indent)


def _braces(members: list[str], indent: str) -> str:
    return "{\n" + ",\n".join(members) + f"\n{indent}}}" if members else "{}"


def _doc(schema: Any, indent: str) -> list[str]:
    """The comment lines of a field or an item: its description, then its bounds."""
    if not isinstance(schema, dict):
        return []
    lines = _comment(schema.get("description"), indent)
    shown = () if {"$ref", "anyOf", "enum"} & schema.keys() else _BOUNDS.get(_word(schema.get("type")), ())
    bounds = ", ".join([f"{key}: {schema[key]}" for key in shown if key in schema])
    return [*lines, f"{indent}// {bounds}"] if bounds else lines


def _word(kind: Any) -> str:
    return kind if isinstance(kind, str) else ""


def _comment(description: Any, indent: str) -> list[str]:
    if not description:
        return []
    return [f"{indent}// {line}" if line else "" for line in description.split("\n")]


def _enum(schema: dict[str, Any]) -> str:
    """The values; they must be of the declared type, which may be joined with `null`."""
    values = schema["enum"]
    if "type" in schema:
        kind = _KINDS.get(_enum_type(schema["type"]), object)
        for value in values:
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{value} is not of type {schema['type']}")
    return " | ".join([f'"{value}"' if isinstance(value, str) else str(value) for value in values])


def _enum_type(declared: Any) -> str:
    if not isinstance(declared, list):
        return _word(declared)
    if len(declared) == 1:
        return _word(declared[0])
    first, second = declared
    if "null" not in declared:
        raise ValueError("values of two types")
    return _word(second if first == "null" else first)
