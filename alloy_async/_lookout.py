"""Looking at what other workers did, before anything is sent.

Theory of operation. From the moment in which something may have happened nothing is sent until the answer has been applied:
a renewed lease alone says nothing of what others took. One look at a time; what cannot be read, or told for certain, is asked
again after a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ._clock import Cancellable, Clock
from ._futures import is_under_way
from .outbox._raised import as_outbox_error

__all__ = ["AGAIN", "Lookout"]

AGAIN = 1.0
"""Seconds until something is tried again that the disk has refused."""

PAUSE = 0.05
"""Seconds until an outbox is asked again that cannot tell: not again and again without a pause."""


class Lookout:
    """Knows whether this worker is current, and asks until it is.

    Args:
        ask: reads and applies what others did, and returns whether that was all, as far as can be told.
        clock: where time comes from.
        logger: hears of what could not be read.
    """

    def __init__(self, ask: Callable[[], Awaitable[bool]], *, clock: Clock, logger: logging.Logger) -> None:
        self._ask = ask
        self._clock = clock
        self._logger = logger
        self._on_current: Callable[[], object] = _nothing
        self._is_open = False
        self._is_stale = False
        self._has_failed = False
        self._on_back: Callable[[], object] = _nothing
        self._looking: asyncio.Task[None] | None = None
        self._again: Cancellable | None = None

    def open(self, *, on_current: Callable[[], object], on_back: Callable[[], object]) -> None:
        """Look from now on.

        Args:
            on_current: hears that sending may go on.
            on_back: hears that an answer has come again after there was none.
        """
        self._on_current, self._on_back = on_current, on_back
        self._is_open = True

    def is_current(self) -> bool:
        """Return whether this worker knows what others did, as far as it can tell; if not, ask, or go on asking."""
        if self._is_stale:
            self.make_sure()  # somebody may have cancelled the look
        return self._is_open and not self._is_stale

    def look(self) -> None:
        """Ask what others did; nothing is sent meanwhile."""
        self._is_stale = True
        if not is_under_way(self._looking) and self._is_open:
            self.call_off()
            self._looking = asyncio.Task(self._look(), name="alloy-outbox-look")

    def make_sure(self) -> None:
        """Look, unless it will be looked again in a while."""
        if self._again is None:
            self.look()

    def out_of_reach(self) -> None:
        """Take note that somebody else has had no answer, and look when there is one again."""
        self._has_failed = True
        self.make_sure()

    def look_later(self) -> None:
        """Look in a while, unless that is under way."""
        if self._again is None and not is_under_way(self._looking):
            self._again = self._clock.call_later(AGAIN, self._look_again)

    async def _look(self) -> None:
        try:
            self._is_stale = not await self._ask()
            if self._is_stale:
                self._again = self._clock.call_later(PAUSE, self._look_again)
        except Exception as raised:  # noqa: BLE001 - an outbox of somebody else's may raise what it should not
            error = as_outbox_error("read", raised)
            self._logger.error("%s; nothing is sent until it can be read", error)
            self._has_failed = True
            self._again = self._clock.call_later(AGAIN, self._look_again)
        else:
            self._answered()
        finally:
            self._looking = None
        if self._again is None:
            self._on_current()

    def _answered(self) -> None:
        had_failed, self._has_failed = self._has_failed, False
        if had_failed:
            self._on_back()

    def _look_again(self) -> None:
        self._again = None
        self.look()

    # The end

    def call_off(self) -> None:
        """Do not look again by itself."""
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def close(self) -> None:
        """Begin no look any more."""
        self._is_open = False

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return what is under way, to be cancelled."""
        return [self._looking] if self._looking is not None else []


def _nothing() -> None:
    """Hear of something before there is anybody to tell."""
