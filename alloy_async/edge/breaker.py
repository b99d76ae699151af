"""A circuit breaker: an endpoint that is down is probed gently, not hammered.

*closed*: requests flow. After ``TOLERATED`` outages in a row, without any answer in between, it is *open*: no request
starts until a cool-down has passed. Then it is *half-open*: one request starts, a probe. Its answer closes the circuit,
its failure opens it for twice as long.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["Breaker", "Circuit"]

Circuit: TypeAlias = Literal["closed", "open", "half-open"]
"""State of the way to the endpoint: requests flow, none starts, one is under way to probe it."""

TOLERATED = 5
"""Outages in a row that do not open the circuit yet are one fewer than this."""

FIRST_COOL_DOWN = 1.0
LONGEST_COOL_DOWN = 60.0
"""Seconds that the circuit stays open, doubled from the first to the second."""


class Breaker:
    """Counts outages and answers of one endpoint. It has no clock: moments are given, in monotonic seconds."""

    def __init__(self) -> None:
        self.circuit: Circuit = "closed"
        self.until: float = 0.0
        self._outages = 0
        self._cool_down = FIRST_COOL_DOWN

    def lets_start(self, now: float) -> bool:
        """Return whether a request may start now."""
        return self.circuit == "closed" or (self.circuit == "open" and now >= self.until)

    def started(self) -> None:
        """Take note that a request starts; after a cool-down it is the probe."""
        if self.circuit == "open":
            self.circuit = "half-open"

    def answered(self) -> None:
        """Take note that the endpoint answered, whatever it said: it is there."""
        self.circuit = "closed"
        self._outages = 0
        self._cool_down = FIRST_COOL_DOWN

    def failed(self, now: float, chance: float) -> None:
        """Take note of an outage.

        Args:
            now: monotonic seconds.
            chance: a random number from 0 to 1; up to half of the cool-down is left to it.
        """
        self._outages += 1
        if self.circuit == "open" or (self.circuit == "closed" and self._outages < TOLERATED):
            return  # a request that started before the circuit opened tells nothing new
        self.circuit = "open"
        self.until = now + self._cool_down * (1 - chance / 2)
        self._cool_down = min(self._cool_down * 2, LONGEST_COOL_DOWN)

    def gave_up(self) -> None:
        """Take note that a request ended before anything was sent: a probe that proved nothing, another may follow."""
        if self.circuit == "half-open":
            self.circuit = "open"
