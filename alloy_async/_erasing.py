"""A store whose refusals reach the durable outbox too."""

from __future__ import annotations

from ._outbox_keeper import OutboxKeeper
from .errors import ConsentStoreError, OutboxError
from .stores.base import Preference, Store, VisitorKey

__all__ = ["ErasingStore"]


class ErasingStore:
    """Erases a visitor's events along with a refusal or a forgetting; the rest is the store's own.

    Events first: other processes that share the outbox see a refusal there before their next transmission. The choice
    is saved all the same when erasing fails; the failure is heard, and both are tried again.

    Args:
        store: keeps choices and identities.
        keeper: keeps events.
    """

    def __init__(self, store: Store, keeper: OutboxKeeper) -> None:
        self._store = store
        self._keeper = keeper
        self.load_preference = store.load_preference
        self.load_identity = store.load_identity
        self.save_identity = store.save_identity
        self.aclose = store.aclose

    async def save_preference(self, key: VisitorKey, preference: Preference) -> None:
        """Keep a choice; a refusal also erases the visitor's identity and events."""
        problem = await self._erase(key) if preference.purposes == "none" else None
        await self._store.save_preference(key, preference)
        if problem is not None:
            raise problem

    async def forget(self, key: VisitorKey) -> None:
        """Erase the visitor's choice, identity and events."""
        problem = await self._erase(key)
        await self._store.forget(key)
        if problem is not None:
            raise problem

    async def _erase(self, key: VisitorKey) -> ConsentStoreError | None:
        try:
            await self._keeper.erase(key)
        except OutboxError as error:
            return ConsentStoreError("save", error.place, error.problem)
        return None
