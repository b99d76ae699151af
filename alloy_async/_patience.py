"""How long whoever awaits a parked command of a visitor is kept waiting."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from ._clock import Cancellable, Clock
from ._slices import SLICE

__all__ = ["Patience"]


class _Awaited(Protocol):
    """A command whose future somebody may await."""

    def let_go(self, waited: float) -> None:
        """End its future with ``StillParked`` if it is still parked, and go on without it."""


class Patience:
    """Ends the futures of commands that stay parked; one timer for all of them, since all wait equally long.

    Args:
        wait: seconds.
        clock: where time comes from.
    """

    def __init__(self, wait: float, clock: Clock) -> None:
        self._wait = wait
        self._clock = clock
        self._waiting: deque[tuple[float, _Awaited]] = deque()
        self._alarm: Cancellable | None = None

    def hold(self, command: _Awaited) -> None:
        """Take a command that has just been parked."""
        self._waiting.append((self._clock.monotonic() + self._wait, command))
        if self._alarm is None:
            self._alarm = self._clock.call_later(self._wait, self._let_go)

    def stop(self) -> None:
        """Let nobody go any more; closing ends them all."""
        self._waiting.clear()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _let_go(self) -> None:
        self._alarm = None
        now = self._clock.monotonic()
        for _ in range(SLICE):
            if not self._waiting or self._waiting[0][0] > now:
                break
            _, command = self._waiting.popleft()
            command.let_go(self._wait)
        if self._waiting and self._alarm is None:
            self._alarm = self._clock.call_later(max(self._waiting[0][0] - now, 0.0), self._let_go)
