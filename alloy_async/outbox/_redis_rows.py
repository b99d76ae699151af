"""Events in Redis as a person sees them and erases them, who is no worker: in steps, between which Redis serves others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from . import _redis_scripts as scripts
from ._redis_place import Place
from ._redis_worker import read_event
from .base import Row

__all__ = ["Rows"]

_ROWS_AT_ONCE = 100
"""Events that are looked at in one step; the script reads their bodies too, of up to 64 KB each."""

_KEYS_AT_ONCE = 1_000
"""Events whose keys are read, or that are erased, in one step."""

_HIGHEST = 2**53
"""Keys are below: Lua counts no further."""


class Rows:
    """The events of an outbox, by their keys.

    Args:
        place: where.
    """

    def __init__(self, place: Place) -> None:
        self._place = place

    async def oldest(self, limit: int) -> list[Row]:
        """Return the oldest events, without their bodies."""
        rows: list[Row] = []
        start = b"-"
        while start and len(rows) < limit:
            start, found = await self._look(start, "+", min(limit - len(rows), _ROWS_AT_ONCE))
            rows += found
        return rows

    async def one(self, key: int) -> Row | None:
        """Return an event with its body; None where there is none."""
        if not 0 < key < _HIGHEST:
            return None
        _, found = await self._look(f"{key}-0", f"{key}-0", 1, whole=True)
        return found[0] if found else None

    async def purge(self, keys: Collection[int] | None) -> tuple[int, int]:
        """Erase events, and return the epoch, and how many there were.

        Each step starts an epoch: workers hear of what has gone so far, also when a later step fails.

        Args:
            keys: which; None for all.
        """
        wanted = await self._keys() if keys is None else sorted({key for key in keys if 0 < key < _HIGHEST})
        epoch = purged = 0
        for first in range(0, len(wanted), _KEYS_AT_ONCE):
            some = wanted[first : first + _KEYS_AT_ONCE]
            epoch, count = await self._place.ask("erase", scripts.PURGE, self._place.channel, *some)
            purged += count
        return epoch, purged

    async def _look(
        self, start: str | bytes, end: str, count: int, *, whole: bool = False
    ) -> tuple[bytes, list[Row]]:
        """Return where to go on, and rows."""
        next_start, found = await self._place.ask("read", scripts.ROWS, start, end, count, int(whole))
        return next_start, [_row(cells, whole=whole) for cells in found]

    async def _keys(self) -> list[int]:
        """Return the keys of all events."""
        keys: list[int] = []
        found, start = [b""], "-"
        while found:
            found = await self._place.ask("read", scripts.KEYS, start, _KEYS_AT_ONCE)
            keys += map(int, found)
            start = f"({keys[-1]}-0" if keys else start
        return keys


def _row(cells: Sequence[Any], *, whole: bool) -> Row:
    key, held, size, record = cells
    event = read_event(record)
    return Row(
        int(key),
        event.event_id,
        event.visitor,
        size,
        event.accepted_at,
        event.needs_answer,
        bool(held),
        event.body if whole else None,
    )
