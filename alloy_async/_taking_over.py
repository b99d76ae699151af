"""Taking over what belongs to no living worker: events that a dead one, or an earlier start, has left in an outbox.

Theory of operation. Only what belongs to visitors who consent now comes back, oldest first, and as much at once as memory
should hold; the rest follows as that ends. Of one visitor no more than a share of that comes back, so that one whose events
have to wait leaves room for others. Until all of a visitor's is back, their newer events wait. What belongs to visitors
who have declined is erased: they were killed who should have done it.

``Left`` is that for one outbox, the shared one or the one of this machine. What is around it differs in all its parts, so
that each has its own: here ``Recovery`` for the shared one, where newer events wait for as long as it cannot be read, and
erasing goes on beside; and ``Fallback`` for this machine's, where nothing waits for a file that cannot be read, and
erasing comes before what was taken over may go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from ._clock import Clock
from ._commands import EventCommand
from ._expiry import Expiry
from ._futures import cancel_all, is_under_way
from .outbox._raised import as_outbox_error
from .outbox.base import LEASE, Claimed, Outbox, VisitorKey

__all__ = ["Consenting", "Left", "Recovery", "Returning", "TakingOver"]

Consenting: TypeAlias = Callable[[Collection[VisitorKey]], Awaitable[Mapping[VisitorKey, Any]]]
"""Given visitors, tells which of them consent, with whatever their events need when they come back."""

CLAIM = 8_000
"""Events that were taken over and have not gone on yet, at most."""

SHARE = 2_000
CLAIM_SIZE = 4_194_304
"""Events, and bytes of them, that are taken over in one step; no more is, of a visitor of whom so many have not gone on."""


class TakingOver(NamedTuple):
    """What taking over needs to know of visitors.

    Attributes:
        consenting: given visitors, tells which of them consent now, with what ``on_claimed`` needs.
        read_again: reads what a visitor has chosen: what is known here may have been changed elsewhere.
        has_declined: whether a visitor is known to have declined.
        holds: whether a refusal is known to hold still, of which an outbox has told.
        on_claimed: takes events, with what ``consenting`` has told, and returns them as commands.
    """

    consenting: Consenting
    read_again: Callable[[VisitorKey], Awaitable[object]]
    has_declined: Callable[[VisitorKey], bool]
    holds: Callable[[VisitorKey], bool]
    on_claimed: Callable[[Sequence[Claimed], Mapping[VisitorKey, Any]], list[EventCommand]]


class Returning:
    """How many events that were taken over have not gone on yet; not what is new here: that may wait.

    Attributes:
        total: of all visitors.
    """

    def __init__(self) -> None:
        self._theirs: dict[VisitorKey, int] = {}
        self.total = 0

    def of(self, visitor: VisitorKey) -> int:
        """Return how many are a visitor's."""
        return self._theirs.get(visitor, 0)

    def add(self, visitor: VisitorKey) -> None:
        """Take note that one was taken over."""
        self._theirs[visitor] = self.of(visitor) + 1
        self.total += 1

    def drop(self, visitor: VisitorKey) -> None:
        """Take note that one has gone on."""
        self._theirs[visitor] -= 1
        if not self._theirs[visitor]:
            del self._theirs[visitor]
        self.total -= 1


