"""The notation of our grammars: the part of EBNF that xgrammar and llama.cpp read alike.

A grammar is a set of rules `name ::= body`. A body has quoted strings and classes of characters, in which `\\UXXXXXXXX`
is a code point and a backslash stands before `"`, `\\`; names; `( )`, `|`, `?`, `*`, `{m,n}` and `{m,}`.
"""

from collections.abc import Iterable, Mapping

Ranges = Iterable[tuple[int, int]]


def grammar_text(rules: Mapping[str, str], root: str) -> str:
    """The grammar whose start, the rule `root`, is the expression `root`. More rules may be added to it."""
    return f"root ::= {root}\n{rules_text(rules)}"


def rules_text(rules: Mapping[str, str]) -> str:
    """The rules, by name, as lines of a grammar."""
    return "".join([f"{name} ::= {body}\n" for name, body in rules.items()])


def literal(text: str) -> str:
    """`text` as a quoted string."""
    if '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    if not text.isprintable():
        text = "".join([one if one.isprintable() else f"\\U{ord(one):08X}" for one in text])
    return f'"{text}"'


def any_of(ranges: Ranges) -> str:
    """One character whose code point is in one of `ranges`, of which there is at least one."""
    return "[" + "".join([_range(first, last) for first, last in ranges]) + "]"


def none_of(ranges: Ranges) -> str:
    """One character whose code point is in none of `ranges`."""
    return "[^" + "".join([_range(first, last) for first, last in ranges]) + "]"


def _range(first: int, last: int) -> str:
    return _code(first) if first == last else f"{_code(first)}-{_code(last)}"


def _code(value: int) -> str:
    character = chr(value)
    return character if character.isascii() and character.isalnum() else f"\\U{value:08X}"
