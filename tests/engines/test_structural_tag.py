"""Constraints as xgrammar takes them. That engines obey them is tested with the engines."""

import re
from collections.abc import Mapping

import msgspec
import pytest

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
from moonbase.engines.base import TokenIds
from moonbase.engines.grammar import Dialect, Grammars
from moonbase.engines.structural_tag import OpenVINODialect, TokenDialect

TOKENS = {"<|call|>": 901, "<|end|>": 902, "</think>": 903}
STRING = JsonSchema('{"type":"string"}')


class Vocabulary:
    """Implements `Tokenizer` as far as constraints need it: a few control tokens."""

    def __init__(self, silent: Mapping[str, int] = TOKENS) -> None:
        self.silent = silent

    def encode_plain(self, text: str) -> TokenIds:
        raise AssertionError("no constraint needs this")

    def control(self, name: str) -> int:
        return self.silent[name]

    def decode(self, ids: list[int]) -> bytes:
        raise AssertionError("no constraint needs this")


BY_TOKEN, BY_CHARACTER = TokenDialect(Vocabulary()), OpenVINODialect()


def rules(constraint: Constraint, dialect: Dialect = BY_TOKEN) -> dict[str, str]:
    tag = msgspec.json.decode(Grammars(dialect).write(constraint).text)
    assert tag["type"] == "structural_tag"
    assert tag["format"]["type"] == "grammar"
    lines = [line.partition(" ::= ") for line in tag["format"]["grammar"].splitlines()]
    return {name: body for name, _, body in lines}


@pytest.mark.parametrize(
    ("constraint", "root"),
    [
        (ConstString('a"b'), r'"a\"b"'),
        (Digits(), "[0-9]{1,9}"),
        (Marker("<|call|>"), "Token(901)"),
        (Marker("<tool_call>"), '"<tool_call>"'),
        (Sequence((Marker("<|call|>"), ConstString("x"))), 'Token(901) "x"'),
        (Sequence(()), '""'),
        (Optional(ConstString("x")), '("x")?'),
        (Repeat(ConstString("x")), '("x")*'),
        (AnyText(("<|end|>", "<|call|>")), "ExcludeToken(901, 902)*"),
        (
            Sequence((AnyText(("<|call|>",)), Marker("</think>"), ConstString("x"))),
            'ExcludeToken(901, 903)* Token(903) "x"',
        ),
        (
            Triggered("<|call|>", Marker("<|end|>"), ("</think>",)),
            "ExcludeToken(901, 903)* (Token(901) Token(902))?",
        ),
    ],
)
def test_markers_are_tokens_where_the_vocabulary_has_them(constraint: Constraint, root: str):
    assert rules(constraint)["root"] == root


def test_markers_are_characters_where_the_engine_knows_no_tokens():
    found = rules(Triggered("<t>", Sequence((ConstString("x"), Marker("</t>"))), ("</t>",)), BY_CHARACTER)

    dispatch = re.fullmatch(
        r'TagDispatch\(\("<t>", (g-\d)\), stop_eos=true, stop_str=\(\), '
        r'loop_after_dispatch=false, excludes=\("</t>"\)\)',
        found[found["root"]],
    )
    assert dispatch
    assert found[dispatch[1]] == '"x" "</t>"'


def test_free_text_before_a_marker_ends_with_it_where_the_engine_knows_no_tokens():
    found = rules(Sequence((AnyText(("<t>", "</t>")), Marker("</t>"), ConstString("x"))), BY_CHARACTER)

    name, _, rest = found["root"].partition(" ")
    assert rest == '"x"'
    assert found[name] == (
        'TagDispatch(stop_eos=false, stop_str=("</t>"), loop_after_dispatch=false, excludes=("<t>"))'
    )


def test_alternatives_share_what_they_begin_with():
    names = ("get_weather:0", "get:0", "find:0")
    found = rules(Or(tuple([Sequence((ConstString(name), Marker("<|end|>"))) for name in names])))

    outer = found[found["root"]]
    shared = re.fullmatch(r'"find:0" Token\(902\) \| "get" (g-\d)', outer)
    assert shared
    assert found[shared[1]] == '":0" Token(902) | "_weather:0" Token(902)'


def test_no_json_string_spells_a_token_marker():
    found = rules(Sequence((Marker("<|call|>"), STRING, Marker("</think>"))))

    assert not [name for name in found if re.fullmatch(r"rest\d+", name)]
    assert found["rest"] == r'rest_text "\""'
    excludes = found["rest_text"].partition("excludes=(")[2]
    for text in (r'"\""', '"<|a"', '"<|z"', '"</think>"', r'"\U00000000"', r'"\U0000001F"'):
        assert text in excludes


def test_no_json_string_spells_a_control_token_of_the_vocabulary():
    assert '"<|a"' in rules(STRING)["rest_text"]


def test_json_strings_may_spell_markers_that_are_no_tokens():
    constraint = Sequence((Marker("<tool_call>"), STRING, Marker("</tool_call>")))

    assert "tool_call" not in rules(constraint)["rest_text"]
    assert "rest_text" not in rules(constraint, BY_CHARACTER)


def test_control_tokens_without_use_are_banned():
    vocabulary = Vocabulary({**TOKENS, "[BOS]": 900, "[EOS]": 904})
    constraint = Sequence((Marker("<|call|>"), STRING))

    assert Grammars(TokenDialect(vocabulary)).write(constraint).banned == (903, 900, 904)
    thinking = Sequence((AnyText(("</think>",)), Marker("</think>"), STRING))
    assert Grammars(TokenDialect(vocabulary)).write(thinking).banned == (900, 904)
    assert Grammars(BY_CHARACTER).write(constraint).banned == ()


def test_schemas_of_one_constraint_share_their_rules():
    schema = JsonSchema('{"type":"object","properties":{"a":{"type":"string","maxLength":8}},"required":["a"]}')
    one = rules(Sequence((Marker("<|call|>"), schema)))
    two = rules(Sequence((Marker("<|call|>"), schema, Marker("<|end|>"), schema)))

    assert one.keys() == two.keys()
