"""What tests import from each other's neighbourhood: ids for configure, patience without time, an outbox that takes its time, a store with news."""

from __future__ import annotations

import asyncio

from alloy_async.outbox import MemoryOutbox
from alloy_async.stores import MemoryStore
from alloy_async.stores.base import Change

IDS = {"config_id": "ebebf826-a01f-4458-8cec-ef61de241c93", "ims_org_id": "ADB3LETTERSANDNUMBERS@AdobeOrg"}


async def settle(turns: int = 20) -> None:
    """Let the event loop take some turns, so that whatever can go on without time passing has gone on."""
    for _ in range(turns):
        await asyncio.sleep(0)


class SlowToWrite(MemoryOutbox):
    """An outbox whose writes are carried out, and answered when a test says so: by ending what is ``held``."""

    held: asyncio.Future[None] | None = None

    async def write(self, *arguments, **keywords):
        stored = await super().write(*arguments, **keywords)
        if self.held is not None:
            await self.held
        return stored


class WatchedStore(MemoryStore):
    """A store in memory that tells each who watches it what was changed."""

    def __init__(self):
        super().__init__()
        self.watchers, self.held = [], None

    def watch(self, heard):
        self.watchers.append(heard)

    def digest(self, key):
        return key.visitor

    def tell(self, *changes):
        for heard in self.watchers:
            heard(list(changes) or None)

    def hold(self):
        """Tell nothing of what is changed, until it is let go."""
        self.held = []

    def let_go(self):
        """Tell at once what was changed meanwhile."""
        held, self.held = self.held, None
        self.tell(*held)

    async def save_preference(self, key, preference, *, by=""):
        await super().save_preference(key, preference, by=by)
        self._changed(Change(key.visitor, preference.purposes == "none", by))

    async def forget(self, key, *, by=""):
        await super().forget(key, by=by)
        self._changed(Change(key.visitor, refused=True, by=by))

    def _changed(self, change):
        if self.held is None:
            self.tell(change)
        else:
            self.held.append(change)


def connections_of(edge, prefix):
    """The connections over which events came whose type begins so."""
    return {
        arrival.connection
        for arrival in edge.arrivals
        for event in arrival.request.events
        if event["xdm"]["eventType"].startswith(prefix)
    }
