"""A worker at an outbox in Redis: what it knows of itself, and the steps that it takes."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from .._redis import Script
from ..stores.base import visitor_digest
from . import _redis_scripts as scripts
from ._admission import Room
from ._redis_place import Place
from .base import LEASE, Changes, Claimed, OutboxEvent, Stored, VisitorKey

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["FRESH", "REMEMBERED", "Worker", "read_event"]

FRESH = 0.75
"""Seconds for which it counts that Redis was asked for the epoch; by the machine's own clocks."""

REMEMBERED = 604_800.0
"""Seconds after the end of its lease in which a worker may come back (a laptop was closed) and hears of all refusals."""

VERSION = 1
"""Of what is kept in Redis, and how."""

_MET = 100_000
"""Visitors that a worker can tell by name when others refuse for them; later ones replace earlier ones."""


class _Moment(NamedTuple):
    """A moment by two clocks: one that is never set, and one that goes on while the machine sleeps."""

    monotonic: float
    wall: float

    @classmethod
    def now(cls) -> _Moment:
        return cls(time.monotonic(), time.time())

    def is_within(self, seconds: float) -> bool:
        """Return whether it is at most so long ago, by both."""
        return time.monotonic() - self.monotonic <= seconds and abs(time.time() - self.wall) <= seconds


