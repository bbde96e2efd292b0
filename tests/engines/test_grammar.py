"""Grammars that are written again and again."""

import asyncio
import json
import threading

import pytest

from moonbase.chat.constraint import AnyText, ConstString, JsonSchema, Marker, Or, Sequence
from moonbase.engines.grammar import Grammars
from moonbase.engines.json_rules import Budget
from moonbase.engines.structural_tag import OpenVINODialect

LONG = JsonSchema(
    json.dumps({"type": "object", "properties": {f"name_{number}": {"type": "boolean"} for number in range(2_000)}})
)


class Counting(OpenVINODialect):
    """Counts how often the rules of JSON values are made, and knows in which thread they were last."""

    def __init__(self) -> None:
        self.made = 0
        self.thread = 0

    def finished(self, rules: dict[str, str], unspelled: tuple[str, ...]) -> dict[str, str]:
        self.made += 1
        self.thread = threading.get_ident()
        return super().finished(rules, unspelled)


def calls(number: int, count: int = 3) -> Or:
    return Or(
        tuple(
            [
                Sequence((ConstString(f"tool_{tool}:{number}"), JsonSchema(f'{{"type":"integer","minimum":{tool}}}')))
                for tool in range(count)
            ]
        )
    )


def test_an_equal_constraint_is_written_once():
    grammars = Grammars(Counting())
    assert grammars.write(calls(1)) is grammars.write(calls(1))


@pytest.mark.anyio
async def test_long_schemas_are_read_beside_the_event_loop_even_when_the_first_to_wait_leaves():
    dialect = Counting()
    grammars = Grammars(dialect)
    first, second = [asyncio.create_task(grammars.prepare(LONG)) for _ in range(2)]
    await asyncio.sleep(0)
    first.cancel()

    assert await second == grammars.write(LONG)

    assert dialect.made == 1
    assert dialect.thread != threading.get_ident()
    await grammars.prepare(calls(1))
    assert dialect.thread == threading.get_ident(), "short ones are not worth a thread"


@pytest.mark.anyio
async def test_those_who_wait_for_the_same_long_schemas_share_one_reading():
    dialect = Counting()
    grammars = Grammars(dialect, capacity=0)

    first, second = await asyncio.gather(grammars.prepare(LONG), grammars.prepare(LONG))

    assert first is second
    assert dialect.made == 1
    assert await grammars.prepare(LONG) == first


def test_known_schemas_are_not_translated_again():
    dialect = Counting()
    grammars = Grammars(dialect)
    grammars.write(calls(1))

    text = grammars.write(calls(2)).text

    assert dialect.made == 1
    assert text == Grammars(OpenVINODialect()).write(calls(2)).text


def test_nothing_is_kept_without_room():
    dialect = Counting()
    grammars = Grammars(dialect, capacity=0)
    assert grammars.write(calls(1)) == grammars.write(calls(1))
    assert dialect.made == 2


def test_what_follows_free_text_is_not_lost():
    text = Grammars(OpenVINODialect()).write(Sequence((AnyText(("<x>",)), ConstString("end"), Marker("<x>")))).text
    assert text.find("end") > 0


def test_a_grammar_is_no_longer_than_its_budget():
    class Narrow(OpenVINODialect):
        budget = Budget(characters=5_000)

    def enumeration(number: int) -> str:
        return json.dumps({"type": "string", "enum": [f"value_{number}_{each}" for each in range(100)]})

    def members(number: int) -> str:
        names = [f"name_{number}_{each}" for each in range(100)]
        return json.dumps({"type": "object", "properties": {name: {"type": "boolean"} for name in names}})

    for schema in (enumeration, members):
        many = Or(tuple([JsonSchema(schema(number)) for number in range(50)]))
        narrow, wide = [len(Grammars(dialect).write(many).text) for dialect in (Narrow(), OpenVINODialect())]
        assert narrow < 20_000 < wide
