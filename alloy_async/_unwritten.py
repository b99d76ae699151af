"""Events that are to be stored and are not: in line, in the group that is being written, adrift, or held back.

Theory of operation. They are taken in groups, in the order of the calls. Right before, consent is asked once more: who has
lost it meanwhile goes back to the gate, along with what was called later. An event that the outbox takes for refused is
*held back*, and what is behind it of its visitor joins it, until it is known who declined. The events of a group whose
write was cancelled are *adrift*: it may still be carried out.

Where there is a fallback, what lies there on disk waits there for the outbox too. It goes before what is only in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from itertools import filterfalse, groupby, islice
from typing import TYPE_CHECKING

from ._commands import EventCommand
from ._consent._rules import Verdict
from ._fallback import ENDED, Fallback
from .errors import ConsentDeclined, OutboxError, OutboxFull
from .outbox.base import Stored, VisitorKey

if TYPE_CHECKING:
    from ._visitor import VisitorState

__all__ = ["Unwritten", "waited_too_long", "waits_here"]

GROUP = 1_000
"""Events that are written in one step at most; about 10 ms of work for the disk's thread."""


class Unwritten:
    """Hands out what is to be written next, and takes back what was not.

    Args:
        fallback: where some of it waits on this machine; None: all of it waits in memory.
        limits: ``max_queued`` and ``max_queued_bytes`` by these names, for the error that tells of a full outbox.
        on_held_back: hears that an event is held back until it is known who declined.
    """

    def __init__(
        self, fallback: Fallback | None, *, limits: dict[str, int], on_held_back: Callable[[], object]
    ) -> None:
        self._fallback = fallback
        self._limits = limits
        self._on_held_back = on_held_back
        self._line: list[EventCommand] = []
        self._clear_at = ENDED
        self._group: list[EventCommand] = []
        self._adrift: list[EventCommand] = []
        self._held_back: list[EventCommand] = []

    def put(self, command: EventCommand) -> None:
        """Let an event wait; while nothing is written those that have ended gather behind others, and leave."""
        self._line.append(command)
        if len(self._line) > self._clear_at:
            self._line = [waiting for waiting in self._line if not waiting.ended]
            self._clear_at = 2 * len(self._line) + ENDED

    def is_in_line(self) -> bool:
        """Return whether anything is in line in memory."""
        return bool(self._line)

    def has_waiting(self) -> bool:
        """Return whether anything waits that may be written."""
        return bool(self._line) or (self._fallback is not None and self._fallback.has_waiting())

    def has_held_back(self) -> bool:
        """Return whether anything is held back."""
        return bool(self._held_back)

    def commands(self) -> list[EventCommand]:
        """Return all of them."""
        here = () if self._fallback is None else self._fallback.waiting()
        return [*self._adrift, *self._held_back, *self._group, *here, *self._line]

    # What is to be written next

    def gather(self) -> list[EventCommand]:
        """Take what the outbox gets next: what waits in the fallback first, and nothing that must wait there."""
        gathered: list[EventCommand] = []
        behind: list[EventCommand] = []
        if self._fallback is not None:
            gathered = self._fallback.take(GROUP)
            behind = self._take_behind(self._fallback, len(self._line))
        room = GROUP - len(gathered)
        gathered += self._line[:room]
        self._line = behind + self._line[room:]
        return gathered

    def gather_here(self, fallback: Fallback, *, is_down: bool) -> list[EventCommand]:
        """Take what is to be stored on this machine next.

        Args:
            fallback: where it is stored.
            is_down: whether everything is; otherwise only what comes after something that is being taken over there.
        """
        if not is_down:
            return self._take_behind(fallback, GROUP)
        gathered, self._line = self._line[:GROUP], self._line[GROUP:]
        return gathered

    def _take_behind(self, fallback: Fallback, count: int) -> list[EventCommand]:
        """Take, in order, what comes after something that is being taken over on this machine."""
        if not fallback.left():
            return []
        behind = list(islice(filter(fallback.is_behind, self._line), count))
        taken = set(behind)
        self._line = [command for command in self._line if command not in taken]
        return behind

    def wanted(self, gathered: list[EventCommand]) -> list[EventCommand]:
        """Return the events that are to be stored; what comes after something that is held back joins it."""
        wanted, parked = _consenting(gathered)
        if parked:
            self._send_back_later_ones(parked)
        if self._held_back:
            held_back = {command.visitor for command in self._held_back}
            self._held_back += [command for command in wanted if command.visitor in held_back]
            wanted = [command for command in wanted if command.visitor not in held_back]
        return wanted

    def _send_back_later_ones(self, parked: Mapping[VisitorState, int]) -> None:
        """Send back to the gate what was called after events that were parked: it must not be written before them."""
        is_later = partial(_is_later, parked)
        later = [] if self._fallback is None else self._fallback.take_if(is_later)
        later += filter(is_later, self._line)
        self._line = [*filterfalse(is_later, self._line)]
        theirs: dict[VisitorState, list[EventCommand]] = {}
        for command in later:
            theirs.setdefault(command.visitor, []).append(command)
        for visitor, commands in theirs.items():
            visitor.gate.readmit(commands)

    # A group on its way

    def begin(self, commands: Iterable[EventCommand]) -> list[EventCommand]:
        """Take note that a group is being written, and return it."""
        self._group = [*commands]
        return self._group

    def end(self) -> None:
        """Take note that the group is being written no longer; what becomes of its events is up to the caller."""
        self._group = []

    def set_adrift(self) -> None:
        """Take note that the write of the group was cancelled, which may still be carried out.

        Its events must neither be forgotten nor repeated. Those that are on this machine too are written again all the
        same, as after a crash: in two places under one ``_id``. What is behind them waits for them, and must not for ever.
        """
        still_open = [command for command in (*self._adrift, *self._group) if not command.ended]
        self._group = []
        self._adrift = [command for command in still_open if command.local_key is None]
        if self._fallback is not None:
            self._fallback.give_back([command for command in still_open if command.local_key is not None])

    def give_back(self, commands: list[EventCommand]) -> None:
        """Let events be written next, in their places, that were taken and not written."""
        if self._fallback is not None:
            self._fallback.give_back([*filter(waits_here, commands)])
            commands = [*filterfalse(waits_here, commands)]
        self._line = commands + self._line

    def turn_away(self, command: EventCommand, stored: Stored) -> None:
        """Hold back an event of a visitor that has declined; end one that has found no room.

        Args:
            command: the event.
            stored: what the outbox has answered that has turned it away.
        """
        if command.visitor.key in stored.refused:
            # Perhaps by this worker itself, or before a yes that is known here: it is judged once that has been read.
            self._held_back.append(command)
            self._on_held_back()
        else:
            bound = stored.bound or "max_queued"
            command.fail(OutboxFull(command.name, bound, self._limits[bound]))

    def judge(self, refused: Collection[VisitorKey]) -> bool:
        """Decide about the events that are held back; return whether any go on, before all others.

        Args:
            refused: who declined in another worker.
        """
        held_back, self._held_back = self._held_back, []
        going_on: list[EventCommand] = []
        parked: dict[VisitorState, int] = {}
        for command in held_back:
            if command.ended:
                continue
            if command.visitor.key not in refused:  # but by this worker itself, before they were called
                going_on.append(command)
            elif (
                command.visitor.asks
            ):  # in doubt now: a yes that is known here may have come after the refusal
                parked.setdefault(command.visitor, command.order)
                command.visitor.gate.readmit([command])
            else:
                command.fail(ConsentDeclined(command.name))
        if parked:
            self._send_back_later_ones(parked)
        if going_on:
            self.give_back(going_on)
        return bool(going_on)


