"""A worker's seat at a file: what it knows of itself, and a connection that tells the epoch to the event loop."""

from __future__ import annotations

import os
import sqlite3
import weakref
from pathlib import Path

from .._database import Guarded
from ._tables import Worker

__all__ = ["Seat"]

_NOWHERE = (0, 0)


class Seat:
    """Belongs to one process. Taken, checked and left in the thread that uses the file; asked in the event loop's.

    Args:
        path: the file.
        worker: what it knows of itself.
    """

    def __init__(self, path: Path, worker: Worker) -> None:
        self.worker = worker
        self.process: int = os.getpid()
        self._path = path
        self._place: tuple[int, int] | None = None
        self._reader = Guarded(rank=1)

    def take(self) -> None:
        """Remember which file it is, and connect to it."""
        self._place = _place(self._path) or _NOWHERE
        self.check()

    def check(self) -> None:
        """Make sure that it is still the same file, and connect again where a fork has closed the connection.

        Raises:
            sqlite3.OperationalError: somebody moved or deleted the file, and what was in it is there no more.
        """
        if self._place is None:
            return
        if _place(self._path) != self._place:
            raise sqlite3.OperationalError("the file was moved or deleted while it was in use")
        if self._reader.connection is not None:
            return  # without the lock: whoever asks for the epoch finds it free, and need not wait or guess
        with self._reader.lock:
            if self._reader.connection is None:
                self._reader.connection = connection = _connect(self._path)
                # At exit at the latest: Python warns of a connection that is still open then.
                weakref.finalize(self, connection.close)

    def holds(self, now: float) -> bool:
        """Return whether the lease holds, as far as this process knows.

        Args:
            now: seconds since 1970.
        """
        return now < self.worker.lease_until and self.process == os.getpid()

    def epoch(self) -> int | None:
        """Return the epoch that is in the file; None where that cannot be told. Waits for nobody."""
        if not self._reader.lock.acquire(blocking=False):
            return None
        try:
            return self._read()
        finally:
            self._reader.lock.release()

    def _read(self) -> int | None:
        connection = self._reader.connection
        if connection is None or _place(self._path) != self._place:
            return None
        try:
            return _epoch(connection)
        except sqlite3.Error:
            return None

    def leave(self) -> None:
        """Close the connection."""
        self._place = None
        with self._reader.lock:
            self._reader.discard()


def _connect(path: Path) -> sqlite3.Connection:
    # Made in one thread and used in another, one at a time.
    connection = sqlite3.connect(path, timeout=2.0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA query_only = ON")
        _epoch(connection)  # the first time takes longer, and may have to wait for others that open the file
        connection.execute("PRAGMA busy_timeout = 0")
    except BaseException:
        connection.close()
        raise
    return connection


def _epoch(connection: sqlite3.Connection) -> int | None:
    row = connection.execute("SELECT epoch FROM state").fetchone()
    return row[0] if row is not None and isinstance(row[0], int) else None


def _place(path: Path) -> tuple[int, int] | None:
    """Return which file a path leads to."""
    try:
        status = os.stat(path)  # noqa: PTH116 - in half the time of path.stat(); it is asked for each request
    except OSError:
        return None
    return status.st_dev, status.st_ino
