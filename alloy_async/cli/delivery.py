"""From lines to delivered events, holding no more of them at once than there is room for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Literal, Protocol, TypeAlias

from .. import Alloy, AlloyClosed, ConsentDeclined, EventResult, Settings
from ..hooks import Parked
from .lines import BadLine, Line, read_object

__all__ = ["Delivery", "Observer"]

Choice: TypeAlias = Literal["all", "none"]

MAX_UNDER_WAY = 2_000
"""Events on their way at once after the choice: enough to fill eight requests of 64 KB, and some to follow."""

MAX_UNDER_WAY_BYTES = 8_388_608
"""Bytes of their lines, for lines near the limit of what one request takes."""

_EXPANSION = 8
"""What a byte of a line can become in the queue: 1e15 is written out as 1000000000000000.0, and ids are added."""

_LARGEST_EVENT = 65_536


class Observer(Protocol):
    """Hears how each line ends."""

    def ended(self, size: int) -> None:
        """Take note that a line of ``size`` bytes ended, however."""

    def problem(self, line: int, reason: str) -> None:
        """Take note that a line was not delivered."""

    def note(self, line: int, remark: str) -> None:
        """Take note that a line was delivered, and what the edge had to say about it."""


class Delivery:
    """Takes lines through the gate, and waits whenever too many are under way.

    While consent is pending, lines are parked as long as there is room; then, or at the end of the lines, the choice is
    obtained. Its own expiry makes it pending again.

    Args:
        alloy: where events are called; ``notice`` must be one of its hooks.
        settings: what it is configured with.
        obtain: asks for the choice, or knows it.
        observer: hears how each line ends.

    Attributes:
        lines: how many were read that are not blank.
        stopped: how many were accepted and not sent, because the instance was closed.
        first_stopped: the first of them; None when there is none.
        choice: the choice that holds; None while it is pending.
    """

    def __init__(
        self,
        alloy: Alloy,
        settings: Settings,
        *,
        obtain: Callable[[int], Awaitable[Choice]],
        observer: Observer,
    ) -> None:
        self.lines: int = 0
        self.stopped: int = 0
        self.first_stopped: int | None = None
        self.choice: Choice | None = None
        self._alloy = alloy
        self._settings = settings
        self._obtain = obtain
        self._observer = observer
        self._chosen_until = 0.0
        self._parked_bytes = 0
        self._open = 0
        self._open_bytes = 0
        self._max_open = min(MAX_UNDER_WAY, settings.max_queued)
        self._max_open_bytes = min(MAX_UNDER_WAY_BYTES, settings.max_queued_bytes // _EXPANSION)
        self._changed = asyncio.Event()

    def adopt(self, choice: Choice, until: float) -> None:
        """Take note of a choice that holds until then (seconds since 1970)."""
        self.choice, self._chosen_until = choice, until

    def notice(self, record: object) -> None:
        """Hear of each moment of each event; a hook."""
        if isinstance(record, Parked):
            self._parked_bytes += record.size
            self._changed.set()  # after an expiry events come back to the gate, and somebody must be asked again

    async def choose(self) -> None:
        """Obtain the choice and let it hold.

        Raises:
            AlloyError: it could not be kept.
            Exception: whatever ``obtain`` raises.
        """
        choice = await self._obtain(self._alloy.statistics().parked)
        until = time.time() + self._settings.preference_max_age
        await self._alloy.opt_in(purposes=choice)
        self._parked_bytes = 0
        self.adopt(choice, until)

    async def deliver(self, lines: AsyncIterator[Line]) -> None:
        """Take every line, and wait until each has ended.

        Raises:
            OSError: reading failed; what was read has been delivered all the same.
            Exception: as ``choose``.
        """
        problem = None
        try:
            await self._take(lines)
        except OSError as error:
            problem = error
        await self._wait_until(lambda: not self._open)
        if problem is not None:
            raise problem

    async def settle(self) -> None:
        """Hear of every end that is left, after the instance was closed."""
        while self._open:
            self._changed.clear()
            await self._changed.wait()

    async def _take(self, lines: AsyncIterator[Line]) -> None:
        async for line in lines:
            await self._wait_until(self._has_room)
            if line.is_blank:
                self._observer.ended(len(line.content) + 1)
            else:
                self._take_line(line)

    def _take_line(self, line: Line) -> None:
        self.lines += 1
        try:
            xdm = read_object(line.content)
        except BadLine as bad:
            self._observer.problem(line.number, str(bad))
            self._observer.ended(len(line.content) + 1)
            return
        self._open += 1
        self._open_bytes += len(line.content)
        self._alloy.event(xdm=xdm).add_done_callback(partial(self._ended, line.number, len(line.content)))

    def _ended(self, number: int, size: int, future: asyncio.Future[EventResult]) -> None:
        self._open -= 1
        self._open_bytes -= size
        self._changed.set()
        error = future.exception()
        if error is None:
            self._tell_remarks(number, future.result())
        elif isinstance(error, AlloyClosed):
            self.stopped += 1
            self.first_stopped = number if self.first_stopped is None else min(number, self.first_stopped)
        elif not _is_own_refusal(error):
            self._observer.problem(number, str(error))
        self._observer.ended(size + 1)

    def _tell_remarks(self, number: int, result: EventResult) -> None:
        for problem in (*result.errors, *result.warnings):
            self._observer.note(number, str(problem.get("title") or problem.get("type") or "no reason given"))

    # Room

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._is_pending() and self._alloy.statistics().parked:
                await self.choose()
            else:
                self._changed.clear()
                await self._changed.wait()

    def _is_pending(self) -> bool:
        return time.time() >= self._chosen_until

    def _has_room(self) -> bool:
        if not self._is_pending():
            return not self._open or (self._open < self._max_open and self._open_bytes < self._max_open_bytes)
        parked = self._alloy.statistics().parked
        if not parked:
            self._parked_bytes = 0
            return True
        # Room for the largest event there can be, because the next one's size is not known before it is called.
        in_bytes = self._parked_bytes + _LARGEST_EVENT <= self._settings.max_parked_bytes
        return parked < self._settings.max_parked and in_bytes


def _is_own_refusal(error: BaseException) -> bool:
    """Return whether the visitor's choice stopped it, which is one fact and no finding about the line."""
    return isinstance(error, ConsentDeclined) and error.by == "visitor"
