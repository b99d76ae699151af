"""Events that wait as long as the process lives: for tests, and for applications that need no more."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from .._clock import Clock, SystemClock
from ..errors import OutboxError
from ._admission import Room, admit, cut
from .base import LEASE, Changes, Claimed, OutboxEvent, Shelf, Stored, VisitorKey

__all__ = ["MemoryOutbox", "MemoryShelf"]


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker, and its events by their keys, in order.

    Attributes:
        lease_until: seconds since 1970.
        events: what belongs to it.
    """

    lease_until: float
    events: dict[int, OutboxEvent] = field(default_factory=dict)


class MemoryShelf:
    """What several ``MemoryOutbox`` objects share, as processes share a file."""

    def __init__(self) -> None:
        self.epoch: int = 0
        self.size: int = 0
        self.workers: list[_Worker] = []
        self.refusals: dict[VisitorKey, int] = {}
        self.keys: Iterator[int] = itertools.count(1)

    @property
    def events(self) -> int:
        """How many events wait, of all workers."""
        return sum(len(worker.events) for worker in self.workers)

    def join(self, now: float) -> _Worker:
        """Add a worker, and forget the dead ones that have left nothing."""
        self.workers = [worker for worker in self.workers if worker.events or worker.lease_until > now]
        self.workers.append(_Worker(now + LEASE))
        return self.workers[-1]

    def remove(self, worker: _Worker, keys: Iterable[int]) -> list[OutboxEvent]:
        """Remove a worker's events and return them; what it does not have is passed over."""
        removed = [event for key in keys if (event := worker.events.pop(key, None)) is not None]
        self.size -= sum(len(event.body) for event in removed)
        return removed


class MemoryOutbox:
    """An outbox in memory. Give one shelf to several, and they share their events as processes share a file.

    Args:
        shelf: what is shared; None for one of its own.
        clock: where time comes from; None for the machine's.
        max_events: events that may wait at once, of all workers.
        max_bytes: bytes of their bodies.
    """

    def __init__(
        self,
        shelf: MemoryShelf | None = None,
        *,
        clock: Clock | None = None,
        max_events: int = 100_000,
        max_bytes: int = 134_217_728,
    ) -> None:
        self._shelf = MemoryShelf() if shelf is None else shelf
        self._clock: Clock = SystemClock() if clock is None else clock
        self._bounds = Room(max_events, max_bytes)
        self._worker: _Worker | None = None
        self._held: set[int] = set()

    async def open(self) -> int:
        """Begin work as a new worker, and return the epoch."""
        await self.aclose()
        self._worker = self._shelf.join(self._clock.time())
        return self._shelf.epoch

    async def write(self, events: Sequence[OutboxEvent], ended: Collection[int], *, epoch: int) -> Stored:
        """Store events, and erase others that have ended, in one step."""
        worker = self._working("write")
        self._shelf.remove(worker, ended)
        self._held.difference_update(ended)
        visitors = {event.visitor for event in events}
        refused = visitors.intersection(self._refused(epoch))
        admission = admit(events, refused, self._room())
        keys = tuple(next(self._shelf.keys) if one else None for one in admission.taken)
        self._keep(worker, {key: event for key, event in zip(keys, events, strict=True) if key is not None})
        return Stored(keys, frozenset(refused), admission.bound)

    async def claim(self, visitors: Collection[VisitorKey], *, count: int, size: int) -> list[Claimed]:
        """Take over events that belong to no living worker, oldest first."""
        worker = self._working("read")
        wanted = frozenset(visitors)
        found = sorted((key, one) for one in self._others() for key in _keys_of(one, wanted))
        sizes = [len(one.events[key].body) for key, one in found]
        claimed: dict[int, OutboxEvent] = {}
        for key, one in found[: cut(sizes, Room(count, size))]:
            (claimed[key],) = self._shelf.remove(one, [key])
        self._keep(worker, claimed)
        return [Claimed(key, event) for key, event in claimed.items()]

    async def abandoned(self) -> Collection[VisitorKey]:
        """Return the visitors that have events which belong to no living worker."""
        self._working("read")
        return {event.visitor for one in self._others() for event in one.events.values()}

    async def release(self) -> None:
        """Leave all of this worker's events to others at once, and go on."""
        worker = self._working("write")
        if worker.events:
            left = self._shelf.join(self._clock.time())
            left.lease_until = 0.0
            left.events, worker.events = worker.events, left.events
        self._held.clear()

    async def expire(self, accepted_before: float) -> int:
        """Erase events that belong to no living worker and are too old, and return how many there were."""
        self._working("write")
        expired = 0
        for one in self._others():
            old = [key for key, event in one.events.items() if event.accepted_at < accepted_before]
            expired += len(self._shelf.remove(one, old))
        return expired

    async def renew(self) -> bool:
        """Renew the lease; return False when it had run out in the meantime."""
        worker = self._working("write")
        now = self._clock.time()
        held = worker.lease_until > now
        worker.lease_until = now + LEASE
        if worker not in self._shelf.workers:  # it had left nothing, and was forgotten
            self._shelf.workers.append(worker)
        return held

    def may_send(self, epoch: int) -> bool:
        """Return whether the lease holds and the epoch is still this one."""
        worker = self._worker
        return worker is not None and self._shelf.epoch == epoch and worker.lease_until > self._clock.time()

    async def changes(self, since: int) -> Changes:
        """Return what others did after an epoch."""
        worker = self._working("read")
        gone = self._held.difference(worker.events)
        self._held -= gone
        return Changes(self._shelf.epoch, self._refused(since), frozenset(gone))

    async def erase(self, visitor: VisitorKey) -> int:
        """Erase a visitor's events, of whatever worker, start an epoch, and return it."""
        for worker in self._shelf.workers:
            self._shelf.remove(worker, list(_keys_of(worker, {visitor})))
        self._shelf.epoch += 1
        self._shelf.refusals[visitor] = self._shelf.epoch
        return self._shelf.epoch

    async def shelf(self) -> Shelf:
        """Return how things stand."""
        now = self._clock.time()
        dead = [worker for worker in self._shelf.workers if worker.lease_until <= now]
        return Shelf(
            events=self._shelf.events,
            size=self._shelf.size,
            workers=len(self._shelf.workers) - len(dead),
            unclaimed=sum(len(worker.events) for worker in dead),
        )

    async def aclose(self) -> None:
        """Leave what is kept to others at once; the shelf keeps it."""
        if self._worker is not None:
            self._worker.lease_until = 0.0
            self._worker = None
        self._held.clear()

    def _working(self, action: str) -> _Worker:
        if self._worker is None:
            raise OutboxError(action, "in memory", "it is not open; call open() first.")
        return self._worker

    def _room(self) -> Room:
        return Room(self._bounds.events - self._shelf.events, self._bounds.size - self._shelf.size)

    def _refused(self, since: int) -> dict[VisitorKey, int]:
        if since == self._shelf.epoch:
            return {}
        return {visitor: epoch for visitor, epoch in self._shelf.refusals.items() if epoch > since}

    def _keep(self, worker: _Worker, events: dict[int, OutboxEvent]) -> None:
        worker.events.update(events)
        self._held.update(events)
        self._shelf.size += sum(len(event.body) for event in events.values())

    def _others(self) -> list[_Worker]:
        """Return the workers whose leases have run out. Not this one: it has its events already."""
        now = self._clock.time()
        return [one for one in self._shelf.workers if one.lease_until <= now and one is not self._worker]


def _keys_of(worker: _Worker, visitors: Collection[VisitorKey]) -> Iterator[int]:
    return (key for key, event in worker.events.items() if event.visitor in visitors)
