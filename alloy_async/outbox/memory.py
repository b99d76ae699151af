"""Events that wait for the wire in memory; they are gone when the process is killed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

__all__ = ["MemoryOutbox", "Queued"]


class Queued(Protocol):
    """An event as the outbox sees it."""

    body: bytes


E = TypeVar("E", bound=Queued)


class MemoryOutbox(Generic[E]):
    """A queue from whose middle an event may leave at any time."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[E, None] = OrderedDict()

    def put(self, event: E) -> None:
        """Add an event at the end."""
        self._waiting[event] = None

    def give_back(self, events: Iterable[E]) -> None:
        """Put events back to the front, in their order; they were taken and not sent."""
        for event in reversed(list(events)):
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