class Worker:
    """Belongs to one process and one event loop.

    Its methods are run by a link, in tasks that no caller can cancel: what a step has done is noted by the step.

    Attributes:
        entering: held while it is entered.
        entered: whether Redis knows it.
        heard: the latest epoch that is known.
        lease_until: by the clock of whoever sets it.

    Args:
        place: where it works.
        met: visitors that it knows by name, by their digests.
        top: the last key that it knows to be given.
        lost: events that it does not have, and hears of it.
    """

    def __init__(
        self,
        place: Place,
        *,
        met: Mapping[str, VisitorKey] = MappingProxyType({}),
        top: int = 0,
        lost: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        # Random, since a number that counts would be given again where Redis has lost its data.
        self.id = os.urandom(8).hex()
        self.process: int = os.getpid()
        self.loop = asyncio.get_running_loop()
        self.entering = asyncio.Lock()
        self.entered = False
        self.heard = 0
        self.lease_until = -math.inf
        self._place = place
        self._held: dict[int, str] = dict(lost)
        self._met: dict[str, VisitorKey] = dict(met)
        self._looked = _Moment(-math.inf, -math.inf)
        self._turn = asyncio.Lock()
        self._ticket = self._doubt = 0
        self._top = top

    def next(self) -> Worker:
        """Return another worker, which has no events, and knows what this one knows."""
        worker = Worker(self._place, met=self._met, top=self._top)
        worker.heard = self.heard
        return worker

    def successor(self) -> Worker:
        """Return the worker of a forked process: another one, that does not have this one's events, and hears of it."""
        worker = Worker(self._place, met=self._met, top=self._top, lost=self._held)
        worker.heard = self.heard
        return worker

    def is_home(self) -> bool:
        """Return whether it belongs to this process and the event loop that runs."""
        return self.process == os.getpid() and self.loop is asyncio.get_running_loop()

    def may_send(self, epoch: int, now: float) -> bool:
        """Return whether the lease holds, and this is the epoch by an answer that is fresh enough.

        Args:
            epoch: which.
            now: the clock by which ``lease_until`` was set.
        """
        known = epoch == self.heard and self._looked.is_within(FRESH)
        return known and now < self.lease_until and self.process == os.getpid()

    def hear(self, epoch: int) -> None:
        """Take note that there is such an epoch."""
        self.heard = max(self.heard, epoch)

    def name(self, digest: str) -> VisitorKey | None:
        """Return whose digest it is, if it is known here."""
        return self._met.get(digest)

    def meet(self, visitor: VisitorKey) -> str:
        """Return a visitor's digest, and keep whose it is, so that a refusal can be told by name."""
        digest = visitor_digest(visitor)
        if digest not in self._met:
            if len(self._met) >= _MET:
                self._met = dict(itertools.islice(self._met.items(), _MET // 2, None))
            self._met[digest] = visitor
        return digest

    # The lease

    async def begin(self, redis: Redis) -> None:
        """Enter, and hear the epoch."""
        await self._ask(redis, scripts.BEGIN, LEASE, REMEMBERED, VERSION)
        self.entered = True

    async def look(self, redis: Redis) -> bool:
        """Ask for the epoch, tell which one is known here, and return whether that was an older one."""
        told = self.heard
        _, held = await self._ask(redis, scripts.LOOK)
        if not held:
            self.lease_until = -math.inf
        return self.heard > told

    async def renew(self, redis: Redis) -> bool:
        """Renew the lease; return False when it had run out.

        ``lease_until`` is set by the caller: nothing may be sent under the new lease before it is known there that the
        old one had run out.
        """
        async with self._turn:
            _, held = await self._settle(redis, scripts.RENEW, LEASE)
        return bool(held)

    async def leave(self, redis: Redis) -> None:
        """Leave what it has to others."""
        async with self._turn:
            await self._settle(redis, scripts.LEAVE, REMEMBERED)

    async def release(self, redis: Redis) -> None:
        """Leave what it has to others, and go on."""
        async with self._turn:
            more = True
            while more:
                _, more = await self._settle(redis, scripts.RELEASE)
            self._held.clear()

    # Events

    async def write(
        self,
        redis: Redis,
        events: Sequence[OutboxEvent],
        ended: Collection[int],
        *,
        epoch: int,
        bounds: Room,
    ) -> Stored:
        """Store events, and erase others that have ended."""
        digests = [self.meet(event.visitor) for event in events]
        cells = itertools.chain.from_iterable(map(_cells, digests, events))
        async with self._turn:
            gone = self._held.keys() & set(ended)
            labels = [self._held[key] for key in gone]
            _, bound, refused, first, away = await self._issue(
                redis, scripts.WRITE, epoch, self._top, *bounds, len(gone), *labels, *cells
            )
            for key in gone:
                del self._held[key]
            keys = _keys(len(events), first, away)
            self._hold(_labels(keys, digests, events))
        declined = {digest.decode() for digest in refused}
        visitors = {
            event.visitor for event, digest in zip(events, digests, strict=True) if digest in declined
        }
        return Stored(keys, frozenset(visitors), bound.decode() or None)

    async def claim(
        self, redis: Redis, members: Sequence[bytes], size: int, *, ordered: bool
    ) -> list[Claimed]:
        """Take over events that still belong to the dead.

        Args:
            redis: the client.
            members: as ``OLDEST`` returns them.
            size: bytes of their bodies at most, but one at least.
            ordered: whether one is left that waits for an older one of its visitor which another living worker has.
        """
        async with self._turn:
            _, found = await self._issue(redis, scripts.CLAIM, size, int(ordered), *members)
            return self._claimed(found)

    def _claimed(self, found: Sequence[bytes]) -> list[Claimed]:
        labels = [label.decode() for label in found[::2]]
        keys = [int(label.split(":")[1]) for label in labels]
        self._hold(dict(zip(keys, labels, strict=True)))
        return [Claimed(key, read_event(record)) for key, record in zip(keys, found[1::2], strict=True)]

    async def changes(self, redis: Redis, since: int) -> Changes:
        """Return what others did after an epoch."""
        async with self._turn:
            epoch, refused, kept, missed = await self._settle(redis, scripts.CHANGES, since, len(self._held))
            gone = frozenset(self._held.keys() - set(kept)) if kept != 0 else frozenset()
            for key in gone:
                del self._held[key]
        if missed:  # never to be told: so all may have declined, and the store says who has
            return Changes(int(epoch), dict.fromkeys(self._met.values(), int(epoch)), gone, missed=True)
        return Changes(int(epoch), self._named(refused), gone)

    def _named(self, refused: Sequence[bytes]) -> Mapping[VisitorKey, int]:
        """Return who declined and when, of those that are known here."""
        pairs = zip(refused[::2], refused[1::2], strict=True)
        named = ((self._met.get(digest.decode()), int(epoch)) for digest, epoch in pairs)
        return {visitor: epoch for visitor, epoch in named if visitor is not None}

    # Steps of these

    def _hold(self, labels: Mapping[int, str]) -> None:
        self._held.update(labels)
        self._top = max(self._top, *labels) if labels else self._top

    async def _issue(self, redis: Redis, script: Script, *arguments: str | bytes | float) -> list[Any]:
        """Take a step that gives this worker events; until its answer has come it is in doubt whether it did."""
        doubt, self._ticket = self._doubt, self._ticket + 1
        self._doubt = doubt or self._ticket
        answer = await self._ask(redis, script, doubt, self._ticket, *arguments)
        self._doubt = 0
        return answer

    async def _settle(self, redis: Redis, script: Script, *arguments: float) -> list[Any]:
        """Take a step that undoes what is in doubt."""
        answer = await self._ask(redis, script, self._doubt, self._ticket, *arguments)
        self._doubt = 0
        return answer

    async def _ask(self, redis: Redis, script: Script, *arguments: str | bytes | float) -> list[Any]:
        began = _Moment.now()  # an answer is as old as its question
        answer = await self._place.call(redis, script, *arguments, worker=self.id, heard=self.heard)
        self.hear(answer[0])
        self._looked = max(self._looked, began)
        return answer


def _cells(digest: str, event: OutboxEvent) -> tuple[str | bytes, ...]:
    """Return an event as the script takes it."""
    head = [*event.visitor, event.event_id, event.needs_answer, event.names_person, event.accepted_at]
    return f"{digest}{event.accepted_at!r}", json.dumps(head).encode() + b"\n" + event.body


def _keys(count: int, first: int, away: Collection[int]) -> tuple[int | None, ...]:
    """Return a key for each event but those that were turned away."""
    numbers, missing = itertools.count(first), frozenset(away)
    return tuple([None if index in missing else next(numbers) for index in range(count)])


def _labels(
    keys: Sequence[int | None], digests: Sequence[str], events: Sequence[OutboxEvent]
) -> dict[int, str]:
    """Return what the index holds of the events that were stored, without their owner."""
    stored = zip(keys, digests, events, strict=True)
    return {
        key: f"{digest}:{key:016}:{len(event.body):010}" for key, digest, event in stored if key is not None
    }


def read_event(record: bytes) -> OutboxEvent:
    """Return an event that was written by ``Worker.write``."""
    head, _, body = record.partition(b"\n")
    *names, event_id, needs_answer, names_person, accepted_at = json.loads(head)
    return OutboxEvent(VisitorKey(*names), event_id, body, needs_answer, names_person, accepted_at)
