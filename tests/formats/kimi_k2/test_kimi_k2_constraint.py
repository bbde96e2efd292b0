"""What answers may be, held against outputs and against the parser (kimi-protocol.md 6.3)."""

import json
import random
from collections.abc import Iterator
from typing import Any, assert_never

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonbase.chat.constraint import (
    AnyText,
    Constraint,
    ConstString,
    Digits,
    JsonSchema,
    Marker,
    Optional,
    Or,
    Repeat,
    Sequence,
    Triggered,
)
from moonbase.chat.events import ArgumentsDelta, ReasoningDelta, TextDelta, ToolCallStarted
from moonbase.chat.prompt import Control, Segment
from moonbase.chat.request import Conversation, Message, TextPart, Tool, ToolCall, ToolChoice
from moonbase.formats.kimi_k2.format import KimiK2
from moonbase.formats.kimi_k2.revisions import REVISIONS

SECTION, SECTION_END = Control("<|tool_calls_section_begin|>"), Control("<|tool_calls_section_end|>")
CALL, ARGUMENTS, CALL_END = (
    Control("<|tool_call_begin|>"),
    Control("<|tool_call_argument_begin|>"),
    Control("<|tool_call_end|>"),
)
THINK, THOUGHT = Control("<think>"), Control("</think>")
USER = Message(role="user", content=(TextPart("Hi"),))
CITY = '{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}'
SCHEMAS = {
    "get": CITY,
    "get_weather": '{"type":"object"}',
    "a-b": '{"type":"object","properties":{"n":{"type":"integer"}}}',
}
EXAMPLES = {CITY: '{"city": "Oslo"}', SCHEMAS["get_weather"]: "{}", SCHEMAS["a-b"]: '{"n": 3}'}
ANSWER = '{"type":"object","properties":{"answer":{"type":"string"}},"required":["answer"]}'
EXAMPLES[ANSWER] = '{"answer":"42"}'


def conversation(*messages: Message, tools: int = 3, content: bool = False, **fields: Any) -> Conversation:
    names = list(SCHEMAS)[:tools]
    return Conversation(
        messages=messages or (USER,),
        tools=tuple([Tool(name=name, declaration="{}", parameters=SCHEMAS[name]) for name in names]),
        arguments=tuple([JsonSchema(SCHEMAS[name]) for name in names]),
        content=JsonSchema(ANSWER) if content else None,
        **fields,
    )


def constraint(wanted: Conversation, revision: str = "kimi-k2-0905") -> Constraint:
    built = KimiK2(revision).constraint(wanted)
    assert built is not None
    return built


def allows(built: Constraint, *output: Segment) -> bool:
    """Whether the whole output is allowed."""
    items: list[Segment] = []
    for segment in output:
        items += [segment] if isinstance(segment, Control) else list(segment)
    return len(items) in set(_ends(built, items, 0))


def _ends(built: Constraint, items: list[Segment], at: int) -> Iterator[int]:
    """Where a match from `at` on may end."""
    match built:
        case AnyText(excludes):
            yield at
            while at < len(items) and not _is_marker(items[at], excludes):
                at += 1
                yield at
        case ConstString(value):
            if items[at : at + len(value)] == list(value):
                yield at + len(value)
        case Digits():
            for size in range(1, 10):
                run = items[at : at + size]
                if len(run) == size and all(item in list("0123456789") for item in run):
                    yield at + size
        case Marker(literal):
            if items[at : at + 1] == [Control(literal)]:
                yield at + 1
        case JsonSchema(schema):
            run = items[at:]
            text = "".join([item for item in run[: _first_control(run)] if isinstance(item, str)])
            try:
                value, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                return
            if jsonschema_rs.is_valid(json.loads(schema), value):
                yield at + end
        case Sequence(parts):
            places = {at}
            for part in parts:
                places = {end for place in places for end in _ends(part, items, place)}
            yield from places
        case Or(parts):
            for part in parts:
                yield from _ends(part, items, at)
        case Optional(part):
            yield at
            yield from _ends(part, items, at)
        case Repeat(part):
            places, found = {at}, {at}
            while places:
                places = {end for place in places for end in _ends(part, items, place)} - found
                found |= places
            yield from found
        case Triggered(trigger, then, excludes):
            for end in _ends(AnyText((*excludes, trigger)), items, at):
                if end == len(items):
                    yield end
                elif items[end] == Control(trigger):
                    yield from _ends(then, items, end + 1)
        case _:
            assert_never(built)


