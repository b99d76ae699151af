"""What others did in an outbox, apart from what this worker did itself.

Theory of operation. Whoever erases a visitor's events leaves a higher *epoch* in the outbox, and who declined is read there
by all that share it; by the worker that has erased, too. To itself that is no news: it may have heard a new yes since. So it
notes which epochs are its own. A refusal of our own must be known as ours before anybody here reads that there was one, so
erasing and reading take turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from .outbox.base import Changes, Outbox, VisitorKey

__all__ = ["News", "OutboxEpoch"]


class News(NamedTuple):
    """What happened in an outbox since this worker looked last.

    Attributes:
        refused: visitors that declined, or were forgotten, in another worker.
        declined: visitors that did so in whatever worker, this one too; not those who only may have.
        erased: visitors whose events this worker has erased, as far as others could still speak of it.
        gone: keys of this worker's events that are no longer in the outbox, or belong to another worker now.
    """

    refused: frozenset[VisitorKey]
    declined: Collection[VisitorKey]
    erased: Collection[VisitorKey]
    gone: frozenset[int]


class OutboxEpoch:
    """How far a worker knows what happened in an outbox.

    Args:
        outbox: which one.
        on_behind: hears that others did something before this worker has erased, which is to be asked for.

    Attributes:
        number: the epoch up to which it knows.
    """

    def __init__(self, outbox: Outbox, *, on_behind: Callable[[], object]) -> None:
        self._outbox = outbox
        self._on_behind = on_behind
        self._order = asyncio.Lock()
        self._erased: dict[VisitorKey, int] = {}
        self.number = 0

    async def open(self) -> None:
        """Open the outbox, and begin with its present epoch.

        Raises:
            OutboxError: it cannot be used.
        """
        self.number = await self._outbox.open()

    def is_latest(self) -> bool:
        """Return whether nothing has happened since, as far as the outbox can tell; microseconds."""
        return self._outbox.may_send(self.number)

    async def erase(self, visitor: VisitorKey, still: Callable[[VisitorKey], bool] | None = None) -> None:
        """Erase a visitor's events, of whatever worker.

        Args:
            visitor: whose.
            still: asked of the visitor right before; when it says no, nothing is erased. None: that is not asked.

        Raises:
            OutboxError: it could not be done.
        """
        async with self._order:
            if still is None or still(visitor):  # a yes that was said meanwhile may have brought new events
                self._note(visitor, await self._outbox.erase(visitor))

    def _note(self, visitor: VisitorKey, epoch: int) -> None:
        if epoch == self.number + 1:
            self.number = epoch  # nothing else has happened
        else:
            self._erased[visitor] = epoch
            self._on_behind()

    @asynccontextmanager
    async def news(self) -> AsyncIterator[News]:
        """Renew the lease, and tell what happened; nothing is erased from here until that has been applied.

        Raises:
            OutboxError: it could not be done.
        """
        async with self._order:
            await self._outbox.renew()
            changes = await self._outbox.changes(self.number)
            self.number = changes.epoch
            erased, self._erased = self._erased, _after(changes.epoch, self._erased)
            declined = () if changes.missed else changes.refused.keys()
            yield News(_by_others(changes, erased), declined, erased.keys(), changes.gone)


def _by_others(changes: Changes, erased: Mapping[VisitorKey, int]) -> frozenset[VisitorKey]:
    """Return who has declined since this worker itself has erased their events."""
    return frozenset(visitor for visitor, epoch in changes.refused.items() if epoch > erased.get(visitor, 0))


def _after(epoch: int, erased: Mapping[VisitorKey, int]) -> dict[VisitorKey, int]:
    """Return what others can still speak of: it comes after what they have told."""
    return {visitor: own for visitor, own in erased.items() if own > epoch}
