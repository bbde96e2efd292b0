"""Request bytes of the Messages API to `ChatRequest`, shapes only (moonshot-api.md 8.1 and 8.6).

A turn there is a list of blocks. The results of tools are blocks of a user's turn: here they are messages of their own,
before the rest of the turn, wherever in it they stand.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from moonbase.chat.request import (
    ChatRequest,
    ImagePart,
    Message,
    Part,
    ResponseFormat,
    SamplingOptions,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
)
from moonbase.dialects.body import decode_body
from moonbase.dialects.fields import check_tool_count, check_tool_names, model_id, output_limit, stop_strings
from moonbase.dialects.wrong_type import wrong_type
from moonbase.errors import InvalidRequest

_TOOL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_-]{0,127}")
_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_LONG_WINDOW = "[1m]"  # how some clients ask for the longest window


class Source(Struct):
    """Of an image."""

    type: str | None = None
    media_type: str | None = None
    data: str | None = None
    url: str | None = None


class Block(Struct):
    """Any block; which fields count depends on its type. Null means absent; unknown fields are ignored."""

    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    source: Any = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: "str | list[Block] | None" = None
    is_error: bool | None = None


class Turn(Struct):
    role: str | None = None
    content: str | list[Block] | None = None


class DeclaredTool(Struct):
    name: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None
    type: str | None = None


class ToolChoiceField(Struct):
    type: str | None = None
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class MessagesThinking(Struct):
    """The budget is the service's own to ignore."""

    type: str | None = None
    budget_tokens: int | None = None


class OutputFormat(Struct):
    type: str | None = None
    schema: dict[str, Any] | None = None


class OutputConfig(Struct):
    format: OutputFormat | None = None


