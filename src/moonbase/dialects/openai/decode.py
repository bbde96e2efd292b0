"""Request bytes to `ChatRequest`, shapes only (moonshot-api.md 1). What a model allows is the catalog's matter."""

import json
from typing import Any

import msgspec
from msgspec import Struct

from moonbase.chat.request import (
    ChatRequest,
    ImagePart,
    Message,
    Part,
    ResponseFormat,
    Role,
    SamplingOptions,
    TextPart,
    Thinking,
    ToolCall,
)
from moonbase.dialects.body import decode_body
from moonbase.dialects.fields import model_id, output_limit, stop_strings
from moonbase.dialects.openai.tools import NamedToolChoice, decode_tool_choice, decode_tools
from moonbase.errors import InvalidRequest


class ImageURL(Struct):
    url: str | None = None


class ContentPart(Struct):
    type: str | None = None
    text: str | None = None
    image_url: str | ImageURL | None = None
    video_url: str | ImageURL | None = None


class CalledFunction(Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class MessageToolCall(Struct):
    id: str | None = None
    type: str | None = None
    function: CalledFunction | None = None


class ChatMessage(Struct):
    role: str | None = None
    content: str | list[ContentPart] | None = None
    name: str | None = None
    partial: bool | None = None
    reasoning_content: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    tools: list[Any] | None = None


class ThinkingField(Struct):
    type: str | None = None
    keep: str | None = None


class ChatTemplateArguments(Struct):
    """What servers of open models take in place of `thinking`."""

    thinking: bool | None = None
    enable_thinking: bool | None = None
    preserve_thinking: bool | None = None


class JSONSchemaFormat(Struct):
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormatField(Struct):
    type: str | None = None
    json_schema: JSONSchemaFormat | None = None


class StreamOptions(Struct):
    include_usage: bool | None = None


class ChatCompletionRequest(Struct):
    """The body of POST /v1/chat/completions. Null means absent; unknown fields are ignored."""

    model: str | None = None
    messages: list[ChatMessage] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormatField | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    thinking: ThinkingField | None = None
    chat_template_kwargs: ChatTemplateArguments | None = None
    logit_bias: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class EstimateRequest(Struct):
    """The body of POST /v1/tokenizers/estimate-token-count."""

    model: str | None = None
    messages: list[ChatMessage] | None = None


_chat_decoder = msgspec.json.Decoder(ChatCompletionRequest)
_estimate_decoder = msgspec.json.Decoder(EstimateRequest)


def decode_chat(body: bytes) -> ChatRequest:
    """Decode a chat completion request. Raises `InvalidRequest` naming the field."""
    wire = decode_body(_chat_decoder, body)
    _refuse_unsupported(wire)
    response_format = _response_format(wire.response_format)
    limit = output_limit(wire.max_completion_tokens, "max_completion_tokens")
    if limit is None:
        limit = output_limit(wire.max_tokens, "max_tokens")
    tools = decode_tools(wire.tools)
    return ChatRequest(
        model=model_id(wire.model),
        messages=_messages(wire.messages),
        sampling=SamplingOptions(
            temperature=wire.temperature,
            top_p=wire.top_p,
            n=wire.n,
            presence_penalty=wire.presence_penalty,
            frequency_penalty=wire.frequency_penalty,
        ),
        max_tokens=limit,
        stop=_stop(wire.stop),
        response_format=response_format,
        tools=tools,
        tool_choice=decode_tool_choice(wire.tool_choice, tools),
        parallel_tool_calls=wire.parallel_tool_calls is not False,
        thinking=_thinking(wire),
        stream=bool(wire.stream),
        include_usage=bool(wire.stream_options and wire.stream_options.include_usage),
    )


def decode_estimate(body: bytes) -> ChatRequest:
    """Decode a token estimate request: the model's id and the messages."""
    wire = decode_body(_estimate_decoder, body)
    return ChatRequest(model=model_id(wire.model), messages=_messages(wire.messages))


def _refuse_unsupported(wire: ChatCompletionRequest) -> None:
    if wire.logit_bias is not None:
        raise InvalidRequest("logit_bias is not supported yet")
    if wire.top_logprobs is not None and not wire.logprobs:
        raise InvalidRequest("logprobs must be set to true if top_logprobs is used")
    if wire.logprobs:
        raise InvalidRequest("invalid logprobs: only false is allowed for this model", prefix=False)


def _messages(wire: list[ChatMessage] | None) -> tuple[Message, ...]:
    if not wire:
        raise InvalidRequest("messages must not be empty")
    last = len(wire) - 1
    return tuple([_message(message, position, last) for position, message in enumerate(wire)])


_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def _message(wire: ChatMessage, position: int, last: int) -> Message:
    role = _ROLES.get(wire.role or "")
    if role is None:
        raise InvalidRequest(f"the message at position {position} has an unknown role: {wire.role or ''}")
    if wire.tools:  # only Kimi K3 takes them, in system messages of their own (moonshot-api.md 1.8)
        raise InvalidRequest(
            f"the message at position {position} has tools, which must be declared for the whole request"
        )
    partial = bool(wire.partial)
    if partial and (role != "assistant" or position != last):
        raise InvalidRequest("partial is only for the last message, with role 'assistant'")
    content = _content(wire.content, position)
    calls: tuple[ToolCall, ...] = ()
    if wire.tool_calls:
        if role != "assistant":
            raise InvalidRequest(f"the message at position {position} has tool_calls, but role '{role}'")
        calls = tuple([_call(call, index, position) for index, call in enumerate(wire.tool_calls)])
    if not content and not calls and role != "tool" and not (partial and wire.name):
        raise InvalidRequest(f"the message at position {position} with role '{role}' must not be empty")
    return Message(
        role=role,
        content=content,
        name=wire.name,
        partial=partial,
        reasoning=wire.reasoning_content if role == "assistant" else None,
        tool_calls=calls,
        tool_call_id=(wire.tool_call_id or "") if role == "tool" else None,
        position=position,
    )


def _call(wire: MessageToolCall, index: int, position: int) -> ToolCall:
    where = f"tool_calls.{index}"
    if not wire.id:
        raise InvalidRequest(f"the message at position {position} has no `{where}.id`")
    function = wire.function
    if function is None or not function.name:
        raise InvalidRequest(f"the message at position {position} has no `{where}.function.name`")
    given = function.arguments
    arguments = json.dumps(given, ensure_ascii=False) if isinstance(given, dict) else given or ""
    return ToolCall(wire.id, function.name, arguments)


def _content(wire: str | list[ContentPart] | None, position: int) -> tuple[Part, ...]:
    if not wire:
        return ()
    if isinstance(wire, str):
        return (TextPart(wire),)
    return tuple([_part(part, position) for part in wire])


def _part(wire: ContentPart, position: int) -> Part:
    match wire.type:
        case "text":
            if not wire.text:
                raise InvalidRequest("text content is empty")
            return TextPart(wire.text)
        case "image_url":
            return ImagePart(_media_url(wire.image_url, "image"))
        case "video_url":
            _media_url(wire.video_url, "video")
            raise InvalidRequest(f"the message at position {position} has a video, which this model cannot see")
        case _:
            raise InvalidRequest(
                f"the message at position {position} has an unsupported content type: {wire.type or ''}"
            )


def _media_url(wire: str | ImageURL | None, kind: str) -> str:
    url = wire.url if isinstance(wire, ImageURL) else wire
    if not url:
        raise InvalidRequest(f"{kind}_url must not be empty")
    if not url.startswith(("data:", "ms://")):
        raise InvalidRequest(f"unsupported {kind} url: it must be a data: URL with base64 content or ms://<file_id>")
    return url


def _stop(wire: str | list[str] | None) -> tuple[str, ...]:
    return stop_strings([wire] if isinstance(wire, str) else wire or [])


def _thinking(wire: ChatCompletionRequest) -> Thinking | None:
    """The service's switch, else the one of servers of open models."""
    given = wire.thinking
    if given is not None:
        if given.type not in ("enabled", "disabled"):
            raise InvalidRequest(f"unknown thinking.type: {given.type or ''}")
        if given.keep not in (None, "all"):
            raise InvalidRequest(f"unknown thinking.keep: {given.keep}")
        return Thinking(enabled=given.type == "enabled", keep=given.keep == "all")
    template = wire.chat_template_kwargs
    if template is None:
        return None
    enabled = template.thinking if template.thinking is not None else template.enable_thinking
    if enabled is None and template.preserve_thinking is None:
        return None
    return Thinking(enabled=enabled is not False, keep=bool(template.preserve_thinking))


def _response_format(wire: ResponseFormatField | None) -> ResponseFormat:
    match wire.type if wire is not None else "text":
        case "text":
            return ResponseFormat()
        case "json_object":
            return ResponseFormat(kind="json_object")
        case "json_schema":
            assert wire is not None
            given = wire.json_schema
            if given is None:
                raise InvalidRequest("response_format.json_schema is required when type is json_schema")
            if not given.name:
                raise InvalidRequest("response_format.json_schema.name is required")
            if given.schema is None:
                raise InvalidRequest("response_format.json_schema.schema is required")
            return ResponseFormat(
                kind="json_schema",
                schema=msgspec.json.encode(given.schema).decode(),
                strict=given.strict is not False,
            )
        case unknown:
            raise InvalidRequest(f"unknown response_format.type: {unknown or ''}")
