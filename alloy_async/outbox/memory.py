"""Events that wait for the wire in memory; they are gone when the process is killed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import takewhile
from typing import Generic, Protocol, TypeVar

__all__ = ["MemoryOutbox", "Queued"]


class Queued(Protocol):
    """An event as the outbox sees it."""

    body: bytes
    order: int


E = TypeVar("E", bound=Queued)


class MemoryOutbox(Generic[E]):
    """A queue from whose middle an event may leave at any time."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[E, None] = OrderedDict()

    def put(self, event: E) -> None:
        """Add an event: at the end, or in its place when it comes a second time."""
        last = next(reversed(self._waiting), None)
        if last is None or last.order < event.order:
            self._waiting[event] = None
        else:
            self.give_back([event])

    def give_back(self, events: list[E]) -> None:
        """Put events back that were taken and not sent, each in its place by order."""
        last = max((event.order for event in events), default=0)
        older = takewhile(lambda event: event.order < last, self._waiting)
        front = sorted({*older, *events}, key=lambda event: event.order)
        for event in reversed(front):
            self._waiting[event] = None
            self._waiting.move_to_end(event, last=False)

    def remove(self, event: E) -> None:
        """Let an event go that is refused, cancelled or taken to the wire; harmless when it has gone."""
        self._waiting.pop(event, None)

    def waiting(self) -> Iterable[E]:
        """Return the events that wait, oldest first."""
        return self._waiting.keys()

    def __len__(self) -> int:
        """Return how many events wait."""
        return len(self._waiting)
