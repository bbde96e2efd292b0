"""Declared tools and the choice among them, as requests have them (moonshot-api.md 1.5). Shapes and names only."""

import re
from typing import Any

import msgspec
from msgspec import Struct

from moonbase.chat.request import Tool, ToolChoice
from moonbase.dialects.fields import check_tool_count, check_tool_names
from moonbase.dialects.wrong_type import wrong_type
from moonbase.errors import InvalidRequest

MAX_NAME = 256


class DeclaredFunction(Struct):
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class DeclaredTool(Struct):
    type: str | None = None
    function: DeclaredFunction | None = None


class ChosenFunction(Struct):
    name: str | None = None


class NamedToolChoice(Struct):
    type: str | None = None
    function: ChosenFunction | None = None


_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_-]*")
_BAD_NAME = (
    "function name is invalid, must start with a letter and can contain letters, numbers, underscores, and dashes"
)


def decode_tools(wire: list[dict[str, Any]] | None) -> tuple[Tool, ...]:
    """The `tools` of a request. Raises `InvalidRequest` with the service's texts."""
    if not wire:
        return ()
    check_tool_count(wire)
    tools = tuple([_tool(tool, index) for index, tool in enumerate(wire)])
    check_tool_names(tools)
    return tools


def _tool(given: dict[str, Any], index: int) -> Tool:
    try:
        wire = msgspec.convert(given, DeclaredTool)
    except msgspec.ValidationError as error:
        raise wrong_type(str(error), f"tools.{index}.") from error
    if wire.type == "builtin_function":
        name = wire.function.name if wire.function is not None else None
        raise InvalidRequest(f"tools.{index}: the builtin_function {name or ''} is not available on this server")
    if wire.type != "function":
        raise InvalidRequest(f"unknown tool type: {wire.type or ''}, currently only function and plugin are supported")
    function = wire.function
    if function is None:
        raise InvalidRequest(f"tools.{index}.function is required")
    name = function.name or ""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise InvalidRequest(_BAD_NAME)
    return Tool(
        name=name,
        declaration=_text(given),
        parameters=_text(function.parameters or {}),
        strict=function.strict is not False,
    )


def decode_tool_choice(wire: str | NamedToolChoice | None, tools: tuple[Tool, ...]) -> ToolChoice:
    """The `tool_choice` of a request; absent is `auto`. Raises `InvalidRequest` for one that `tools` cannot meet."""
    match wire:
        case None | "auto":
            return ToolChoice()
        case "none":
            return ToolChoice("none")
        case "required":
            if not tools:
                raise InvalidRequest("tool_choice 'required' needs tools to choose from")
            return ToolChoice("required")
        case str():
            raise InvalidRequest(f"unknown tool_choice: {wire}")
        case NamedToolChoice(type, function):
            if type != "function":
                raise InvalidRequest(f"unknown tool_choice.type: {type or ''}")
            name = function.name if function is not None else None
            if not name:
                raise InvalidRequest("tool_choice.function.name is required")
            if name not in [tool.name for tool in tools]:
                raise InvalidRequest(f"tool_choice.function.name: there is no function {name} in tools")
            return ToolChoice("function", name)


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()
