"""Prompts byte for byte, and token for token where the vocabulary is at hand (kimi-protocol.md 2.6)."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.e2e.server import kimi_vocabulary

from moonbase.chat.prompt import Control, Prompt
from moonbase.chat.request import Conversation, Message, Role, TextPart, Tool, ToolCall, ToolChoice
from moonbase.engines.tokenizers.kimi import KimiTokenizer
from moonbase.errors import InvalidRequest
from moonbase.formats.kimi_k2.format import KimiK2
from moonbase.formats.kimi_k2.revisions import REVISIONS

WEATHER = Tool(
    name="get_weather",
    declaration=(
        '{"type":"function","function":{"name":"get_weather","description":"Get weather","parameters":{"type":"object",'
        '"properties":{"city":{"type":"string","description":"City name"},'
        '"unit":{"type":"string","enum":["c","f"],"default":"c"}},"required":["city"]}}}'
    ),
    parameters="{}",
)
DEFAULT = "<|im_system|>system<|im_middle|>You are Kimi, an AI assistant created by Moonshot AI.<|im_end|>"
HI = "<|im_user|>user<|im_middle|>Hi<|im_end|>"
ASSISTANT = "<|im_assistant|>assistant<|im_middle|>"
SORTED_TOOLS = (
    '<|im_system|>tool_declare<|im_middle|>[{"function":{"description":"Get weather","name":"get_weather","parameters":'
    '{"properties":{"city":{"description":"City name","type":"string"},"unit":{"default":"c","enum":["c","f"],'
    '"type":"string"}},"required":["city"],"type":"object"}},"type":"function"}]<|im_end|>'
)
TYPESCRIPT_TOOLS = """<|im_system|>tool_declare<|im_middle|># Tools

