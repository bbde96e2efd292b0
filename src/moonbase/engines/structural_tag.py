"""Constraints as xgrammar takes them: the JSON text of a structural tag that holds one grammar.

vLLM and SGLang have xgrammar 0.2, whose grammars can ask for a token by its id; OpenVINO has 0.1.31, which knows
characters only. Schemas become grammars here, in the gateway, and not in xgrammar: our rules bound white space and what
compiling costs, and one grammar that does not compile leaves OpenVINO's pipeline unusable.
"""

import re
import string
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from moonbase.engines.base import Tokenizer
from moonbase.engines.grammar import Dialect, Rules
from moonbase.engines.json_rules import Budget
from moonbase.engines.notation import literal

_NAMES = tuple([f"<|{letter}" for letter in string.ascii_lowercase])
"""How control tokens are called in the vocabularies that have token markers: beginnings that no other text needs."""
_CONTROL_CHARACTERS = tuple([chr(code) for code in range(0x20)])
_ANYWHERE = "stop_eos=true, stop_str=()"
_REST = re.compile(r"rest\d*")


class OpenVINODialect:
    """xgrammar 0.1.31. Markers are characters, as in the vocabularies of the models that OpenVINO runs."""

    budget = Budget()

    def marker(self, name: str) -> str:
        return literal(name)

    def text(self, excludes: tuple[str, ...], rules: Rules) -> str:
        return rules.add(f"TagDispatch({_ANYWHERE}, {_once(excludes)})")

    def text_until(self, marker: str, excludes: tuple[str, ...], rules: Rules) -> str:
        others = [text for text in excludes if text != marker]
        return rules.add(f"TagDispatch(stop_eos=false, stop_str=({literal(marker)}), {_once(others)})")

    def triggered(self, trigger: str, then: str, excludes: tuple[str, ...], rules: Rules) -> str:
        return rules.add(f"TagDispatch(({literal(trigger)}, {rules.add(then)}), {_ANYWHERE}, {_once(excludes)})")

    def unspelled(self, markers: tuple[str, ...]) -> tuple[str, ...]:
        """Nothing: the parser tells from the JSON around it that a marker spelled in a string is only text."""
        return ()

    def banned(self, markers: tuple[str, ...]) -> tuple[int, ...]:
        return ()

    def finished(self, rules: dict[str, str], unspelled: tuple[str, ...]) -> dict[str, str]:
        return rules

    def request(self, grammar: str) -> str:
        return _tag(grammar)


class TokenDialect:
    """xgrammar 0.2. Markers are tokens by their ids where the vocabulary has them, else characters.

    xgrammar takes a control token for the characters of its name as well, so JSON strings are kept from spelling one:
    a parser would see the token. And when 0.2.8 caches the masks of rules it takes rules that differ only in token ids
    for the same, so on one vocabulary a rule's shape has to determine its ids: free text leaves out the same tokens
    wherever it occurs.
    """

    budget = Budget(characters=250_000)

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def marker(self, name: str) -> str:
        token = self._token(name)
        return literal(name) if token is None else f"Token({token})"

    def text(self, excludes: tuple[str, ...], rules: Rules) -> str:
        tokens = [token for name in excludes if (token := self._token(name)) is not None]
        if len(tokens) == len(excludes) > 0:
            return f"ExcludeToken({', '.join(map(str, sorted(tokens)))})*"
        return rules.add(f"TagDispatch({_once(excludes)})")

    def text_until(self, marker: str, excludes: tuple[str, ...], rules: Rules) -> str:
        return f"{self.text(_with(marker, excludes), rules)} {self.marker(marker)}"

    def triggered(self, trigger: str, then: str, excludes: tuple[str, ...], rules: Rules) -> str:
        return f"{self.text(_with(trigger, excludes), rules)} ({self.marker(trigger)} {then})?"

    def unspelled(self, markers: tuple[str, ...]) -> tuple[str, ...]:
        others = [name for name in markers if self._token(name) is not None and not name.startswith(_NAMES)]
        return (*_NAMES, *others) if others or any(name.startswith(_NAMES) for name in self._tokenizer.silent) else ()

    def banned(self, markers: tuple[str, ...]) -> tuple[int, ...]:
        """Those whose names another text may need, such as `[BOS]`, where no string could do without its beginning."""
        others = self._tokenizer.silent.items()
        return tuple([token for name, token in others if name not in markers and not name.startswith(_NAMES)])

    def finished(self, rules: dict[str, str], unspelled: tuple[str, ...]) -> dict[str, str]:
        """An automaton of plain rules would be compiled for 25 ms a state, for every grammar again."""
        if not unspelled:
            return rules
        plain = {name: body for name, body in rules.items() if not _REST.fullmatch(name)}
        excludes = [literal(text) for text in ('"', *_CONTROL_CHARACTERS, *unspelled)]
        text = rf'TagDispatch(("\\", escape), loop_after_dispatch=true, excludes=({", ".join(excludes)}))'
        return {**plain, "rest_text": text, "rest": r'rest_text "\""'}

    def request(self, grammar: str) -> str:
        return _tag(grammar)

    def _token(self, name: str) -> int | None:
        try:
            return self._tokenizer.control(name)
        except KeyError:
            return None


def _tag(grammar: str) -> str:
    """The structural tag of a grammar."""
    tag = {"type": "structural_tag", "format": {"type": "grammar", "grammar": grammar}}
    return msgspec.json.encode(tag).decode()


def _once(excludes: Iterable[str]) -> str:
    return f"loop_after_dispatch=false, excludes=({', '.join([literal(text) for text in excludes])})"


def _with(marker: str, excludes: tuple[str, ...]) -> tuple[str, ...]:
    return excludes if marker in excludes else (*excludes, marker)


if TYPE_CHECKING:

    def _conform(openvino: OpenVINODialect, tokens: TokenDialect) -> tuple[Dialect, Dialect]:
        return openvino, tokens
