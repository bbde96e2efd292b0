"""What arrives while a reader waits is delivered without waking it, or returned: each item once, in order."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonbase.engines.pipe import Pipe

pytestmark = pytest.mark.anyio


class Numbers(Pipe[int]):
    def __init__(self) -> None:
        super().__init__()
        self.left: list[int] = []
        self.error: Exception | None = None

    def put(self, *numbers: int, last: bool = False, error: Exception | None = None) -> None:
        self.left += numbers
        self.over = last or error is not None
        self.error = error
        self.arrived()

    def take(self) -> list[int]:
        items, self.left = self.left, []
        if not items and self.error is not None:
            raise self.error
        return items


async def waiting(pipe: Numbers, deliver: Callable[[list[int]], bool] | None) -> "asyncio.Task[list[int]]":
    task = asyncio.create_task(pipe.read(deliver))
    await asyncio.sleep(0)
    return task


async def test_what_is_there_is_returned_and_not_delivered() -> None:
    pipe = Numbers()
    pipe.put(1, 2)
    assert await pipe.read(lambda items: pytest.fail("nobody waited")) == [1, 2]


async def test_what_comes_meanwhile_is_delivered_until_it_is_declined() -> None:
    pipe, seen = Numbers(), list[list[int]]()

    def deliver(items: list[int]) -> bool:
        if 9 in items:
            return False
        seen.append(items)
        return True

    task = await waiting(pipe, deliver)
    pipe.put(1)
    pipe.put(2, 3)
    await asyncio.sleep(0)
    assert not task.done()
    pipe.put(9)
    pipe.put(4)
    assert await task == [9]
    assert seen == [[1], [2, 3]]
    assert await pipe.read() == [4]


async def test_an_end_without_items_wakes_the_reader() -> None:
    pipe = Numbers()
    for deliver in (None, lambda items: True):
        task = await waiting(pipe, deliver)
        pipe.put(last=True)
        assert await task == []
        pipe.over = False


async def test_an_error_comes_after_what_came_before_it() -> None:
    pipe, seen = Numbers(), list[int]()

    def deliver(items: list[int]) -> bool:
        seen.extend(items)
        return True

    task = await waiting(pipe, deliver)
    pipe.put(1, error=ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await task
    assert seen == [1]


async def test_what_deliver_raises_is_the_readers() -> None:
    pipe = Numbers()

    def deliver(items: list[int]) -> bool:
        raise KeyError(items[0])

    task = await waiting(pipe, deliver)
    pipe.put(7)
    with pytest.raises(KeyError, match="7"):
        await task


async def test_a_reader_that_was_cancelled_leaves_the_pipe_to_the_next() -> None:
    pipe = Numbers()
    task = await waiting(pipe, None)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    pipe.put(5)
    assert await pipe.read() == [5]


async def test_what_was_declined_for_a_reader_that_was_cancelled_is_the_next_ones() -> None:
    pipe = Numbers()
    task = await waiting(pipe, lambda items: False)
    pipe.put(6)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    pipe.put(7)
    async with asyncio.timeout(1):
        assert [await pipe.read(), await pipe.read()] == [[6], [7]]


@given(st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=3), st.booleans(), st.booleans()), max_size=20))
def test_every_item_is_seen_once_and_in_order(puts: list[tuple[list[int], bool, bool]]) -> None:
    """Whatever is delivered, declined or left to the reader's turn."""

    async def run() -> list[int]:
        pipe, seen, takes = Numbers(), list[int](), True

        def deliver(items: list[int]) -> bool:
            if takes:
                seen.extend(items)
            return takes

        async def read() -> None:
            while items := await pipe.read(deliver):
                seen.extend(items)

        task = asyncio.create_task(read())
        for items, accepted, turn in puts:
            takes = accepted
            pipe.put(*items)
            if turn:
                await asyncio.sleep(0)
        pipe.put(last=True)
        await task
        return seen

    assert asyncio.run(run()) == [item for items, _, _ in puts for item in items]
