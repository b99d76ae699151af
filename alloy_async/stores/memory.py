"""Choices that live as long as the process: for tests, and for applications that keep them elsewhere."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from dataclasses import replace

from ..identity import StoredIdentity
from .base import Change, Heard, Preference, VisitorKey, consents_since, tell, visitor_digest

__all__ = ["MemoryStore"]


class MemoryStore:
    """A store in memory. Give one object to two instances, also of two event loops, and they share their choices."""

    def __init__(self) -> None:
        self._preferences: dict[VisitorKey, Preference] = {}
        self._identities: dict[VisitorKey, StoredIdentity] = {}
        self._listeners: list[tuple[asyncio.AbstractEventLoop, Heard]] = []
        self._epoch = 0
        self._turn = threading.Lock()  # event loops of other threads come too

    async def load_preference(self, key: VisitorKey) -> Preference | None:
        """Return the visitor's choice, or None."""
        return self._preferences.get(key)

    async def save_preference(self, key: VisitorKey, preference: Preference, *, by: str = "") -> None:
        """Keep a choice; a refusal erases the identity."""
        with self._turn:
            kept = self._preferences.get(key)
            epoch = self._epoch if kept is None else kept.epoch
            if preference.purposes == "none":
                self._identities.pop(key, None)
                self._epoch += 1
                epoch = self._epoch
            since = consents_since(kept, preference)
            self._preferences[key] = replace(preference, epoch=epoch, consents_since=since)
            self._tell(Change(visitor_digest(key), preference.purposes == "none", by))

    async def load_identity(self, key: VisitorKey) -> StoredIdentity | None:
        """Return the visitor's identity, or None."""
        kept = self._identities.get(key)
        return None if kept is None else kept.copy()

    async def save_identity(self, key: VisitorKey, identity: StoredIdentity) -> None:
        """Keep an identity, unless a refusal is kept."""
        with self._turn:
            kept = self._preferences.get(key)
            if kept is None or kept.purposes != "none":
                self._identities[key] = identity.copy()

    async def forget(self, key: VisitorKey, *, by: str = "") -> None:
        """Erase the visitor's choice and identity."""
        with self._turn:
            self._preferences.pop(key, None)
            self._identities.pop(key, None)
            self._epoch += 1
            self._tell(Change(visitor_digest(key), refused=True, by=by))

    def watch(self, heard: Heard) -> None:
        """Begin to tell of changes, in the event loop that runs; see ``WatchedStore``. They come with its next turn.

        Args:
            heard: called in that loop with what was saved or forgotten. Called with None at first where others listen: they
                may have changed something since it was read.
        """
        loop = asyncio.get_running_loop()
        with self._turn:
            if self._listeners:
                loop.call_soon(tell, [heard], None)
            self._listeners.append((loop, heard))

    @staticmethod
    def digest(key: VisitorKey) -> str:
        """Return the name by which changes speak of a visitor, 32 hex digits."""
        return visitor_digest(key)

    def _tell(self, change: Change) -> None:
        self._listeners = [one for one in self._listeners if not one[0].is_closed()]
        for loop, heard in self._listeners:
            with suppress(RuntimeError):  # another thread has closed it just now
                loop.call_soon_threadsafe(tell, [heard], [change])

    async def aclose(self) -> None:
        """Keep everything: the object is the storage, and may be given to the next instance."""
