"""What was made lately is kept, within bounds."""

import threading

from moonbase.formats.recent import Recent


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


def test_threads_that_make_the_same_at_once_leave_the_count_right():
    recent: Recent[int, int] = Recent(100)
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        for key in range(3_000):
            if recent.get(key) is None:
                recent.keep(key, key, 30)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([key for key in range(3_000) if recent.get(key) is not None]) == 3
    for key in (3_001, 3_002, 3_003):
        recent.keep(key, key, 30)
    assert [key for key in range(3_004) if recent.get(key) is not None] == [3_001, 3_002, 3_003]


def test_what_is_kept_twice_counts_once():
    recent: Recent[str, int] = Recent(10)
    recent.keep("a", 1, 6)
    recent.keep("a", 1, 6)
    assert recent.get("a") == 1