class CountTokensRequest(Struct):
    """The body of POST /anthropic/v1/messages/count_tokens. Null means absent; unknown fields are ignored."""

    model: str | None = None
    messages: list[Turn] | None = None
    system: str | list[Block] | None = None
    tools: list[DeclaredTool] | None = None
    tool_choice: ToolChoiceField | None = None
    thinking: MessagesThinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountTokensRequest):
    """The body of POST /anthropic/v1/messages."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None


_messages_decoder = msgspec.json.Decoder(MessagesRequest)
_count_decoder = msgspec.json.Decoder(CountTokensRequest)


def decode_messages(body: bytes) -> ChatRequest:
    """Raises `InvalidRequest` naming the field."""
    wire = decode_body(_messages_decoder, body)
    if wire.max_tokens is None:
        raise InvalidRequest("max_tokens is required")
    return _request(
        wire,
        sampling=SamplingOptions(temperature=wire.temperature, top_p=wire.top_p),
        max_tokens=output_limit(wire.max_tokens, "max_tokens"),
        stop=stop_strings(wire.stop_sequences or ()),
        stream=bool(wire.stream),
    )


def decode_count(body: bytes) -> ChatRequest:
    """Raises as `decode_messages` does."""
    return _request(decode_body(_count_decoder, body))


def _request(wire: CountTokensRequest, **more: Any) -> ChatRequest:
    tools = _tools(wire.tools or ())
    choice = wire.tool_choice
    return ChatRequest(
        model=model_id((wire.model or "").removesuffix(_LONG_WINDOW)),
        messages=(*_system(wire.system), *_messages(wire.messages)),
        tools=tools,
        tool_choice=_tool_choice(choice, tools),
        parallel_tool_calls=not (choice is not None and choice.disable_parallel_tool_use),
        thinking=_thinking(wire.thinking),
        response_format=_response_format(wire.output_config),
        messages_api=True,
        **more,
    )


def _system(wire: str | list[Block] | None) -> tuple[Message, ...]:
    if not wire:
        return ()
    if isinstance(wire, str):
        return (Message(role="system", content=(TextPart(wire),)),)
    parts = [_system_part(block, f"system.{index}") for index, block in enumerate(wire)]
    return (Message(role="system", content=tuple(parts)),)


def _system_part(block: Block, where: str) -> TextPart:
    if block.type != "text":
        raise InvalidRequest(f"`{where}` has an unsupported content type: {block.type or ''}")
    return _text(block, where)


def _text(block: Block, where: str) -> TextPart:
    if not block.text:
        raise InvalidRequest(f"`{where}`: text content is empty")
    return TextPart(block.text)


def _messages(wire: list[Turn] | None) -> Iterator[Message]:
    if not wire:
        raise InvalidRequest("messages must not be empty")
    for position, turn in enumerate(wire):
        match turn.role:
            case "user":
                yield from _user(turn, position)
            case "assistant":
                yield from _assistant(turn, position, last=position == len(wire) - 1)
            case "system":
                yield from _later_system(turn, position)
            case _:
                raise InvalidRequest(f"the message at position {position} has an unknown role: {turn.role or ''}")


def _blocks(turn: Turn, position: int) -> list[tuple[str, Block]]:
    """The blocks of a turn, each with its place in the request."""
    given = turn.content
    if not given:
        raise _empty(turn, position)
    blocks = [Block(type="text", text=given)] if isinstance(given, str) else given
    return [(f"messages.{position}.content.{index}", block) for index, block in enumerate(blocks)]


def _empty(turn: Turn, position: int) -> InvalidRequest:
    return InvalidRequest(f"the message at position {position} with role '{turn.role}' must not be empty")


def _later_system(turn: Turn, position: int) -> Iterator[Message]:
    """Instructions between the turns, which newer clients send."""
    parts = [_system_part(block, where) for where, block in _blocks(turn, position)]
    yield Message(role="system", content=tuple(parts), position=position)


def _user(turn: Turn, position: int) -> Iterator[Message]:
    parts: list[Part] = []
    for where, block in _blocks(turn, position):
        match block.type:
            case "text":
                parts.append(_text(block, where))
            case "image":
                parts.append(_image(block, where))
            case "tool_result":
                yield _result(block, where, position)
            case _:
                raise _unsupported(block, position)
    if parts:
        yield Message(role="user", content=tuple(parts), position=position)


def _result(block: Block, where: str, position: int) -> Message:
    content: tuple[Part, ...] = ()
    if isinstance(block.content, str):
        content = (TextPart(block.content),) if block.content else ()
    else:
        inner = enumerate(block.content or ())
        content = tuple([_result_part(part, f"{where}.content.{index}", position) for index, part in inner])
    return Message(role="tool", content=content, tool_call_id=block.tool_use_id or "", position=position)


def _result_part(block: Block, where: str, position: int) -> Part:
    match block.type:
        case "text":
            return TextPart(block.text or "")
        case "image":
            return _image(block, where)
        case _:
            raise _unsupported(block, position)


def _unsupported(block: Block, position: int) -> InvalidRequest:
    return InvalidRequest(f"the message at position {position} has an unsupported content type: {block.type or ''}")


def _image(block: Block, where: str) -> ImagePart:
    try:
        source = msgspec.convert(block.source, Source | None) or Source()
    except msgspec.ValidationError as error:
        raise wrong_type(str(error), f"{where}.source.") from error
    match source.type:
        case "base64":
            if source.media_type not in _IMAGES:
                raise InvalidRequest(f"`{where}.source.media_type` must be one of {', '.join(_IMAGES)}")
            if not source.data:
                raise InvalidRequest(f"`{where}.source.data` must not be empty")
            return ImagePart(f"data:{source.media_type};base64,{source.data}")
        case "url":
            if not (source.url or "").startswith("ms://"):
                raise InvalidRequest("unsupported image url: it must be base64 content or ms://<file_id>")
            return ImagePart(source.url or "")
        case _:
            raise InvalidRequest(f"`{where}.source.type` must be base64 or url")


def _assistant(turn: Turn, position: int, *, last: bool) -> Iterator[Message]:
    """A last one is the beginning of the answer, unless it calls tools (moonshot-api.md 8.1).

    An answer may have been cut in its thoughts or have said nothing, and comes back as it was: what has no text and no
    calls is no turn of its own. As the last one it begins nothing, and is refused.
    """
    texts: list[TextPart] = []
    reasoning: list[str] = []
    calls: list[ToolCall] = []
    for where, block in _blocks(turn, position) if turn.content != [] else ():
        match block.type:
            case "text" if block.text:
                texts.append(TextPart(block.text))
            case "thinking":
                reasoning.append(block.thinking or "")
            case "tool_use":
                calls.append(_call(block, where))
            case "redacted_thinking":  # only its author can read it
                reasoning.append("")
            case "text":
                pass
            case _:
                raise _unsupported(block, position)
    if not texts and not calls:
        if last:
            raise _empty(turn, position)
        return
    yield Message(
        role="assistant",
        content=tuple(texts),
        reasoning="".join(reasoning) if reasoning else None,
        tool_calls=tuple(calls),
        partial=last and not calls,
        position=position,
    )


def _call(block: Block, where: str) -> ToolCall:
    if not block.id:
        raise InvalidRequest(f"`{where}.id` is required")
    if not block.name:
        raise InvalidRequest(f"`{where}.name` is required")
    return ToolCall(block.id, block.name, json.dumps(block.input or {}, ensure_ascii=False))


def _tools(wire: "list[DeclaredTool] | tuple[()]") -> tuple[Tool, ...]:
    check_tool_count(wire)
    tools = tuple([_tool(tool, f"tools.{index}") for index, tool in enumerate(wire)])
    check_tool_names(tools)
    return tools


def _tool(wire: DeclaredTool, where: str) -> Tool:
    """As the OpenAI dialect declares it, so that a model is shown the same."""
    if wire.type not in (None, "custom"):
        raise InvalidRequest(f"`{where}`: unknown tool type: {wire.type}, currently only custom is supported")
    if not wire.name or not _TOOL_NAME.fullmatch(wire.name):
        raise InvalidRequest(
            f"`{where}.name` is invalid, must start with a letter or an underscore and can contain letters, numbers, "
            "underscores, and dashes, up to 128"
        )
    if wire.input_schema is None:
        raise InvalidRequest(f"`{where}.input_schema` is required")
    function: dict[str, Any] = {"name": wire.name}
    if wire.description is not None:
        function["description"] = wire.description
    function["parameters"] = wire.input_schema
    return Tool(
        name=wire.name,
        declaration=_json({"type": "function", "function": function}),
        parameters=_json(wire.input_schema),
        strict=wire.strict is not False,
        field="tools.input_schema",
    )


def _tool_choice(wire: ToolChoiceField | None, tools: tuple[Tool, ...]) -> ToolChoice:
    match None if wire is None else wire.type or "":
        case None | "auto":
            return ToolChoice()
        case "none":
            return ToolChoice("none")
        case "any":
            if not tools:
                raise InvalidRequest("tool_choice 'any' needs tools to choose from")
            return ToolChoice("required")
        case "tool":
            assert wire is not None
            if not wire.name:
                raise InvalidRequest("tool_choice.name is required")
            if wire.name not in [tool.name for tool in tools]:
                raise InvalidRequest(f"tool_choice.name: there is no tool {wire.name} in tools")
            return ToolChoice("function", wire.name)
        case unknown:
            raise InvalidRequest(f"unknown tool_choice.type: {unknown}")


def _thinking(wire: MessagesThinking | None) -> Thinking | None:
    match None if wire is None else wire.type or "":
        case None:
            return None
        case "enabled" | "adaptive":
            return Thinking(enabled=True)
        case "disabled":
            return Thinking(enabled=False)
        case unknown:
            raise InvalidRequest(f"unknown thinking.type: {unknown}")


def _response_format(wire: OutputConfig | None) -> ResponseFormat:
    given = None if wire is None else wire.format
    if given is None:
        return ResponseFormat()
    if given.type != "json_schema":
        raise InvalidRequest(f"unknown output_config.format.type: {given.type or ''}")
    if given.schema is None:
        raise InvalidRequest("output_config.format.schema is required")
    return ResponseFormat(kind="json_schema", schema=_json(given.schema), field="output_config.format.schema")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