class Left:
    """What belongs to no living worker in one outbox.

    Args:
        outbox: where it lies.

    Attributes:
        visitors: of whom something is left, as was seen last, without those of whom all was taken over since.
        is_known: whether that has been seen yet.
        is_too_much: whether some of it waits there because memory holds as much as it should.
        full: visitors of whom some of it waits there because memory holds as much of theirs as it should.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.visitors: frozenset[VisitorKey] = frozenset()
        self.is_known = False
        self.is_too_much = False
        self.full: frozenset[VisitorKey] = frozenset()

    @property
    def has_more(self) -> bool:
        """Whether some of it waits there because of what is in memory."""
        return self.is_too_much or bool(self.full)

    async def look(self) -> None:
        """See of whom something is left.

        Raises:
            OutboxError: it could not be read.
        """
        self.is_too_much, self.full = False, frozenset()
        self.visitors = frozenset(await self._outbox.abandoned())
        self.is_known = True

    async def claim(
        self,
        visitors: TakingOver,
        *,
        returning: Returning,
        take: Callable[[list[EventCommand]], object],
    ) -> Collection[VisitorKey]:
        """Take over as much as memory should hold, and return the visitors of whom that was all: to be forgotten.

        Args:
            visitors: what is to be known of them.
            returning: what was taken over and has not gone on yet; ``take`` adds to it.
            take: takes what was taken over, part by part.

        Raises:
            OutboxError: it could not be done; what ``take`` has been given is taken over.
        """
        whole: set[VisitorKey] = set()
        while consenting := await visitors.consenting(self.visitors.difference(whole)):
            # From here to the end nothing is awaited: what goes on later makes it begin again.
            self.full = frozenset(visitor for visitor in consenting if returning.of(visitor) >= SHARE)
            room = min(CLAIM - returning.total, SHARE)
            self.is_too_much = room <= 0
            theirs = {visitor: known for visitor, known in consenting.items() if visitor not in self.full}
            if self.is_too_much or not theirs:
                break
            claimed = await self._outbox.claim(theirs.keys(), count=room, size=CLAIM_SIZE)
            take(visitors.on_claimed(claimed, theirs))
            if not claimed:
                whole.update(theirs)
        return whole

    def forget(self, visitors: Collection[VisitorKey]) -> None:
        """Take note that nothing is left of these; from now on what is new of theirs does not wait."""
        self.visitors = self.visitors.difference(visitors)


class Recovery:
    """Renews the lease of a worker, and takes over what dead ones have left in the shared outbox.

    Args:
        outbox: the shared one.
        lifetime: seconds that an event may wait for its delivery.
        clock: where time comes from.
        logger: hears of what goes wrong without harm.
        on_lease_lost: hears that the lease had run out: others may have taken over what is this worker's.
        hold: takes what is this worker's from now on.
        erase_if: erases a visitor's events, if the function that it is given says so of the visitor right before.
        hand_over: leaves what is stored to others, in a worker that takes over nothing; None: this one does.

    Attributes:
        returning: events of this worker that were left by others or by an earlier start; whoever holds them counts.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        lifetime: float,
        clock: Clock,
        logger: logging.Logger,
        on_lease_lost: Callable[[], object],
        hold: Callable[[list[EventCommand]], object],
        erase_if: Callable[[VisitorKey, Callable[[VisitorKey], bool]], Awaitable[object]],
        hand_over: Callable[[], Awaitable[object]] | None,
    ) -> None:
        self._outbox = outbox
        self._left = Left(outbox)
        self._expiry = Expiry(outbox, lifetime=lifetime, place="from the outbox", clock=clock, logger=logger)
        self._clock = clock
        self._logger = logger
        self._on_lease_lost = on_lease_lost
        self._hold = hold
        self._erase_if = erase_if
        self._hand_over = hand_over
        self._on_ended: Callable[[], object] = _nothing
        self._visitors: TakingOver | None = None
        self._rests_until = 0.0
        self._claiming: asyncio.Task[None] | None = None
        self._erasing: asyncio.Task[None] | None = None
        self.returning = Returning()

    def open(self, visitors: TakingOver, *, on_ended: Callable[[], object]) -> None:
        """Say what ``start`` needs.

        Args:
            visitors: what taking over needs to know of them.
            on_ended: hears that it has come to its end, well or not.
        """
        self._visitors = visitors
        self._on_ended = on_ended

    def has_recovered(self, visitor: VisitorKey) -> bool:
        """Return whether all that was left of a visitor has been taken over."""
        return self._left.is_known and visitor not in self._left.visitors

    def left(self) -> frozenset[VisitorKey] | None:
        """Return the visitors of whom something is left; None while that is not known."""
        return self._left.visitors if self._left.is_known else None

    @property
    def is_claiming(self) -> bool:
        """Whether it is being looked for what dead workers have left."""
        return is_under_way(self._claiming)

    def should_go_on(self, visitor: VisitorKey) -> bool:
        """Return whether more is left, and memory has room for it again, now that one of a visitor's has gone on."""
        if self._left.is_too_much:
            return self.returning.total <= CLAIM // 2
        return visitor in self._left.full and self.returning.of(visitor) <= SHARE // 2

    def waits_for_room(self, visitor: VisitorKey) -> bool:
        """Return whether more of a visitor's is left that memory has no room for; it comes once there is some."""
        return self._left.is_too_much or visitor in self._left.full

    @property
    def has_more(self) -> bool:
        """Whether some of what is left waits for room in memory."""
        return self._left.has_more

    def start(self) -> None:
        """Renew the lease, and take over what belongs to no living worker; what has failed rests for a while."""
        if not is_under_way(self._claiming) and self._clock.monotonic() >= self._rests_until:
            self._claiming = asyncio.Task(self._claim(), name="alloy-outbox-claim")

    def stop_resting(self) -> None:
        """Let the next ``start`` try again what has failed."""
        self._rests_until = 0.0

    async def _claim(self) -> None:
        try:
            if not await self._outbox.renew():
                self._on_lease_lost()
            if self._hand_over is not None:
                self._left.is_known = True  # nothing is left to this worker
                await self._hand_over()
            else:
                await self._expiry.look()
                if self._visitors is not None:
                    await self._take_over(self._visitors)
                    self._start_erasing(self._visitors)
        except Exception as raised:  # noqa: BLE001 - an outbox of somebody else's may raise what it should not
            error = as_outbox_error("read", raised)
            self._logger.warning("%s; tried again in %g s", error, LEASE / 3)
            self._rests_until = self._clock.monotonic() + LEASE / 3
        finally:
            self._claiming = None
        self._on_ended()

    async def _take_over(self, visitors: TakingOver) -> None:
        await self._left.look()
        taken = await self._left.claim(visitors, returning=self.returning, take=self._hold)
        self._left.forget(taken)

    def _start_erasing(self, visitors: TakingOver) -> None:
        """Erase what dead workers have left of visitors that have declined: they were killed before they had erased it.

        Beside taking over, which must not wait for it: there may be many, and each makes others look.
        """
        if not is_under_way(self._erasing) and any(map(visitors.has_declined, self._left.visitors)):
            self._erasing = asyncio.Task(self._erase_left(visitors), name="alloy-outbox-erase")

    async def _erase_left(self, visitors: TakingOver) -> None:
        try:
            for visitor in filter(visitors.has_declined, self._left.visitors):
                if visitor in self._left.visitors:  # as was seen last: another worker may have been faster
                    await visitors.read_again(visitor)
                    await self._erase_if(visitor, visitors.has_declined)
        except Exception as raised:  # noqa: BLE001 - as above
            self._logger.warning("%s; what was refused is erased later", as_outbox_error("erase", raised))
        finally:
            self._erasing = None

    # The end

    async def finish(self) -> None:
        """Stop taking over."""
        self._visitors = None  # a look at what others did starts it too, once that has come to its end
        await cancel_all(self.tasks())

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return what is under way, to be cancelled."""
        return [task for task in (self._claiming, self._erasing) if task is not None]


def _nothing(*_: object) -> None:
    """Hear of something before there is anybody to tell."""