## functions
namespace functions {
// Get weather
type get_weather = (_: {
  // City name
  city: string,
  // Default: "c"
  unit?: "c" | "f"
}) => any;
}
<|im_end|>"""
LOOP = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    '{"city": "Beijing"}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
    "<|im_system|>get_weather<|im_middle|>## Return of functions.get_weather:0\n"
    '{"weather": "Sunny"}<|im_end|>'
)
G5 = (
    "<|im_system|>system<|im_middle|>S<|im_end|><|im_user|>user<|im_middle|>U1<|im_end|>"
    "<|im_assistant|>assistant<|im_middle|><think></think>A1<|im_end|><|im_user|>user<|im_middle|>U2<|im_end|>"
    "<|im_assistant|>assistant<|im_middle|><think>R2</think><|tool_calls_section_begin|>"
    '<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city": "Beijing"}<|tool_call_end|>'
    '<|tool_call_begin|>functions.get_weather:1<|tool_call_argument_begin|>{"city": "Shanghai"}<|tool_call_end|>'
    "<|tool_calls_section_end|><|im_end|>"
    '<|im_system|>get_weather<|im_middle|>## Return of functions.get_weather:0\n{"t": 1}<|im_end|>'
    '<|im_system|>tool<|im_middle|>## Return of functions.get_weather:1\n{"t": 2}<|im_end|>'
    "<|im_assistant|>assistant<|im_middle|><think>"
)
G1_IDS = [163594, 14062, 163601, 3900, 554, 24980, 72, 11, 519, 22572, 26626, 5232, 673, 30218, 10065, 22572, 13]
G1_IDS += [163586, 163587, 2482, 163601, 18699, 163586, 163588, 69702, 163601]
G3_IDS = [163594, 20960, 35556, 677, 163601, 81103, 3879, 22849, 11031, 7471, 1959, 10666, 3923, 1152, 7471, 618]
G3_IDS += [21055, 2800, 3923, 24453, 22849, 27129, 22849, 37666, 22849, 11031, 7471, 31132, 1530, 3923, 2217, 7471]
G3_IDS += [2033, 60027, 8175, 22849, 3988, 7471, 66, 3923, 11243, 46890, 66, 3923, 69, 131917, 2217, 7471, 2033]
G3_IDS += [60336, 2020, 20331, 46890, 37666, 131917, 2217, 7471, 3721, 60336, 2020, 2217, 7471, 3879, 16934, 60]
G3_IDS += [163586, 163594, 14062, 163601, 3900, 554, 24980, 72, 11, 519, 22572, 26626, 5232, 673, 30218, 10065]
G3_IDS += [22572, 13, 163586, 163587, 2482, 163601, 52, 163586, 163588, 69702, 163601, 163606, 49, 163607, 163595]
G3_IDS += [163597, 41937, 1150, 21055, 2800, 25, 15, 163598, 8264, 37666, 1289, 414, 4396, 39556, 16934, 163599]
G3_IDS += [163596, 163586, 163594, 618, 21055, 2800, 163601, 798, 6014, 318, 8271, 1150, 21055, 2800, 25, 15, 198]
G3_IDS += [8264, 50171, 1289, 414, 50, 38975, 16934, 163586, 163588, 69702, 163601]


def message(role: Role, text: str = "", **fields: object) -> Message:
    return Message(role=role, content=(TextPart(text),) if text else (), **fields)  # type: ignore[arg-type]


def call(city: str, id: str = "call_1") -> ToolCall:
    return ToolCall(id, "get_weather", f'{{"city": "{city}"}}')


USER = message("user", "Hi")
OPEN_LOOP = (
    message("user", "U"),
    message("assistant", reasoning="R", tool_calls=(call("Beijing"),)),
    message("tool", '{"weather": "Sunny"}', name="get_weather", tool_call_id="call_1"),
)
PARALLEL = (
    message("system", "S"),
    message("user", "U1"),
    message("assistant", "A1", reasoning="R1"),
    message("user", "U2"),
    message("assistant", reasoning="R2", tool_calls=(call("Beijing", "a"), call("Shanghai", "b"))),
    message("tool", '{"t": 1}', name="get_weather", tool_call_id="a"),
    message("tool", '{"t": 2}', tool_call_id="b"),
)
CLOSED_LOOP = (*OPEN_LOOP, message("assistant", "Done", reasoning="R9"), message("user", "Next"))


def render(revision: str, *messages: Message, tools: tuple[Tool, ...] = (), **fields: bool) -> Prompt:
    fields = {"thinking": REVISIONS[revision].opens != "nobody"} | fields
    return KimiK2(revision).render(Conversation(messages=messages, tools=tools, **fields))  # type: ignore[arg-type]


def text(prompt: Prompt) -> str:
    return "".join([part.name if isinstance(part, Control) else part for part in prompt])


@pytest.fixture(scope="module")
def kimi() -> KimiTokenizer:
    vocabulary = kimi_vocabulary()
    if vocabulary is None:
        pytest.skip("LEFT OUT: the Kimi vocabulary is not beside the checkout")
    return KimiTokenizer.read(vocabulary.parent)


def ids(kimi: KimiTokenizer, prompt: Prompt) -> list[int]:
    found: list[int] = []
    for part in prompt:
        found += [kimi.control(part.name)] if isinstance(part, Control) else kimi.encode_plain(part)
    return found


GREETING = {
    "kimi-k2-0711": f"{DEFAULT}\n{HI}{ASSISTANT}",
    "kimi-k2-0905": f"{DEFAULT}\n{HI}{ASSISTANT}",
    "kimi-k2-thinking": f"{DEFAULT}{HI}{ASSISTANT}",
    "kimi-k2.5-first": f"{DEFAULT}{HI}{ASSISTANT}<think>",
    "kimi-k2.5": f"{HI}{ASSISTANT}<think>",
    "kimi-k2.6": f"{HI}{ASSISTANT}<think>",
    "kimi-k2.7-code": f"{HI}{ASSISTANT}<think>",
}


def test_every_revision_is_pinned_here() -> None:
    assert list(REVISIONS) == list(GREETING)


@pytest.mark.parametrize("revision", GREETING)
def test_a_greeting(revision: str) -> None:
    """G1 and G2."""
    assert text(render(revision, USER)) == GREETING[revision]


@pytest.mark.parametrize("revision", GREETING)
def test_a_system_message_of_the_client_replaces_the_default(revision: str) -> None:
    expected = f"<|im_system|>system<|im_middle|>S<|im_end|>{HI}{ASSISTANT}"
    tail = "<think>" if REVISIONS[revision].opens == "prompt" else ""
    assert text(render(revision, message("system", "S"), USER)) == expected + tail


def test_a_later_system_message_leaves_the_default_first() -> None:
    prompt = text(render("kimi-k2-thinking", USER, message("system", "S")))
    assert prompt == f"{DEFAULT}{HI}<|im_system|>system<|im_middle|>S<|im_end|>{ASSISTANT}"


@pytest.mark.parametrize("revision", ["kimi-k2.5", "kimi-k2.6"])
def test_thinking_switched_off_closes_the_block_in_the_prompt(revision: str) -> None:
    assert text(render(revision, USER, thinking=False)) == f"{HI}{ASSISTANT}<think></think>"


@pytest.mark.parametrize("revision", ["kimi-k2-thinking", "kimi-k2.7-code"])
def test_thinking_cannot_be_switched_off_where_the_model_always_thinks(revision: str) -> None:
    assert render(revision, *OPEN_LOOP, thinking=False) == render(revision, *OPEN_LOOP)


@pytest.mark.parametrize("revision", ["kimi-k2-0711", "kimi-k2-0905"])
def test_models_that_do_not_think_are_shown_no_reasoning(revision: str) -> None:
    for thinking in (True, False):
        prompt = text(render(revision, *CLOSED_LOOP, tools=(WEATHER,), thinking=thinking))
        answer = f"{ASSISTANT}Done<|im_end|><|im_user|>user<|im_middle|>Next<|im_end|>{ASSISTANT}"
        assert prompt == f"{SORTED_TOOLS}{DEFAULT}\n<|im_user|>user<|im_middle|>U<|im_end|>{ASSISTANT}{LOOP}{answer}"


def test_an_open_tool_loop_with_json_tools() -> None:
    """G3."""
    prompt = text(render("kimi-k2-thinking", *OPEN_LOOP, tools=(WEATHER,)))
    turns = f"<|im_user|>user<|im_middle|>U<|im_end|>{ASSISTANT}<think>R</think>{LOOP}{ASSISTANT}"
    assert prompt == SORTED_TOOLS + DEFAULT + turns


def test_an_open_tool_loop_with_typescript_tools() -> None:
    """G4."""
    prompt = text(render("kimi-k2.5", *OPEN_LOOP, tools=(WEATHER,)))
    turns = f"<|im_user|>user<|im_middle|>U<|im_end|>{ASSISTANT}<think>R</think>{LOOP}{ASSISTANT}<think>"
    assert prompt == TYPESCRIPT_TOOLS + turns


@pytest.mark.parametrize("revision", ["kimi-k2.5", "kimi-k2.6"])
def test_parallel_calls_after_an_answer(revision: str) -> None:
    """G5."""
    assert text(render(revision, *PARALLEL, tools=(WEATHER,))) == TYPESCRIPT_TOOLS + G5
    rested = G5.replace("<think>R2", "<think>") + "</think>"
    assert text(render(revision, *PARALLEL, tools=(WEATHER,), thinking=False)) == TYPESCRIPT_TOOLS + rested


@pytest.mark.parametrize("revision", ["kimi-k2-thinking", "kimi-k2.5", "kimi-k2.6"])
def test_a_closed_loop_loses_its_reasoning(revision: str) -> None:
    """G6."""
    turns = f"{ASSISTANT}<think></think>{LOOP}{ASSISTANT}<think></think>Done<|im_end|>"
    assert turns in text(render(revision, *CLOSED_LOOP))


@pytest.mark.parametrize(
    ("revision", "asked", "kept"),
    [
        ("kimi-k2-thinking", True, False),
        ("kimi-k2.5", True, False),
        ("kimi-k2.6", False, False),
        ("kimi-k2.6", True, True),
        ("kimi-k2.7-code", False, True),
    ],
)
def test_reasoning_of_the_past_is_kept_on_request_or_always(revision: str, asked: bool, kept: bool) -> None:
    prompt = text(render(revision, *CLOSED_LOOP, keep_reasoning=asked))
    assert (f"{ASSISTANT}<think>R</think>{LOOP}{ASSISTANT}<think>R9</think>Done" in prompt) is kept
    assert ("R9" in prompt) is kept


def test_no_reasoning_is_shown_when_thinking_is_off_even_if_it_is_to_be_kept() -> None:
    prompt = text(render("kimi-k2.6", *CLOSED_LOOP, keep_reasoning=True, thinking=False))
    assert "R9" not in prompt
    assert "<think>R" not in prompt


@pytest.mark.parametrize("reasoning", [None, ""])
def test_missing_reasoning_is_an_empty_block(reasoning: str | None) -> None:
    """Not the word `None` (kimi-protocol.md 2.3)."""
    turns = (message("user", "U"), message("assistant", reasoning=reasoning, tool_calls=(call("Beijing"),)))
    result = message("tool", '{"weather": "Sunny"}', name="get_weather", tool_call_id="call_1")
    assert f"{ASSISTANT}<think></think>{LOOP}" in text(render("kimi-k2.5", *turns, result))


def test_content_before_calls_is_shown_before_them() -> None:
    calling = message("assistant", "Let me see.", tool_calls=(call("Beijing"),))
    prompt = text(render("kimi-k2-0905", USER, calling, message("tool", "1", tool_call_id="call_1")))
    assert f"{ASSISTANT}Let me see.<|tool_calls_section_begin|>" in prompt


def test_arguments_are_shown_as_they_came() -> None:
    for arguments in ("", "{}", '{ "a":1 }', "not JSON", '{"a": "\\u00e9"}'):
        calling = message("assistant", tool_calls=(ToolCall("x", "f", arguments),))
        prompt = text(render("kimi-k2.5", USER, calling, message("tool", "1", tool_call_id="x")))
        assert f"functions.f:0<|tool_call_argument_begin|>{arguments}<|tool_call_end|>" in prompt


def test_parts_are_joined_without_a_separator() -> None:
    parts = Message(role="user", content=(TextPart("a"), TextPart("b")))
    empty = Message(role="user")
    prompt = text(render("kimi-k2.5", parts, empty))
    assert prompt.startswith("<|im_user|>user<|im_middle|>ab<|im_end|><|im_user|>user<|im_middle|><|im_end|>")


def test_a_name_stands_in_place_of_the_role() -> None:
    turns = (message("user", "a", name="Ann"), message("assistant", "b", name="Bob"), message("user", "c", name=""))
    prompt = text(render("kimi-k2-0905", *turns))
    expected = "<|im_user|>Ann<|im_middle|>a<|im_end|><|im_assistant|>Bob<|im_middle|>b<|im_end|>"
    assert f"{expected}<|im_user|>user<|im_middle|>c<|im_end|>" in prompt


def test_no_tools_make_no_turn() -> None:
    assert "tool_declare" not in text(render("kimi-k2.5", USER))


@pytest.mark.parametrize("kind", ["none", "required"])
def test_the_tools_are_shown_whatever_the_choice(kind: str) -> None:
    """So a conversation that changes its mind keeps its cached prefix."""
    choice = ToolChoice(kind)  # type: ignore[arg-type]
    wanted = Conversation(messages=(USER,), tools=(WEATHER,), tool_choice=choice)
    assert KimiK2("kimi-k2-0905").render(wanted) == render("kimi-k2-0905", USER, tools=(WEATHER,))


PARTIAL = {
    ("kimi-k2-0905", True): f"{ASSISTANT}P",
    ("kimi-k2-thinking", True): f"{ASSISTANT}<think>R</think>P",
    ("kimi-k2.5", True): f"{ASSISTANT}<think>R</think>P",
    ("kimi-k2.5", False): f"{ASSISTANT}<think></think>P",
    ("kimi-k2.7-code", True): f"{ASSISTANT}<think>R</think>P",
}


@pytest.mark.parametrize(("revision", "thinking"), PARTIAL)
def test_a_partial_message_stays_open_after_its_reasoning(revision: str, thinking: bool) -> None:
    partial = message("assistant", "P", reasoning="R", partial=True)
    prompt = text(render(revision, USER, partial, thinking=thinking))
    assert prompt.endswith(HI + PARTIAL[revision, thinking])


@pytest.mark.parametrize(
    ("revision", "reasoning", "tail"),
    [
        ("kimi-k2-0905", None, ""),
        ("kimi-k2-thinking", None, ""),
        ("kimi-k2-thinking", "R", "<think>R"),
        ("kimi-k2.5", None, "<think>"),
        ("kimi-k2.5", "R", "<think>R"),
    ],
)
def test_a_partial_message_without_text_goes_on_with_its_reasoning(
    revision: str, reasoning: str | None, tail: str
) -> None:
    partial = message("assistant", name="Kelly", reasoning=reasoning, partial=True)
    assert text(render(revision, USER, partial)).endswith(f"{HI}<|im_assistant|>Kelly<|im_middle|>{tail}")


def test_a_partial_message_does_not_close_the_tool_loop() -> None:
    partial = message("assistant", "It is", partial=True)
    prompt = text(render("kimi-k2.5", *OPEN_LOOP, partial))
    assert prompt.endswith(f"{ASSISTANT}<think>R</think>{LOOP}{ASSISTANT}<think></think>It is")


def test_calls_without_results_have_no_prompt() -> None:
    with pytest.raises(InvalidRequest, match="did not have response messages: call_1"):
        render("kimi-k2-0905", USER, message("assistant", tool_calls=(call("Beijing"),)))


MARKERS = [*KimiK2("kimi-k2.5").controls, "[EOS]", "<|im_start|>"]
DANGEROUS = st.lists(st.sampled_from([*MARKERS, "<|", "|>", "a", "\n", " ", "é"]), max_size=6).map("".join)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    """Turns full of markers, each call with its results."""
    turns: list[Message] = []
    for at in range(draw(st.integers(1, 5))):
        role = draw(st.sampled_from(["user", "system", "assistant", "calls"]))
        name = draw(st.none() | DANGEROUS)
        if role != "calls":
            reasoning = draw(st.none() | DANGEROUS) if role == "assistant" else None
            turns.append(message(role, draw(DANGEROUS), name=name, reasoning=reasoning))
            continue
        wanted = [f"{at}{draw(DANGEROUS)}{index}" for index in range(draw(st.integers(1, 3)))]
        calls = tuple([ToolCall(id, draw(DANGEROUS), draw(DANGEROUS)) for id in wanted])
        turns.append(message("assistant", draw(DANGEROUS), reasoning=draw(st.none() | DANGEROUS), tool_calls=calls))
        for id in draw(st.permutations(wanted)):
            turns.append(message("tool", draw(DANGEROUS), name=draw(st.none() | DANGEROUS), tool_call_id=id))
    return tuple(turns)


def plain(turn: Message) -> Message:
    """The same turn with harmless words in every text that is not empty."""

    def word(given: str | None) -> str | None:
        return "x" if given else given

    return Message(
        role=turn.role,
        content=tuple([TextPart("x") for _ in turn.content]),
        name=word(turn.name),
        reasoning=word(turn.reasoning),
        tool_calls=tuple([ToolCall(call.id, "x", word(call.arguments) or "") for call in turn.tool_calls]),
        tool_call_id=turn.tool_call_id,
    )


@given(st.sampled_from(list(REVISIONS)), conversations(), st.booleans())
def test_no_text_of_a_client_becomes_a_control(revision: str, turns: tuple[Message, ...], thinking: bool) -> None:
    """The controls are those of the same conversation in harmless words."""

    def controls(messages: tuple[Message, ...]) -> list[Control]:
        prompt = render(revision, *messages, thinking=thinking)
        return [part for part in prompt if isinstance(part, Control)]

    assert controls(turns) == controls(tuple([plain(turn) for turn in turns]))


@given(st.sampled_from(list(REVISIONS)), conversations())
def test_texts_are_whole(revision: str, turns: tuple[Message, ...]) -> None:
    """Two texts in a row, or none between two controls, would be other tokens than those of the official text."""
    segments = render(revision, *turns)
    assert all(segments)
    texts = [isinstance(part, str) for part in segments]
    assert not any(first and second for first, second in pairwise(texts))
    assert {part.name for part in segments if isinstance(part, Control)} <= set(KimiK2(revision).controls)


@given(st.sampled_from(list(REVISIONS)), conversations())
def test_a_prompt_depends_on_its_conversation_alone(revision: str, turns: tuple[Message, ...]) -> None:
    format = KimiK2(revision)
    format.render(Conversation(messages=(USER,), tools=(WEATHER,), thinking=True))
    assert format.render(Conversation(messages=turns, thinking=True)) == render(revision, *turns, thinking=True)


def turns_of_a_tool_loop(steps: int) -> list[tuple[Message, ...]]:
    """What a client sends in each step of a loop, with the ids that it got from us."""
    history: tuple[Message, ...] = (message("user", "U"),)
    sent = [history]
    for step in range(steps):
        calls = tuple([call("Beijing", f"get_weather:{2 * step + index}") for index in range(2)])
        results = [message("tool", str(step), tool_call_id=made.id) for made in calls]
        history += (message("assistant", reasoning=f"R{step}", tool_calls=calls), *results)
        sent.append(history)
    return sent


@pytest.mark.parametrize("revision", REVISIONS)
def test_each_prompt_of_a_tool_loop_begins_with_the_one_before(revision: str) -> None:
    """In the segments, so in the tokens: a cached prefix covers the whole earlier prompt."""
    prompts = [render(revision, *sent, tools=(WEATHER,)) for sent in turns_of_a_tool_loop(4)]
    for before, after in pairwise(prompts):
        assert after[: len(before)] == before


@pytest.mark.parametrize("revision", REVISIONS)
def test_the_prompt_after_an_answer_begins_with_the_one_before_where_reasoning_stays(revision: str) -> None:
    """Where the template drops the reasoning of a closed loop, only what came before the loop can be found again."""
    loop = turns_of_a_tool_loop(2)[-1]
    closed = (*loop, message("assistant", "Done", reasoning="R9"), message("user", "Next"))
    before, after = [text(render(revision, *sent, tools=(WEATHER,), keep_reasoning=True)) for sent in (loop, closed)]
    assert after.startswith(before) is (revision not in ("kimi-k2-thinking", "kimi-k2.5", "kimi-k2.5-first"))
    answered = before.index(ASSISTANT)
    assert after[:answered] == before[:answered]


GOLDEN_COUNTS = [
    (("kimi-k2-thinking", (USER,), False, True), 26),
    (("kimi-k2.5", (USER,), False, True), 9),
    (("kimi-k2.6", (USER,), False, False), 10),
    (("kimi-k2.5-first", (message("user", "hi, who are you?"),), False, True), 32),
    (("kimi-k2-thinking", OPEN_LOOP, True, True), 140),
    (("kimi-k2.5", OPEN_LOOP, True, True), 116),
    (("kimi-k2.5", PARALLEL, True, True), 172),
    (("kimi-k2.6", PARALLEL, True, False), 171),
]


@pytest.mark.parametrize(("given", "count"), GOLDEN_COUNTS)
def test_prompts_have_the_published_number_of_tokens(
    kimi: KimiTokenizer, given: tuple[str, tuple[Message, ...], bool, bool], count: int
) -> None:
    revision, messages, tools, thinking = given
    prompt = render(revision, *messages, tools=(WEATHER,) if tools else (), thinking=thinking)
    assert len(ids(kimi, prompt)) == count


def test_prompts_have_the_published_tokens(kimi: KimiTokenizer) -> None:
    assert ids(kimi, render("kimi-k2-thinking", USER)) == G1_IDS
    g2 = [163587, 2482, 163601, 18699, 163586, 163588, 69702, 163601, 163606]
    assert ids(kimi, render("kimi-k2.5", USER)) == g2
    assert ids(kimi, render("kimi-k2.5", USER, thinking=False)) == [*g2, 163607]
    assert ids(kimi, render("kimi-k2-thinking", *OPEN_LOOP, tools=(WEATHER,))) == G3_IDS


@settings(deadline=None, max_examples=50)
@given(conversations())
def test_client_text_is_no_control_token(kimi: KimiTokenizer, turns: tuple[Message, ...]) -> None:
    prompt = render("kimi-k2.5", *turns)
    controls = [part for part in prompt if isinstance(part, Control)]
    assert len([token for token in ids(kimi, prompt) if token >= 163_584]) == len(controls)
