"""Keeping events on this machine's disk while the shared outbox does not take them.

Theory of operation. An event that the shared outbox did not take is stored in an outbox of this machine. It also stays in
memory, in the line of what is to be written, and is written to the shared outbox, in order, when that answers again. Only
then is it erased here; a process that is killed in between leaves it in both places, under one ``_id``. What an earlier
start has left here is taken over and goes the same way. So there is one way to the edge, a relay gets everything, and
nothing is sent that only this machine knows of.

Not an ``Outbox`` in front of two others, which was drawn first: the protocol has no words for it. A key is an event's
place, and what moves has two. Two outboxes count their refusals and keys separately, and one of the two cannot be asked.
Above all ``may_send`` promises that a refusal anywhere would be known: with the shared outbox out of reach nobody can
promise that, so such an outbox would break the protocol exactly when it is needed.

A refusal elsewhere cannot erase what lies in a file of a machine that is switched off. So what was left here is taken
over only if it is not older than the visitor's present choice.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from copy import copy
from itertools import filterfalse
from typing import NamedTuple

from ._clock import Clock
from ._commands import EventCommand, outbox_events
from ._expiry import Expiry
from ._futures import cancel_all, is_under_way
from ._held import Held
from ._ledger import Ledger
from ._outbox_epoch import OutboxEpoch
from ._taking_over import Left, Returning, TakingOver
from .errors import OutboxError
from .outbox._raised import as_outbox_error
from .outbox.base import LEASE, Outbox, Shelf, Stored, VisitorKey

__all__ = ["Fallback", "Heard"]

ENDED = 2_000
"""Events that may lie in the line although they have ended, such as those whose callers have lost patience."""


class Heard(NamedTuple):
    """What other processes of this machine did.

    Attributes:
        refused: visitors that declined there.
        lost: events that are no longer here, because of that, or since they were purged or taken over.
    """

    refused: frozenset[VisitorKey] = frozenset()
    lost: Sequence[EventCommand] = ()


class Fallback:
    """Events that wait on this machine for the shared outbox, oldest first.

    Args:
        outbox: of this machine; several processes may share it.
        lifetime: seconds that an event may wait for its delivery.
        ledger: knows how many events are in an outbox.
        clock: where time comes from.
        logger: hears of what goes wrong without harm.
    """

    def __init__(
        self, outbox: Outbox, *, lifetime: float, ledger: Ledger, clock: Clock, logger: logging.Logger
    ) -> None:
        self._outbox = outbox
        self._expiry = Expiry(outbox, lifetime=lifetime, place="on this machine", clock=clock, logger=logger)
        self._clock = clock
        self._logger = logger
        self._epoch = OutboxEpoch(outbox, on_behind=_nothing)  # it is asked before each group
        self._line: deque[EventCommand] = deque()
        self._clear_at = ENDED
        self._behind: list[EventCommand] = []
        self._returning = Returning()
        self._held = Held(ledger, self._returning)
        self._left = Left(outbox)
        self._refused: set[VisitorKey] = set()
        self._rests_until = 0.0
        self._lease_ran_out = False
        self._taking_over: asyncio.Task[None] | None = None
        self._visitors: TakingOver | None = None
        self._on_detached: Callable[[list[EventCommand]], object] = _nothing
        self._on_taken_over: Callable[[], object] = _nothing

    async def open(
        self,
        visitors: TakingOver,
        *,
        on_detached: Callable[[list[EventCommand]], object],
        on_taken_over: Callable[[], object],
    ) -> None:
        """Begin work.

        Args:
            visitors: what taking over needs to know of them.
            on_detached: takes events that were erased here along with others of their visitor, and may go on.
            on_taken_over: hears that what was left here has been taken over, as far as it can be now.

        Raises:
            OutboxError: the outbox cannot be used.
        """
        self._on_detached, self._on_taken_over = on_detached, on_taken_over
        await self._epoch.open()
        await self._left.look()
        self._visitors = visitors

    # The line of what is to be written to the shared outbox

    def has_waiting(self) -> bool:
        """Return whether anything waits here that may be written."""
        return bool(self._line)

    def waiting(self) -> Iterable[EventCommand]:
        """Return the events that wait here."""
        return (*self._behind, *self._line)

    def take(self, count: int) -> list[EventCommand]:
        """Take the oldest events; those that come after something that is being taken over stay."""
        taken: list[EventCommand] = []
        while self._line and len(taken) < count:
            command = self._line.popleft()
            (self._behind if self.is_behind(command) else taken).append(command)
        return taken

    def take_if(self, wanted: Callable[[EventCommand], bool]) -> list[EventCommand]:
        """Take those events that are wanted, of all that wait here."""
        taken = [*filter(wanted, self.waiting())]
        if taken:
            self._behind = [*filterfalse(wanted, self._behind)]
            self._line = deque(filterfalse(wanted, self._line))
        return taken

    def give_back(self, commands: Sequence[EventCommand]) -> None:
        """Put events back in front that were taken and not written."""
        self._line.extendleft(reversed(commands))

    def add(self, commands: Iterable[EventCommand]) -> None:
        """Let events wait, behind all others; now and then those that have ended leave."""
        self._line.extend(commands)
        if len(self._line) > self._clear_at:
            self._line = deque(command for command in self._line if not command.ended)
            self._clear_at = 2 * len(self._line) + ENDED

    def end_too_old(self, error: OutboxError, released_before: float) -> None:
        """End the events that have waited for too long.

        Args:
            error: what they end with.
            released_before: monotonic seconds.
        """
        while self._line and (self._line[0].ended or self._line[0].released_at <= released_before):
            self._line.popleft().fail(copy(error))

    def is_behind(self, command: EventCommand) -> bool:
        """Return whether something older of its visitor lies here that has not been taken over."""
        return command.order >= 0 and command.visitor.key in self._left.visitors

    def has_recovered(self, visitor: VisitorKey) -> bool:
        """Return whether all that was left of a visitor is in the shared outbox; what can be taken over is."""
        if visitor in self._left.visitors and not self._left.has_more:
            self.take_over()
        return visitor not in self._left.visitors and not self._returning.of(visitor)

    @property
    def has_more(self) -> bool:
        """Whether some of what was left here waits for room in memory."""
        return self._left.has_more

    def left(self) -> Collection[VisitorKey]:
        """Return the visitors of whom something was left here."""
        return self._left.visitors

    # What lies here

    async def store(self, commands: Sequence[EventCommand]) -> Stored:
        """Store events; those that are stored wait here from then on.

        Raises:
            OutboxError: it could not be done.
        """
        with self._held.erasing() as ended:
            rows = outbox_events(commands, self._clock)
            stored = await self._outbox.write(rows, ended, epoch=self._epoch.number)
        waiting = []
        for command, key in zip(commands, stored.keys, strict=True):
            if key is not None:
                command.local_key = key
                self._held.hold(command, key)
                if command.ended:  # it was withdrawn while it was being written
                    self.let_go(command)
                else:
                    waiting.append(command)
        self.add(waiting)
        return stored

    def let_go(self, command: EventCommand) -> None:
        """Erase an event with the next step, which has ended, or is in the shared outbox; harmless for others."""
        if command.local_key is not None:
            self._held.erase_later(command.local_key)
            self._drop(command)

    async def erase_ended(self) -> None:
        """Erase what was let go.

        Raises:
            OutboxError: it could not be done; it is tried again with the next step.
        """
        if self._held.has_ended():
            await self.store([])

    async def erase(self, visitor: VisitorKey) -> None:
        """Erase a visitor's events, of whatever process of this machine.

        Raises:
            OutboxError: it could not be done.
        """
        await self._epoch.erase(visitor)
        self._detach(self._held.of(visitor))

    def refused(self, visitors: Collection[VisitorKey]) -> None:
        """Erase soon what is here of visitors that declined on other machines, unless they have consented again.

        That is read first: another process of this machine may have what was called after a new yes, or may have left it.
        """
        if visitors:
            self._refused.update(visitors)
            self.take_over()

    def is_current(self) -> bool:
        """Return whether this worker knows what others of this machine did; microseconds."""
        return self._epoch.is_latest() and not self._lease_ran_out

    async def hear(self) -> Heard:
        """Ask what others of this machine did.

        Raises:
            OutboxError: it could not be done.
        """
        async with self._epoch.news() as news:
            self._lease_ran_out = False
        gone = self._held.at(news.gone)
        lost = [
            command
            for command in gone
            if command.visitor.key in news.refused or command.visitor.key not in news.erased
        ]
        for command in lost:
            self._drop(command)
        self._detach([command for command in gone if command.local_key is not None])
        return Heard(news.refused, lost)

    async def shelf(self) -> Shelf:
        """Return how the outbox of this machine stands."""
        return await self._outbox.shelf()

    def _drop(self, command: EventCommand) -> None:
        key, command.local_key = command.local_key, None
        if key is not None and self._held.drop(key) is not None:
            self._claim_more()

    def _detach(self, commands: Sequence[EventCommand]) -> None:
        """Take note that events were erased here with others of their visitor; those that may go on are stored anew."""
        for command in commands:
            self._drop(command)
        going_on = {command for command in commands if command.stage == "queued"}
        waiting = going_on.intersection(self.waiting())  # others are on their way to the shared outbox
        if waiting:
            self._line = deque(command for command in self._line if command not in waiting)
            self._behind = [command for command in self._behind if command not in waiting]
            self._on_detached([command for command in commands if command in waiting])

    # What an earlier start, or a dead worker, has left here

    def take_over(self) -> None:
        """Renew the lease, and take over what belongs to no living worker of this machine."""
        rests = self._clock.monotonic() < self._rests_until
        if not is_under_way(self._taking_over) and self._visitors is not None and not rests:
            self._taking_over = asyncio.Task(self._take_over(self._visitors), name="alloy-outbox-local")

    def _claim_more(self) -> None:
        """Take over the next part, once all of the last one is in the shared outbox."""
        if self._left.has_more and not self._returning.total:
            self.take_over()

    async def _take_over(self, visitors: TakingOver) -> None:
        try:
            if not await self._outbox.renew():
                self._lease_ran_out = True
            await self._expiry.look()
            await self._claim(visitors)
        except Exception as raised:  # noqa: BLE001 - an outbox of somebody else's may raise what it should not
            self._left.forget(self._left.visitors)  # what comes now does not wait for what cannot be read
            self._rests_until = self._clock.monotonic() + LEASE / 3
            self._logger.warning("%s; what was left there waits", as_outbox_error("read", raised))
        finally:
            self._taking_over = None
        if self._behind or self._returning.total:
            self._line = deque(sorted([*self._behind, *self._line], key=lambda command: command.order))
            self._behind = []
        self._on_taken_over()
        self._claim_more()

    async def _claim(self, visitors: TakingOver) -> None:
        """Take over as much as memory should hold; the rest follows once that is in the shared outbox."""
        await self._left.look()
        await self._erase_refused(visitors)
        taken = await self._left.claim(visitors, returning=self._returning, take=self._let_wait)
        for visitor in filter(visitors.has_declined, self._left.visitors):
            await visitors.read_again(visitor)
            if visitors.has_declined(visitor):
                await self.erase(visitor)
        # Last: from now on nothing new of theirs waits behind what came while they were being taken over.
        self._left.forget(taken)

    async def _erase_refused(self, visitors: TakingOver) -> None:
        """Erase what is here of those that an outbox has told of; they stay noted until nothing of theirs is here."""
        if not self._refused:
            return
        self._refused &= self._left.visitors | self._held.visitors()
        for visitor in [*self._refused]:
            await visitors.read_again(visitor)
            if visitors.holds(visitor):
                await self.erase(visitor)

    def _let_wait(self, commands: Sequence[EventCommand]) -> None:
        """Let events wait that were left here; end those that have been refused meanwhile."""
        for command in commands:
            if command.local_key is not None:
                self._held.hold(command, command.local_key)
                self._line.append(command)
                command.end_if_refused()

    # The end

    async def finish(self) -> None:
        """Stop taking over."""
        self._visitors = None
        await cancel_all(task for task in [self._taking_over] if task is not None)

    async def aclose(self) -> None:
        """Leave what is kept to the next start."""
        await self.finish()
        await self._outbox.aclose()


def _nothing(*_: object) -> None:
    """Hear of something before there is anybody to tell."""
