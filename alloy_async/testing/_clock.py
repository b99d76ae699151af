"""Time and identifiers that a test controls."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

__all__ = ["ArrangedCall", "CountingIds", "ManualClock"]


class ArrangedCall:
    """A call that waits for its moment."""

    def __init__(self, when: float, order: int, callback: Callable[[], object]) -> None:
        self.when = when
        self.order = order
        self.callback: Callable[[], object] | None = callback

    def __lt__(self, other: ArrangedCall) -> bool:
        return (self.when, self.order) < (other.when, other.order)

    def cancel(self) -> None:
        """Call it off; harmless when it has been made."""
        self.callback = None


class ManualClock:
    """A clock that stands still until ``advance``; for ``configure(clock=...)``.

    Args:
        start: seconds since 1970 at which it stands; default: 2026-01-01T00:00:00Z.
    """

    def __init__(self, start: float = 1_767_225_600.0) -> None:
        self._start = start
        self._elapsed = 0.0
        self._arranged: list[ArrangedCall] = []
        self._order = itertools.count()

    def time(self) -> float:
        """Return seconds since 1970."""
        return self._start + self._elapsed

    def monotonic(self) -> float:
        """Return seconds since the clock was made."""
        return self._elapsed

    def call_later(self, delay: float, callback: Callable[[], object]) -> ArrangedCall:
        """Arrange a call for when the clock has been advanced by ``delay`` seconds."""
        arranged = ArrangedCall(self._elapsed + delay, next(self._order), callback)
        heapq.heappush(self._arranged, arranged)
        return arranged

    def advance(self, seconds: float) -> None:
        """Let time pass, and make the calls that were arranged for it, each at its own moment."""
        goal = self._elapsed + seconds
        while self._arranged and self._arranged[0].when <= goal:
            arranged = heapq.heappop(self._arranged)
            self._elapsed = max(self._elapsed, arranged.when)
            if arranged.callback is not None:
                arranged.callback()
        self._elapsed = goal


class CountingIds:
    """Identifiers that count, as valid UUIDv4: ``00000000-0000-4000-8000-000000000001`` and so on."""

    def __init__(self) -> None:
        self._count = itertools.count(1)

    def __call__(self) -> str:
        """Return the next one."""
        return f"00000000-0000-4000-8000-{next(self._count):012d}"
