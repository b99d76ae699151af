"""The line in which released events wait for the wire, in this process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import Generic, Protocol, TypeVar

__all__ = ["Line", "Queued"]


class _Queuing(Protocol):
    """A visitor as the line sees one.

    Attributes:
        newest_in_line: the highest order of the visitor's events that ever came into the line.
    """

    newest_in_line: int


class Queued(Protocol):
    """An event as the line sees it."""

    body: bytes
    order: int

    @property
    def visitor(self) -> _Queuing:
        """Whose it is."""
        ...


E = TypeVar("E", bound=Queued)


class Line(Generic[E]):
    """A queue from whose middle an event may leave at any time.

    Each visitor's events stand in the order of their calls; those of different visitors in the order in which they came.
    Events that come back stand before all others: whoever comes back was in line before.

    Attributes:
        size: bytes of what waits, a comma for each event included.
    """

    def __init__(self) -> None:
        self._returned: OrderedDict[E, int] = OrderedDict()
        self._waiting: OrderedDict[E, int] = OrderedDict()
        self.size = 0

    def put(self, event: E) -> None:
        """Add an event: at the end, or before the others when a later one of its visitor has been there."""
        visitor = event.visitor
        if event.order > visitor.newest_in_line:
            visitor.newest_in_line = event.order
            self._waiting[event] = length = len(event.body) + 1
            self.size += length
        else:
            self.give_back([event])

    def give_back(self, events: list[E]) -> None:
        """Put events back that were taken and not sent, each in its place by order."""
        fresh = [event for event in events if event not in self._returned and event not in self._waiting]
        last = next(reversed(self._returned), None)
        for event in fresh:
            event.visitor.newest_in_line = max(event.visitor.newest_in_line, event.order)
            self._returned[event] = length = len(event.body) + 1
            self.size += length
        if not _is_sorted(fresh if last is None else [last, *fresh]):
            self._returned = OrderedDict(sorted(self._returned.items(), key=lambda item: item[0].order))

    def remove(self, *events: E) -> None:
        """Let events go that are refused, cancelled or taken to the wire; harmless for those that have gone."""
        waiting, returned = self._waiting, self._returned
        for event in events:
            # By the size it came with: an event that has ended has given up its body.
            self.size -= waiting.pop(event, 0) or returned.pop(event, 0)

    def first(self) -> E | None:
        """Return the oldest event, or None."""
        return next(self.waiting(), None)

    def waiting(self) -> Iterator[E]:
        """Return the events that wait, those that go first in front."""
        return chain(self._returned, self._waiting) if self._returned else iter(self._waiting)

    def returned(self) -> Iterable[E]:
        """Return the events that have come back, oldest first."""
        return self._returned.keys()

    def __len__(self) -> int:
        """Return how many events wait."""
        return len(self._returned) + len(self._waiting)


def _is_sorted(events: list[E]) -> bool:
    return all(before.order < after.order for before, after in pairwise(events))
