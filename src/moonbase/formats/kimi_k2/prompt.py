"""A conversation as segments, byte for byte what the official templates write (kimi-protocol.md 2.2, 2.3)."""

from moonbase.chat.prompt import Control, Prompt, Segment
from moonbase.chat.request import Conversation, Message
from moonbase.formats.calls import number_calls
from moonbase.formats.kimi_k2.declaration import Declarations
from moonbase.formats.kimi_k2.revisions import Revision

_USER, _ASSISTANT, _SYSTEM = Control("<|im_user|>"), Control("<|im_assistant|>"), Control("<|im_system|>")
_MIDDLE, _END = Control("<|im_middle|>"), Control("<|im_end|>")
_THINK, _THOUGHT = Control("<think>"), Control("</think>")
_CALLS, _CALLS_END = Control("<|tool_calls_section_begin|>"), Control("<|tool_calls_section_end|>")
_CALL, _CALL_END = Control("<|tool_call_begin|>"), Control("<|tool_call_end|>")
_ARGUMENTS = Control("<|tool_call_argument_begin|>")
_HEADERS = {"user": _USER, "assistant": _ASSISTANT, "system": _SYSTEM, "tool": _SYSTEM}

ENVELOPE = (_SYSTEM.name, _USER.name, _ASSISTANT.name, _MIDDLE.name, _END.name)
THINK = (_THINK.name, _THOUGHT.name)
CALLS = (_CALLS.name, _CALLS_END.name, _CALL.name, _ARGUMENTS.name, _CALL_END.name)


def render(revision: Revision, declarations: Declarations, conversation: Conversation) -> Prompt:
    """The prompt, up to the point where the model goes on. Two texts never follow one another.

    In a tool loop each prompt begins with the one before. Once an answer has closed the loop, a revision that drops
    its reasoning then agrees with earlier prompts only up to the loop's beginning (kimi-protocol.md 2.6, G6).

    Raises `InvalidRequest` as `number_calls` and `Declarations.text` do. Images are not shown.
    """
    messages = conversation.messages
    segments: list[Segment] = []
    if conversation.tools:
        segments += (_SYSTEM, "tool_declare", _MIDDLE, declarations.text(conversation.tools), _END)
    if revision.system is not None and messages[0].role != "system":
        segments += (_SYSTEM, "system", _MIDDLE, revision.system, _END, revision.after_system)
    numbers = number_calls(messages)
    finished = messages[:-1] if messages[-1].partial else messages
    shown_from = 0 if revision.keeps_all(conversation) else _open_loop(finished)
    thinks = revision.thinks(conversation)
    for position, message in enumerate(finished):
        segments += (_HEADERS[message.role], message.name or message.role, _MIDDLE)
        match message.role:
            case "assistant":
                if revision.opens != "nobody":
                    shown = message.reasoning if thinks and position >= shown_from else None
                    segments += (_THINK, shown or "", _THOUGHT)
                segments.append(message.text)
                _add_calls(segments, message, numbers.ids[position])
            case "tool":
                segments.append(f"## Return of functions.{numbers.ids[position][0]}\n{message.text}")
            case _:
                segments.append(message.text)
        segments.append(_END)
    segments += _beginning(revision, conversation)
    return tuple([segment for segment in segments if segment])


def _open_loop(messages: tuple[Message, ...]) -> int:
    """Where the open tool loop begins: after the last answer that calls nothing."""
    for position in range(len(messages) - 1, -1, -1):
        if messages[position].role == "assistant" and not messages[position].tool_calls:
            return position + 1
    return 0


def _add_calls(segments: list[Segment], message: Message, ids: tuple[str, ...]) -> None:
    if not message.tool_calls:
        return
    segments.append(_CALLS)
    for call, number in zip(message.tool_calls, ids, strict=True):
        segments += (_CALL, f"functions.{number}", _ARGUMENTS, call.arguments, _CALL_END)
    segments.append(_CALLS_END)


def _beginning(revision: Revision, conversation: Conversation) -> tuple[Segment, ...]:
    """The beginning of the answer: an empty turn, or what a partial message has of one, name and all.

    The template would close a partial message and drop its reasoning; here both stay (kimi-protocol.md 2.3).
    """
    last = conversation.messages[-1]
    if not last.partial:
        last = Message(role="assistant")
    header = (_ASSISTANT, last.name or "assistant", _MIDDLE)
    match revision.start(conversation):
        case "model_opens":
            return header
        case "reasoning":
            return (*header, _THINK, last.reasoning or "")
    if revision.opens == "nobody":
        return (*header, last.text)
    reasoning = (last.reasoning or "") if revision.thinks(conversation) else ""
    return (*header, _THINK, reasoning, _THOUGHT, last.text)
