"""A store whose refusals reach the durable outbox too."""

from __future__ import annotations

from contextlib import suppress

from ._outbox_keeper import OutboxKeeper
from .errors import ConsentStoreError, OutboxError
from .stores.base import Preference, Store, VisitorKey

__all__ = ["ErasingStore"]

_REFUSED = Preference("none", chosen_at=0.0, expires_at=1e12, source="forget")
"""What is kept while a visitor is being forgotten."""


class ErasingStore:
    """Erases a visitor's events along with a refusal or a forgetting; the rest is the store's own.

    The choice first: other processes that share the outbox see there that somebody declined, and read from the store
    what holds now; it must not say what held before. A process that is killed in between leaves a refusal, after which
    the next start erases what is left. Either is done when the other fails; the failure is heard, and both are tried
    again.

    A relay asks no store. What is left to one is erased before the choice is kept as well, since nobody would erase it
    after a process that is killed in between.

    Args:
        store: keeps choices and identities.
        keeper: keeps events.
        relay: whether events are left to a relay.
    """

    def __init__(self, store: Store, keeper: OutboxKeeper, *, relay: bool = False) -> None:
        self._relay = relay
        self._store = store
        self._keeper = keeper
        self.load_preference = store.load_preference
        self.load_identity = store.load_identity
        self.save_identity = store.save_identity
        self.aclose = store.aclose

    async def save_preference(self, key: VisitorKey, preference: Preference) -> None:
        """Keep a choice; a refusal also erases the visitor's identity and events."""
        if preference.purposes == "all":
            await self._store.save_preference(key, preference)
        else:
            await self._refuse(key, preference)

    async def forget(self, key: VisitorKey) -> None:
        """Erase the visitor's choice, identity and events."""
        await self._refuse(key, _REFUSED)
        await self._store.forget(key)

    async def _refuse(self, key: VisitorKey, preference: Preference) -> None:
        if self._relay:
            with suppress(ConsentStoreError):  # heard below, when it fails again
                await self._erase(key)
        try:
            await self._store.save_preference(key, preference)
        except Exception:  # not a cancellation: closing must not wait for a second disk that hangs
            await self._erase(key)
            raise
        await self._erase(key)

    async def _erase(self, key: VisitorKey) -> None:
        problem = None
        try:
            await self._keeper.erase(key)
        except OutboxError as error:
            problem = ConsentStoreError("save", error.place, error.problem)
        if problem is not None:
            raise problem
