"""The line in which released events wait for the wire, in this process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain, islice, pairwise, takewhile
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
    Events that come back stand before all others: whoever comes back was in line before. What has to wait for something
    else of its visitor's is set aside, so that nobody stands behind it, and stands in front once it may go on.

    Of each visitor, what was set aside is older than what has come back, and that is older than the rest.

    Attributes:
        size: bytes of what waits, a comma for each event included; without what was set aside.
    """

    def __init__(self) -> None:
        self._aside: dict[_Queuing, OrderedDict[E, int]] = {}
        self._in_front: dict[_Queuing, OrderedDict[E, int]] = {}  # those of them that may go on
        self._returned: OrderedDict[E, int] = OrderedDict()
        self._waiting: OrderedDict[E, int] = OrderedDict()
        self._count = 0
        self.size = 0

    def put(self, event: E) -> bool:
        """Add an event: at the end, or before the others when a later one of its visitor has been there.

        Returns:
            Whether it came back, and may stand beside the line.
        """
        visitor = event.visitor
        if event.order <= visitor.newest_in_line:
            self.give_back([event])
            return True
        visitor.newest_in_line = event.order
        self._waiting[event] = length = len(event.body) + 1
        self.size += length
        self._count += 1
        return False

    def give_back(self, events: list[E]) -> None:
        """Put events back that were taken and not sent, each in its place by order."""
        fresh = [event for event in events if event not in self]
        self._count += len(fresh)
        beside = {visitor: theirs for visitor, theirs in _by_visitor(fresh).items() if visitor in self._aside}
        placed = {visitor for visitor, theirs in beside.items() if self._place_aside(visitor, theirs)}
        fresh = [event for event in fresh if event.visitor not in placed]
        last = next(reversed(self._returned), None)
        for event in fresh:
            event.visitor.newest_in_line = max(event.visitor.newest_in_line, event.order)
            self._returned[event] = length = len(event.body) + 1
            self.size += length
        joined = self._join(beside.keys() - placed)
        if joined or not _is_sorted(fresh if last is None else [last, *fresh]):
            self._returned = OrderedDict(sorted(self._returned.items(), key=lambda item: item[0].order))

    def _place_aside(self, visitor: _Queuing, events: list[E]) -> bool:
        """Put events between two that were set aside of their visitor, unless they are to be sorted in one by one.

        As a rule they are parts of what an earlier start has left, before very many that are new.
        """
        aside = self._aside[visitor]
        older = list(takewhile(lambda one: one.order < events[0].order, aside))
        newer = next(islice(aside, len(older), None), None)
        if newer is None or newer.order < events[-1].order or not _is_sorted(events):
            return False
        for event in reversed(events):
            aside[event] = len(event.body) + 1
            aside.move_to_end(event, last=False)
        for event in reversed(older):
            aside.move_to_end(event, last=False)
        return True

    def _join(self, visitors: Collection[_Queuing]) -> bool:
        """Let what was set aside of some visitors join what has come back: it may be newer."""
        for visitor in visitors:
            events = self._aside.pop(visitor)
            self._in_front.pop(visitor, None)
            self._returned.update(events)
            self.size += sum(events.values())
        return bool(visitors)

    def set_aside(self, events: Iterable[E]) -> None:
        """Let events wait beside the line; of each visitor whatever stands in line before them must be among them."""
        for event in events:
            self._in_front.pop(event.visitor, None)
            if length := self._waiting.pop(event, 0) or self._returned.pop(event, 0):
                self.size -= length
                if event.visitor not in self._aside:
                    self._aside[event.visitor] = OrderedDict()
                self._aside[event.visitor][event] = length

    def let_pass(self, may_go: Callable[[E], bool]) -> None:
        """Let go on, before all others, what was set aside, of those visitors whose oldest event may go; of no others."""
        self._in_front = {
            visitor: events for visitor, events in self._aside.items() if may_go(next(iter(events)))
        }

    def is_held_up(self, event: E) -> bool:
        """Return whether something older of an event's visitor stands aside that may not go on."""
        return event.visitor in self._aside and event.visitor not in self._in_front

    def remove(self, *events: E) -> None:
        """Let events go that are refused, cancelled or taken to the wire; harmless for those that have gone."""
        waiting, returned = self._waiting, self._returned
        for event in events:
            # By the size it came with: an event that has ended has given up its body.
            if length := waiting.pop(event, 0) or returned.pop(event, 0):
                self.size -= length
                self._count -= 1
            elif event.visitor in self._aside:
                self._remove_aside(event)

    def _remove_aside(self, event: E) -> None:
        events = self._aside[event.visitor]
        self._count -= bool(events.pop(event, 0))
        if not events:
            del self._aside[event.visitor]

    def first(self) -> E | None:
        """Return the event that goes first, or None."""
        return next(self.waiting(), None)

    def waiting(self) -> Iterator[E]:
        """Return the events that stand in line, those that go first in front."""
        in_front = chain.from_iterable(self._in_front.values())
        return chain(in_front, self._returned, self._waiting)

    def returned(self, visitors: Collection[_Queuing]) -> Iterator[E]:
        """Return the events of some visitors that have come back, or the oldest aside, of each the oldest first."""
        aside = (next(iter(self._aside[visitor])) for visitor in self._aside.keys() & visitors)
        return chain(aside, (event for event in self._returned if event.visitor in visitors))

    def oldest_aside(self) -> Iterator[E]:
        """Return the oldest event of each visitor of whom something was set aside."""
        return (next(iter(events)) for events in self._aside.values())

    def aside(self) -> Iterable[Iterable[E]]:
        """Return what was set aside, of each visitor in order."""
        return self._aside.values()

    def __contains__(self, event: E) -> bool:
        """Return whether an event waits."""
        return (
            event in self._waiting or event in self._returned or event in self._aside.get(event.visitor, ())
        )

    def __iter__(self) -> Iterator[E]:
        """Return all events that wait, of each visitor in order."""
        return chain(chain.from_iterable(self._aside.values()), self._returned, self._waiting)

    def __len__(self) -> int:
        """Return how many events wait."""
        return self._count


def _by_visitor(events: list[E]) -> dict[_Queuing, list[E]]:
    theirs: dict[_Queuing, list[E]] = {}
    for event in events:
        theirs.setdefault(event.visitor, []).append(event)
    return theirs


def _is_sorted(events: list[E]) -> bool:
    return all(before.order < after.order for before, after in pairwise(events))
