"""Events that travel together in one request, from its first attempt to its last."""

from __future__ import annotations

from collections.abc import Iterable

from ._commands import GONE, EventCommand
from ._consent._opt_in import OptInState
from ._consent._rules import Verdict

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
        return all(gate.verdict(epoch) is Verdict.PASS for gate, epoch in self._gates())

    def has_gone(self) -> bool:
        """Return whether others have purged or taken over one of its events."""
        return any(command.key == GONE for command in self.commands)

    def halves(self) -> Iterable[Batch]:
        """Cut it in two, to find the event that the edge minds."""
        middle = len(self.commands) // 2
        return Batch(self.commands[:middle]), Batch(self.commands[middle:])

    def _gates(self) -> set[tuple[OptInState, int]]:
        # Events of one visitor and epoch share their verdict: one question for thousands of events.
        return {(command.visitor.gate, command.epoch) for command in self.commands}
