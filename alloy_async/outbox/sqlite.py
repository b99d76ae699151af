"""Events in one SQLite file that several processes may share; they survive the end of the process."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

from .._clock import Clock, SystemClock
from .._database import WRITE_AHEAD_LOG, Database, Repair, describe
from ..errors import OutboxError
from . import _tables
from ._admission import Room
from ._damage import set_aside
from ._seat import Seat
from ._sweeper import Sweeper
from ._tables import Worker
from .base import LEASE, Changes, Claimed, OutboxEvent, Row, Shelf, Stored, VisitorKey

__all__ = ["SQLiteOutbox"]

T = TypeVar("T")

_logger = logging.getLogger("alloy_async")

_inherited: list[object] = []
"""Connections of the parent process that could not be closed before it forked. Kept, because letting them go would
close them, and with them what is the parent's."""


class SQLiteOutbox:
    """An outbox in one SQLite file, mode 0600, safe to share between processes of one machine.

    Args:
        path: the file; its folder is made with mode 0700 when it is missing.
        clock: where time comes from; None for the machine's.
        max_events: events that may wait at once, of all workers.
        max_bytes: bytes of their bodies.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        clock: Clock | None = None,
        max_events: int = 100_000,
        max_bytes: int = 134_217_728,
    ) -> None:
        self.path: Path = Path(path)
        self._clock: Clock = SystemClock() if clock is None else clock
        self._bounds = Room(max_events, max_bytes)
        self._database = Database(self.path, _tables.prepare, WRITE_AHEAD_LOG, tables=_tables.TABLES)
        self._seat: Seat | None = None
        self._sweeper = Sweeper(self._database, self._clock)

    # What a worker does

    async def open(self) -> int:
        """Begin work as a new worker, and return the epoch; a damaged file is set aside."""
        await self._leave()
        self._sweeper.begin()
        seat = Seat(self.path, Worker())
        epoch = await self._begin(seat)
        self._seat = seat
        await self._sweeper.sweep()
        return epoch

    async def write(self, events: Sequence[OutboxEvent], ended: Collection[int], *, epoch: int) -> Stored:
        """Store events, and erase others that have ended, in one transaction."""
        worker = await self._working("write")
        return await self._run(
            "write",
            lambda file: _tables.write(file, worker, events, ended, epoch=epoch, bounds=self._bounds),
        )

    async def claim(self, visitors: Collection[VisitorKey], *, count: int, size: int) -> list[Claimed]:
        """Take over events that belong to no living worker, oldest first."""
        worker = await self._working("read")
        wanted = Room(count, size)
        return await self._run(
            "read", lambda file: _tables.claim(file, worker, visitors, wanted, self._clock.time())
        )

    async def abandoned(self) -> Collection[VisitorKey]:
        """Return the visitors that have events which belong to no living worker."""
        worker = await self._working("read")
        return await self._run("read", lambda file: _tables.abandoned(file, worker, self._clock.time()))

    async def release(self) -> None:
        """Leave all of this worker's events to others at once, and go on."""
        worker = await self._working("write")
        await self._run("write", lambda file: _tables.release(file, worker))

    async def expire(self, accepted_before: float) -> int:
        """Erase events that belong to no living worker and are too old, and return how many there were."""
        worker = await self._working("write")
        now = self._clock.time()
        expired = await self._run("erase", lambda file: _tables.expire(file, worker, accepted_before, now))
        if expired:
            self._sweeper.soon()
        return expired

    async def renew(self) -> bool:
        """Renew the lease; return False when it had run out in the meantime."""
        worker = await self._working("write")
        now = self._clock.time()
        held = await self._run("write", lambda file: _tables.renew(file, worker, now))
        worker.lease_until = now + LEASE
        return held

    def may_send(self, epoch: int) -> bool:
        """Return whether the lease holds and the epoch is still this one."""
        seat = self._seat
        return seat is not None and seat.holds(self._clock.time()) and seat.epoch() == epoch

    async def changes(self, since: int) -> Changes:
        """Return what others did after an epoch."""
        worker = await self._working("read")
        changes = await self._run("read", lambda file: _tables.changes(file, worker, since))
        self._sweeper.soon()
        return changes

    async def erase(self, visitor: VisitorKey) -> int:
        """Erase a visitor's events, of whatever worker, start an epoch, and return it."""
        rewritten = self._sweeper.rewritten
        epoch = await self._look("erase", lambda file: _tables.erase(file, visitor, rewritten), 0)
        await self._sweeper.sweep()
        return epoch

    async def aclose(self) -> None:
        """Leave what is kept to others at once, and release files and connections."""
        await self._leave()
        await self._sweeper.aclose()
        await self._database.aclose()

    # What a person does, without being a worker

    async def shelf(self) -> Shelf:
        """Return how things stand."""
        return await self._look("read", lambda file: _tables.shelf(file, self._clock.time()), Shelf())

    async def rows(self, limit: int) -> list[Row]:
        """Return the oldest events, without their bodies.

        Args:
            limit: how many at most.

        Raises:
            OutboxError: the file cannot be read.
        """
        return await self._look("read", lambda file: _tables.rows(file, limit, self._clock.time()), [])

    async def row(self, key: int) -> Row | None:
        """Return one event with its body; None where there is none.

        Raises:
            OutboxError: the file cannot be read.
        """
        return await self._look("read", lambda file: _tables.row(file, key, self._clock.time()), None)

    async def purge(self, keys: Collection[int] | None) -> int:
        """Erase events of whatever worker, as ``erase`` does, and return how many there were.

        Args:
            keys: which; None for all.

        Raises:
            OutboxError: the file cannot be written.
        """
        purged = await self._look("erase", lambda file: _tables.purge(file, keys), 0)
        await self._sweeper.sweep()
        return purged

    # Steps of these

    async def _begin(self, seat: Seat) -> int:
        """Enter the worker of a seat into the file."""

        def begin(file: sqlite3.Connection) -> int:
            epoch = _tables.begin(file, seat.worker, self._clock.time())
            seat.take()
            return epoch

        now = self._clock.time()
        try:
            return await self._run(
                "open", begin, create=True, repair=lambda path: set_aside(path, _tables.prepare, now)
            )
        except OutboxError:
            seat.process = 0  # to be entered again
            raise

    async def _working(self, action: str) -> Worker:
        """Return the worker that this object is; after a fork that is a new one."""
        seat = self._seat
        if seat is None:
            raise OutboxError(action, str(self.path), "it is not open; call open() first.")
        if seat.process != os.getpid():
            _inherited.append(seat)
            self._seat = seat = Seat(self.path, seat.worker.successor())
            await self._begin(seat)
        return seat.worker

    async def _leave(self) -> None:
        seat, self._seat = self._seat, None
        if seat is None or seat.process != os.getpid():
            return
        try:
            await self._database.run(
                lambda file: _tables.leave(file, seat.worker, self._clock.time()), create=False
            )
        except (sqlite3.Error, OSError) as error:
            _logger.info(
                "%s: what is kept is left to others once the lease has run out: %s", self.path, error
            )
        finally:
            seat.leave()

    async def _look(self, action: str, work: Callable[[sqlite3.Connection], T], missing: T) -> T:
        """Run work on the file; where there is no file it is not made."""
        try:
            return await self._run(action, work)
        except OutboxError as error:
            if isinstance(error.__cause__, FileNotFoundError) and self._seat is None:
                return missing
            raise

    async def _run(
        self,
        action: str,
        work: Callable[[sqlite3.Connection], T],
        *,
        create: bool = False,
        repair: Repair | None = None,
    ) -> T:
        seat = self._seat

        def checked(file: sqlite3.Connection) -> T:
            if seat is not None and seat.process == os.getpid():
                seat.check()
            return work(file)

        try:
            return await self._database.run(checked, create=create, repair=repair)
        except (sqlite3.Error, OSError, ValueError, OverflowError) as error:
            # The last two: what SQLite cannot hold. Without its traceback, whose frames hold events.
            raise OutboxError(action, str(self.path), _describe(error)) from error.with_traceback(None)


def _describe(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) or "moved or deleted" in str(error):
        return "the file was moved or deleted while it was in use. Restart, and a fresh one is begun."
    return describe(error, damage="The file is damaged; the next start sets it aside and begins a fresh one.")
