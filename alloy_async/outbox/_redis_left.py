"""What dead workers have left in Redis: whose it is, taking it over, and erasing what is too old.

There may be much of it, so it is gone through in steps of some milliseconds, between which Redis serves others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from . import _redis_scripts as scripts
from ._admission import Room
from ._redis_place import Place
from ._redis_worker import Worker, read_event
from .base import Claimed, VisitorKey

__all__ = ["Left"]

_CLAIM_AT_ONCE = 1_000
"""Events that are taken over in one step at most."""

_VISITORS_AT_ONCE = 1_000
"""Visitors whose events are looked for in one step."""

_NAMES_AT_ONCE = 100
"""Events that are read in one step to see whose they are."""


class Left:
    """Goes through what the dead have left.

    Args:
        place: where.
        ordered: whether an event is left that waits for an older one of its visitor which another living worker has.
    """

    def __init__(self, place: Place, *, ordered: bool) -> None:
        self._place = place
        self._ordered = ordered
        self._abandoned: tuple[list[Any], list[VisitorKey]] = ([], [])  # by whom, and whose

    async def claim(self, worker: Worker, digests: Sequence[str], wanted: Room) -> list[Claimed]:
        """Take over the oldest events; look again where others were faster.

        Args:
            worker: for whom.
            digests: of the visitors whose events are wanted.
            wanted: how many events, and how many bytes of them, at most.
        """
        count = min(wanted.events, _CLAIM_AT_ONCE)
        while count > 0 and await self._owners(worker):
            oldest = await self._oldest(worker, digests, count)
            if not oldest:
                break
            take = partial(worker.claim, members=oldest, size=wanted.size, ordered=self._ordered)
            claimed = await self._place.run("read", take)
            if claimed:
                return claimed
        return []

    async def abandoned(self, worker: Worker) -> list[VisitorKey]:
        """Return the visitors of these events, in the order of their oldest ones."""
        owners = await self._owners(worker)
        if owners != self._abandoned[0]:  # else nobody has died, or has more; and they may have much
            self._abandoned = owners, await self._named(worker, await self._visitors(owners[::3]))
        return self._abandoned[1]

    async def expire(self, worker: Worker, accepted_before: float) -> int:
        """Erase those that are too old, and return how many there were."""
        expired = 0
        for owner in (await self._owners(worker))[::3]:
            start = b"-"
            while start:
                count, start = await self._place.ask(
                    "erase", scripts.EXPIRE, repr(accepted_before), owner, start
                )
                expired += count
        return expired

    async def _owners(self, worker: Worker) -> list[Any]:
        return await self._place.ask("read", scripts.OWNERS, worker=worker.id)

    async def _oldest(self, worker: Worker, digests: Sequence[str], count: int) -> list[bytes]:
        """Return the oldest events, in order."""
        ask = partial(self._place.ask, "read", scripts.OLDEST, count, int(self._ordered), worker=worker.id)
        found: list[bytes] = []
        for start in range(0, len(digests), _VISITORS_AT_ONCE):
            found += await ask(" ".join(digests[start : start + _VISITORS_AT_ONCE]))
            found = sorted(found, key=_age)[:count]
        return found

    async def _visitors(self, owners: Iterable[bytes]) -> dict[str, int]:
        """Return digests of visitors, each with the key of the oldest event that these owners have."""
        oldest: dict[str, int] = {}
        for owner in owners:
            start = b"[" + owner + b":"
            while start:
                start, labels = await self._place.ask("read", scripts.ABANDONED, owner, start)
                for digest, key, _ in (label.decode().split(":") for label in labels):
                    oldest[digest] = min(int(key), oldest.get(digest, int(key)))
        return oldest

    async def _named(self, worker: Worker, oldest: Mapping[str, int]) -> list[VisitorKey]:
        """Return whose digests they are, in the order of their events; those whose event has gone are passed over."""
        digests = sorted(oldest, key=oldest.__getitem__)
        unknown = [oldest[digest] for digest in digests if worker.name(digest) is None]
        for start in range(0, len(unknown), _NAMES_AT_ONCE):
            for record in await self._place.records("read", unknown[start : start + _NAMES_AT_ONCE]):
                if record is not None:
                    worker.meet(read_event(record).visitor)
        named = (worker.name(digest) for digest in digests)
        return [visitor for visitor in named if visitor is not None]


def _age(member: bytes) -> bytes:
    """Return the key of an event as ``OLDEST`` returns it, as text of fixed length."""
    return member[50:66]