def _is_marker(item: Segment, excludes: tuple[str, ...]) -> bool:
    return isinstance(item, Control) and item.name in excludes


def _first_control(run: list[Segment]) -> int:
    return next((at for at, item in enumerate(run) if isinstance(item, Control)), len(run))


def call(id: str, arguments: str = "{}") -> tuple[Segment, ...]:
    return (CALL, id, ARGUMENTS, arguments, CALL_END)


def section(*calls: tuple[Segment, ...]) -> tuple[Segment, ...]:
    return (SECTION, *[segment for made in calls for segment in made], SECTION_END)


ONE = call("functions.get_weather:0")
TWO = call("functions.get:1", '{"city": "Oslo"}')


def test_auto_allows_text_calls_and_text_before_calls() -> None:
    built = constraint(conversation())
    assert allows(built)
    assert allows(built, "Hello")
    assert allows(built, *section(ONE))
    assert allows(built, "Let me see. ", *section(ONE, TWO))
    assert allows(built, "Text that spells <|tool_calls_section_begin|> is text")


@pytest.mark.parametrize(
    "output",
    [
        (*section(ONE), "after"),
        (*section(ONE), *section(TWO)),
        section(),
        ONE,
        (SECTION, *ONE),
        (SECTION, "text", *ONE, SECTION_END),
        section(call("functions.nobody:0")),
        section(call("get_weather:0")),
        section(call("functions.get_weather:1")),
        section(call("functions.get_weather:00")),
        section(call("functions.get_weather")),
        section(ONE, call("functions.get_weather:0")),
        section(ONE, call("functions.get_weather:2")),
        section(call("functions.get:0", "{}")),
        section(call("functions.get:0", '{"city": 5}')),
        section(call("functions.get:0", "")),
        section(call("functions.get_weather:0", "[]")),
        section((CALL, "functions.get_weather:0", CALL_END)),
        ("text", CALL_END),
        ("text", SECTION_END),
        ("text", ARGUMENTS),
    ],
)
def test_calls_that_would_not_be_valid_are_not_allowed(output: tuple[Segment, ...]) -> None:
    assert not allows(constraint(conversation()), *output)
    assert not allows(constraint(conversation(tool_choice=ToolChoice("required"))), *output)


def test_a_name_that_begins_another_is_told_apart() -> None:
    built = constraint(conversation())
    assert allows(built, *section(call("functions.get:0", '{"city": "Oslo"}')))
    assert not allows(built, *section(call("functions.get_weather:0", "5")))


def test_required_begins_with_a_call() -> None:
    built = constraint(conversation(tool_choice=ToolChoice("required")))
    assert allows(built, *section(ONE, TWO))
    assert not allows(built)
    assert not allows(built, "Hello")
    assert not allows(built, "Hello", *section(ONE))


def test_a_named_tool_is_called_once() -> None:
    built = constraint(conversation(tool_choice=ToolChoice("function", "get_weather")))
    assert allows(built, *section(ONE))
    assert not allows(built, *section(call("functions.get:0", '{"city": "Oslo"}')))
    assert not allows(built, *section(ONE, call("functions.get_weather:1")))
    assert not allows(built)


def test_without_parallel_calls_there_is_one_at_most() -> None:
    for choice in ("auto", "required"):
        built = constraint(conversation(tool_choice=ToolChoice(choice), parallel_tool_calls=False))  # type: ignore[arg-type]
        assert allows(built, *section(ONE))
        assert not allows(built, *section(ONE, TWO))
        assert allows(built, "Hello") is (choice == "auto")


def test_none_allows_any_text_without_calls() -> None:
    built = constraint(conversation(tool_choice=ToolChoice("none")))
    assert allows(built, "Hello <|tool_call_begin|>")
    for marker in (SECTION, SECTION_END, CALL, ARGUMENTS, CALL_END):
        assert not allows(built, "Hello", marker)


@pytest.mark.parametrize("kind", ["auto", "none"])
@pytest.mark.parametrize("revision", REVISIONS)
def test_without_tools_anything_goes(revision: str, kind: Any) -> None:
    wanted = conversation(tools=0, tool_choice=ToolChoice(kind), thinking=True)
    assert KimiK2(revision).constraint(wanted) is None


def test_the_numbers_go_on_from_those_of_the_conversation() -> None:
    calls = tuple([ToolCall(id, "get_weather", "{}") for id in ("get_weather:4", "get_weather:7")])
    results = [Message(role="tool", tool_call_id=made.id) for made in calls]
    built = constraint(conversation(USER, Message(role="assistant", tool_calls=calls), *results))
    assert allows(built, *section(call("functions.get_weather:8"), call("functions.get_weather:9")))
    assert not allows(built, *section(call("functions.get_weather:2")))


