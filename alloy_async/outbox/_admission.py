"""Which events an outbox takes, and which it turns away. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from .base import OutboxEvent, VisitorKey

__all__ = ["Admission", "Room", "admit", "cut"]


class Room(NamedTuple):
    """Room for events.

    Attributes:
        events: how many.
        size: bytes of their bodies.
    """

    events: int
    size: int


class Admission(NamedTuple):
    """What was decided.

    Attributes:
        taken: for each event whether it is.
        used: the room that they need.
        bound: the bound that turned others away, or None.
    """

    taken: list[bool]
    used: Room
    bound: str | None


def admit(events: Sequence[OutboxEvent], refused: Collection[VisitorKey], room: Room) -> Admission:
    """Take events in order until one meets a bound; pass over those of visitors that declined.

    Args:
        events: in order.
        refused: visitors whose events are turned away.
        room: what there is.
    """
    total = sum([len(event.body) for event in events])
    if not refused and _bound(len(events), total, room) is None:  # as always
        return Admission([True] * len(events), Room(len(events), total), None)
    return _one_by_one(events, refused, room)


def _one_by_one(events: Sequence[OutboxEvent], refused: Collection[VisitorKey], room: Room) -> Admission:
    taken: list[bool] = []
    count = size = 0
    bound: str | None = None
    for event in events:
        wanted = event.visitor not in refused
        if wanted and bound is None:
            bound = _bound(count + 1, size + len(event.body), room)
        taken.append(wanted and bound is None)
        if taken[-1]:
            count += 1
            size += len(event.body)
    return Admission(taken, Room(count, size), bound)


def _bound(events: int, size: int, room: Room) -> str | None:
    if events > room.events:
        return "max_queued"
    return "max_queued_bytes" if size > room.size else None


def cut(sizes: Sequence[int], room: Room) -> int:
    """Return how many events from the front fit; one does even when it alone is larger.

    Args:
        sizes: bytes of each.
        room: how many, and how many bytes, are asked for.
    """
    total = 0
    for count, size in enumerate(sizes[: room.events]):
        total += size
        if count and total > room.size:
            return count
    return min(len(sizes), room.events)
