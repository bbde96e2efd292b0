"""Both ways to check a value against a schema say the same."""

from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonbase.formats.schemas import validation
from moonbase.formats.schemas.validation import Validator

_NAMES = st.sampled_from(["a", "b", "c"])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats(-2, 3) | st.sampled_from(["", "a", "ab", "abc"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=8,
)
_PLAIN = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["object", "array", "string", "integer", "number", "boolean", "null"]),
        "enum": st.lists(_VALUES, min_size=1, max_size=3),
        "required": st.lists(_NAMES, unique=True, max_size=2),
        "minItems": st.integers(0, 2),
        "maxItems": st.integers(0, 2),
        "minLength": st.integers(0, 2),
        "maxLength": st.integers(0, 2),
        "minimum": st.integers(-2, 2),
        "maximum": st.integers(-2, 2),
        "pattern": st.sampled_from(["^a", "b$"]),
    },
)


def _with_schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    nested = st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(_NAMES, inner, max_size=2),
            "additionalProperties": st.booleans() | inner,
            "items": st.booleans() | inner,
            "anyOf": st.lists(inner, min_size=1, max_size=3),
        },
    )
    return st.builds(lambda plain, more: plain | more, _PLAIN, nested)


_SCHEMAS = st.recursive(_PLAIN, _with_schemas, max_leaves=5)
_INSIDE = st.sampled_from(["#", "#/$defs/d"]).map(lambda reference: {"items": {"$ref": reference}})


@given(tree=_SCHEMAS, definition=_SCHEMAS, recurring=_INSIDE, value=_VALUES)
def test_a_validator_with_a_memory_says_what_the_library_says(
    tree: dict[str, Any], definition: dict[str, Any], recurring: dict[str, Any], value: Any
) -> None:
    """Which is asked where there is too much for the library, as `size` says."""
    root = {"anyOf": [tree, recurring, {"$ref": "#/$defs/d"}], "$defs": {"d": definition}}

    reason = Validator(root).violation(value, 10**9)

    assert (reason is None) == jsonschema_rs.Draft202012Validator(root).is_valid(value)


@given(tree=_SCHEMAS, value=_VALUES)
def test_a_schema_that_does_not_recur_is_read_alike_whatever_the_size(tree: dict[str, Any], value: Any) -> None:
    validator = Validator(tree)

    assert (validator.violation(value, 1) is None) == (validator.violation(value, 10**9) is None)


def test_what_is_asked_of_a_part_is_remembered() -> None:
    """Without a memory this would take 2 to the 60th steps."""
    branch = {"type": "array", "items": {"$ref": "#/$defs/t"}}
    value: Any = []
    for _ in range(60):
        value = [value]

    assert Validator({"$defs": {"t": {"anyOf": [branch, branch]}}, "$ref": "#/$defs/t"}).violation(value, 61) is None


def test_a_check_that_takes_too_long_is_given_up() -> None:
    branches = [{"type": "array", "items": {"type": "integer", "maximum": 10_000 + n}} for n in range(500)]

    with pytest.raises(validation.TooManyChecks):
        Validator({"anyOf": branches}).violation([*range(5_000), 20_000], 5_001)
