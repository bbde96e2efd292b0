"""What was made lately is kept, within bounds."""

from moonbase.engines.recent import Recent


def test_what_was_used_lately_stays():
    recent: Recent[str, int] = Recent(10)
    recent.keep("a", 1, 4)
    recent.keep("b", 2, 4)
    assert recent.get("a") == 1

    recent.keep("c", 3, 4)

    assert recent.get("b") is None
    assert (recent.get("a"), recent.get("c")) == (1, 3)


def test_what_is_too_large_moves_nothing_out():
    recent: Recent[str, int] = Recent(10)
    recent.keep("a", 1, 10)
    recent.keep("b", 2, 11)
    assert (recent.get("a"), recent.get("b")) == (1, None)


def test_what_is_kept_twice_counts_once():
    recent: Recent[str, int] = Recent(10)
    recent.keep("a", 1, 6)
    recent.keep("a", 1, 6)
    assert recent.get("a") == 1
