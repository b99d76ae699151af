"""How much may wait for consent in one instance, of all visitors together."""

from __future__ import annotations

from ..errors import ParkingFull

__all__ = ["ParkingRoom"]


class ParkingRoom:
    """Counts what is parked, and says when it is too much.

    Args:
        max_parked: commands that may wait at once.
        max_parked_bytes: bytes of what they hold, together.
    """

    __slots__ = ("_max_bytes", "_max_parked", "_parked", "_size")

    def __init__(self, max_parked: int, max_parked_bytes: int) -> None:
        self._max_parked = max_parked
        self._max_bytes = max_parked_bytes
        self._parked = 0
        self._size = 0

    def full(self, command: str, size: int) -> ParkingFull | None:
        """Return the error for a command of so many bytes that finds no room, or None."""
        if self._parked >= self._max_parked:
            return ParkingFull(command, "max_parked", self._max_parked)
        if self._size + size > self._max_bytes:
            return ParkingFull(command, "max_parked_bytes", self._max_bytes)
        return None

    def take(self, size: int) -> None:
        """Take note that a command of so many bytes is parked."""
        self._parked += 1
        self._size += size

    def give_back(self, size: int) -> None:
        """Take note that one has left."""
        self._parked -= 1
        self._size -= size
