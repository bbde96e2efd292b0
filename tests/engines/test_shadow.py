"""The shadow of the engine's prefix cache never promises more than there can be."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from moonbase.engines.base import TokenIds
from moonbase.engines.openvino.shadow import PrefixShadow

BLOCK = 4
ROOM = 10_000  # blocks; more than any test here fills

ids = st.lists(st.integers(0, 2), max_size=40).map(lambda values: array("I", values))
histories = st.lists(st.tuples(st.sampled_from("ab"), ids), max_size=12)


def shadow_of(history: list[tuple[str, TokenIds]], blocks: int = ROOM) -> PrefixShadow:
    shadow = PrefixShadow(blocks, BLOCK)
    for scope, tokens in history:
        shadow.record(scope, tokens)
    return shadow


def shared(one: TokenIds, other: TokenIds) -> int:
    """Leading tokens that are the same."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


@given(histories, ids)
def test_what_is_cached_is_the_longest_recorded_prefix_of_the_same_scope_in_whole_blocks(
    history: list[tuple[str, TokenIds]], prompt: TokenIds
) -> None:
    own = [shared(tokens, prompt) for scope, tokens in history if scope == "a"]
    usable = min(max(own, default=0), len(prompt) - 1)
    assert shadow_of(history).cached("a", prompt) == max(usable, 0) // BLOCK * BLOCK


@given(histories, ids, st.integers(1, 12))
def test_a_full_cache_holds_less_but_never_what_was_not_recorded(
    history: list[tuple[str, TokenIds]], prompt: TokenIds, blocks: int
) -> None:
    cached = shadow_of(history, blocks).cached("a", prompt)
    assert cached % BLOCK == 0
    assert cached <= blocks * BLOCK
    assert cached <= shadow_of(history).cached("a", prompt)


@given(histories, ids, st.integers(0, 40))
def test_a_longer_prompt_is_cached_at_least_as_far(
    history: list[tuple[str, TokenIds]], prompt: TokenIds, length: int
) -> None:
    shadow = shadow_of(history)
    assert shadow.cached("a", prompt[:length]) <= shadow.cached("a", prompt)


def test_the_least_recently_used_goes_first() -> None:
    first, second, third = (array("I", [number] * (BLOCK + 1)) for number in range(3))
    shadow = shadow_of([("a", first), ("a", second)], blocks=2)
    assert shadow.cached("a", first) == BLOCK
    shadow.record("a", third)
    assert [shadow.cached("a", tokens) for tokens in (first, second, third)] == [BLOCK, 0, BLOCK]
