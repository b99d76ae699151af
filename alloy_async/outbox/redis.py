"""Events in Redis or Valkey, which workers on several machines may share.

Each event belongs to a worker: it stands in the pending list of that worker's consumer in a consumer group of a stream.
How it is kept, and why so, stands in ``_redis_scripts``.

Refusals. ``may_send`` cannot ask Redis, so each worker keeps the epoch in memory. It hears of a new one by a message,
looks for itself four times a second, and does not send when it has not seen Redis for 0.75 s. ``erase`` in turn
returns when all others know of the new epoch, or are known not to have looked for so long that they do not send. So
after a refusal is recorded no worker begins to send with an older epoch; a request may still begin elsewhere while
``erase`` is under way, which takes milliseconds, and at most a second where a worker hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._clock import Clock, SystemClock
from .._futures import cancel_all
from .._redis import RedisLink, attend, failures
from .._slices import slice_by_slice
from ..errors import ConfigurationError, OutboxError
from ..stores.base import visitor_digest
from . import _redis_scripts as scripts
from ._admission import Room
from ._redis_left import Left
from ._redis_place import Place
from ._redis_rows import Rows
from ._redis_worker import FRESH, Worker
from .base import LEASE, Changes, Claimed, OutboxEvent, Row, Shelf, Stored, VisitorKey

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["RedisOutbox"]

LOOK_EVERY = 0.25
"""Seconds after which the epoch is looked for, where no message told of it."""

_SOONEST = 0.001
_LATEST = 0.05
"""Seconds until it is asked again whether all others know of a refusal, the first time and at most."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_logger = logging.getLogger("alloy_async")