def waited_too_long() -> OutboxError:
    """Return the error of an event that could not be stored in all the time that it may wait."""
    return OutboxError("write", "of this instance", "it could not be written for delivery_timeout.")


def waits_here(command: EventCommand) -> bool:
    """Return whether an event is stored on this machine, or waits in memory.

    What belongs to nobody who could be found again waits in memory: after a restart nobody could say whether it may still
    be sent.
    """
    return command.local_key is not None or command.visitor.is_passing


def _consenting(
    gathered: list[EventCommand],
) -> tuple[list[EventCommand], Mapping[VisitorState, int]]:
    """Return the events that may be stored; those that have lost their consent meanwhile go back to the gate.

    Also return whose events were parked there, each with the order of the first one.
    """
    wanted: list[EventCommand] = []
    parked: dict[VisitorState, int] = {}
    for (visitor, _), theirs in groupby(gathered, key=lambda command: (command.visitor, command.epoch)):
        waiting = [command for command in theirs if command.stage is not None]
        verdict = waiting[0].verdict() if waiting else Verdict.REFUSE  # asked once for all of them
        if verdict is Verdict.PASS:
            wanted += waiting
            continue
        if verdict is Verdict.PARK:
            parked.setdefault(visitor, waiting[0].order)
        visitor.gate.readmit(waiting)
    return wanted, parked


def _is_later(parked: Mapping[VisitorState, int], command: EventCommand) -> bool:
    return command.visitor in parked and command.order > parked[command.visitor]
