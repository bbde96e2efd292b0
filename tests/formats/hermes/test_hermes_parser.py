"""Raw output of ChatML models to events, under every cutting, with markers as tokens and as text."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from tests.formats.outputs import (
    CHOICE,
    Answer,
    characters,
    cuts,
    every_cutting,
    marker_ids,
    parse,
    parse_tokens,
    pieces,
    segments,
    tokens,
)

from moonbase.chat.events import ArgumentsDelta, TextDelta, ToolCallStarted
from moonbase.chat.prompt import Control, Segment
from moonbase.chat.request import Conversation, Message, TextPart, Tool
from moonbase.formats.hermes.format import Hermes
from moonbase.formats.hermes.parser import HermesParser

MARKERS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
TOKENS = frozenset(MARKERS)
IDS = marker_ids(MARKERS)


class Case(Struct, frozen=True, kw_only=True):
    """`spelled` is the answer where markers are text and it differs."""

    raw: str | list[Segment]
    answer: Answer
    spelled: Answer | None = None
    calls: bool = True
    dropped: int = 0


def call(body: str) -> str:
    return f"<tool_call>{body}</tool_call>"


def usual(name: str, arguments: str) -> str:
    return call(f'\n{{"name": "{name}", "arguments": {arguments}}}\n')


def answer(content: str = "", reasoning: str = "", **calls: str) -> Answer:
    """`f_0="{}"` is a call of `f` numbered 0."""
    found = [(*key.rpartition("_")[::2], arguments) for key, arguments in calls.items()]
    return Answer(content, reasoning, tuple([(f"{name}:{number}", name, text) for name, number, text in found]))


LONG = '{"text": "' + "0123456789" * 10_000 + '"}'
WEATHER = '{"city": "Beijing", "units": ["c", {"d": "}"}]}'

CASES = {
    # text and reasoning
    "text": Case(raw="Hello, 世界 🤔🎉!\n", answer=answer("Hello, 世界 🤔🎉!\n")),
    "nothing": Case(raw="", answer=answer()),
    "white space": Case(raw="\n Hi \n\n you\n ", answer=answer("\n Hi \n\n you\n ")),
    "reasoning": Case(raw="<think>\nHm.\n\nSo.\n</think>\n\nYes.", answer=answer("Yes.", "Hm.\n\nSo.")),
    "empty reasoning": Case(raw="<think>\n\n</think>\n\nYes.", answer=answer("Yes.")),
    "reasoning cut": Case(raw="<think>\nHm. I\n", answer=answer("", "Hm. I\n")),
    "reasoning twice": Case(raw="<think>a</think>\n\n<think>\nb</think>c", answer=answer("c", "ab")),
    "white space before reasoning": Case(raw="\n<think>a</think>b", answer=answer("b", "a")),
    "reasoning closed twice": Case(
        raw="<think>a</think>b</think>c", answer=answer("bc", "a"), spelled=answer("b</think>c", "a")
    ),
    "reasoning after text": Case(
        raw="a <think>b</think> c", answer=answer("a b c"), spelled=answer("a <think>b</think> c")
    ),
    # calls
    "one call": Case(raw=usual("f", WEATHER), answer=answer(f_0=WEATHER)),
    "two calls": Case(raw=usual("f", "{}") + "\n" + usual("g", '{"a": 1}'), answer=answer(f_0="{}", g_1='{"a": 1}')),
    "text before": Case(raw="I'll look.\n\n" + usual("f", "{}"), answer=answer("I'll look.", f_0="{}")),
    "white space before": Case(raw="\n\n" + usual("f", "{}"), answer=answer(f_0="{}")),
    "text in between and after": Case(
        raw=usual("f", "{}") + "\nand\n" + usual("g", "{}") + "\nDone.", answer=answer(f_0="{}", g_1="{}")
    ),
    "reasoning, text, call": Case(
        raw="<think>\nHm.\n</think>\n\nLook.\n" + usual("f", "{}"), answer=answer("Look.", "Hm.", f_0="{}")
    ),
    "a call in reasoning": Case(raw="<think>\nHm.\n" + usual("f", "{}"), answer=answer("", "Hm.", f_0="{}")),
    "reasoning after a call": Case(raw=usual("f", "{}") + "<think>Hm.</think>", answer=answer(f_0="{}")),
    # the object
    "no white space": Case(raw=call('{"name":"f","arguments":{"a":1}}'), answer=answer(f_0='{"a":1}')),
    "much white space": Case(
        raw=call(' \n{ "name" \n:\t"f" , "arguments" : {"a": 1} } '), answer=answer(f_0='{"a": 1}')
    ),
    "arguments first": Case(raw=call('{"arguments": {"a": "}"}, "name": "f"}'), answer=answer(f_0='{"a": "}"}')),
    "more keys": Case(
        raw=call('{"id": 7, "x": [{"name": "y"}], "name": "f", "type": "function", "arguments": {}, "z": null}'),
        answer=answer(f_0="{}"),
    ),
    "keys twice": Case(
        raw=call('{"name": "f", "name": "g", "arguments": {}, "arguments": {"a": 1}, "name": "h"}'),
        answer=answer(f_0="{}"),
    ),
    "arguments twice before the name": Case(
        raw=call('{"arguments": {}, "arguments": {"a": 1}, "name": "f"}'), answer=answer(f_0="{}")
    ),
    "no arguments": Case(raw=call('{"name": "f"}'), answer=answer(f_0="{}")),
    "an escaped name": Case(raw=call('{"na\\u006de": "\\u0066", "arguments": {}}'), answer=answer(f_0="{}")),
    "a list of calls": Case(
        raw=call('[{"name": "f", "arguments": {}},\n{"name": "g", "arguments": {}}]'), answer=answer(f_0="{}", g_1="{}")
    ),
    "two objects": Case(
        raw=call('\n{"name": "f", "arguments": {}}\n{"name": "g", "arguments": {}}\n'),
        answer=answer(f_0="{}", g_1="{}"),
    ),
    "fenced": Case(raw=call('```json\n{"name": "f", "arguments": {}}\n```'), answer=answer(f_0="{}")),
    **{
        f"arguments {arguments[:20]!r}": Case(raw=usual("f", arguments), answer=answer(f_0=arguments))
        for arguments in (
            *("{ }", "[]", "3", "-1.5e3", "null", '"{\\"a\\": 1}"', '{"a": 1\n}', '{"a": "\\\\"}', '{"a": "\\"}"}'),
            *('{"a": "<"}', '{"a": "</tool"}', '{"a": "\\u4e16 🤔世"}', '{"a": {"b": [[], {"c": 2}]}}', LONG),
        )
    },
    # broken
    "no closing brace": Case(raw=call('{"name": "f", "arguments": {"a": 1}\n'), answer=answer(f_0='{"a": 1}')),
    "one closing brace too many": Case(raw=call('{"name": "f", "arguments": {}}}'), answer=answer(f_0="{}")),
    "no closing brace, no arguments": Case(raw=call('{"name": "f"'), answer=answer(f_0="{}")),
    "a comma too many": Case(raw=call('{"name": "f", "arguments": {},}'), answer=answer(f_0="{}")),
    "no commas": Case(raw=call('{"name": "f" "arguments": {}}'), answer=answer(f_0="{}")),
    "arguments that do not end": Case(raw=call('{"name": "f", "arguments": {"a": [1}'), answer=answer(f_0='{"a": [1}')),
    "single quotes": Case(raw=call("{'name': 'f', 'arguments': {}}"), answer=answer(), dropped=1),
    "keys without quotes": Case(raw=call('{"name": "f", arguments: {}}'), answer=answer(), dropped=1),
    "no colon": Case(raw=call('{"name" "f"}'), answer=answer(), dropped=1),
    "no value": Case(raw=call('{"name": }'), answer=answer(), dropped=1),
    "no name": Case(raw=call('{"arguments": {"a": 1}}'), answer=answer(), dropped=1),
    "a name that is no text": Case(raw=call('{"name": 3, "arguments": {}}'), answer=answer(), dropped=1),
    "a name that is no JSON": Case(raw=call('{"name": "\\x", "arguments": {}}'), answer=answer(), dropped=1),
    "half a surrogate for a name": Case(raw=call('{"name": "\\ud800", "arguments": {}}'), answer=answer(), dropped=1),
    "no object": Case(raw=call("f(1)") + usual("g", "{}"), answer=answer(g_0="{}"), dropped=1),
    "nothing in a call": Case(raw=call("") + "Yes.", answer=answer("Yes."), dropped=1),
    "no end, another": Case(
        raw='<tool_call>{"name": "f", "arguments": {"a": 1}\n' + usual("g", "{}"),
        answer=answer(f_0='{"a": 1}', g_1="{}"),
    ),
    "no end": Case(raw='<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n', answer=answer(f_0='{"a": 1}')),
    "cut in the arguments": Case(raw='<tool_call>{"name": "f", "arguments": {"a": ', answer=answer(f_0='{"a": ')),
    "cut before the arguments": Case(raw='<tool_call>{"name": "f", "arguments": ', answer=answer(), dropped=1),
    "cut after the name": Case(raw='<tool_call>{"name": "f"', answer=answer(), dropped=1),
    "cut in the name": Case(raw='<tool_call>{"name": "f', answer=answer(), dropped=1),
    "an end without a call": Case(raw="Yes</tool_call>.", answer=answer("Yes."), spelled=answer("Yes</tool_call>.")),
    "an end inside a string": Case(
        raw=call('{"name": "f", "arguments": {"a": "</tool_call>"}}'),
        answer=answer(f_0='{"a": "'),
        spelled=answer(f_0='{"a": "</tool_call>"}'),
    ),
    "reasoning inside a string": Case(
        raw=call('{"name": "f", "arguments": {"a": "<think></think>"}}'),
        answer=answer(f_0='{"a": ""}'),
        spelled=answer(f_0='{"a": "<think></think>"}'),
    ),
    "markers spelled": Case(
        raw=["Write <tool_call> ", *segments(usual("f", "{}"), MARKERS)], answer=answer("Write <tool_call>", f_0="{}")
    ),
    "half a marker at the end": Case(raw="a </tool_c", answer=answer("a </tool_c")),
    # without calls
    "calls not wanted": Case(
        raw="Use " + usual("f", "{}") + " so.",
        calls=False,
        answer=answer('Use \n{"name": "f", "arguments": {}}\n so.'),
        spelled=answer('Use <tool_call>\n{"name": "f", "arguments": {}}\n</tool_call> so.'),
    ),
}


def parser_for(case: Case, spelled: bool) -> HermesParser:
    return HermesParser(CHOICE, 0, calls=case.calls, tokens=frozenset() if spelled else TOKENS)


def raw_of(case: Case) -> list[Segment]:
    return segments(case.raw, MARKERS) if isinstance(case.raw, str) else case.raw


@pytest.fixture(params=[name for name in CASES if len(CASES[name].raw) < 1000])
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.mark.parametrize("name", CASES)
def test_an_output_is_read_as_the_table_says(name: str) -> None:
    case = CASES[name]
    for spelled in (False, True):
        parser = parser_for(case, spelled)
        assert parse(parser, [raw_of(case)]) == ((spelled and case.spelled) or case.answer)
        assert parser.dropped == case.dropped


def test_any_cutting_of_segments_gives_the_same(case: Case) -> None:
    for cutting in every_cutting(characters(raw_of(case))):
        assert parse(parser_for(case, spelled=False), cutting) == case.answer


def test_any_cutting_of_token_ids_gives_the_same(case: Case) -> None:
    for cutting in every_cutting(tokens(raw_of(case), IDS)):
        assert parse_tokens(parser_for(case, spelled=False), cutting, IDS, ()) == case.answer


def test_any_cutting_of_text_gives_the_same(case: Case) -> None:
    if isinstance(case.raw, str):
        for cutting in every_cutting(list(case.raw.encode())):
            assert parse_tokens(parser_for(case, spelled=True), cutting, {}, MARKERS) == (case.spelled or case.answer)


@given(st.sampled_from(list(CASES)), cuts)
def test_random_cuts_give_the_same(name: str, at: list[int]) -> None:
    case = CASES[name]
    by_id = parse_tokens(parser_for(case, spelled=False), pieces(tokens(raw_of(case), IDS), at), IDS, ())
    assert by_id == case.answer
    if isinstance(case.raw, str):
        by_text = parse_tokens(parser_for(case, spelled=True), pieces(list(case.raw.encode()), at), {}, MARKERS)
        assert by_text == (case.spelled or case.answer)


begun = st.tuples(st.sampled_from(MARKERS), st.integers(1, 12)).map(lambda part: part[0][: part[1]])
words = st.sampled_from(['"name"', '"arguments"', '"f"', ":", ",", "{", "}", '{"name": "f", "arguments": {"a": "'])
noise = st.text('{}[]":,\\ \nf0🤔é', min_size=1, max_size=5)
anything: Any = st.lists(st.sampled_from([Control(literal) for literal in MARKERS]) | words | noise, max_size=40)
spelled_anything = st.lists(st.sampled_from(MARKERS) | begun | words | noise, max_size=20).map("".join)


@given(anything, cuts, st.booleans())
def test_whatever_a_model_writes_no_marker_is_shown(raw: list[Segment], at: list[int], calls: bool) -> None:
    def parser() -> HermesParser:
        return HermesParser(CHOICE, 0, calls=calls, tokens=TOKENS)

    answer = parse(parser(), [raw])
    assert "<" not in str(answer)
    assert calls or not answer.calls
    assert parse_tokens(parser(), pieces(tokens(raw, IDS), at), IDS, ()) == answer


@given(spelled_anything, cuts, st.booleans())
def test_whatever_is_spelled_any_cutting_gives_the_same(raw: str, at: list[int], calls: bool) -> None:
    def parser() -> HermesParser:
        return HermesParser(CHOICE, 0, calls=calls, tokens=frozenset())

    answer = parse(parser(), [segments(raw, MARKERS)])
    assert parse_tokens(parser(), pieces(list(raw.encode()), at), {}, MARKERS) == answer


def test_arguments_are_given_as_they_come() -> None:
    parser = HermesParser(CHOICE, 0, calls=True, tokens=TOKENS)
    assert parser.feed([Control("<tool_call>"), '\n{"name": "f"', ', "arguments": ']) == []
    assert parser.feed(["{"]) == [ToolCallStarted(CHOICE, 0, "f:0", "f"), ArgumentsDelta(CHOICE, 0, "{")]
    assert parser.feed(['"a": 1']) == [ArgumentsDelta(CHOICE, 0, '"a": 1')]
    assert parser.feed(["}}\n"]) == [ArgumentsDelta(CHOICE, 0, "}")]
    assert parser.feed([Control("</tool_call>")]) + parser.flush(complete=True) == []


def test_white_space_is_held_until_more_text_comes() -> None:
    parser = HermesParser(CHOICE, 0, calls=True, tokens=TOKENS)
    assert parser.feed(["a \n"]) == [TextDelta(CHOICE, "a")]
    assert parser.feed(["\n"]) == []
    assert parser.feed(["b"]) == [TextDelta(CHOICE, " \n\nb")]


def test_a_parser_says_whether_reasoning_comes_next() -> None:
    parser = HermesParser(CHOICE, 0, calls=True, tokens=TOKENS)
    seen = [parser.reasoning]
    for segment in segments("<think>a</think>b<tool_call>", MARKERS):
        parser.feed([segment])
        seen.append(parser.reasoning)
    assert seen == [False, True, True, False, False, False]


def test_ids_count_on() -> None:
    parser = HermesParser(CHOICE, 7, calls=True, tokens=TOKENS)
    found = parse(parser, [segments(usual("f", "{}") * 2, MARKERS)])
    assert [identity for identity, _, _ in found.calls] == ["f:7", "f:8"]


def test_a_quoted_marker_ends_no_call_where_tokens_may_be_spelled():
    asked = Conversation(
        messages=(Message(role="user", content=(TextPart("?"),)),),
        tools=(Tool(name="f", declaration="{}", parameters="{}"),),
    )
    parser = Hermes(tokens=TOKENS, spells_markers=True).parser(asked, CHOICE)
    raw: list[Segment] = [
        *(Control("<tool_call>"), '\n{"name": "f", "arguments": {"a": "'),
        *(Control("</tool_call>"), '"}}\n', Control("</tool_call>")),
    ]
    events = [*parser.feed(raw), *parser.flush(complete=True)]
    assert "".join([event.text for event in events if isinstance(event, ArgumentsDelta)]) == '{"a": "</tool_call>"}'
