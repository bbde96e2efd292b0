"""Texts in which given texts do not occur: Aho and Corasick's automaton, whose states grammars write as rules."""

from collections.abc import Iterable

State = str
"""The longest end of the text so far that an excluded text begins with; "" at the start."""


def without(excludes: Iterable[str]) -> dict[State, dict[str, State | None]]:
    """The states, the first one first, each with the characters that have a meaning in it.

    Such a character leads to another state, or to None where it would complete one of `excludes`. Any other character
    leads back to the first state.
    """
    texts = list(dict.fromkeys(excludes))
    whole = [text for text in texts if not any(other in text for other in texts if other != text)]
    states = dict.fromkeys(["", *[text[:end] for text in whole for end in range(1, len(text))]])
    return {state: _following(state, states, whole) for state in states}


def _following(state: State, states: Iterable[State], whole: list[str]) -> dict[str, State | None]:
    following: dict[str, State | None] = {}
    for end in [state[at:] for at in range(len(state) + 1) if state[at:] in states]:  # the longest first: it decides
        for text in whole:
            if text.startswith(end):
                following.setdefault(text[len(end)], end + text[len(end)])
    completing = [one for one in following if any((state + one).endswith(text) for text in whole)]
    return following | dict.fromkeys(completing)
