"""One reader of what arrives in the event loop."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")
Deliver: TypeAlias = Callable[[list[T]], bool]
"""Takes items as they arrive, or declines them: returns whether it did."""


class Pipe(ABC, Generic[T]):
    """A task reads it, and what arrives while the task waits can be delivered without waking it.

    A wake-up costs more than all else that is done with a token: the middle of an answer needs none.
    """

    __slots__ = ("_declined", "_deliver", "_raised", "_waiter", "over")

    def __init__(self) -> None:
        self.over = False
        """Whether nothing more will come."""
        self._waiter: asyncio.Future[None] | None = None
        self._deliver: Deliver[T] | None = None
        self._declined: list[T] = []
        self._raised: Exception | None = None

    async def read(self, deliver: Deliver[T] | None = None) -> list[T]:
        """All items that have come, waiting for at least one; an empty list when no more will come.

        While it waits, what comes is given to `deliver`, and only what that declines is returned. Raises what `take`
        and `deliver` raise.
        """
        while True:
            items, self._declined = self._declined or self.take(), []
            if items or self.over:
                return items
            self._waiter = asyncio.get_running_loop().create_future()
            self._deliver = deliver
            try:
                await self._waiter
            finally:
                self._waiter = self._deliver = None
            if self._raised is not None:
                try:
                    raise self._raised
                finally:
                    self._raised = None  # its stack leads back to here

    def arrived(self) -> None:
        """To be called after every change of what `take` and `over` say."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self._deliver is not None:
            try:
                items = self.take()
                if items and not self._deliver(items):
                    self._declined = items
                elif not self.over:
                    return
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the reader's
                self._raised = error
        waiter.set_result(None)

    @abstractmethod
    def take(self) -> list[T]:
        """What has come and was not taken yet. When there is nothing left, raises what it failed with."""
