"""What is this worker's own in an outbox: events by their places, and places whose events have ended.

Theory of operation. Whatever has ended is erased along with the next group that is written, which costs nothing. When that
fails, or is cancelled, it is erased with the one after it; erasing a place twice does no harm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from ._commands import EventCommand
from ._ledger import Ledger
from ._taking_over import Returning
from .outbox.base import VisitorKey

__all__ = ["Held"]


class Held:
    """Knows which event lies where, and which have ended. Counts what is stored, and what was taken over and has not gone on.

    Args:
        ledger: knows how many events are in an outbox.
        returning: how many there are that were taken over.
    """

    def __init__(self, ledger: Ledger, returning: Returning) -> None:
        self._ledger = ledger
        self._returning = returning
        self._events: dict[int, EventCommand] = {}
        self._ended: list[int] = []

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

    def erase_later(self, key: int) -> None:
        """Erase with the next write what lies there: it has ended."""
        self._ended.append(key)

    def has_ended(self) -> bool:
        """Return whether anything is to be erased."""
        return bool(self._ended)

    @contextmanager
    def erasing(self) -> Iterator[list[int]]:
        """Hand out the places that a write erases; those of one that was not completed are handed out again."""
        ended, self._ended = self._ended, []
        try:
            yield ended
        except BaseException:  # a cancellation too: what has ended must not be left to others
            self._ended = ended + self._ended
            raise

    def at(self, keys: Collection[int]) -> list[EventCommand]:
        """Return the events that lie at these places, in their order."""
        return [self._events[key] for key in sorted(self._events.keys() & keys)]

    def of(self, visitor: VisitorKey) -> list[EventCommand]:
        """Return a visitor's events."""
        return [command for command in self._events.values() if command.visitor.key == visitor]

    def visitors(self) -> set[VisitorKey]:
        """Return the visitors of whom there is anything."""
        return {command.visitor.key for command in self._events.values()}
