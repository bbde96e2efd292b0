"""Which request an engine died of."""

from array import array
from itertools import count

from tests.engines.token_server import request

from moonbase.engines.base import GenerateRequest
from moonbase.engines.suspects import Suspects


def asked(number: int, **options: str) -> GenerateRequest:
    return request(prompt=array("I", [number]), **options)


LIVES = count(1)


def death(suspects: Suspects, *requests: GenerateRequest) -> None:
    for one in requests:
        suspects.fell(one)
    suspects.settle(died=next(LIVES))


def together() -> tuple[Suspects, Suspects]:
    """Those of two gateways that share an engine."""
    first = Suspects(lambda testimony: second.hear(testimony))
    second = Suspects(first.hear)
    return first, second


def test_a_request_in_two_deaths_is_to_blame():
    suspects = Suspects()
    death(suspects, asked(1), asked(2))
    assert (suspects.deaths(asked(1)), suspects.deaths(asked(3))) == (1, 0)
    assert not suspects.fatal(asked(1))
    death(suspects, asked(1), asked(3))
    assert [suspects.fatal(asked(number)) for number in (1, 2, 3)] == [True, False, False]


def test_copies_of_a_request_count_once():
    suspects = Suspects()
    death(suspects, asked(1), asked(1))
    assert suspects.deaths(asked(1)) == 1
    assert suspects.deaths(asked(1, scope="org-b")) == 0


def test_nobody_is_to_blame_while_it_may_be_another():
    suspects = Suspects()
    death(suspects, asked(1), asked(2))
    death(suspects, asked(1), asked(2))
    assert not suspects.fatal(asked(1))
    assert not suspects.fatal(asked(2))
    death(suspects, asked(2), asked(3))
    assert [suspects.fatal(asked(number)) for number in (1, 2, 3)] == [False, True, False]


def test_what_breaks_off_while_the_engine_lives_is_no_suspect():
    suspects = Suspects()
    suspects.fell(asked(1))
    suspects.settle(died=None)
    suspects.settle(died=7)
    assert suspects.deaths(asked(1)) == 0


def test_a_request_that_finishes_is_acquitted():
    suspects = Suspects()
    death(suspects, asked(1))
    suspects.finished(asked(1))
    death(suspects, asked(1))
    assert not suspects.fatal(asked(1))


def test_gateways_that_share_an_engine_judge_together():
    """Alone, the second would blame what was under way there twice by chance."""
    first, second = together()
    for life in (1, 2, 3):
        first.fell(asked(1))
        first.settle(died=life)
        if life < 3:
            second.fell(asked(2))
            second.settle(died=life)
            assert not any(suspects.fatal(asked(number)) for suspects in (first, second) for number in (1, 2))
    for suspects in (first, second):
        assert [suspects.fatal(asked(number)) for number in (1, 2)] == [True, False]
    second.finished(asked(1))
    assert not first.fatal(asked(1))
