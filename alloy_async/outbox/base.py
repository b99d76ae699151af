"""What a place must do that keeps released events until the edge has taken them, and the records that cross that border.

Several *workers* (processes, or instances in one process) may share one outbox. Each event belongs to one of them at a
time, by a *lease*: a worker that does not renew it in time counts as dead, and its events may be claimed by others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ..stores.base import VisitorKey

__all__ = ["LEASE", "Changes", "Claimed", "Outbox", "OutboxEvent", "Row", "Shelf", "Stored", "VisitorKey"]

LEASE = 15.0
"""Seconds a worker's lease holds; it is renewed three times in that time."""


class OutboxEvent(NamedTuple):
    """An event as it waits.

    Attributes:
        visitor: whose it is.
        event_id: its ``_id``; may repeat, two such events are two events.
        body: the event as JSON, identity included, as it goes over the wire.
        needs_answer: whether it goes to interact, alone.
        names_person: whether the event says by itself whose it is.
        accepted_at: seconds since 1970 at which it was released.
    """

    visitor: VisitorKey
    event_id: str
    body: bytes
    needs_answer: bool
    names_person: bool
    accepted_at: float

    def __repr__(self) -> str:  # without the body, which must not be in what tools print of local variables
        return f"OutboxEvent({self.visitor!r}, {self.event_id!r}, {len(self.body)} bytes)"


@dataclass(frozen=True, slots=True)
class Claimed:
    """An event that now belongs to this worker.

    Attributes:
        key: its place in the outbox; events of one outbox are ordered by it.
        event: the event.
    """

    key: int
    event: OutboxEvent


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of events that were to be stored, in the order in which they were given.

    Attributes:
        keys: for each event its key; None where it was turned away.
        refused: visitors that declined since the epoch; their events were turned away.
        bound: ``max_queued`` or ``max_queued_bytes``, whichever turned others away; None when neither did.
    """

    keys: tuple[int | None, ...]
    refused: frozenset[VisitorKey] = frozenset()
    bound: str | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What others did since this worker looked last.

    Attributes:
        epoch: the epoch up to which this is true.
        refused: visitors that declined or were forgotten, each with the epoch of the last time.
        gone: keys of this worker's events that are no longer in the outbox, or belong to another worker now.
        missed: whether nobody remembers who declined meanwhile; then ``refused`` names whoever may have.
    """

    epoch: int
    refused: Mapping[VisitorKey, int] = field(default_factory=dict)
    gone: frozenset[int] = frozenset()
    missed: bool = False


@dataclass(frozen=True, slots=True)
class Shelf:
    """How an outbox stands, for people.

    Attributes:
        events: how many wait, of all workers.
        size: bytes of their bodies.
        workers: how many workers' leases hold.
        unclaimed: how many events belong to no living worker.
        erasing: whether erased data may still be readable in the file or its log; erasing is tried until it is not.
    """

    events: int = 0
    size: int = 0
    workers: int = 0
    unclaimed: int = 0
    erasing: bool = False


class Row(NamedTuple):
    """An event as a person sees it.

    Attributes:
        key: its place.
        event_id: its ``_id``.
        visitor: whose it is.
        size: bytes of its body.
        accepted_at: seconds since 1970 at which it was released.
        needs_answer: whether it goes to interact.
        claimed: whether it belongs to a living worker.
        body: the event as JSON; None in a list.
    """

    key: int
    event_id: str
    visitor: VisitorKey
    size: int
    accepted_at: float
    needs_answer: bool
    claimed: bool
    body: bytes | None = None


class Outbox(Protocol):
    """Keeps events for one worker at a time; an object belongs to one ``Alloy``, the place may be shared.

    Every method that is awaited raises ``OutboxError`` and nothing else. What has returned has been done durably: it
    survives ``kill -9``, unless the outbox says that it lives in memory. The conformance suite in
    ``alloy_async.testing`` says the same as tests.

    The *epoch* counts refusals, forgettings and purges in the whole outbox, by any worker; it never shrinks. A worker
    that finds it changed right before a transmission sends nothing until it has asked for the ``changes``.
    """

    async def open(self) -> int:
        """Begin work as a new worker, and return the epoch.

        Where what is kept is damaged it is set aside, never deleted, and an error in the log says where it is.
        """
        ...

    async def write(self, events: Sequence[OutboxEvent], ended: Collection[int], *, epoch: int) -> Stored:
        """Store events, and erase others that have ended, in one step.

        The bounds are those of the whole outbox. Once an event meets a bound, it and all behind it are turned away, so
        that order is kept.

        Args:
            events: to be stored, in order; they belong to this worker.
            ended: keys of this worker's events that were delivered, failed or withdrawn; what has gone is passed over.
            epoch: the epoch up to which this worker knows what others did; events of a visitor that declined since
                are turned away.
        """
        ...

    async def claim(self, visitors: Collection[VisitorKey], *, count: int, size: int) -> list[Claimed]:
        """Take over events that belong to no living worker, oldest first.

        Args:
            visitors: whose events.
            count: how many at most.
            size: bytes of their bodies at most; one event is returned even when it alone is larger.
        """
        ...

    async def abandoned(self) -> Collection[VisitorKey]:
        """Return the visitors that have events which belong to no living worker."""
        ...

    async def release(self) -> None:
        """Leave all of this worker's events to others at once, and go on; of these it is told nothing more."""
        ...

    async def expire(self, accepted_before: float) -> int:
        """Erase events that belong to no living worker and are too old, and return how many there were.

        Args:
            accepted_before: seconds since 1970.
        """
        ...

    async def renew(self) -> bool:
        """Renew the lease for ``LEASE`` seconds; return False when it had run out in the meantime.

        Then others may have claimed this worker's events: ask for the ``changes`` before sending any.
        """
        ...

    def may_send(self, epoch: int) -> bool:
        """Return whether the lease holds and the epoch is still this one; called right before a request is written.

        Not a coroutine, because nothing may come between the answer and the first byte. It takes microseconds and
        waits for nobody; where it cannot tell it says False.
        """
        ...

    async def changes(self, since: int) -> Changes:
        """Return what others did after an epoch."""
        ...

    async def erase(self, visitor: VisitorKey) -> int:
        """Erase a visitor's events, of whatever worker, start an epoch, and return it.

        Nothing of them may stay readable. Where that has to wait for others, ``shelf`` says so until it is done.
        """
        ...

    async def shelf(self) -> Shelf:
        """Return how things stand."""
        ...

    async def aclose(self) -> None:
        """Leave what is kept to others at once, and release files and connections; harmless when called twice."""
        ...
