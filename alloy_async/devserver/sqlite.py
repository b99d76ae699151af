"""Events in a SQLite file: readable with any tool, and still there on the next start."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .recorder import RecordedEvent

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SQLiteFile"]

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    n INTEGER PRIMARY KEY,
    event TEXT NOT NULL,
    request_id TEXT NOT NULL,
    path TEXT NOT NULL,
    datastream_id TEXT NOT NULL,
    received_at TEXT NOT NULL,
    duplicate INTEGER NOT NULL
)
"""
_INSERT = "INSERT INTO events (event, request_id, path, datastream_id, received_at, duplicate) VALUES (?, ?, ?, ?, ?, ?)"
_NEWEST = "SELECT event, request_id, path, datastream_id, received_at, duplicate FROM events ORDER BY n DESC LIMIT ?"


class SQLiteFile:
    """A sink in one SQLite file, table ``events``, in order of arrival.

    The file holds personal data, so it is created for its owner alone (mode 0600). A recorder loads it at once, so that
    a path that does not work is heard at the start. Transactions survive a crash of the process; after a power cut the
    last of them may be missing, which a development edge may do for speed.

    Args:
        path: the file; its folder must exist.

    Raises (with the first use):
        ValueError: the file was written by another version.
        OSError, sqlite3.Error: the file cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._open: sqlite3.Connection | None = None

    def load(self, limit: int) -> tuple[Sequence[RecordedEvent], int]:
        """Return the newest events of earlier runs, oldest first and at most ``limit``, and how many there are."""
        connection = self._connection()
        (total,) = connection.execute("SELECT count(*) FROM events").fetchone()
        return [_event(row) for row in connection.execute(_NEWEST, (limit,))][::-1], total

    def write(self, events: Sequence[RecordedEvent]) -> None:
        """Keep the events of one request, in one transaction."""
        with self._connection() as connection:
            connection.executemany(_INSERT, [_row(event) for event in events])

    def clear(self) -> None:
        """Delete all events."""
        with self._connection() as connection:
            connection.execute("DELETE FROM events")

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _connection(self) -> sqlite3.Connection:
        if self._open is None:
            self._open = _connect(self._path)
        return self._open


def _connect(path: Path) -> sqlite3.Connection:
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    # Made in the thread that starts, used in the thread that serves; the recorder's lock keeps them apart.
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in {0, _SCHEMA_VERSION}:
        raise ValueError(f"the file has schema version {version}; this version reads {_SCHEMA_VERSION}")
    with connection:
        connection.execute(_SCHEMA)
        connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")


def _row(event: RecordedEvent) -> tuple[str, str, str, str, str, bool]:
    return (
        event.event,
        event.request_id,
        event.path,
        event.datastream_id,
        event.received_at,
        event.duplicate,
    )


def _event(row: tuple[str, str, str, str, str, int]) -> RecordedEvent:
    text, request_id, path, datastream_id, received_at, duplicate = row
    return RecordedEvent(
        text, _event_id(text), request_id, path, datastream_id, received_at, duplicate=bool(duplicate)
    )


def _event_id(text: str) -> str | None:
    # Not a column of its own: an id may hold what SQLite's text cannot, a lone surrogate.
    event_id = json.loads(text).get("xdm", {}).get("_id")
    return event_id if isinstance(event_id, str) else None
