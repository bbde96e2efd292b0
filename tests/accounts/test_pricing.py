import datetime
from fractions import Fraction
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from moonbase.accounts.pricing import cost, worst_case
from moonbase.catalog.prices import Price

rates = st.integers(0, 10**12)
tokens = st.integers(0, 10**7)
prices = st.builds(Price, since=st.just(datetime.date(2025, 9, 5)), miss=rates, hit=rates, write=rates, output=rates)


@given(prices, tokens, tokens, tokens, tokens)
def test_the_cost_is_the_exact_sum_rounded_up_once(price: Price, miss: int, hit: int, write: int, output: int) -> None:
    classes = [(miss, price.miss), (hit, price.hit), (write, price.write), (output, price.output)]
    exact = sum((Fraction(count * rate, 10**6) for count, rate in classes), Fraction())
    assert cost(price, miss=miss, hit=hit, write=write, output=output) == ceil(exact)


@given(prices, tokens, tokens, tokens, tokens)
def test_no_request_costs_more_than_its_worst_case(price: Price, miss: int, hit: int, write: int, output: int) -> None:
    most = worst_case(price, prompt_tokens=miss + hit + write, max_tokens=output)
    assert cost(price, miss=miss, hit=hit, write=write, output=output) <= most


def test_a_million_tokens_cost_their_price() -> None:
    price = Price(since=datetime.date(2025, 9, 5), miss=600_000_000, hit=150_000_000, write=0, output=2_500_000_000)
    assert cost(price, miss=10**6, hit=0, write=0, output=0) == 600_000_000
    assert cost(price, miss=0, hit=1, write=0, output=0) == 150
