"""What others did in an outbox, apart from what this worker did itself.

Theory of operation. Whoever erases a visitor's events leaves a higher *epoch* in the outbox, and who declined is read there
by all that share it; by the worker that has erased, too. To itself that is no news: it may have heard a new yes since. So it
notes which epochs are its own. A refusal of our own must be known as ours before anybody here reads that there was one, so
erasing and reading take turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from .outbox.base import Outbox, VisitorKey

__all__ = ["News", "OutboxEpoch"]


class News(NamedTuple):
    """What happened in an outbox since this worker looked last.

    Attributes:
        refused: visitors that declined, or were forgotten, in another worker.
        declined: visitors that did so in whatever worker, this one too.
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

    Attributes:
        number: the epoch up to which it knows.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
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

    async def erase(self, visitor: VisitorKey, *, still: Callable[[VisitorKey], bool] | None = None) -> bool:
        """Erase a visitor's events, of whatever worker; return whether that was all that has happened.

        Args:
            visitor: whose.
            still: asked of the visitor right before, while nothing else of this worker can come in between; when it says
                no, nothing is erased.

        Raises:
            OutboxError: it could not be done.
        """
        async with self._order:
            if still is not None and not still(visitor):
                return True
            return self._note(visitor, await self._outbox.erase(visitor))

    def _note(self, visitor: VisitorKey, epoch: int) -> bool:
        if epoch == self.number + 1:
            self.number = epoch
            return True
        self._erased[visitor] = epoch
        return False

    async def read(self) -> News:
        """Renew the lease, and read what happened; from then on it is known.

        Raises:
            OutboxError: it could not be done.
        """
        async with self._order:
            await self._outbox.renew()
            changes = await self._outbox.changes(self.number)
            self.number = changes.epoch
            erased, self._erased = self._erased, _after(changes.epoch, self._erased)
        refused = frozenset(
            visitor for visitor, epoch in changes.refused.items() if epoch > erased.get(visitor, 0)
        )
        return News(refused, changes.refused.keys(), erased.keys(), changes.gone)


def _after(epoch: int, erased: Mapping[VisitorKey, int]) -> dict[VisitorKey, int]:
    """Return what others can still speak of: it comes after what they have told."""
    return {visitor: own for visitor, own in erased.items() if own > epoch}
