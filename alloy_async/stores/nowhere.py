"""Keeping nothing: for visitors whose choice and identity are kept elsewhere, in their browser's cookies."""

from __future__ import annotations

from ..identity import StoredIdentity
from .base import Preference, VisitorKey

__all__ = ["NowhereStore"]


class NowhereStore:
    """A store that is always empty."""

    async def load_preference(self, key: VisitorKey) -> Preference | None:
        """Return None."""
        return None

    async def save_preference(self, key: VisitorKey, preference: Preference) -> None:
        """Do nothing."""

    async def load_identity(self, key: VisitorKey) -> StoredIdentity | None:
        """Return None."""
        return None

    async def save_identity(self, key: VisitorKey, identity: StoredIdentity) -> None:
        """Do nothing."""

    async def forget(self, key: VisitorKey) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Do nothing."""
