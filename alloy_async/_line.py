"""The line in which released events wait for the wire, in this process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import takewhile
from typing import Generic, Protocol, TypeVar

__all__ = ["Line", "Queued"]


class Queued(Protocol):
    """An event as the line sees it."""

    body: bytes
    order: int


E = TypeVar("E", bound=Queued)


class Line(Generic[E]):
    """A queue from whose middle an event may leave at any time.

    Attributes:
        size: bytes of what waits, a comma for each event included.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[E, int] = OrderedDict()
        self._newest = 0
        self.size = 0

    def put(self, event: E) -> None:
        """Add an event: at the end, or in its place when it comes a second time."""
        if event.order > self._newest or not self._waiting:
            self._newest = event.order
            self._hold(event)
        else:
            self.give_back([event])

    def give_back(self, events: list[E]) -> None:
        """Put events back that were taken and not sent, each in its place by order."""
        last = max((event.order for event in events), default=0)
        older = takewhile(lambda event: event.order < last, self._waiting)
        front = sorted({*older, *events}, key=lambda event: event.order)
        for event in reversed(front):
            if event not in self._waiting:
                self._hold(event)
            self._waiting.move_to_end(event, last=False)

    def remove(self, *events: E) -> None:
        """Let events go that are refused, cancelled or taken to the wire; harmless for those that have gone."""
        waiting = self._waiting
        for event in events:
            # By the size it came with: an event that has ended has given up its body.
            self.size -= waiting.pop(event, 0)

    def first(self) -> E | None:
        """Return the oldest event, or None."""
        return next(iter(self._waiting), None)

    def waiting(self) -> Iterable[E]:
        """Return the events that wait, oldest first."""
        return self._waiting.keys()

    def __len__(self) -> int:
        """Return how many events wait."""
        return len(self._waiting)

    def _hold(self, event: E) -> None:
        self._waiting[event] = length = len(event.body) + 1
        self.size += length
