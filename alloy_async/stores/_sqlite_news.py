"""What others change in the file of choices, so that a choice holds in every process soon after it was made in one.

Each change adds a row, in its own transaction. The numbers of the rows have no gap: whoever has read up to one sees
whether something is missing, because it was removed, or because the file is another one. SQLite tells nobody that a file
has changed, so it is looked at: one statement on the file's own thread.

A row holds a digest of the visitor, since nobody's name may stay who was forgotten, and is removed with the next change
after an hour.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from weakref import WeakMethod

from .._clock import Cancellable, Clock
from .._database import Database
from .base import Change, Heard, tell

__all__ = ["SCHEMA", "News", "Position", "begin", "note"]

LOOK_EVERY = 0.25
"""Seconds between two looks."""

_ENTRIES = 1_000
"""Changes that are remembered. A process that has not looked for longer is told to read everything again."""

_REMEMBERED = 3_600.0
"""Seconds for which a change is remembered."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS changes (
    number INTEGER PRIMARY KEY AUTOINCREMENT, visitor TEXT NOT NULL, refused INTEGER NOT NULL, said_by TEXT NOT NULL,
    told_at REAL NOT NULL
);
"""

_logger = logging.getLogger("alloy_async")


@dataclass(slots=True)
class Position:
    """How far a process has read.

    Attributes:
        last: number of the newest change that it knows; 0 for none; None while nothing has been read.
    """

    last: int | None = None


def note(connection: sqlite3.Connection, change: Change, *, now: float) -> None:
    """Add a change, within the transaction that makes it.

    Args:
        connection: in that transaction.
        change: what has changed.
        now: seconds since 1970.
    """
    statement = "INSERT INTO changes (visitor, refused, said_by, told_at) VALUES (?, ?, ?, ?)"
    connection.execute(statement, (*change, now))
    oldest = _newest(connection) - _ENTRIES
    connection.execute("DELETE FROM changes WHERE number <= ? OR told_at <= ?", (oldest, now - _REMEMBERED))


def begin(connection: sqlite3.Connection, position: Position) -> None:
    """Take note of where a process begins: before it has read anything else."""
    if position.last is None:
        position.last = _newest(connection)


def _newest(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'changes'").fetchone()
    return 0 if row is None else int(row[0])


def _read(connection: sqlite3.Connection, last: int) -> tuple[int, list[Change] | None]:
    """Return the number of the newest change, and those after another one; None when some are missing."""
    newest = _newest(connection)
    if newest == last:
        return last, []
    statement = "SELECT number, visitor, refused, said_by FROM changes WHERE number > ? ORDER BY number"
    rows = connection.execute(statement, (last,)).fetchall()
    newest = rows[-1][0] if rows else newest  # one more may have come in between
    complete = newest - last == len(rows)
    return newest, [
        Change(visitor, bool(refused), by) for _, visitor, refused, by in rows
    ] if complete else None


class News:
    """Tells of changes in the event loop in which it was made, for as long as somebody holds it.

    Without a task, so that a loop may end at any time.

    Args:
        database: the file.
        position: where to begin; it moves on.
        clock: where time comes from.
    """

    def __init__(self, database: Database, position: Position, clock: Clock) -> None:
        self.loop = asyncio.get_running_loop()
        self._database = database
        self._position = position
        self._clock = clock
        self._listeners: list[Heard] = []
        self._timer: Cancellable | None = None
        self._stopped = False
        self._lost = False
        self._look_later()

    def join(self, heard: Heard, *, late: bool) -> None:
        """Add a listener; one that comes late does not know what was told before, and reads again."""
        self._listeners.append(heard)
        if late:
            self.loop.call_soon(tell, [heard], None)

    def stop(self) -> None:
        """Tell nothing any more."""
        self._stopped = True
        if self._timer is not None and self.loop is asyncio.get_running_loop():
            self._timer.cancel()

    def _look_later(self) -> None:
        # Weakly: an instance that was never closed must not be kept, nor its thread.
        self._timer = self._clock.call_later(LOOK_EVERY, partial(_call, WeakMethod(self._look)))

    def _look(self) -> None:
        try:
            future = self._database.submit(partial(_read, last=self._position.last or 0), create=False)
        except OSError as error:
            self._lose(error)
            self._look_later()
        else:
            future.add_done_callback(self._has_read)

    def _has_read(self, future: asyncio.Future[tuple[int, list[Change] | None]]) -> None:
        error = None if future.cancelled() else future.exception()
        if self._stopped:
            return
        if isinstance(error, FileNotFoundError):
            self._take(0, [] if not self._position.last else None)
        elif error is not None:
            self._lose(error)
        else:
            self._take(*future.result())
        self._look_later()

    def _take(self, newest: int, changes: list[Change] | None) -> None:
        self._position.last = newest
        if self._lost:
            self._lost = False
            _logger.warning("%s: within reach again", self._database.path)
        if changes is None or changes:
            tell([*self._listeners], changes)

    def _lose(self, error: BaseException) -> None:
        if not self._lost:
            self._lost = True
            _logger.warning(
                "%s: choices that others make are not heard for now: %s", self._database.path, error
            )


def _call(reference: WeakMethod[Callable[[], None]]) -> None:
    method = reference()
    if method is not None:
        method()
