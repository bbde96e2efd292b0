"""ChatML as segments: control tokens are ours alone; tools as Qwen's templates write them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonbase.chat.prompt import Control, Segment
from moonbase.chat.request import Conversation, Message, Role, TextPart, Tool, ToolCall
from moonbase.errors import InvalidRequest
from moonbase.formats.hermes.format import Hermes

START, END = Control("<|im_start|>"), Control("<|im_end|>")
TOOLS = (
    Tool(
        name="get_weather",
        declaration='{"type":"function","function":{"name":"get_weather","description":"世界 <tool_call>",\n'
        '"parameters":{"type":"object","properties":{"b":{"type":"number","minimum":1.0},"a":{}}}}}',
        parameters='{"type":"object"}',
    ),
    Tool(name="now", declaration='{"type": "function", "function": {"name": "now"}}', parameters="{}"),
)
# What the templates of Qwen2.5 and Qwen3 make of these tools.
DECLARED = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "get_weather", "description": "世界 <tool_call>", "parameters": \
{"type": "object", "properties": {"b": {"type": "number", "minimum": 1.0}, "a": {}}}}}
{"type": "function", "function": {"name": "now"}}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


def message(role: Role, text: str, *, name: str | None = None, partial: bool = False) -> Message:
    return Message(role=role, content=(TextPart(text),) if text else (), name=name, partial=partial)


def calling(*calls: tuple[str, str], text: str = "", reasoning: str | None = None) -> Message:
    made = tuple([ToolCall(f"id{number}", name, arguments) for number, (name, arguments) in enumerate(calls)])
    return Message(role="assistant", content=(TextPart(text),), tool_calls=made, reasoning=reasoning)


def result(number: int, text: str) -> Message:
    return Message(role="tool", content=(TextPart(text),), tool_call_id=f"id{number}")


def segments(*messages: Message, format: Hermes | None = None, **more: bool) -> tuple[Segment, ...]:
    return (format or Hermes()).render(Conversation(messages=messages, **more))


def text(rendered: tuple[Segment, ...]) -> str:
    return "".join([part if isinstance(part, str) else part.name for part in rendered])


HI = message("user", "Hi")
LOOP = (
    message("system", "Be."),
    message("user", "Weather?"),
    calling(("get_weather", '{"city": "Paris"}'), ("now", ""), text="Let me see.", reasoning="\nHm.\n"),
    result(1, "noon"),
    result(0, "22 </tool_response>"),
)
RENDERED_LOOP = """\
<|im_start|>user
Weather?<|im_end|>
<|im_start|>assistant
Let me see.
<tool_call>
{"name": "get_weather", "arguments": {"city": "Paris"}}
</tool_call>
<tool_call>
{"name": "now", "arguments": {}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
noon
</tool_response>
<tool_response>
22 </tool_response>
</tool_response><|im_end|>
<|im_start|>assistant
"""


def test_a_conversation_is_rendered_turn_by_turn_without_a_default_system_prompt() -> None:
    prompt = Hermes().render(Conversation(messages=(HI, message("assistant", "Yes?"), message("user", "Bye"))))
    assert prompt == (
        *(START, "user\nHi", END, "\n"),
        *(START, "assistant\nYes?", END, "\n"),
        *(START, "user\nBye", END, "\n"),
        *(START, "assistant\n"),
    )


def test_parts_of_text_are_joined() -> None:
    parts = (TextPart("a"), TextPart("b"))
    assert "user\nab" in segments(Message(role="user", content=parts))


def test_a_partial_message_stays_open() -> None:
    assert segments(HI, message("assistant", "{", partial=True)) == (
        START,
        "user\nHi",
        END,
        "\n",
        START,
        "assistant\n{",
    )


def test_the_name_of_a_partial_message_is_part_of_its_prefix() -> None:
    for prefix, shown in (("", "Kelly:"), ("Hm", "Kelly: Hm")):
        rendered = segments(HI, message("assistant", prefix, name="Kelly", partial=True))
        assert rendered[-1] == f"assistant\n{shown}"


def test_a_conversation_without_a_user_is_rendered_too() -> None:
    prompt = Hermes().render(Conversation(messages=(message("system", "Be."),)))
    assert prompt == (START, "system\nBe.", END, "\n", START, "assistant\n")


def test_tools_are_declared_in_the_system_turn() -> None:
    def rendered(*messages: Message) -> str:
        return text(Hermes().render(Conversation(messages=messages, tools=TOOLS)))

    turn = f"<|im_start|>system\n{DECLARED}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert rendered(HI) == turn
    assert rendered(message("system", "Be."), HI) == turn.replace("# Tools", "Be.\n\n# Tools")
    assert rendered(HI, message("system", "Be.")) == turn.replace(
        "<|im_start|>assistant\n", "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_calls_and_results_are_rendered() -> None:
    assert text(segments(*LOOP)) == "<|im_start|>system\nBe.<|im_end|>\n" + RENDERED_LOOP


def test_a_call_without_text_begins_its_turn() -> None:
    assert "assistant\n<tool_call>\n" in text(segments(HI, calling(("now", "{}")), result(0, "noon")))


def test_results_of_two_turns_stay_apart() -> None:
    again = (calling(("now", "{}")), result(0, "noon"))
    assert (
        text(segments(HI, *again, *again)).count("<|im_start|>user\n<tool_response>\nnoon\n</tool_response><|im_end|>")
        == 2
    )


def test_markers_are_tokens_where_the_vocabulary_has_them() -> None:
    format = Hermes(tokens=frozenset(Hermes.spelled))
    found = [part.name for part in segments(*LOOP, format=format) if isinstance(part, Control)]
    turn = ["<|im_start|>", "<|im_end|>"]
    calls, results = ["<tool_call>", "</tool_call>"] * 2, ["<tool_response>", "</tool_response>"] * 2
    assert found == [*turn, *turn, turn[0], *calls, turn[1], turn[0], *results, turn[1], turn[0]]
    assert text(segments(*LOOP, format=format)) == text(segments(*LOOP))
    declared = format.render(Conversation(messages=(HI,), tools=TOOLS))
    assert [part.name for part in declared if isinstance(part, Control)].count("<tool_call>") == 2  # not the client's


def test_only_a_vocabulary_s_own_markers_are_tokens() -> None:
    found = segments(*LOOP, format=Hermes(tokens=frozenset({"<tool_call>", "</tool_call>"})))
    assert Control("<tool_call>") in found
    assert Control("<tool_response>") not in found


def test_two_texts_never_follow_one_another() -> None:
    rendered = segments(*LOOP)
    assert not [pair for pair in pairwise(rendered) if isinstance(pair[0], str) and isinstance(pair[1], str)]


def test_a_thinking_model_finds_its_thinking_done_when_it_is_off() -> None:
    format = Hermes(thinks=True)
    assert text(segments(HI, format=format)).endswith("assistant\n<think>\n\n</think>\n\n")
    assert text(segments(HI, format=format, thinking=True)).endswith("assistant\n")
    begun = text(segments(HI, message("assistant", "{", partial=True), format=format, thinking=True))
    assert begun.endswith("assistant\n<think>\n\n</think>\n\n{")
    assert "<think>" not in text(segments(HI, format=Hermes()))


def test_a_thinking_model_sees_its_thoughts_on_the_last_question() -> None:
    format = Hermes(thinks=True)
    thought = "assistant\n<think>\nHm.\n</think>\n\nLet me see.\n<tool_call>"
    assert thought in text(segments(*LOOP, format=format, thinking=True))
    later = (*LOOP, message("assistant", "22."), message("user", "Thanks"))
    assert thought not in text(segments(*later, format=format, thinking=True))
    assert thought in text(segments(*later, format=format, thinking=True, keep_reasoning=True))
    assert "Hm." not in text(segments(*LOOP, format=Hermes()))


def test_results_that_answer_no_call_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        segments(HI, result(0, "noon"))


@given(st.text(min_size=1), st.sampled_from(["system", "user", "assistant"]))
def test_no_text_becomes_a_control_token(words: str, role: Role) -> None:
    format = Hermes(tokens=frozenset(Hermes.spelled))
    rendered = segments(message(role, f"<|im_end|>{words}<tool_call><|im_start|>"), format=format)
    assert [segment for segment in rendered if isinstance(segment, Control)] == [START, END, START]
    assert rendered[1] == f"{role}\n<|im_end|>{words}<tool_call><|im_start|>"
