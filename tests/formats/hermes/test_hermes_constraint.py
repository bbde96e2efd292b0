"""What answers in the `hermes` format may be; what is made by those rules is read back by the parser."""

import random
from typing import Any, assert_never

import msgspec
import pytest
from tests.formats.outputs import CHOICE, Answer, parse

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
from moonbase.chat.prompt import Control, Segment
from moonbase.chat.request import Conversation, Message, TextPart, Tool, ToolChoice
from moonbase.formats.hermes.format import Hermes

HI = Message(role="user", content=(TextPart("Hi"),))
TOOLS = tuple([Tool(name=name, declaration="{}", parameters="{}") for name in ("get", "get_all")])
SCHEMAS = (JsonSchema('{"type":"object","required":["a"]}'), JsonSchema('{"type":"object"}'))
JSON = JsonSchema('{"type":"object","required":["answer"]}')
VALUES = {SCHEMAS[0].schema: '{"a": 1}', SCHEMAS[1].schema: "{}", JSON.schema: '{"answer":42}'}
NAMED = ToolChoice("function", "get_all")


def conversation(kind: Any = "auto", **more: Any) -> Conversation:
    choice = NAMED if kind == "function" else ToolChoice(kind)
    return Conversation(messages=(HI,), tools=TOOLS, arguments=SCHEMAS, tool_choice=choice, **more)


def written(constraint: Constraint, dice: random.Random) -> list[Segment]:
    """One of the outputs that the constraint allows."""
    match constraint:
        case AnyText():
            return [dice.choice(["Hm.", "a\nb"])]
        case ConstString(value=value):
            return [value]
        case Marker(literal=literal):
            return [Control(literal)]
        case JsonSchema(schema=schema):
            return [VALUES[schema]]
        case Sequence(parts=parts):
            return [segment for part in parts for segment in written(part, dice)]
        case Or(parts=parts):
            return written(dice.choice(parts), dice)
        case Optional(part=part):
            return written(part, dice) if dice.random() < 0.5 else []
        case Repeat(part=part):
            return [segment for _ in range(dice.randint(0, 3)) for segment in written(part, dice)]
        case Triggered(trigger=trigger, then=then):
            text: list[Segment] = [dice.choice(["Yes.", ""])]
            return [*text, Control(trigger), *written(then, dice)] if dice.random() < 0.7 else text
        case Digits():
            return ["1"]
        case _:
            assert_never(constraint)


def answers(conversation: Conversation, *, thinks: bool = False, max_calls: int | None = None) -> list[Answer]:
    """What the parser reads out of outputs that the constraint allows."""
    format = Hermes(tokens=frozenset(Hermes.spelled), thinks=thinks, max_calls=max_calls)
    constraint = format.constraint(conversation)
    assert constraint is not None
    dice = random.Random(7)
    found: list[Answer] = []
    for _ in range(300):
        parser = format.parser(conversation, CHOICE)
        found.append(parse(parser, [[segment for segment in written(constraint, dice) if segment]]))
        assert parser.dropped == 0
    return found


def counts(answers: list[Answer]) -> set[int]:
    return {len(answer.calls) for answer in answers}


CALLED = {"get": '{"a": 1}', "get_all": "{}"}


@pytest.mark.parametrize(
    ("asked", "calls"),
    [
        (conversation("required"), {1, 2, 3, 4}),
        (conversation("required", parallel_tool_calls=False), {1}),
        (conversation("auto"), {0, 1, 2, 3, 4}),
        (conversation("auto", parallel_tool_calls=False), {0, 1}),
        (conversation("auto", content=JSON), {0, 1, 2, 3, 4}),
        (conversation("function"), {1}),
        (conversation("none"), {0}),
        (conversation("none", content=JSON), {0}),
    ],
)
@pytest.mark.parametrize("thinking", [False, True])
def test_what_is_allowed_is_what_was_asked_for(asked: Conversation, calls: set[int], thinking: bool) -> None:
    asked = msgspec.structs.replace(asked, thinking=thinking)
    found = answers(asked, thinks=True)
    assert counts(found) == calls
    for answer in found:
        for number, (identity, name, arguments) in enumerate(answer.calls):
            assert identity == f"{name}:{number}"
            assert arguments == CALLED[name]
            assert asked.tool_choice.kind != "function" or name == "get_all"
        if asked.content is not None:
            assert answer.content == ("" if answer.calls else '{"answer":42}')
    assert {answer.reasoning for answer in found} == ({"", "Hm.", "a\nb"} if thinking else {""})


@pytest.mark.parametrize("max_calls", [1, 2, 3])
def test_a_model_that_calls_on_and_on_is_held_to_a_number_of_calls(max_calls: int) -> None:
    assert counts(answers(conversation("required"), max_calls=max_calls)) == set(range(1, max_calls + 1))
    assert counts(answers(conversation("auto"), max_calls=max_calls)) == set(range(max_calls + 1))
    assert counts(answers(conversation("function"), max_calls=max_calls)) == {1}


def test_a_call_has_the_form_that_the_models_write() -> None:
    only = Conversation(messages=(HI,), tools=TOOLS[:1], arguments=SCHEMAS[:1], parallel_tool_calls=False)
    assert Hermes().constraint(only) == Triggered(
        "<tool_call>",
        Sequence(
            (
                Sequence(
                    (
                        ConstString('\n{"name": "get", "arguments": '),
                        JsonSchema(SCHEMAS[0].schema, spaced=True),
                        ConstString("}\n"),
                    )
                ),
                Marker("</tool_call>"),
            )
        ),
        excludes=("</tool_call>",),
    )


def test_without_tools_only_a_json_answer_is_enforced() -> None:
    plain = Conversation(messages=(HI,))
    assert Hermes().constraint(plain) is None
    assert Hermes(thinks=True).constraint(Conversation(messages=(HI,), thinking=True)) is None
    assert Hermes().constraint(Conversation(messages=(HI,), content=JSON)) == JSON


def test_calls_are_kept_out_where_there_must_be_none() -> None:
    assert Hermes().constraint(conversation("none")) == AnyText(("<tool_call>", "</tool_call>"))


def test_a_begun_answer_is_not_thought_about() -> None:
    begun = Message(role="assistant", content=(TextPart("{"),), partial=True)
    asked = Conversation(messages=(HI, begun), content=JSON, thinking=True)
    assert Hermes(thinks=True).constraint(asked) == JSON
