"""Keeping released events in a durable outbox: written in groups, by one worker among several.

Theory of operation. Released events gather while a group is being written; the next group is whatever has gathered, so
that a busy process pays for one commit and not for one an event. What has ended is erased along with the next group.
The worker renews its lease while the instance lives, and takes over what dead workers have left (``Recovery``).

Others may withdraw, purge or take over events at any time. They leave a higher *epoch* in the outbox. It is looked at
right before each request is written; when it has changed nothing is sent until ``changes`` has told what happened.

Where there is a *fallback*, the outbox may be down. Then groups are stored there, and written to the outbox, oldest first,
once that has told what others did meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import filterfalse, groupby, islice
from typing import TYPE_CHECKING

from ._clock import Cancellable, Clock
from ._commands import GONE, EventCommand, outbox_events
from ._consent._rules import Verdict
from ._fallback import ENDED, Fallback
from ._futures import cancel_all
from ._ledger import Ledger
from ._taking_over import Recovery, TakingOver
from .errors import ConsentDeclined, OutboxError, OutboxFull
from .outbox._raised import as_outbox_error
from .outbox.base import LEASE, Changes, Outbox, Shelf, Stored, VisitorKey

if TYPE_CHECKING:
    from ._visitor import VisitorState

__all__ = ["OutboxKeeper"]

GROUP = 1_000
"""Events that are written in one step at most; about 10 ms of work for the disk's thread."""

LAZY = 0.05
"""Seconds that keys of ended events wait for company. Losing them costs a repetition under the same ``_id``."""

AGAIN = 1.0
"""Seconds until something is tried again that the disk has refused."""


