"""Events that travel together in one request, from its first attempt to its last."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ._commands import GONE, EventCommand
from ._consent._rules import Verdict

if TYPE_CHECKING:
    from ._visitor import VisitorState

__all__ = ["Batch"]


class Batch:
    """What one request carries; kept together over all attempts, so that each repeats the one before.

    Attributes:
        commands: the events, in order.
        attempts: how many requests were made for it.
    """

    __slots__ = ("attempts", "commands")

    def __init__(self, commands: list[EventCommand]) -> None:
        self.commands = commands
        self.attempts = 0

    @property
    def head(self) -> EventCommand:
        """The oldest event."""
        return self.commands[0]

    def drop_ended(self) -> None:
        """Leave out events that have ended, for example withdrawn by their caller."""
        self.commands = [command for command in self.commands if command.stage is not None]

    def consents(self) -> bool:
        """Return whether every event may be sent, asked right now."""
        visitor: VisitorState | None = None
        epoch = -1
        for command in self.commands:
            # Neighbours mostly share visitor and epoch, and with them the verdict.
            if command.visitor is visitor and command.epoch == epoch:
                continue
            if command.verdict() is not Verdict.PASS:
                return False
            visitor, epoch = command.visitor, command.epoch
        return True

    def has_gone(self) -> bool:
        """Return whether others have purged or taken over one of its events."""
        return any(command.key == GONE for command in self.commands)

    def halves(self) -> Iterable[Batch]:
        """Cut it in two, to find the event that the edge minds."""
        middle = len(self.commands) // 2
        return Batch(self.commands[:middle]), Batch(self.commands[middle:])
