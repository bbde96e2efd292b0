"""The strings of JSON as grammars write them: any, bounded in length, or other than given ones.

Some engines take a control token for the characters of its name, and their parsers see it as the token: for them no
string may spell one. What may not stand as it is can still be written with an escape, `\\u003c` for `<`.
"""

import json
from collections.abc import Iterable, Iterator

from moonbase.engines import automaton
from moonbase.engines.notation import literal, none_of

QUOTE, BACKSLASH = 0x22, 0x5C
ESCAPED = r'"\\" escape'
"""A character that is written with an escape."""
_SPECIAL = ((QUOTE, QUOTE), (BACKSLASH, BACKSLASH), (0x00, 0x1F))
SURROGATES = (0xD800, 0xDFFF)


class Strings:
    """How strings are written where none may spell one of `excludes`."""

    def __init__(self, excludes: Iterable[str] = ()) -> None:
        """Each of `excludes` has two characters or more and does not begin with a letter, a digit or a slash."""
        self._excludes = tuple(
            [text for text in dict.fromkeys(excludes) if json.dumps(text, ensure_ascii=False)[1:-1] == text]
        )
        self.never = tuple(sorted({ord(text[0]) for text in self._excludes}))
        """Code points that stand for themselves only where it is known what follows: `excludes` begin with them."""

    def written(self, value: str) -> str:
        """The JSON text `value` with escapes where it spells what is excluded."""
        for text in self._excludes if any(chr(code) in value for code in self.never) else ():
            value = value.replace(text, f"\\u{ord(text[0]):04x}{text[1:]}")
        return value

    @property
    def openings(self) -> dict[str, str]:
        """The characters that `excludes` begin with, each with the class of the plain characters that may follow."""
        following = {first: {ord(text[1]) for text in self._excludes if ord(text[0]) == first} for first in self.never}
        return {
            chr(first): self.plain_but([(code, code) for code in sorted(codes)]) for first, codes in following.items()
        }

    @property
    def plain(self) -> str:
        """The class of the characters that stand for themselves anywhere."""
        return self.plain_but(())

    def plain_but(self, excluded: Iterable[tuple[int, int]]) -> str:
        """The same without `excluded` code points."""
        return none_of([*_SPECIAL, *[(code, code) for code in self.never], *excluded])

    def is_plain(self, character: str) -> bool:
        """Whether it stands for itself anywhere."""
        return bool(list(self.plain_within(ord(character), ord(character))))

    def plain_within(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The parts of the range that stand for themselves anywhere."""
        start = first
        for low, high in sorted([*_SPECIAL, SURROGATES, *[(code, code) for code in self.never]]):
            if start <= min(low - 1, last):
                yield start, min(low - 1, last)
            start = max(start, high + 1)
        if start <= last:
            yield start, last

    def rules(self) -> dict[str, str]:
        """`string`; the rest of it, `rest`; and `escape`, what follows a backslash.

        Right recursion of one rule, because a repeated rule (`char*`) makes xgrammar test the whole vocabulary in
        every step, and a repeated class leaves no place for escapes.
        """
        return {
            "escape": r'["\\/bfnrt] | "u" [0-9a-cefA-CEF] hex hex hex | "u" [dD] [0-7] hex hex',
            "hex": "[0-9a-fA-F]",
            "string": r'"\"" rest',
            **self._rest(),
        }

    def _rest(self) -> dict[str, str]:
        """One rule for each state of an automaton that finds excluded texts."""
        states = automaton.without(self._excludes)
        names = {state: f"rest{number or ''}" for number, state in enumerate(states)}
        rules: dict[str, str] = {}
        for state, following in states.items():
            others = none_of([*_SPECIAL, *[(ord(one), ord(one)) for one in following]])
            parts = [r'"\""', f"{others} rest", f"{ESCAPED} rest"]
            parts += [
                f"{literal(character)} {names[then]}" for character, then in following.items() if then is not None
            ]
            rules[names[state]] = " | ".join(parts)
        return rules