class OutboxKeeper:
    """Stores events, erases those that ended, and hears what other workers did.

    Args:
        outbox: where events are kept.
        limits: ``max_queued`` and ``max_queued_bytes`` by these names, for the error that tells of a full outbox.
        lifetime: seconds that an event may wait for its delivery.
        ledger: knows how many events are in the outbox.
        clock: where time comes from.
        logger: hears of what goes wrong without harm.
        hands_over: whether what is stored is left to other workers at once, who send it.
        waits: whether events wait in memory while the outbox cannot be written, instead of failing.
        fallback: keeps events on this machine while the outbox is down; None: they fail, or wait in memory.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        limits: dict[str, int],
        lifetime: float,
        ledger: Ledger,
        clock: Clock,
        logger: logging.Logger,
        hands_over: bool = False,
        waits: bool = False,
        fallback: Fallback | None = None,
    ) -> None:
        self._ledger = ledger
        self._hands_over = hands_over
        self._waits = waits
        self._fallback = fallback
        self._is_entered = False
        self._is_down = False
        self._said_down = False
        self._outbox = outbox
        self._limits = limits
        self._lifetime = lifetime
        self._recovery = Recovery(
            outbox,
            lifetime=lifetime,
            clock=clock,
            logger=logger,
            on_lease_lost=self.look,
            hold=self._hold_claimed,
            erase_if=self._erase_if,
            hand_over=self._hand_over_between_groups if hands_over else None,
        )
        self._clock = clock
        self._logger = logger
        self._epoch = 0
        self._erased: dict[VisitorKey, int] = {}
        # A refusal of our own must be known as ours before anybody reads that there was one.
        self._order = asyncio.Lock()
        self._unwritten: list[EventCommand] = []
        self._clear_at = ENDED
        self._group: list[EventCommand] = []
        self._adrift: list[EventCommand] = []
        self._held_back: list[EventCommand] = []
        self._ended: list[int] = []
        self._mine: dict[int, EventCommand] = {}
        self._writing: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._lazy: Cancellable | None = None
        self._heart: Cancellable | None = None
        self._again: Cancellable | None = None
        self._open = False
        self._stale = False
        self._on_refused: Callable[[VisitorKey], object] = _nothing
        self._on_current: Callable[[], object] = _nothing
        self._on_entered: Callable[[], Awaitable[None]] = _nothing_to_read

    async def open(
        self,
        *,
        shared: TakingOver,
        local: TakingOver,
        on_refused: Callable[[VisitorKey], object],
        on_current: Callable[[], object],
        on_entered: Callable[[], Awaitable[None]],
    ) -> None:
        """Begin work.

        Args:
            shared: what the outbox needs to know of visitors, to take over what dead workers, or an earlier start, have
                left. ``consenting`` notes the epochs of their gates: a refusal in between is a refusal of what comes back.
            local: what the fallback needs to know of them.
            on_refused: hears that a visitor declined in another process.
            on_current: hears that sending may go on.
            on_entered: reads the choices that are known again, where the outbox was down in the beginning, so that nobody
                has heard who declined meanwhile.

        Raises:
            OutboxError: the outbox cannot be used; where there is a fallback, that one cannot.
        """
        self._recovery.open(shared, on_ended=on_current)
        self._on_refused, self._on_current, self._on_entered = on_refused, on_current, on_entered
        if self._fallback is not None:
            await self._fallback.open(
                local, on_detached=self._store_again, on_taken_over=self._taken_over_here
            )
        try:
            self._epoch = await self._outbox.open()
            self._is_entered = True
        except OutboxError as error:
            if self._fallback is None:
                raise
            self._go_down(error)
        self._open = True
        self._beat_later()
        if self._unwritten:  # a choice was made while it was being opened
            self._start_writing()

    @property
    def is_entered(self) -> bool:
        """Whether the outbox is open: it may have been down in the beginning."""
        return self._is_entered

    def is_current(self) -> bool:
        """Return whether this worker knows what others did, as far as it can tell; if not, ask, or go on asking."""
        if self._stale and self._again is None:
            self.look()  # which somebody may have cancelled
        return self._open and not self._stale

    def has_recovered(self, visitor: VisitorKey) -> bool:
        """Return whether all that was left of a visitor has been taken over; until then newer events wait.

        When it has not, taking over begins, unless it goes on by itself once memory has room again; ``on_current`` is called
        once it is done.
        """
        if self._fallback is not None and not self._fallback.has_recovered(visitor):
            return False
        if self._recovery.has_recovered(visitor):
            return True
        if not self._recovery.waits_for_room(visitor):
            self.claim()
        return False

    @property
    def is_claiming(self) -> bool:
        """Whether it is being looked for what dead workers have left."""
        return self._recovery.is_claiming

    @property
    def waits_for_room(self) -> bool:
        """Whether some of what is left waits for room in memory; it comes by itself once there is some."""
        return self._recovery.has_more or (self._fallback is not None and self._fallback.has_more)

    def left(self) -> Collection[VisitorKey] | None:
        """Return the visitors of whom dead workers have left something; None while that is not known."""
        left = self._recovery.left()
        if self._fallback is None or left is None:
            return left
        return left.union(self._fallback.left())

    # Storing and erasing

    def put(self, command: EventCommand) -> None:
        """Store an event soon; ``command.stored`` tells it when it is safe."""
        self._unwritten.append(command)
        if (
            len(self._unwritten) > self._clear_at
        ):  # while nothing is written those that have ended gather behind others
            self._unwritten = [waiting for waiting in self._unwritten if not waiting.ended]
            self._clear_at = 2 * len(self._unwritten) + ENDED
        self._start_writing()

    def ended(self, command: EventCommand) -> None:
        """Erase an event soon, which was delivered, failed or was withdrawn."""
        if self._fallback is not None:
            self._fallback.let_go(command)
        if command.key is not None and command.key != GONE:
            self._drop(command.key)
            self._ended.append(command.key)
            if self._recovery.should_go_on(command.visitor.key):
                self.claim()
        if self._lazy is None and self._open:
            self._lazy = self._clock.call_later(LAZY, self._write_ended)

    def unwritten(self) -> list[EventCommand]:
        """Return the events that are not in the outbox yet."""
        waiting = () if self._fallback is None else self._fallback.waiting()
        return [*self._adrift, *self._held_back, *self._group, *waiting, *self._unwritten]

    def _hold(self, command: EventCommand, key: int) -> None:
        self._mine[key] = command
        self._ledger.stored += 1
        if command.order < 0:
            self._recovery.returning.add(command.visitor.key)

    def _drop(self, key: int) -> EventCommand | None:
        command = self._mine.pop(key, None)
        if command is not None:
            self._ledger.stored -= 1
            if command.order < 0:
                self._recovery.returning.drop(command.visitor.key)
        return command

    def _write_ended(self) -> None:
        self._lazy = None
        self._start_writing()

    def _start_writing(self) -> None:
        if self._writing is None and self._open:
            self._writing = asyncio.Task(self._write(), name="alloy-outbox-write")

    async def _write(self) -> None:
        """Write groups until nothing has gathered; what ends after the first one waits for company again."""
        try:
            await self._store_here()
            self._call_off_lazy()
            while self._has_gathered() and not self._is_down:
                written = await self._write_group()
                await self._store_here()
                if not written and (self._waits or not self._unwritten):
                    break
        finally:
            self._writing = None

    def _has_gathered(self) -> bool:
        """Return whether something is to be written now; what has ended can wait for its timer, until the heart stops."""
        waits_here = self._fallback is not None and self._fallback.has_waiting()
        can_wait = self._lazy is not None and self._heart is not None
        return bool(self._unwritten or waits_here or (self._ended and not can_wait))

    async def _write_group(self) -> bool:
        """Write what has gathered; return whether it was written."""
        await self._hear_here()
        group = self._group = self._wanted(self._gathered())
        ended, self._ended = self._ended, []
        try:
            stored = await self._outbox.write(outbox_events(group, self._clock), ended, epoch=self._epoch)
            # A refusal that came meanwhile must be known before anybody may send these.
            await self._hear_here()
        except asyncio.CancelledError:
            self._set_adrift(group)
            self._erase_later(ended)
            raise
        except Exception as raised:  # noqa: BLE001 - an outbox of somebody else's may raise what it should not
            self._group = []
            self._not_written(group, ended, as_outbox_error("write", raised))
            return False
        self._group = []
        self._written(group, stored)
        if self._hands_over and group:
            await self._hand_over()
        return True

    def _gathered(self) -> list[EventCommand]:
        """Take what is to be written next: what waits in the fallback first, and nothing that must wait there."""
        gathered: list[EventCommand] = []
        behind: list[EventCommand] = []
        if self._fallback is not None:
            gathered = self._fallback.take(GROUP)
            behind = self._take_behind(self._fallback, len(self._unwritten))
        room = GROUP - len(gathered)
        gathered += self._unwritten[:room]
        self._unwritten = behind + self._unwritten[room:]
        return gathered

    def _wanted(self, gathered: list[EventCommand]) -> list[EventCommand]:
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
        later += filter(is_later, self._unwritten)
        self._unwritten = [*filterfalse(is_later, self._unwritten)]
        theirs: dict[VisitorState, list[EventCommand]] = {}
        for command in later:
            theirs.setdefault(command.visitor, []).append(command)
        for visitor, commands in theirs.items():
            visitor.gate.readmit(commands)

    async def _hand_over(self) -> None:
        """Leave what is stored to others, and what has ended meanwhile to nobody."""
        try:
            if self._ended:  # while it is still this worker's
                await self._write_what_ended()
            await self._outbox.release()
        except Exception as raised:  # noqa: BLE001 - as above
            error = as_outbox_error("write", raised)
            self._logger.warning("%s; what is stored is left to others a little later", error)

    async def _write_what_ended(self) -> None:
        ended, self._ended = self._ended, []
        try:
            await self._outbox.write([], ended, epoch=self._epoch)
        except BaseException:  # a cancellation too: what has ended must not be left to others
            self._ended = ended + self._ended
            raise

    def _written(self, group: list[EventCommand], stored: Stored) -> None:
        full: list[EventCommand] = []
        for command, key in zip(group, stored.keys, strict=True):
            if key is not None:
                self._written_one(command, key)
            elif command.local_key is not None and command.visitor.key not in stored.refused:
                full.append(command)  # its caller knows it as stored: it is not turned away, it waits
            else:
                self._turned_away(command, stored)
        if self._fallback is not None and full:
            self._fallback.give_back(full)
            self._go_down(OutboxError("write", "that is shared", "it is full."))
        elif group:
            self._said_down = False

    def _written_one(self, command: EventCommand, key: int) -> None:
        command.move(key)
        if self._fallback is not None:
            self._fallback.let_go(command)  # until that is done it is in both places
        if command.ended:
            self.ended(command)  # it was withdrawn while it was being written
        elif self._hands_over:
            self._ledger.stored += 1
            command.hand_over()
        else:
            self._hold(command, key)
            command.stored()

    def _turned_away(self, command: EventCommand, stored: Stored) -> None:
        if command.visitor.key in stored.refused:
            # Perhaps by this worker itself, or before a yes that is known here: it is judged once that has been read.
            self._held_back.append(command)
            if self._again is None:
                self.look()
        else:
            bound = stored.bound or "max_queued"
            command.fail(OutboxFull(command.name, bound, self._limits[bound]))

    def _not_written(self, group: list[EventCommand], ended: list[int], error: OutboxError) -> None:
        self._erase_later(ended)
        if self._fallback is not None:
            self._give_back(group)
            self._go_down(error)
            return
        if self._waits:
            self._logger.warning("%s; %d events wait in memory, it is tried again", error, len(group))
            self._give_back(_young_enough(group, self._clock.monotonic() - self._lifetime))
            return
        for command in group:
            command.fail(copy(error))

    def _erase_later(self, ended: list[int]) -> None:
        """Take back what has ended and was not erased, to be tried again."""
        self._ended = ended + self._ended
        if self._lazy is None and self._open:
            self._lazy = self._clock.call_later(AGAIN, self._write_ended)

    def _set_adrift(self, group: list[EventCommand]) -> None:
        """Take note that the write of a group was cancelled, which may still be carried out.

        Its events must neither be forgotten nor repeated. Those that are on this machine too are written again all the
        same, as after a crash: in two places under one ``_id``. What is behind them waits for them, and must not for ever.
        """
        self._group = []
        still_open = [command for command in group if not command.ended]
        self._adrift += [command for command in still_open if command.local_key is None]
        if self._fallback is not None:
            self._fallback.give_back([command for command in still_open if command.local_key is not None])

    def _give_back(self, commands: list[EventCommand]) -> None:
        """Let events be written next, in their places, that were taken and not written."""
        if self._fallback is not None:
            self._fallback.give_back([command for command in commands if _waits_here(command)])
            commands = [command for command in commands if not _waits_here(command)]
        self._unwritten = commands + self._unwritten

    # The fallback, while the outbox is down

    def _go_down(self, error: OutboxError) -> None:
        """Store events on this machine from now on, and look soon whether the outbox is back."""
        if not self._said_down:
            self._logger.warning("%s; events are stored on this machine until it takes them", error)
        self._is_down = self._said_down = True
        if self._again is None and self._looking is None:
            self._again = self._clock.call_later(AGAIN, self._look_again)

    def _come_up(self) -> None:
        if self._is_down:
            self._is_down = False
            self._start_writing()
            self._recovery.stop_resting()
            self.claim()  # events may wait for it

    async def _store_here(self) -> None:
        """Store on this machine what the outbox does not take now, or must not take yet."""
        if self._fallback is None:
            return
        if self._is_down:
            problem = OutboxError(
                "write", "of this instance", "it could not be written for delivery_timeout."
            )
            self._fallback.end_too_old(problem, self._clock.monotonic() - self._lifetime)
        while gathered := self._gathered_for(self._fallback):
            await self._store_group(self._fallback, gathered)
        try:
            await self._fallback.erase_ended()
        except Exception as raised:  # noqa: BLE001 - as above
            self._logger.warning("%s; tried again later", as_outbox_error("erase", raised))

    def _gathered_for(self, fallback: Fallback) -> list[EventCommand]:
        """Take what is to be stored on this machine next."""
        if self._is_down:
            gathered, self._unwritten = self._unwritten[:GROUP], self._unwritten[GROUP:]
            return gathered
        return self._take_behind(fallback, GROUP)

    def _take_behind(self, fallback: Fallback, count: int) -> list[EventCommand]:
        """Take, in order, what comes after something that is being taken over on this machine."""
        if not fallback.left():
            return []
        behind = list(islice(filter(fallback.is_behind, self._unwritten), count))
        taken = set(behind)
        self._unwritten = [command for command in self._unwritten if command not in taken]
        return behind

    async def _store_group(self, fallback: Fallback, gathered: list[EventCommand]) -> None:
        wanted = self._wanted(gathered)
        fallback.add(command for command in wanted if _waits_here(command))
        group = self._group = [command for command in wanted if not _waits_here(command)]
        try:
            stored = await fallback.store(group)
        except asyncio.CancelledError:
            self._set_adrift(group)
            raise
        except Exception as raised:  # noqa: BLE001 - as above
            self._group = []
            error = as_outbox_error("write", raised)
            for command in group:
                command.fail(copy(error))
            return
        self._group = []
        for command, key in zip(group, stored.keys, strict=True):
            if key is None:
                self._turned_away(command, stored)
            elif not command.ended and (command.ends_when_stored or self._hands_over):
                command.tell_stored()

    def _store_again(self, commands: list[EventCommand]) -> None:
        """Store events that were turned away, or erased on this machine, though they may go on: before all others."""
        self._give_back(commands)
        self._start_writing()

    def _taken_over_here(self) -> None:
        self._start_writing()
        if self._is_down and self._again is None:
            self.look()  # which somebody may have cancelled
        if self._recovery.left() is not None:
            self._on_current()

    async def _hear_here(self) -> None:
        """Hear what other processes of this machine did."""
        if self._fallback is None or self._fallback.is_current():
            return
        try:
            heard = await self._fallback.hear()
        except Exception as raised:  # noqa: BLE001 - as above
            self._logger.warning("%s; going on without", as_outbox_error("read", raised))
            return
        for visitor in heard.refused:
            self._on_refused(visitor)
        for command in heard.lost:
            _end_lost(command, refused=command.visitor.key in heard.refused)
        self._judge_held_back(heard.refused)

    async def _enter(self) -> None:
        """Open the outbox, where it was down in the beginning."""
        if not self._is_entered:
            self._epoch = await self._outbox.open()
            await self._on_entered()
            self._is_entered = True  # last: what fails is done again

    # What others did

    def may_send(self) -> bool:
        """Return whether a request may be written now; when not, find out why."""
        if not self.is_current():
            return False
        if self._outbox.may_send(self._epoch):
            return True
        self.look()
        return False

    def look(self) -> None:
        """Ask what others did; nothing is sent meanwhile."""
        self._stale = (
            True  # until the answer has been applied: a renewed lease alone says nothing of what others took
        )
        if self._looking is None and self._open:
            self._call_off_again()
            self._looking = asyncio.Task(self._look(), name="alloy-outbox-look")

    async def _look(self) -> None:
        try:
            await self._hear_here()
            await self._enter()
            async with self._order:
                await self._outbox.renew()
                refused = self._apply(await self._outbox.changes(self._epoch))
            if self._fallback is not None:
                self._fallback.refused(refused)
            # What was turned away since the answer came is judged by the next one.
            self._stale = bool(self._held_back) or not self._outbox.may_send(self._epoch)
            if self._stale:  # it cannot tell: it is not asked again and again without a pause
                self._again = self._clock.call_later(LAZY, self._look_again)
            self._come_up()
        except Exception as raised:  # noqa: BLE001 - as above
            error = as_outbox_error("read", raised)
            self._logger.error("%s; nothing is sent until it can be read", error)
            self._again = self._clock.call_later(AGAIN, self._look_again)
        finally:
            self._looking = None
        if self._again is None:
            self._on_current()

    def _look_again(self) -> None:
        self._again = None
        self.look()

    def _apply(self, changes: Changes) -> Collection[VisitorKey]:
        """Take note of what others did, and return who declined there."""
        self._epoch = changes.epoch
        refused = {
            visitor for visitor, epoch in changes.refused.items() if epoch > self._erased.get(visitor, 0)
        }  # not by this worker itself
        for visitor in refused:  # first: their events are gone too, and end as refused
            self._on_refused(visitor)
        self._judge_held_back(refused)
        for key in changes.gone:
            command = self._drop(key)
            if command is not None:
                command.key = GONE
                if command.visitor.key in changes.refused:
                    _end_lost(command, refused=True)
                self.end_if_gone(command)
        # Those that others can still speak of come after this epoch.
        self._erased = {visitor: epoch for visitor, epoch in self._erased.items() if epoch > changes.epoch}
        return refused

    def _judge_held_back(self, refused: Collection[VisitorKey]) -> None:
        """Decide about events that the outbox has turned away because their visitors have declined."""
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
            self._store_again(going_on)

    def end_if_gone(self, command: EventCommand) -> None:
        """End a queued event that others have purged or taken over; one that is on the wire settles with the truth."""
        command.end_if_refused()
        if command.key == GONE:
            _end_lost(command, refused=False)

    async def erase(self, visitor: VisitorKey) -> None:
        """Erase a visitor's events, of whatever worker; on this machine also when the outbox is down.

        Raises:
            OutboxError: it could not be done.
        """
        problem: OutboxError | None = None
        if self._fallback is not None:
            try:
                await self._fallback.erase(visitor)
            except Exception as raised:  # noqa: BLE001 - as above
                problem = as_outbox_error("erase", raised)
        async with self._order:
            try:
                self._note_erased(visitor, await self._outbox.erase(visitor))
            except Exception as raised:  # noqa: BLE001 - as above
                problem = as_outbox_error("erase", raised)
        if problem is not None:
            raise problem

    def _note_erased(self, visitor: VisitorKey, epoch: int) -> None:
        if epoch == self._epoch + 1:
            self._epoch = epoch  # nothing else has happened
        else:
            self._erased[visitor] = epoch
            self.look()

    async def shelf(self) -> Shelf:
        """Return how the outbox stands, along with what waits for it on this machine."""
        shelf = await self._outbox.shelf()
        if self._fallback is None:
            return shelf
        here = await self._fallback.shelf()
        return replace(
            shelf,
            events=shelf.events + here.events,
            size=shelf.size + here.size,
            unclaimed=shelf.unclaimed + here.unclaimed,
            erasing=shelf.erasing or here.erasing,
        )

    # What dead workers have left

    def _beat_later(self) -> None:
        self._heart = self._clock.call_later(LEASE / 3, self._beat)

    def _beat(self) -> None:
        self._beat_later()
        self.claim()

    def claim(self) -> None:
        """Renew the lease, and take over what belongs to no living worker."""
        if self._fallback is not None:
            self._fallback.take_over()
        if self._open and self._is_entered:
            self._recovery.start()

    def _hold_claimed(self, commands: list[EventCommand]) -> None:
        for command in commands:
            if command.key is not None:
                self._hold(command, command.key)

    async def _hand_over_between_groups(self) -> None:
        if self._writing is None:  # otherwise the group hands over by itself, once it is known what is in it
            await self._hand_over()

    async def _erase_if(self, visitor: VisitorKey, still: Callable[[VisitorKey], bool]) -> None:
        async with self._order:
            if still(visitor):  # a yes that was said meanwhile may have brought new events
                self._note_erased(visitor, await self._outbox.erase(visitor))

    # The end

    async def finish(self) -> None:
        """Write what has gathered, and stop taking over."""
        self._call_off_timers()
        await self._recovery.finish()
        if self._fallback is not None:
            await self._fallback.finish()
        self._start_writing()
        if self._writing is not None:
            await asyncio.wait([self._writing])

    async def aclose(self) -> None:
        """Stop; what is kept is left to others."""
        self._open = False
        self._call_off_timers()
        tasks = (*self._recovery.tasks(), self._looking, self._writing)
        await cancel_all(task for task in tasks if task is not None)
        try:
            if self._fallback is not None:
                await self._fallback.aclose()  # first: a disk of this machine is the faster one
        finally:
            await self._outbox.aclose()

    def _call_off_timers(self) -> None:
        if self._heart is not None:
            self._heart.cancel()
            self._heart = None
        self._call_off_lazy()
        self._call_off_again()

    def _call_off_lazy(self) -> None:
        if self._lazy is not None:
            self._lazy.cancel()
            self._lazy = None

    def _call_off_again(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None


def _nothing(*_: object) -> None:
    """Hear of something before there is anybody to tell."""


async def _nothing_to_read() -> None:
    """Read nothing."""


def _waits_here(command: EventCommand) -> bool:
    """Return whether an event is stored on this machine, or waits in memory.

    What belongs to nobody who could be found again waits in memory: after a restart nobody could say whether it may still
    be sent.
    """
    return command.local_key is not None or command.visitor.is_passing


def _end_lost(command: EventCommand, *, refused: bool) -> None:
    """End a queued event that others have erased; one that is on the wire settles with the truth."""
    if command.stage != "queued":
        return
    command.visitor.withdraw(command)
    if refused:
        command.fail(ConsentDeclined(command.name))  # it was there when the refusal erased
    else:
        problem = "it was purged, or another worker has taken it over."
        command.fail(OutboxError("keep", "shared by several workers", problem))


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


def _young_enough(group: list[EventCommand], too_old: float) -> list[EventCommand]:
    """Return the events that may go on waiting; end those that have waited for too long."""
    for command in group:
        if command.released_at <= too_old and not command.ended:
            command.fail(
                OutboxError("write", "of this instance", "it could not be written for delivery_timeout.")
            )
    return [command for command in group if not command.ended]
