"""GBNF: what our constraints become for llama.cpp. That llama.cpp obeys it is tested in `test_llamacpp`."""

import json
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engines.grammars import Grammar

from moonbase.chat.constraint import (
    AnyText,
    Constraint,
    ConstString,
    JsonSchema,
    Marker,
    Or,
    Sequence,
    Triggered,
)
from moonbase.engines.base import TokenIds
from moonbase.engines.gbnf import GbnfDialect
from moonbase.engines.grammar import Grammars
from moonbase.engines.tokenizers.approximate import ApproximateTokenizer


class Vocabulary:
    """Has these control tokens and no others."""

    def __init__(self, *controls: str) -> None:
        self._controls = {name: 100 + number for number, name in enumerate(controls)}
        self._plain = ApproximateTokenizer()

    def encode_plain(self, text: str) -> TokenIds:
        return self._plain.encode_plain(text)

    def control(self, name: str) -> int:
        return self._controls[name]

    @property
    def silent(self) -> Mapping[str, int]:
        return self._controls

    def decode(self, ids: list[int]) -> bytes:
        return self._plain.decode(ids)


def gbnf(constraint: Constraint, *controls: str) -> str:
    return Grammars(GbnfDialect(Vocabulary(*controls))).write(constraint).text


def accepts(constraint: Constraint, text: str) -> bool:
    return Grammar(gbnf(constraint)).accepts(text)


def schema(tree: object) -> JsonSchema:
    return JsonSchema(json.dumps(tree))


def test_a_marker_of_the_vocabulary_is_a_token_and_any_other_its_characters():
    constraint = Sequence((Marker("<call>"), ConstString("x"), Marker("<other>")))
    assert gbnf(constraint, "<call>").startswith('root ::= <[100]> "x" "<other>"\n')


@given(st.lists(st.sampled_from(["<a>", "<ab>", "</a>", "aba", "bab"]), max_size=4), st.text("<>/ab", max_size=12))
def test_free_text_is_every_text_that_holds_none_of_what_it_excludes(excludes: list[str], text: str):
    assert accepts(AnyText(tuple(excludes)), text) == (not any(literal in text for literal in excludes))


def test_free_text_may_be_of_any_script():
    assert accepts(AnyText(("<x>",)), "a\n\t 你好 🤔 <y> <")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("", True),
        ("words <x", True),
        ("<x>7", True),
        ("words <x>7", True),
        ("<<x>7", True),
        ("a <x>7 b", False),
        ("<x>8", False),
        ("<x>", False),
        ("<y><x>7", False),
    ],
)
def test_a_trigger_ends_free_text(text: str, right: bool):
    assert accepts(Triggered("<x>", ConstString("7"), ("<y>",)), text) is right


def test_reasoning_ends_with_its_marker():
    constraint = Sequence((AnyText(("<y>",)), Marker("</t>"), ConstString("!")))
    assert accepts(constraint, "some </ thought </t>!")
    assert not accepts(constraint, "some <y> thought </t>!")
    assert not accepts(constraint, "some thought!")


def test_tools_are_told_apart_by_their_names():
    tools = [Sequence((ConstString(f"{name}:0"), Marker("|"))) for name in ("get", "get_weather", "search", "s")]
    for name, right in {
        "get": True,
        "get_weather": True,
        "s": True,
        "search": True,
        "sea": False,
        "gets": False,
    }.items():
        assert accepts(Or(tuple(tools)), f"{name}:0|") is right


def test_json_strings_spell_no_token_marker():
    text = Grammar(gbnf(Sequence((schema({"type": "string"}), Marker("<|end|>"))), "<|end|>").replace("<[100]>", '"@"'))
    assert text.accepts('"<| a < b || <i> \\u003c|end|>"@')
    assert not text.accepts('"a <|end|>"@')


def test_classes_name_what_they_allow():
    """A class that only excludes would let bytes of no character pass in llama.cpp."""
    for constraint in (schema({"type": "string", "maxLength": 3}), schema({"type": "string", "pattern": "^[^a-c]$"})):
        assert "[^" not in gbnf(constraint)
    assert accepts(schema({"type": "string", "pattern": "^[^a-c]$"}), '"d"')
    assert not accepts(schema({"type": "string", "pattern": "^[^a-c]$"}), '"b"')


def _names(lines: Iterable[str]) -> list[str]:
    return [line.partition(" ::= ")[0] for line in lines]


def test_names_are_such_as_llama_cpp_reads():
    constraint = Or((schema({"type": "object"}), Sequence((Marker("<x>"), AnyText(("<y>",))))))
    names = _names(gbnf(constraint).splitlines())
    assert len(names) > 5
    assert all(name.replace("-", "").isalnum() and name.isascii() for name in names)
