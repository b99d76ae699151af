"""Keeping released events in a durable outbox, by one worker among several.

Theory of operation. What is called is *unwritten* until it is stored, in groups (``Unwritten``, ``GroupWriter``). What is
stored is *held* until it has ended (``Held``). The worker renews its lease while the instance lives, and takes over what dead
workers have left (``Recovery``).

Others may withdraw, purge or take over events at any time. They leave a higher *epoch* in the outbox (``OutboxEpoch``). It
is looked at right before each request is written; when it has changed nothing is sent until it has been read what happened
(``Lookout``), and applied here.

Where there is a *fallback*, the outbox may be down. Then groups are stored there, and written to the outbox, oldest first,
once that has told what others did meanwhile (``Detour``).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace

from ._clock import Cancellable, Clock
from ._commands import GONE, EventCommand
from ._detour import Detour
from ._fallback import Fallback, Heard
from ._futures import cancel_all
from ._group_writer import GroupWriter
from ._held import Held
from ._ledger import Ledger
from ._lookout import Lookout
from ._outbox_epoch import News, OutboxEpoch
from ._taking_over import Recovery, TakingOver
from ._unwritten import Unwritten
from .errors import ConsentDeclined, OutboxError
from .outbox._raised import as_outbox_error
from .outbox.base import LEASE, Outbox, Shelf, VisitorKey

__all__ = ["OutboxKeeper"]


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
        self._outbox = outbox
        self._fallback = fallback
        self._clock = clock
        self._lookout = Lookout(self._ask, clock=clock, logger=logger)
        self._epoch = OutboxEpoch(outbox, on_behind=self._lookout.look)
        self._recovery = Recovery(
            outbox,
            lifetime=lifetime,
            clock=clock,
            logger=logger,
            on_lease_lost=self._lookout.look,
            hold=self._hold,
            erase_if=self._epoch.erase,
            hand_over=self._hand_over if hands_over else None,
        )
        self._held = Held(ledger, self._recovery.returning)
        self._unwritten = Unwritten(fallback, limits=limits, on_held_back=self._lookout.make_sure)
        self._detour = Detour(
            fallback,
            self._unwritten,
            lifetime=lifetime,
            hands_over=hands_over,
            clock=clock,
            logger=logger,
            on_down=self._lookout.look_later,
            on_heard=self._apply_heard,
        )
        self._writer = GroupWriter(
            outbox,
            epoch=self._epoch,
            unwritten=self._unwritten,
            held=self._held,
            detour=self._detour,
            lifetime=lifetime,
            ledger=ledger,
            clock=clock,
            logger=logger,
            hands_over=hands_over,
            waits=waits,
            on_gone=self._claim_more,
        )
        self._heart: Cancellable | None = None
        self._open = False
        self._is_entered = False
        self._on_refused: Callable[[VisitorKey], object] = _nothing
        self._on_current: Callable[[], object] = _nothing
        self._on_back: Callable[[], object] = _nothing
        self._on_entered: Callable[[], Awaitable[None]] = _nothing_to_read

    async def open(
        self,
        *,
        shared: TakingOver,
        local: TakingOver,
        on_refused: Callable[[VisitorKey], object],
        on_current: Callable[[], object],
        on_back: Callable[[], object],
        on_entered: Callable[[], Awaitable[None]],
    ) -> None:
        """Begin work.

        Args:
            shared: what the outbox needs to know of visitors, to take over what dead workers, or an earlier start, have
                left. ``consenting`` notes the epochs of their gates: a refusal in between is a refusal of what comes back.
            local: what the fallback needs to know of them.
            on_refused: hears that a visitor declined in another process.
            on_current: hears that sending may go on.
            on_back: hears that the outbox answers again: refusals of which it could not be told should be told now.
            on_entered: reads the choices that are known again, where the outbox was down in the beginning, so that nobody
                has heard who declined meanwhile.

        Raises:
            OutboxError: the outbox cannot be used; where there is a fallback, that one cannot.
        """
        self._recovery.open(shared, on_ended=on_current)
        self._on_refused, self._on_entered = on_refused, on_entered
        self._on_current, self._on_back = on_current, on_back
        if self._fallback is not None:
            await self._fallback.open(
                local, on_detached=self._store_again, on_taken_over=self._taken_over_here
            )
        try:
            await self._epoch.open()
            self._is_entered = True
        except OutboxError as error:
            if self._fallback is None:
                raise
            self._detour.go_down(error)
        self._start()

    def _start(self) -> None:
        self._open = True
        self._writer.open()
        self._lookout.open(on_current=self._on_current, on_back=self._on_back)
        self._beat_later()
        if self._unwritten.is_in_line():  # a choice was made while it was being opened
            self._writer.start()

    async def _enter(self) -> None:
        """Open the outbox, where it was down in the beginning."""
        if not self._is_entered:
            await self._epoch.open()
            await self._on_entered()
            self._is_entered = True  # last: what fails is done again

    @property
    def is_entered(self) -> bool:
        """Whether the outbox is open: it may have been down in the beginning."""
        return self._is_entered

    # Storing and erasing

    def put(self, command: EventCommand) -> None:
        """Store an event soon; ``command.stored`` tells it when it is safe."""
        self._unwritten.put(command)
        self._writer.start()

    def ended(self, command: EventCommand) -> None:
        """Erase an event soon, which was delivered, failed or was withdrawn."""
        self._writer.ended(command)

    def unwritten(self) -> list[EventCommand]:
        """Return the events that are not in the outbox yet."""
        return self._unwritten.commands()

    def _store_again(self, commands: list[EventCommand]) -> None:
        """Store events that were erased on this machine, though they may go on: before all others."""
        self._unwritten.give_back(commands)
        self._writer.start()

    # What others did

    def is_current(self) -> bool:
        """Return whether this worker knows what others did, as far as it can tell; if not, ask, or go on asking."""
        return self._lookout.is_current()

    def may_send(self) -> bool:
        """Return whether a request may be written now; when not, find out why."""
        if not self._lookout.is_current():
            return False
        if self._epoch.is_latest():
            return True
        self._lookout.look()
        return False

    def look(self) -> None:
        """Ask what others did; nothing is sent meanwhile."""
        self._lookout.look()

    async def _ask(self) -> bool:
        """Ask what others did, and apply it; return whether that was all."""
        await self._detour.hear()
        await self._enter()
        async with self._epoch.news() as news:
            self._apply(news)
        if self._fallback is not None:
            self._fallback.refused(news.refused)
        # What was turned away since the answer came is judged by the next one.
        is_all = not self._unwritten.has_held_back() and self._epoch.is_latest()
        if self._detour.come_up():
            self._writer.start()
            self._recovery.stop_resting()
            self.claim()  # events may wait for it
        return is_all

    def _apply(self, news: News) -> None:
        for visitor in news.refused:  # first: their events are gone too, and end as refused
            self._on_refused(visitor)
        self._judge_held_back(news.refused)
        for key in news.gone:
            command = self._held.drop(key)
            if command is not None:
                command.key = GONE
                if command.visitor.key in news.declined:
                    _end_lost(command, refused=True)
                self.end_if_gone(command)

    def _apply_heard(self, heard: Heard) -> None:
        """Apply what other processes of this machine did."""
        for visitor in heard.refused:
            self._on_refused(visitor)
        for command in heard.lost:
            _end_lost(command, refused=command.visitor.key in heard.refused)
        self._judge_held_back(heard.refused)

    def _judge_held_back(self, refused: Collection[VisitorKey]) -> None:
        if self._unwritten.judge(refused):
            self._writer.start()

    def end_if_gone(self, command: EventCommand) -> None:
        """End a queued event that others have purged or taken over; one that is on the wire settles with the truth."""
        command.end_if_refused()
        if command.key == GONE:
            _end_lost(command, refused=False)

    # What nobody may send any more

    async def erase(self, visitor: VisitorKey) -> None:
        """Erase a visitor's events, of whatever worker; on this machine also when the outbox is down.

        Raises:
            OutboxError: it could not be done.
        """
        problem: OutboxError | None = None
        if self._fallback is not None:
            try:
                await self._fallback.erase(visitor)
            except Exception as raised:  # noqa: BLE001 - an outbox of somebody else's may raise what it should not
                problem = as_outbox_error("erase", raised)
        try:
            await self._epoch.erase(visitor)
        except Exception as raised:  # noqa: BLE001 - as above
            problem = as_outbox_error("erase", raised)
            self._lookout.out_of_reach()
        if problem is not None:
            raise problem

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

    def claim(self) -> None:
        """Renew the lease, and take over what belongs to no living worker."""
        if self._fallback is not None:
            self._fallback.take_over()
        if self._open and self._is_entered:
            self._recovery.start()

    def _claim_more(self, visitor: VisitorKey) -> None:
        """Take over more, if there is and memory has room for it, now that one of a visitor's has gone on."""
        if self._recovery.should_go_on(visitor):
            self.claim()

    def _beat_later(self) -> None:
        self._heart = self._clock.call_later(LEASE / 3, self._beat)

    def _beat(self) -> None:
        self._beat_later()
        self.claim()

    def _hold(self, commands: list[EventCommand]) -> None:
        for command in commands:
            if command.key is not None:
                self._held.hold(command, command.key)

    async def _hand_over(self) -> None:
        await self._writer.hand_over_between_groups()

    def _taken_over_here(self) -> None:
        self._writer.start()
        if self._detour.is_down:
            self._lookout.make_sure()  # somebody may have cancelled the look
        if self._recovery.left() is not None:
            self._on_current()

    # The end

    async def finish(self) -> None:
        """Write what has gathered, and stop taking over."""
        self._call_off_timers()
        await self._recovery.finish()
        if self._fallback is not None:
            await self._fallback.finish()
        await self._writer.finish()

    async def aclose(self) -> None:
        """Stop; what is kept is left to others."""
        self._stop()
        await cancel_all([*self._recovery.tasks(), *self._lookout.tasks(), *self._writer.tasks()])
        try:
            if self._fallback is not None:
                await self._fallback.aclose()  # first: a disk of this machine is the faster one
        finally:
            await self._outbox.aclose()

    def _stop(self) -> None:
        """Start nothing any more."""
        self._open = False
        self._call_off_timers()
        self._writer.close()
        self._lookout.close()

    def _call_off_timers(self) -> None:
        if self._heart is not None:
            self._heart.cancel()
        self._writer.call_off()
        self._lookout.call_off()


def _nothing(*_: object) -> None:
    """Hear of something before there is anybody to tell."""


async def _nothing_to_read() -> None:
    """Read nothing."""


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
