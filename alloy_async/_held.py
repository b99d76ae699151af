"""The events that are this worker's own in an outbox, by their places there."""

from __future__ import annotations

from collections.abc import Collection

from ._commands import EventCommand
from ._ledger import Ledger
from ._taking_over import Returning
from .outbox.base import VisitorKey

__all__ = ["Held"]


class Held:
    """Knows which event lies where, and counts: in the books what is stored, for taking over what has not gone on.

    Args:
        ledger: knows how many events are in an outbox.
        returning: how many there are that were taken over.
    """

    def __init__(self, ledger: Ledger, returning: Returning) -> None:
        self._ledger = ledger
        self._returning = returning
        self._events: dict[int, EventCommand] = {}

    def hold(self, command: EventCommand, key: int) -> None:
        """Take note that an event lies there."""
        self._events[key] = command
        self._ledger.stored += 1
        if command.order < 0:
            self._returning.add(command.visitor.key)

    def drop(self, key: int) -> EventCommand | None:
        """Take note that nothing of this worker's lies there any more; return what did."""
        command = self._events.pop(key, None)
        if command is not None:
            self._ledger.stored -= 1
            if command.order < 0:
                self._returning.drop(command.visitor.key)
        return command

    def at(self, keys: Collection[int]) -> list[EventCommand]:
        """Return the events that lie at these places, in their order."""
        return [self._events[key] for key in sorted(self._events.keys() & keys)]

    def of(self, visitor: VisitorKey) -> list[EventCommand]:
        """Return a visitor's events."""
        return [command for command in self._events.values() if command.visitor.key == visitor]

    def visitors(self) -> set[VisitorKey]:
        """Return the visitors of whom there is anything."""
        return {command.visitor.key for command in self._events.values()}
