"""`ChatRequest`s to what another server of this dialect understands (moonshot-api.md 1).

A stream is asked for with usage. Its chunks and whole answers are read in one way, whichever comes.
"""

from typing import Literal

import msgspec
from msgspec import Raw, Struct

from moonbase.chat.request import (
    ChatRequest,
    ImagePart,
    Message,
    Part,
    ResponseFormat,
    SamplingOptions,
    TextPart,
    Thinking,
    ToolChoice,
)

Upstream = Literal["openai", "moonshot"]
LimitName = Literal["max_tokens", "max_completion_tokens"]

_encode = msgspec.json.Encoder().encode


class ImageURL(Struct):
    url: str


class TextContent(Struct, tag_field="type", tag="text"):
    text: str


class ImageContent(Struct, tag_field="type", tag="image_url"):
    image_url: ImageURL


class Function(Struct):
    name: str
    arguments: str


class Call(Struct):
    id: str
    function: Function
    type: str = "function"


class WireMessage(Struct, omit_defaults=True):
    role: str
    content: str | list[TextContent | ImageContent] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    partial: bool = False


class ThinkingSwitch(Struct, omit_defaults=True):
    type: Literal["enabled", "disabled", ""] = ""
    keep: Literal["all"] | None = None


class TemplateArguments(Struct, omit_defaults=True):
    """How servers of open models take the switch, each template by its own name."""

    thinking: bool
    enable_thinking: bool
    preserve_thinking: bool = False


class JSONSchema(Struct):
    name: str
    schema: Raw
    strict: bool


class WireResponseFormat(Struct, omit_defaults=True):
    type: str
    json_schema: JSONSchema | None = None


class ChosenFunction(Struct):
    name: str


class NamedChoice(Struct):
    function: ChosenFunction
    type: str = "function"


class StreamOptions(Struct):
    include_usage: bool


class Body(Struct, omit_defaults=True):
    """The body of POST /chat/completions. What is at its default is not sent: few servers know every field."""

    model: str
    messages: Raw
    stream: bool
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: tuple[str, ...] = ()
    response_format: WireResponseFormat | None = None
    tools: Raw | None = None
    tool_choice: str | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    thinking: ThinkingSwitch | None = None
    chat_template_kwargs: TemplateArguments | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class Wording(Struct, frozen=True):
    """The part of a body that is the conversation, as JSON. `text_bytes` leaves out the content of images."""

    messages: Raw
    tools: Raw | None
    text_bytes: int
    images: int


def encode_wording(request: ChatRequest) -> Wording:
    """The messages and tools of `request`, ids and declarations as the client sent them."""
    messages = _encode([_message(message) for message in request.messages])
    urls = [part.url for message in request.messages for part in message.content if isinstance(part, ImagePart)]
    tools = f"[{','.join([tool.declaration for tool in request.tools])}]".encode() if request.tools else b""
    return Wording(
        messages=Raw(messages),
        tools=Raw(tools) if tools else None,
        text_bytes=len(messages) + len(tools) - sum([len(url) for url in urls]),
        images=len(urls),
    )


def encode_chat(
    request: ChatRequest,
    wording: Wording,
    *,
    upstream: Upstream,
    model: str,
    sampling: SamplingOptions,
    max_tokens: int | None,
    thinking: Thinking | None,
    stream: bool,
    limit_name: LimitName = "max_tokens",
) -> bytes:
    """The body for a server that knows the model as `model`; what is None is left to that server.

    Servers of open models want `thinking` as template arguments, and a message to go on with named as such: `openai`
    upstreams are told both ways, `moonshot` in its own way alone.
    """
    is_open = upstream == "openai"
    goes_on = True if is_open and request.messages[-1].partial else None
    return _encode(
        Body(
            model=model,
            messages=wording.messages,
            stream=stream,
            stream_options=StreamOptions(include_usage=True) if stream else None,
            max_tokens=max_tokens if limit_name == "max_tokens" else None,
            max_completion_tokens=max_tokens if limit_name == "max_completion_tokens" else None,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            n=None if sampling.n == 1 else sampling.n,
            presence_penalty=_unless(sampling.presence_penalty, 0),
            frequency_penalty=_unless(sampling.frequency_penalty, 0),
            stop=request.stop,
            response_format=_response_format(request.response_format),
            tools=wording.tools,
            tool_choice=_tool_choice(request.tool_choice) if wording.tools is not None else None,
            parallel_tool_calls=None if request.parallel_tool_calls or wording.tools is None else False,
            thinking=None if thinking is None else _switch(thinking),
            chat_template_kwargs=_template_arguments(thinking) if is_open and thinking is not None else None,
            continue_final_message=goes_on,
            add_generation_prompt=None if goes_on is None else False,
        )
    )


def _message(message: Message) -> WireMessage:
    calls = [Call(call.id, Function(call.name, call.arguments)) for call in message.tool_calls]
    return WireMessage(
        role=message.role,
        content=_content(message.content, None if calls else ""),
        name=message.name,
        reasoning_content=message.reasoning,
        tool_calls=calls or None,
        tool_call_id=message.tool_call_id,
        partial=message.partial,
    )


def _content(parts: tuple[Part, ...], empty: str | None) -> str | list[TextContent | ImageContent] | None:
    """Text alone goes as a string, which every server takes."""
    if not parts:
        return empty
    if all(isinstance(part, TextPart) for part in parts):
        return "".join([part.text for part in parts if isinstance(part, TextPart)])
    return [
        TextContent(part.text) if isinstance(part, TextPart) else ImageContent(ImageURL(part.url)) for part in parts
    ]


def _unless(value: float | None, default: float) -> float | None:
    return None if value == default else value


def _response_format(wanted: ResponseFormat) -> WireResponseFormat | None:
    match wanted.kind:
        case "text":
            return None
        case "json_object":
            return WireResponseFormat("json_object")
        case "json_schema":
            assert wanted.schema is not None
            schema = JSONSchema("response", Raw(wanted.schema.encode()), wanted.strict)
            return WireResponseFormat("json_schema", schema)


def _tool_choice(choice: ToolChoice) -> str | NamedChoice | None:
    if choice.name is not None:
        return NamedChoice(ChosenFunction(choice.name))
    return None if choice.kind == "auto" else choice.kind


def _switch(thinking: Thinking) -> ThinkingSwitch:
    return ThinkingSwitch("enabled" if thinking.enabled else "disabled", "all" if thinking.keep else None)


def _template_arguments(thinking: Thinking) -> TemplateArguments:
    return TemplateArguments(thinking.enabled, thinking.enabled, thinking.keep)
