"""What was made lately, kept for the next time."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by key; those that were not used for longest go when all together exceed `capacity`. Thread-safe."""

    def __init__(self, capacity: int) -> None:
        """`capacity` is in the unit of the sizes that `keep` is told."""
        self._capacity = capacity
        self._used = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def keep(self, key: K, value: V, size: int) -> None:
        """Remember `value`, unless it is known already or alone too large."""
        with self._lock:
            if size > self._capacity or key in self._entries:
                return
            self._entries[key] = value, size
            self._used += size
            while self._used > self._capacity:
                _, (_, dropped) = self._entries.popitem(last=False)
                self._used -= dropped
