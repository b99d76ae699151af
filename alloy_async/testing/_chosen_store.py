"""Visitors who have made their choice before a test begins."""

from __future__ import annotations

import math

from ..stores import MemoryStore
from ..stores.base import Choice, Preference, VisitorKey

__all__ = ["ChosenStore"]


class ChosenStore(MemoryStore):
    """A store in memory in which everybody has chosen already; what they choose later replaces it.

    Args:
        purposes: "all" or "none".
    """

    def __init__(self, purposes: Choice) -> None:
        super().__init__()
        self._earlier = Preference(purposes, chosen_at=0.0, expires_at=math.inf)
        self._met: set[VisitorKey] = set()

    async def load_preference(self, key: VisitorKey) -> Preference | None:
        """Return the visitor's choice; None only after ``forget``."""
        if key not in self._met:
            await self.save_preference(key, self._earlier)
        return await super().load_preference(key)

    async def save_preference(self, key: VisitorKey, preference: Preference, *, by: str = "") -> None:
        """Keep a choice; a refusal erases the identity."""
        self._met.add(key)
        await super().save_preference(key, preference, by=by)

    async def forget(self, key: VisitorKey, *, by: str = "") -> None:
        """Erase the visitor's choice and identity, the earlier choice too."""
        self._met.add(key)
        await super().forget(key, by=by)
