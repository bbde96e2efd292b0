"""Patterns as expressions of a grammar, inside a JSON string."""

import json
from collections.abc import Callable

from moonbase.engines.json_strings import BACKSLASH, QUOTE, Strings
from moonbase.engines.notation import any_of, literal
from moonbase.formats.schemas.pattern import Class, Group, Literal, Repeat

_NARROW = 0.15  # what a place that few characters fit costs, in places that most characters fit
_FIXED = 0.02  # what a place of one character costs


def places(tree: Group) -> float:
    """What compiling the pattern costs, in places of a bounded string."""
    return sum([_cost(item) for branch in tree.branches for item in branch])


def body(tree: Group, rule: Callable[[str], str], strings: Strings) -> str:
    """The expression of what stands between the quotes; `rule` names a body and returns the name."""
    branches = [" ".join([_repeat(item, rule, strings) for item in branch]) or '""' for branch in tree.branches]
    return rule(" | ".join(branches))


def _cost(item: Repeat) -> float:
    atom, least, most = item
    match atom:
        case Group():
            once = places(atom)
        case Class(_, negated):
            once = 1.0 if negated else _NARROW
        case Literal():
            once = _FIXED
    return once * max(least if most is None else most, 1)


def _repeat(item: Repeat, rule: Callable[[str], str], strings: Strings) -> str:
    atom, least, most = item
    match atom:
        case Literal(character):
            inner = literal(_in_json(character, escape=ord(character) in strings.never))
        case Class():
            inner = rule(_class_body(atom, strings))
        case Group():
            inner = body(atom, rule, strings)
    if most == 0:
        return '""'
    if (least, most) == (1, 1):
        return inner
    return f"{inner}{{{least},{'' if most is None else most}}}"


def _class_body(atom: Class, strings: Strings) -> str:
    """What the class allows: characters as they are, `"` and `\\` and those that strings never hold with an escape."""
    if atom.negated:
        parts = [strings.plain_but(atom.ranges)]
    else:
        ranges = [part for first, last in atom.ranges for part in strings.plain_within(first, last)]
        parts = [any_of(ranges)] if ranges else []
    special = (QUOTE, BACKSLASH, *strings.never)
    parts += [literal(_in_json(chr(code), escape=code in strings.never)) for code in special if atom.allows(code)]
    return " | ".join(parts)


def _in_json(character: str, *, escape: bool = False) -> str:
    return f"\\u{ord(character):04x}" if escape else json.dumps(character, ensure_ascii=False)[1:-1]