def test_any_number_follows_where_forcing_it_would_cost_too_much() -> None:
    """Eight numbers are forced; what follows keeps its form."""
    built = constraint(conversation())
    forced = [call(f"functions.get_weather:{number}") for number in range(8)]
    more = [call("functions.get_weather:77"), call("functions.get:8", '{"city": "Oslo"}')]
    assert allows(built, *section(*forced))
    assert allows(built, *section(*forced, *more))
    assert not allows(built, *section(*forced[:7], *more))
    assert not allows(built, *section(*forced, call("functions.get_weather:x")))
    assert not allows(built, *section(*forced, call("functions.nobody:8")))


def _parts(built: Constraint) -> Iterator[Constraint]:
    yield built
    match built:
        case Sequence(parts) | Or(parts):
            for part in parts:
                yield from _parts(part)
        case Optional(part) | Repeat(part):
            yield from _parts(part)
        case Triggered(_, then):
            yield from _parts(then)


@pytest.mark.parametrize(("count", "forced"), [(1, 8), (32, 8), (33, 7), (128, 2), (300, 1)])
def test_the_size_is_bounded_and_each_schema_is_one_object(count: int, forced: int) -> None:
    """So compilers can know it again."""
    schemas = [JsonSchema(f'{{"type":"object","title":"{index}"}}') for index in range(count)]
    tools = [Tool(name=f"t{index}", declaration="{}", parameters=schema.schema) for index, schema in enumerate(schemas)]
    built = constraint(Conversation(messages=(USER,), tools=tuple(tools), arguments=tuple(schemas)))
    names = [part.value for part in _parts(built) if isinstance(part, ConstString)]
    assert len(names) == count * (forced + 1)
    assert {name for name in names if name.startswith("functions.t0:")} == {
        "functions.t0:",
        *[f"functions.t0:{number}" for number in range(forced)],
    }
    assert len({id(part) for part in _parts(built) if isinstance(part, JsonSchema)}) == count


def test_arguments_may_have_the_spaces_that_the_model_writes() -> None:
    built = constraint(conversation(content=True))
    schemas = {part.schema: part.spaced for part in _parts(built) if isinstance(part, JsonSchema)}
    assert schemas == {**dict.fromkeys(SCHEMAS.values(), True), ANSWER: False}


@pytest.mark.parametrize("tools", [0, 3])
@pytest.mark.parametrize("kind", ["auto", "none"])
def test_a_json_answer_is_the_answer_or_the_alternative_to_calls(tools: int, kind: Any) -> None:
    built = constraint(conversation(tools=tools, content=True, tool_choice=ToolChoice(kind)))
    assert allows(built, '{"answer":"42"}')
    assert not allows(built, "42")
    assert not allows(built, '{"answer":42}')
    assert allows(built, *section(ONE)) is (tools > 0 and kind == "auto")
    assert not allows(built, '{"answer":"42"}', *section(ONE))


def test_a_forced_call_leaves_no_room_for_a_json_answer() -> None:
    built = constraint(conversation(content=True, tool_choice=ToolChoice("required")))
    assert allows(built, *section(ONE))
    assert not allows(built, '{"answer":"42"}')


THINKING = [name for name, revision in REVISIONS.items() if revision.opens != "nobody"]
CHOICES = [
    {},
    {"tool_choice": ToolChoice("required")},
    {"tool_choice": ToolChoice("function", "get")},
    {"tool_choice": ToolChoice("none")},
    {"content": True},
    {"content": True, "tools": 0},
    {"parallel_tool_calls": False},
]


@pytest.mark.parametrize("fields", CHOICES)
@pytest.mark.parametrize("revision", THINKING)
def test_reasoning_comes_first_and_ends(revision: str, fields: dict[str, Any]) -> None:
    built = constraint(conversation(thinking=True, **fields), revision)
    opening = (THINK,) if revision == "kimi-k2-thinking" else ()
    answer = _sample(constraint(conversation(**fields)), random.Random(1))
    assert allows(built, *opening, "I wonder.", THOUGHT, *answer)
    assert allows(built, *opening, THOUGHT, *answer)
    assert not allows(built, *opening, "I wonder.")
    assert not allows(built, *answer)
    for marker in (SECTION, CALL, THINK):
        assert not allows(built, *opening, "I wonder", marker, THOUGHT, *answer)
    if opening:
        assert not allows(built, "I wonder.", THOUGHT, *answer)


