"""A conversation as segments, as the templates of Qwen2.5 and Qwen3 write it.

Those two agree but for the system prompt that Qwen2.5 has by default and reasoning. No default is added here: the
service adds none (moonshot-api.md 2), so tools without a system prompt are declared alone, as in Qwen3.
"""

import json

from moonbase.chat.prompt import Control, Prompt, Segment
from moonbase.chat.request import Conversation, Message, Tool
from moonbase.errors import InvalidRequest
from moonbase.formats.calls import number_calls

_START, _END = Control("<|im_start|>"), Control("<|im_end|>")
_CALL, _CALL_END = Control("<tool_call>"), Control("</tool_call>")
_RESPONSE, _RESPONSE_END = Control("<tool_response>"), Control("</tool_response>")
_THINK, _THOUGHT = Control("<think>"), Control("</think>")

ENVELOPE = (_START.name, _END.name)
CALL = (_CALL.name, _CALL_END.name)
RESPONSE = (_RESPONSE.name, _RESPONSE_END.name)
THINK = (_THINK.name, _THOUGHT.name)

_BEFORE_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_AFTER_TOOLS: tuple[Segment, ...] = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within ",
    *(_CALL, _CALL_END, " XML tags:\n"),
    *(_CALL, '\n{"name": <function-name>, "arguments": <args-json-object>}\n', _CALL_END),
)
_NO_THOUGHT: tuple[Segment, ...] = (_THINK, "\n\n", _THOUGHT, "\n\n")


def render(conversation: Conversation, tokens: frozenset[str], *, thinks: bool) -> Prompt:
    """The prompt, up to the point where the model goes on.

    Markers that are not in `tokens` are spelled. A model that `thinks` sees what it thought since the last user
    message, and finds its thinking done when there is to be none. Arguments of calls are shown as they are, JSON or
    not. Raises `InvalidRequest` as `number_calls` does, and for a tool that is nested too deeply.
    """
    messages = conversation.messages
    number_calls(messages)
    last = messages[-1]
    finished = messages[:-1] if last.partial else messages
    segments: list[Segment] = []
    if conversation.tools:
        segments += _system(messages[0], conversation.tools)
    shown_from = 0 if conversation.keep_reasoning else _open_loop(messages)
    for position, message in enumerate(finished):
        if message.role == "tool":
            if position == 0 or messages[position - 1].role != "tool":
                segments += (_START, "user")
            segments += ("\n", _RESPONSE, f"\n{message.text}\n", _RESPONSE_END)
            if position + 1 < len(finished) and messages[position + 1].role == "tool":
                continue
        elif message.role == "assistant":
            segments += _assistant(message, thought=thinks and position >= shown_from)
        elif position == 0 and message.role == "system" and conversation.tools:
            continue
        else:
            segments += (_START, f"{message.role}\n{message.text}")
        segments += (_END, "\n")
    segments += (_START, "assistant\n")
    if thinks and (last.partial or not conversation.thinking):
        segments += _NO_THOUGHT
    segments.append(_prefix(last))
    return _spelled(segments, tokens)


def _system(first: Message, tools: tuple[Tool, ...]) -> list[Segment]:
    before = f"{first.text}\n\n" if first.role == "system" else ""
    declared = "\n".join([_line(tool) for tool in tools])
    return [_START, f"system\n{before}{_BEFORE_TOOLS}{declared}", *_AFTER_TOOLS, _END, "\n"]


def _line(tool: Tool) -> str:
    """The declaration as Python writes JSON, which the templates do."""
    try:
        return json.dumps(json.loads(tool.declaration), ensure_ascii=False)
    except RecursionError as error:
        raise InvalidRequest(f"the declaration of the function {tool.name} is nested too deeply") from error


def _assistant(message: Message, *, thought: bool) -> list[Segment]:
    segments: list[Segment] = [_START, "assistant\n"]
    text = message.text
    reasoning = (message.reasoning or "").strip("\n") if thought else ""
    if reasoning:
        segments += (_THINK, f"\n{reasoning}\n", _THOUGHT, "\n\n")
        text = text.lstrip("\n")
    segments.append(text)
    for number, call in enumerate(message.tool_calls):
        name = json.dumps(call.name, ensure_ascii=False)
        separator = "\n" if number or text else ""
        body = f'\n{{"name": {name}, "arguments": {call.arguments or "{}"}}}\n'
        segments += (separator, _CALL, body, _CALL_END)
    return segments


def _open_loop(messages: tuple[Message, ...]) -> int:
    """Where the work on the last user message begins."""
    for position in range(len(messages) - 1, -1, -1):
        if messages[position].role == "user":
            return position
    return 0


def _prefix(last: Message) -> str:
    """What a partial message already says; its name counts as part of it (moonshot-api.md 1.4)."""
    if not last.partial:
        return ""
    if last.name is None:
        return last.text
    return f"{last.name}: {last.text}" if last.text else f"{last.name}:"


def _spelled(segments: list[Segment], tokens: frozenset[str]) -> tuple[Segment, ...]:
    """The segments without empty ones, with what is no token in text; two texts never follow one another."""
    spelled: list[Segment] = []
    texts: list[str] = []
    for segment in segments:
        if isinstance(segment, str):
            texts.append(segment)
        elif segment in (_START, _END) or segment.name in tokens:
            if text := "".join(texts):
                spelled.append(text)
            texts = []
            spelled.append(segment)
        else:
            texts.append(segment.name)
    if text := "".join(texts):
        spelled.append(text)
    return tuple(spelled)
