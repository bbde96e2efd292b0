"""Kimi K2's raw output to events: kimi-protocol.md 3.5 as a table, under every cutting, by token ids and by text."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from tests.e2e.server import kimi_vocabulary
from tests.formats.outputs import (
    CHOICE,
    Answer,
    characters,
    cuts,
    every_cutting,
    fold,
    marker_ids,
    parse,
    parse_tokens,
    pieces,
    segments,
    tokens,
)

from moonbase.chat.events import ArgumentsDelta, ToolCallStarted
from moonbase.chat.prompt import Control, Segment
from moonbase.engines.tokenizers.kimi import KimiTokenizer
from moonbase.formats.kimi_k2.parser import MISSPELT, KimiK2Parser
from moonbase.formats.kimi_k2.prompt import CALLS, THINK
from moonbase.formats.output import OutputDecoder

MARKERS = (*CALLS, *THINK, "<|im_end|>")
ALL = (*MARKERS, *MISSPELT)
IDS = marker_ids(MARKERS)
BEGIN, END, CALL, ARGUMENTS, CALL_END = CALLS


class Case(Struct, frozen=True, kw_only=True):
    """`complete` where the model ends the output without a marker.

    `text_differs` where characters that spell a marker are text by token ids and a marker by text.
    """

    raw: str | list[Segment]
    answer: Answer
    reasoning: bool = False
    calls: bool = True
    first_call: int = 0
    dropped: int = 0
    complete: bool = False
    text_differs: bool = False


def call(written: str, arguments: str) -> str:
    return f"{CALL}{written}{ARGUMENTS}{arguments}{CALL_END}"


def section(*calls: str) -> str:
    return f"{BEGIN}{''.join(calls)}{END}"


def answer(content: str = "", reasoning: str = "", **calls: str) -> Answer:
    """`f_0="{}"` is a call of `f` numbered 0."""
    found = [(*key.rpartition("_")[::2], arguments) for key, arguments in calls.items()]
    return Answer(content, reasoning, tuple([(f"{name}:{number}", name, text) for name, number, text in found]))


def named(written: str, name: str, number: int = 0) -> Case:
    return Case(raw=section(call(written, "{}")), answer=Answer(calls=((f"{name}:{number}", name, "{}"),)))


LONG = '{"text": "' + "0123456789" * 10_000 + '"}'
WEATHER = '{"city": "Beijing", "unit": "c"}'

CASES = {
    # turns
    "text": Case(raw="Hello, 世界 🤔🎉!\n", answer=answer("Hello, 世界 🤔🎉!\n")),
    "nothing": Case(raw="", answer=answer()),
    "white space alone": Case(raw=" \n ", answer=answer(" \n ")),
    "white space first": Case(raw="\n\n Hi", answer=answer("\n\n Hi")),
    "reasoning, text": Case(raw="Hm. 🤔</think>Yes.", reasoning=True, answer=answer("Yes.", "Hm. 🤔")),
    "the model opens reasoning": Case(raw="<think>Hm.</think>Yes.", answer=answer("Yes.", "Hm.")),
    "white space before reasoning": Case(raw="\n<think>Hm.</think>Yes.", answer=answer("Yes.", "Hm.")),
    "reasoning opened again": Case(raw="<think>Hm.</think>Yes.", reasoning=True, answer=answer("Yes.", "Hm.")),
    "reasoning twice": Case(raw="<think>a</think><think>b</think>c", answer=answer("c", "ab")),
    "reasoning opened after text": Case(raw="a<think>b</think>c", answer=answer("abc")),
    "reasoning closed twice": Case(raw="Hm.</think>Yes</think>.", reasoning=True, answer=answer("Yes.", "Hm.")),
    "reasoning cut": Case(raw="Hm. I", reasoning=True, answer=answer("", "Hm. I")),
    "empty reasoning": Case(raw="</think>Yes.", reasoning=True, answer=answer("Yes.")),
    "thinks though it should not": Case(raw="Hm.</think>Yes.", answer=answer("Hm.Yes.")),
    "nothing after the turn": Case(raw=f"Yes.<|im_end|>user{section(call('f', '{}'))}<think>", answer=answer("Yes.")),
    "the turn ends in white space": Case(raw="\n<|im_end|>", answer=answer("\n")),
    # calls
    "one call": Case(
        raw=section(call("functions.get_weather:0", WEATHER)) + "<|im_end|>", answer=answer(get_weather_0=WEATHER)
    ),
    "two calls": Case(
        raw=section(call("functions.f:0", '{"a":1}'), call("functions.g:1", "{}")),
        answer=answer(f_0='{"a":1}', g_1="{}"),
    ),
    "the same function twice": Case(
        raw=section(call("functions.f:0", "[]"), call("functions.f:1", "{}")), answer=answer(f_0="[]", f_1="{}")
    ),
    "three calls in a row": Case(
        raw=section(*[call(f"functions.f:{number}", "{}") for number in (7, 8, 9)]),
        first_call=7,
        answer=answer(f_7="{}", f_8="{}", f_9="{}"),
    ),
    "two sections": Case(
        raw=section(call("functions.f:0", "{}")) + section(call("functions.g:1", "{}")),
        answer=answer(f_0="{}", g_1="{}"),
    ),
    "text before": Case(
        raw="I'll look.\n" + section(call("functions.f:0", "{}")), answer=answer("I'll look.\n", f_0="{}")
    ),
    "white space before": Case(raw="\n\n" + section(call("functions.f:0", "{}")), answer=answer(f_0="{}")),
    "text in between": Case(
        raw=section(call("functions.f:0", "{}"), " and ", call("functions.g:1", "{}")),
        answer=answer(f_0="{}", g_1="{}"),
    ),
    "text after": Case(raw=section(call("functions.f:0", "{}")) + "Done.", answer=answer(f_0="{}")),
    "text between sections": Case(
        raw=section(call("functions.f:0", "{}")) + " and " + section(call("functions.g:1", "{}")),
        answer=answer(f_0="{}", g_1="{}"),
    ),
    "garbage in the section": Case(raw=section("\nwell: ", call("functions.f:0", "{}")), answer=answer(f_0="{}")),
    "reasoning, text, call": Case(
        raw="Hm.</think>Look." + section(call("functions.f:0", "{}")),
        reasoning=True,
        answer=answer("Look.", "Hm.", f_0="{}"),
    ),
    # broken structure
    "no section": Case(raw=call("functions.f:0", "{}"), answer=answer(f_0="{}")),
    "no section, text before": Case(raw="Look." + call("functions.f:0", "{}"), answer=answer("Look.", f_0="{}")),
    "no end of the section": Case(raw=BEGIN + call("functions.f:0", "{}"), answer=answer(f_0="{}")),
    "an end without a section": Case(raw=f"Yes{END}.", answer=answer("Yes.")),
    "other ends without a call": Case(raw=f"Y{CALL_END}e{ARGUMENTS}s.", answer=answer("Yes.")),
    "an empty section": Case(raw=section() + "Yes.", answer=answer("Yes.")),
    "no end of the call, another": Case(
        raw=f"{BEGIN}{CALL}functions.f:0{ARGUMENTS}{{}}{call('functions.g:1', '{}')}{END}",
        answer=answer(f_0="{}", g_1="{}"),
    ),
    "no end of the call, the section's": Case(
        raw=f"{BEGIN}{CALL}functions.f:0{ARGUMENTS}{WEATHER}{END}", answer=answer(f_0=WEATHER)
    ),
    "no end of the call, the turn's": Case(
        raw=f"{BEGIN}{CALL}functions.f:0{ARGUMENTS}<|im_end|>", answer=answer(f_0="{}")
    ),
    "no end of anything": Case(raw=f"{BEGIN}{CALL}functions.f:0{ARGUMENTS}{WEATHER}", answer=answer(f_0=WEATHER)),
    "incomplete, then another": Case(
        raw=f'{CALL}functions.f:0{ARGUMENTS}{{"a{call("functions.g:1", "{}")}', answer=answer(f_0='{"a', g_1="{}")
    ),
    "cut in the id": Case(raw=f"{BEGIN}{CALL}functions.get_w", answer=answer(), dropped=1),
    "cut before the id": Case(raw=f"{BEGIN}{CALL}", answer=answer(), dropped=1),
    "cut before the arguments": Case(raw=f"{CALL}functions.f:0{ARGUMENTS}", answer=answer(f_0="")),
    "ended before the arguments": Case(raw=f"{CALL}functions.f:0{ARGUMENTS} ", answer=answer(f_0="{}"), complete=True),
    "ended in the id": Case(raw=f"{BEGIN}{CALL}functions.f", answer=answer(), dropped=1, complete=True),
    "ended in the arguments": Case(raw=f"{CALL}functions.f:0{ARGUMENTS}[1", answer=answer(f_0="[1"), complete=True),
    "cut in the arguments": Case(
        raw=f'{CALL}functions.f:0{ARGUMENTS}{{"city": "Bei', answer=answer(f_0='{"city": "Bei')
    ),
    "no marker before the arguments": Case(
        raw=section(f"{CALL}functions.f:0 {WEATHER}{CALL_END}", call("functions.g:1", "{}")),
        answer=answer(g_0="{}"),
        dropped=1,
    ),
    "a call in reasoning": Case(
        raw="I'll look." + section(call("functions.f:0", "{}")),
        reasoning=True,
        answer=answer("", "I'll look.", f_0="{}"),
    ),
    "a bare call in reasoning": Case(
        raw="I'll look." + call("functions.f:0", "{}"), reasoning=True, answer=answer("", "I'll look.", f_0="{}")
    ),
    "reasoning closed in a call": Case(
        raw="Hm." + section(f"{CALL}functions.f</think>:0{ARGUMENTS}{{<think>}}{CALL_END}") + "</think>",
        reasoning=True,
        answer=answer("", "Hm.", f_0="{}"),
    ),
    "misspelt section": Case(
        raw=f"Look.{MISSPELT[0]}{call('functions.f:0', '{}')}{MISSPELT[1]}", answer=answer("Look.", f_0="{}")
    ),
    "misspelt section alone": Case(raw=f"It is {MISSPELT[0]}.", answer=answer("It is .")),
    "misspelt section in arguments": Case(
        raw=call("functions.f:0", f'{{"a": "{MISSPELT[0]}"}}'), answer=answer(f_0=f'{{"a": "{MISSPELT[0]}"}}')
    ),
    # arguments
    "blank arguments": Case(raw=section(call("functions.f:0", " \n")), answer=answer(f_0="{}")),
    "no arguments": Case(raw=section(call("functions.f:0", "")), answer=answer(f_0="{}")),
    **{
        f"arguments {arguments[:20]!r}": Case(
            raw=section(call("functions.f:0", arguments)), answer=answer(f_0=arguments)
        )
        for arguments in (
            *("{}", "{ }", "[]", "3", "null", "{'a': 1}", '{"a": 1} trailing', '{"a": ', "\n{}\n", '{\n  "a": 1\n}'),
            *('{"a": "<"}', '{"a": "<|"}', '{"a": "</thin"}', '{"a": "\\u4e16\\n\\"🤔世"}', LONG),
        )
    },
    "markers spelled in arguments": Case(
        raw=[
            *segments(f"{CALL}functions.f:0{ARGUMENTS}", MARKERS),
            f'{{"a": "{CALL_END}</think>"}}',
            Control(CALL_END),
        ],
        answer=answer(f_0=f'{{"a": "{CALL_END}</think>"}}'),
        text_differs=True,
    ),
    "markers spelled in text": Case(
        raw=[f"Write {BEGIN}{CALL} or <think>.<|im_end|>"],
        answer=answer(f"Write {BEGIN}{CALL} or <think>.<|im_end|>"),
        text_differs=True,
    ),
    "half a marker at the end": Case(raw="a <|tool_call", answer=answer("a <|tool_call")),
    "half a marker before one": Case(raw="a <|tool" + section(call("f:0", "{}")), answer=answer("a <|tool", f_0="{}")),
    # ids
    "another number": named("functions.f:12", "f"),
    "no prefix": named("search:2", "search"),
    "twice the prefix": named("functions.functions.x:0", "x"),
    "a name like the prefix": named("functions.functions:0", "functions"),
    "an undeclared name": named("functions.mcp__fs-read.file2:30", "mcp__fs-read.file2"),
    "a name with a colon": named("functions.a:b:3", "a:b"),
    "white space around the id": named(" functions.f:0\n", "f"),
    "no number": named("call_abc", "call_abc"),
    "a bare number": named("3", "3"),
    "no dot": named("functionsexec5", "functionsexec5"),
    "no colon": named("functions.bash30", "bash30"),
    "underscores": named("functions_get_weather_1", "functions_get_weather_1"),
    "brackets": named("functions(file_read):2.0", "functions(file_read):2.0"),
    "no id": named("", ""),
    "the prefix alone": named("functions.", ""),
    # without calls
    "calls not wanted": Case(
        raw=f"<think>Hm.</think>Look. {section(call('functions.f:0', WEATHER))} Done.<|im_end|>",
        calls=False,
        answer=answer(f"Look. functions.f:0{WEATHER} Done.", "Hm."),
    ),
    "calls not wanted, in reasoning": Case(
        raw=f"Hm.{section(call('functions.f:0', '{}'))}",
        reasoning=True,
        calls=False,
        answer=answer("functions.f:0{}", "Hm."),
    ),
}


def parser_for(case: Case) -> KimiK2Parser:
    return KimiK2Parser(CHOICE, case.first_call, reasoning=case.reasoning, calls=case.calls)


def raw_of(case: Case) -> list[Segment]:
    return segments(case.raw, ALL) if isinstance(case.raw, str) else case.raw


@pytest.fixture(params=[name for name in CASES if len(CASES[name].raw) < 1000])
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.mark.parametrize("name", CASES)
def test_an_output_is_read_as_the_table_says(name: str) -> None:
    case = CASES[name]
    parser = parser_for(case)
    assert parse(parser, [raw_of(case)], complete=case.complete) == case.answer
    assert parser.dropped == case.dropped


def test_any_cutting_of_segments_gives_the_same(case: Case) -> None:
    for cutting in every_cutting(characters(raw_of(case))):
        assert parse(parser_for(case), cutting, complete=case.complete) == case.answer


def test_any_cutting_of_token_ids_gives_the_same(case: Case) -> None:
    for cutting in every_cutting(tokens(raw_of(case), IDS)):
        assert parse_tokens(parser_for(case), cutting, IDS, MISSPELT, complete=case.complete) == case.answer


def test_any_cutting_of_text_gives_the_same(case: Case) -> None:
    if case.text_differs:
        return
    for cutting in every_cutting(tokens(raw_of(case), {})):
        assert parse_tokens(parser_for(case), cutting, {}, ALL, complete=case.complete) == case.answer


@given(st.sampled_from(list(CASES)), cuts)
def test_random_cuts_give_the_same(name: str, at: list[int]) -> None:
    case = CASES[name]
    assert (
        parse_tokens(parser_for(case), pieces(tokens(raw_of(case), IDS), at), IDS, MISSPELT, complete=case.complete)
        == case.answer
    )
    if not case.text_differs:
        assert (
            parse_tokens(parser_for(case), pieces(tokens(raw_of(case), {}), at), {}, ALL, complete=case.complete)
            == case.answer
        )


anything: Any = st.lists(
    st.sampled_from([Control(literal) for literal in MARKERS]) | st.text('{}":, \nf0🤔é', min_size=1, max_size=5),
    max_size=30,
)
spelled: Any = st.lists(
    st.sampled_from(ALL)
    | st.sampled_from(ALL).flatmap(lambda m: st.integers(1, len(m)).map(lambda n: m[:n]))
    | st.text("<|a", max_size=3),
    max_size=15,
).map("".join)
begins = st.booleans()


@given(anything, cuts, st.booleans(), st.booleans())
def test_whatever_a_model_writes_no_marker_is_shown(
    raw: list[Segment], at: list[int], reasoning: bool, calls: bool
) -> None:
    def parser() -> KimiK2Parser:
        return KimiK2Parser(CHOICE, 0, reasoning=reasoning, calls=calls)

    answer = parse(parser(), [raw])
    assert "<" not in str(answer)
    assert calls or not answer.calls
    assert parse_tokens(parser(), pieces(tokens(raw, IDS), at), IDS, MISSPELT) == answer


@given(spelled, cuts, st.booleans(), st.booleans())
def test_whatever_is_spelled_any_cutting_gives_the_same(raw: str, at: list[int], reasoning: bool, calls: bool) -> None:
    def parser() -> KimiK2Parser:
        return KimiK2Parser(CHOICE, 0, reasoning=reasoning, calls=calls)

    answer = parse(parser(), [segments(raw, ALL)])
    assert parse_tokens(parser(), pieces(list(raw.encode()), at), {}, ALL) == answer


def test_arguments_are_given_as_they_come() -> None:
    parser = KimiK2Parser(CHOICE, 0, reasoning=False, calls=True)
    assert parser.feed([Control(BEGIN), Control(CALL), "functions.f:0"]) == []
    assert parser.feed([Control(ARGUMENTS)]) == [ToolCallStarted(CHOICE, 0, "f:0", "f")]
    assert parser.feed(['{"a']) == [ArgumentsDelta(CHOICE, 0, '{"a')]
    assert parser.feed(['": 1}', Control(CALL_END)]) == [ArgumentsDelta(CHOICE, 0, '": 1}')]
    assert parser.feed([Control(END)]) + parser.flush(complete=True) == []


def test_a_parser_says_whether_reasoning_comes_next() -> None:
    parser = KimiK2Parser(CHOICE, 0, reasoning=False, calls=True)
    seen = [parser.reasoning]
    for segment in segments(f"<think>a</think>b{BEGIN}", ALL):
        parser.feed([segment])
        seen.append(parser.reasoning)
    assert seen == [False, True, True, False, False, False]
    assert KimiK2Parser(CHOICE, 0, reasoning=True, calls=True).reasoning


def test_calls_of_one_name_count_on() -> None:
    parser = KimiK2Parser(CHOICE, 40, reasoning=False, calls=True)
    found = fold(parser.feed(segments(section(call("f:0", "{}"), call("f:0", "{}")), ALL)))
    assert [identity for identity, _, _ in found.calls] == ["f:40", "f:41"]


def test_golden_token_ids_are_read() -> None:
    """The whole call of kimi-protocol.md 1.3, and characters of three tokens in its arguments."""
    vocabulary = kimi_vocabulary()
    if vocabulary is None:
        pytest.skip("LEFT OUT: the Kimi vocabulary is not beside the checkout")
    tokenizer = KimiTokenizer.read(vocabulary.parent)
    opened = [163595, 163597, 41937, 1150, 21055, 2800, 25, 15, 163598]
    emoji = tokenizer.encode_plain('{"city": "🤔🎉</think>"}').tolist()
    ids = [*opened, 8264, 37666, 1289, 414, 4396, 39556, 16934, 163599, *opened[1:], *emoji, 163599, 163596]
    assert set(tokenizer.encode_plain("🤔🎉")) <= set(emoji)
    named = {tokenizer.control(marker): marker for marker in MARKERS}
    for cutting in every_cutting(ids):
        decoder = OutputDecoder(tokenizer.decode, named, MISSPELT)
        parser = KimiK2Parser(CHOICE, 5, reasoning=True, calls=True)
        decoded = [decoder.feed(piece) for piece in cutting]
        assert parse(parser, [*decoded, decoder.flush()]) == answer(
            get_weather_5='{"city": "Beijing"}', get_weather_6='{"city": "🤔🎉</think>"}'
        )
