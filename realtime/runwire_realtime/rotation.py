"""Some of many things at a time, each as often as the others. [core]

What is looked at every second must not take longer the more of it there is: a look takes so many,
the next one goes on behind them.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Rotation(Generic[Item]):
    """Goes around whatever there is at the beginning of each round."""

    def __init__(self, items: Callable[[], Iterable[Item]], at_once: int) -> None:
        self._items = items
        self._at_once = at_once
        self._round: deque[Item] = deque()

    def take(self) -> list[Item]:
        """Return the next ones; some of them may be gone meanwhile."""
        if not self._round:
            self._round.extend(self._items())
        return [self._round.popleft() for _ in range(min(self._at_once, len(self._round)))]
