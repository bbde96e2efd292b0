import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonbase.catalog.prices import decimal, nano


@given(st.integers(min_value=0, max_value=10**18 - 1))
def test_amounts_survive_the_way_to_text_and_back(nanos: int) -> None:
    assert nano(decimal(nanos)) == nanos


def test_amounts_show_at_least_two_decimals() -> None:
    assert [decimal(nano(text)) for text in ("0.15", "2", "0.6", "0.123456789")] == [
        "0.15",
        "2.00",
        "0.60",
        "0.123456789",
    ]


@pytest.mark.parametrize("text", ["", "x", "-1", "-0", "NaN", "Infinity", "1e-10", "1,5", "1e9", "1." + "0" * 37 + "1"])
def test_what_is_no_exact_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"decimal|amount"):
        nano(text)
