"""Events in an outbox that nobody may send any more: their visitor was never heard of again."""

from __future__ import annotations

import logging

from ._clock import Clock
from .outbox.base import Outbox

__all__ = ["Expiry"]

_PAUSE = 3_600.0
"""Seconds between two looks."""


class Expiry:
    """Erases now and then what is too old.

    Args:
        outbox: where events lie.
        lifetime: seconds that an event may wait for its delivery.
        place: where the outbox is, for people: "from the outbox", "on this machine".
        clock: where time comes from.
        logger: hears how many there were.
    """

    def __init__(
        self, outbox: Outbox, *, lifetime: float, place: str, clock: Clock, logger: logging.Logger
    ) -> None:
        self._outbox = outbox
        self._lifetime = lifetime
        self._place = place
        self._clock = clock
        self._logger = logger
        self._next_look = 0.0

    async def look(self) -> None:
        """Erase what is too old, if it is time to look again; what the outbox raises is the caller's to tell."""
        now = self._clock.time()
        if now < self._next_look:
            return
        self._next_look = now + _PAUSE
        expired = await self._outbox.expire(now - self._lifetime)
        if expired:
            message = "%d events were erased %s unsent: older than delivery_timeout=%g s"
            self._logger.warning(message, expired, self._place, self._lifetime)