class RedisOutbox:
    """An outbox in Redis or Valkey, 6.2 or newer, safe to share between processes of several machines.

    What it keeps survives as much as Redis does: with ``appendonly yes`` the end of Redis, to the last second or, with
    ``appendfsync always``, to the last event. It has to keep its keys: ``maxmemory-policy noeviction``.

    Attributes:
        place: where it lies, for people: without user and password.

    Args:
        url: ``redis://``, ``rediss://`` (with TLS) or ``unix://``, with user, password and options as redis-py takes
            them.
        name: of the outbox, where several lie in one database; letters, digits, ``-``, ``_`` and ``.``.
        clock: by which leases run out; None for that of Redis, so that clocks of machines need not agree.
        max_events: events that may wait at once, of all workers.
        max_bytes: bytes of their bodies.
        ordered: whether a visitor's events that others have left are taken over in the order in which they were stored,
            whoever has them: one waits while another living worker has an older one.
        timeout: seconds that a call may take.

    Raises:
        ConfigurationError: the URL or the name cannot be used, or redis-py is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "outbox",
        clock: Clock | None = None,
        max_events: int = 100_000,
        max_bytes: int = 134_217_728,
        ordered: bool = False,
        timeout: float = 2.0,
    ) -> None:
        if _NAME.fullmatch(name) is None:
            raise ConfigurationError("name: letters, digits, -, _ and . only, at most 64.", option="name")
        self._place = Place(lambda: RedisLink(url, timeout=timeout), name, clock)
        self.place: str = self._place.name
        self._left = Left(self._place, ordered=ordered)
        self._rows = Rows(self._place)
        self._clock: Clock = SystemClock() if clock is None else clock
        self._bounds = Room(max_events, max_bytes)
        self._worker: Worker | None = None
        self._looking: asyncio.Task[None] | None = None
        self._warned = False

    def __repr__(self) -> str:
        return f"RedisOutbox({self._place.link.place!r})"

    # What a worker does

    async def open(self) -> int:
        """Begin work as a new worker, and return the epoch.

        Where it was open it is the new worker from one moment to the next, and what the old one has is left to others.
        """
        self._place.open()
        await self._place.run("open", self._warn)
        before = self._worker
        worker = Worker(self._place) if before is None else before.next()
        await self._enter(worker, "open")
        self._worker = worker
        await self._leave(before)
        return worker.heard

    async def write(self, events: Sequence[OutboxEvent], ended: Collection[int], *, epoch: int) -> Stored:
        """Store events, and erase others that have ended, in one step.

        Where Redis is full, ended events are erased, and no new ones stored.
        """
        worker = await self._working("write")
        return await self._place.run(
            "write", lambda redis: worker.write(redis, events, ended, epoch=epoch, bounds=self._bounds)
        )

    async def claim(self, visitors: Collection[VisitorKey], *, count: int, size: int) -> list[Claimed]:
        """Take over events that belong to no living worker, oldest first."""
        worker = await self._working("read")
        digests: list[str] = []
        await slice_by_slice(visitors, lambda visitor: digests.append(worker.meet(visitor)))
        return await self._left.claim(worker, digests, Room(count, size))

    async def abandoned(self, limit: int | None = None) -> list[VisitorKey]:
        """Return the visitors that have events which belong to no living worker, those with the oldest ones first.

        Args:
            limit: how many at most; None for all.
        """
        worker = await self._working("read")
        return (await self._left.abandoned(worker))[:limit]

    async def release(self) -> None:
        """Leave all of this worker's events to others at once, and go on."""
        worker = await self._working("write")
        await self._place.run("write", worker.release)

    async def expire(self, accepted_before: float) -> int:
        """Erase events that belong to no living worker and are too old, and return how many there were."""
        worker = await self._working("write")
        return await self._left.expire(worker, accepted_before)

    async def renew(self) -> bool:
        """Renew the lease; return False when it had run out in the meantime."""
        worker = await self._working("write")
        now = self._clock.time()
        held = await self._place.run("write", worker.renew)
        worker.lease_until = now + LEASE
        return held

    def may_send(self, epoch: int) -> bool:
        """Return whether the lease holds, and this was the epoch at most 0.75 s ago.

        A refusal that another worker records is known here within milliseconds, and at the latest when that worker's
        ``erase`` returns. Where Redis has not answered for 0.75 s the answer is False; ``changes`` asks at once.
        """
        worker = self._worker
        return worker is not None and worker.may_send(epoch, self._clock.time())

    async def changes(self, since: int) -> Changes:
        """Return what others did after an epoch."""
        worker = await self._working("read")
        return await self._place.run("read", lambda redis: worker.changes(redis, since))

    async def erase(self, visitor: VisitorKey) -> int:
        """Erase a visitor's events, of whatever worker, start an epoch, and return it once all others know of it.

        Nothing of them stays in the data of Redis. Its append-only file keeps what was once written until it is
        rewritten.
        """
        worker = self._at_home()
        digest = visitor_digest(visitor)

        async def erase(redis: Redis) -> int:
            (epoch,) = await self._place.call(redis, scripts.ERASE, digest, self._place.channel)
            if worker is not None:
                worker.hear(epoch)
            return int(epoch)

        epoch = await self._place.run("erase", erase)
        await self._until_heard(epoch, "" if worker is None else worker.id)
        return epoch

    async def aclose(self) -> None:
        """Leave what is kept to others at once, and release connections."""
        worker, self._worker = self._worker, None
        if self._looking is not None and self._looking.get_loop() is asyncio.get_running_loop():
            await cancel_all([self._looking])
        await self._leave(worker)
        await self._place.aclose()

    # What a person does, without being a worker

    async def shelf(self) -> Shelf:
        """Return how things stand."""
        events, size, workers, unclaimed = await self._place.ask("read", scripts.SHELF)
        return Shelf(events, size, workers, unclaimed)

    async def rows(self, limit: int) -> list[Row]:
        """Return the oldest events, without their bodies.

        Args:
            limit: how many at most.

        Raises:
            OutboxError: Redis cannot be used.
        """
        return await self._rows.oldest(limit)

    async def row(self, key: int) -> Row | None:
        """Return one event with its body; None where there is none.

        Raises:
            OutboxError: Redis cannot be used.
        """
        return await self._rows.one(key)

    async def purge(self, keys: Collection[int] | None) -> int:
        """Erase events of whatever worker, and return how many there were.

        Once it has returned, no worker begins to send any of them.

        Args:
            keys: which; None for all that are there when it begins.

        Raises:
            OutboxError: Redis cannot be used; some of them may have gone.
        """
        worker = self._at_home()
        epoch, purged = await self._rows.purge(keys)
        if worker is not None:
            worker.hear(epoch)
        if purged:
            await self._until_heard(epoch, "" if worker is None else worker.id)
        return purged

    # Steps of these

    def _at_home(self) -> Worker | None:
        """Return the worker that this object is in this process and event loop; None where it is none."""
        return self._worker if self._worker is not None and self._worker.is_home() else None

    async def _enter(self, worker: Worker, action: str) -> None:
        """Enter a worker, unless it is, and let it look for epochs."""
        async with worker.entering:
            if worker.entered:
                return
            now = self._clock.time()
            await self._place.run(action, worker.begin)
            worker.lease_until = now + LEASE
        self._watch()

    def _watch(self) -> None:
        """Look for epochs from now on, in the event loop that runs."""
        looking = self._looking
        if looking is None or looking.done() or looking.get_loop() is not asyncio.get_running_loop():
            self._looking = self._place.start(
                attend(self._place.link, lambda: [self._place.channel], self._look, every=LOOK_EVERY)
            )

    async def _look(self) -> None:
        worker = self._worker
        while worker is not None and worker.entered and await self._place.link.run(worker.look):
            pass  # what is new here is confirmed at once: somebody waits for it

    async def _working(self, action: str) -> Worker:
        """Return the worker that this object is; after a fork, or in another event loop, that is a new one."""
        worker = self._worker
        if worker is None:
            raise OutboxError(action, self._place.name, "it is not open; call open() first.")
        if not worker.is_home():
            self._worker = worker = worker.successor()
        if not worker.entered:
            await self._enter(worker, action)
        return worker

    async def _leave(self, worker: Worker | None) -> None:
        if worker is None or not worker.entered or not worker.is_home():
            return
        try:
            await self._place.run("write", worker.leave)
        except OutboxError as error:
            _logger.info(
                "%s: what is kept is left to others once the lease has run out: %s",
                self._place.name,
                error.problem,
            )

    async def _until_heard(self, epoch: int, worker: str) -> None:
        """Wait until nobody else sends with an older epoch: all have heard, or have not looked for too long."""
        deadline = time.monotonic() + FRESH
        pause = _SOONEST
        while (left := deadline - time.monotonic()) > 0.0:
            with contextlib.suppress(OutboxError):  # then time will tell
                if not any(await self._place.ask("read", scripts.UNHEARD, epoch, FRESH, worker=worker)):
                    return
            await asyncio.sleep(min(pause, left))
            pause = min(_LATEST, pause * 2)

    async def _warn(self, redis: Redis) -> None:
        """Say once what the server is not set up for."""
        if self._warned:
            return
        self._warned = True
        with contextlib.suppress(*failures()):  # not everybody may ask; then the documentation must do
            found = [await redis.info("persistence"), await redis.info("memory")]
            for problem in _unfit({**found[0], **found[1]}):
                _logger.warning("%s: %s", self._place.name, problem)


def _unfit(info: Mapping[str, Any]) -> Iterator[str]:
    """Say why a server does not keep what it is given."""
    if info.get("aof_enabled") == 0:
        yield "appendonly is off, so events that wait are lost when Redis ends"
    if str(info.get("maxmemory_policy", "")).startswith("allkeys"):
        yield "maxmemory-policy is not noeviction, so events that wait are lost when Redis is full"
