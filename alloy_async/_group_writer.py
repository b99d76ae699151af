"""Writing to an outbox in groups.

Theory of operation. Released events gather while a group is being written; the next group is whatever has gathered, so
that a busy process pays for one commit and not for one an event. What has ended is erased along with the next group, or
by itself when none comes. There is one task while there is something to write. What could not be written fails, waits in
memory, or takes the detour over this machine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ._clock import Cancellable, Clock
from ._commands import GONE, EventCommand, fail_all, outbox_events
from ._detour import Detour
from ._futures import is_under_way
from ._held import Held
from ._ledger import Ledger
from ._lookout import AGAIN
from ._outbox_epoch import OutboxEpoch
from ._unwritten import Unwritten, waited_too_long
from .errors import OutboxError
from .outbox._raised import as_outbox_error
from .outbox.base import Outbox, Stored, VisitorKey

__all__ = ["GroupWriter"]

LAZY = 0.05
"""Seconds that keys of ended events wait for company. Losing them costs a repetition under the same ``_id``."""


class GroupWriter:
    """Stores what gathers, and erases what has ended, with one write for many of them.

    Args:
        outbox: where it writes.
        epoch: how far this worker knows what others did there.
        unwritten: what is to be stored.
        held: what is this worker's there, and what of it has ended.
        detour: where events go while the outbox is down.
        lifetime: seconds that an event may wait for its delivery.
        ledger: knows how many events are in the outbox.
        clock: where time comes from.
        logger: hears of what goes wrong without harm.
        hands_over: whether what is stored is left to other workers at once, who send it.
        waits: whether events wait in memory while the outbox cannot be written, instead of failing.
        on_gone: hears that an event of a visitor is no longer this worker's.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        epoch: OutboxEpoch,
        unwritten: Unwritten,
        held: Held,
        detour: Detour,
        lifetime: float,
        ledger: Ledger,
        clock: Clock,
        logger: logging.Logger,
        hands_over: bool,
        waits: bool,
        on_gone: Callable[[VisitorKey], object],
    ) -> None:
        self._outbox = outbox
        self._epoch = epoch
        self._unwritten = unwritten
        self._held = held
        self._detour = detour
        self._lifetime = lifetime
        self._ledger = ledger
        self._clock = clock
        self._logger = logger
        self._hands_over = hands_over
        self._waits = waits
        self._on_gone = on_gone
        self._is_open = self._is_finishing = False
        self._writing: asyncio.Task[None] | None = None
        self._lazy: Cancellable | None = None

    def open(self) -> None:
        """Write from now on."""
        self._is_open = True

    def start(self) -> None:
        """Write what has gathered, and what gathers meanwhile."""
        if not is_under_way(self._writing) and self._is_open:
            self._writing = asyncio.Task(self._write(), name="alloy-outbox-write")

    def ended(self, command: EventCommand) -> None:
        """Erase an event soon, which was delivered, failed or was withdrawn."""
        if command.local_key is not None:
            self._detour.let_go(command)
        if command.key is not None and command.key != GONE:
            self._held.drop(command.key)
            self._held.erase_later(command.key)
            self._on_gone(command.visitor.key)
        if self._lazy is None and self._is_open:
            self._lazy = self._clock.call_later(LAZY, self._start_lazily)

    def _start_lazily(self) -> None:
        self._lazy = None
        self.start()

    async def _write(self) -> None:
        """Write groups until nothing has gathered; what ends after the first one waits for company again."""
        try:
            await self._detour.store()
            self.call_off()
            while self._has_gathered() and not self._detour.is_down:
                written = await self._write_group()
                await self._detour.store()
                if not written and (self._waits or not self._unwritten.is_in_line()):
                    break
        finally:
            self._writing = None

    def _has_gathered(self) -> bool:
        """Return whether something is to be written now; what has ended can wait for its timer, until the end."""
        can_wait = self._lazy is not None and not self._is_finishing
        return self._unwritten.has_waiting() or (self._held.has_ended() and not can_wait)

    async def _write_group(self) -> bool:
        """Write what has gathered; return whether it was written."""
        await self._detour.hear()
        group = self._unwritten.begin(self._unwritten.wanted(self._unwritten.gather()))
        try:
            with self._held.erasing() as ended:
                rows = outbox_events(group, self._clock)
                stored = await self._outbox.write(rows, ended, epoch=self._epoch.number)
                # A refusal that came meanwhile must be known before anybody may send these.
                await self._detour.hear()
        except asyncio.CancelledError:
            self._unwritten.set_adrift()
            self._erase_again_later()
            raise
        except Exception as raised:  # noqa: BLE001 - an outbox of somebody else's may raise what it should not
            self._unwritten.end()
            self._not_written(group, as_outbox_error("write", raised))
            return False
        self._unwritten.end()
        self._written(group, stored)
        if self._hands_over and group:
            await self._hand_over()
        return True

    # What became of a group

    def _written(self, group: list[EventCommand], stored: Stored) -> None:
        full: list[EventCommand] = []
        for command, key in zip(group, stored.keys, strict=True):
            if key is not None:
                self._written_one(command, key)
            elif command.local_key is not None and command.visitor.key not in stored.refused:
                full.append(command)  # its caller knows it as stored: it is not turned away, it waits
            else:
                self._unwritten.turn_away(command, stored)
        if full:
            self._detour.turn_back(full, OutboxError("write", "that is shared", "it is full."))
        elif group:
            self._detour.took_events()

    def _written_one(self, command: EventCommand, key: int) -> None:
        command.move(key)
        if command.local_key is not None:
            self._detour.let_go(command)  # until that is done it is in both places
        if command.ended:
            self.ended(command)  # it was withdrawn while it was being written
        elif self._hands_over:
            self._ledger.stored += 1
            command.hand_over()
        else:
            self._held.hold(command, key)
            command.stored()

    def _not_written(self, group: list[EventCommand], error: OutboxError) -> None:
        self._erase_again_later()
        if self._detour.exists:
            self._detour.turn_back(group, error)
        elif self._waits:
            self._logger.warning("%s; %d events wait in memory, it is tried again", error, len(group))
            self._unwritten.give_back(_young_enough(group, self._clock.monotonic() - self._lifetime))
        else:
            fail_all(group, error)

    def _erase_again_later(self) -> None:
        if self._lazy is None and self._is_open:
            self._lazy = self._clock.call_later(AGAIN, self._start_lazily)

    # Leaving what is stored to others

    async def hand_over_between_groups(self) -> None:
        """Leave what is stored to others; a group that is being written does so by itself, once it is known what is in it."""
        if not is_under_way(self._writing):
            await self._hand_over()

    async def _hand_over(self) -> None:
        """Leave what is stored to others, and what has ended meanwhile to nobody."""
        try:
            if self._held.has_ended():  # while it is still this worker's
                with self._held.erasing() as ended:
                    await self._outbox.write([], ended, epoch=self._epoch.number)
            await self._outbox.release()
        except Exception as raised:  # noqa: BLE001 - as above
            error = as_outbox_error("write", raised)
            self._logger.warning("%s; what is stored is left to others a little later", error)

    # The end

    async def finish(self) -> None:
        """Write what has gathered."""
        self._is_finishing = True
        self.start()
        if self._writing is not None:
            await asyncio.wait([self._writing])

    def call_off(self) -> None:
        """Do not write by itself what has ended."""
        if self._lazy is not None:
            self._lazy.cancel()
            self._lazy = None

    def close(self) -> None:
        """Begin to write nothing any more."""
        self._is_open = False

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return what is under way, to be cancelled."""
        return [self._writing] if self._writing is not None else []


def _young_enough(group: list[EventCommand], too_old: float) -> list[EventCommand]:
    """Return the events that may go on waiting; end those that have waited for too long."""
    for command in group:
        if command.released_at <= too_old and not command.ended:
            command.fail(waited_too_long())
    return [command for command in group if not command.ended]