def test_thinking_is_not_begun_again_in_the_answer() -> None:
    for wanted in (conversation(thinking=True), conversation(thinking=True, tool_choice=ToolChoice("none"))):
        built = constraint(wanted, "kimi-k2.5")
        assert not allows(built, "R", THOUGHT, "text", THINK)
        assert not allows(built, "R", THOUGHT, "text", THOUGHT)


@pytest.mark.parametrize("revision", ["kimi-k2.5", "kimi-k2.6"])
def test_without_thinking_the_answer_begins_at_once(revision: str) -> None:
    built = constraint(conversation(thinking=False), revision)
    assert allows(built, "Hello", *section(ONE))
    assert not allows(built, "R", THOUGHT, "Hello")


def test_reasoning_cannot_be_left_out_where_the_model_always_thinks() -> None:
    built = constraint(conversation(thinking=False), "kimi-k2-thinking")
    assert allows(built, THINK, "R", THOUGHT, "Hello")
    assert not allows(built, "Hello")


@pytest.mark.parametrize("revision", THINKING)
def test_a_partial_message_with_text_is_past_its_reasoning(revision: str) -> None:
    partial = Message(role="assistant", content=(TextPart("It is"),), partial=True)
    built = constraint(conversation(USER, partial, thinking=True), revision)
    assert allows(built, " so.")
    assert not allows(built, "R", THOUGHT, " so.")


def test_a_partial_message_with_reasoning_only_goes_on_with_it() -> None:
    partial = Message(role="assistant", reasoning="I", partial=True)
    built = constraint(conversation(USER, partial, thinking=True), "kimi-k2-thinking")
    assert allows(built, " wonder", THOUGHT, "Hello")
    assert not allows(built, THINK, "R", THOUGHT, "Hello")


def _sample(built: Constraint, chance: random.Random) -> list[Segment]:
    """An output that `built` allows."""
    match built:
        case AnyText():
            return chance.choice([[], ["some text"], [" <|im_end|> "]])
        case ConstString(value):
            return [value]
        case Digits():
            return [str(chance.randrange(10**9))]
        case Marker(literal):
            return [Control(literal)]
        case JsonSchema(schema):
            return [EXAMPLES[schema]]
        case Sequence(parts):
            return [segment for part in parts for segment in _sample(part, chance)]
        case Or(parts):
            return _sample(chance.choice(parts), chance)
        case Optional(part):
            return _sample(part, chance) if chance.random() < 0.8 else []
        case Repeat(part):
            return [segment for _ in range(chance.randrange(4)) for segment in _sample(part, chance)]
        case Triggered(trigger, then, excludes):
            text = _sample(AnyText(excludes), chance)
            return [*text, Control(trigger), *_sample(then, chance)] if chance.random() < 0.8 else text
        case _:
            assert_never(built)


@given(
    st.sampled_from(list(REVISIONS)),
    st.sampled_from(CHOICES),
    st.booleans(),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_what_is_allowed_is_parsed_as_valid_calls_with_the_next_numbers(
    revision: str, fields: dict[str, Any], thinking: bool, earlier: int, chance: random.Random
) -> None:
    history: list[Message] = []
    for index in range(earlier):
        history.append(Message(role="assistant", tool_calls=(ToolCall(f"x{index}", "get_weather", "{}"),)))
        history.append(Message(role="tool", tool_call_id=f"x{index}"))
    wanted = conversation(USER, *history, thinking=thinking, **fields)
    format = KimiK2(revision)
    built = format.constraint(wanted)
    assert built is not None
    output = _sample(built, chance)
    assert allows(built, *output)
    parser = format.parser(wanted, 2)
    events = parser.feed(output) + parser.flush(complete=True)

    started = [event for event in events if isinstance(event, ToolCallStarted)]
    assert len(started) == parser.calls == output.count(CALL)
    for index, event in enumerate(started):
        assert (event.choice, event.index, event.id) == (2, index, f"{event.name}:{earlier + index}")
        given = [part.text for part in events if isinstance(part, ArgumentsDelta) and part.index == index]
        assert "".join(given) == EXAMPLES[SCHEMAS[event.name]]
    shown = [event.text for event in events if isinstance(event, TextDelta | ReasoningDelta)]
    assert not any(marker in "".join(shown) for marker in format.controls if marker != "<|im_end|>")
    if format.reasons and (thinking or revision in ("kimi-k2-thinking", "kimi-k2.7-code")):
        assert output.count(THOUGHT) == 1
