"""Exchanges in a SQLite file: readable with any tool, and still there on the next start."""

from __future__ import annotations

import sqlite3
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from .exchange import Exchange
from .past import read_exchanges
from .private_file import create_private
from .recorder import MAX_SIZE, Past

if TYPE_CHECKING:
    import os

__all__ = ["SQLiteFile"]

_SCHEMA_VERSION = 2
# The events are a view: a table of their own would double the file, for queries that few people write.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS exchanges (
    n INTEGER PRIMARY KEY,
    received_at TEXT NOT NULL,
    method TEXT NOT NULL,
    path TEXT NOT NULL,
    status INTEGER NOT NULL,
    recorded INTEGER NOT NULL,
    exchange TEXT NOT NULL
);
CREATE VIEW IF NOT EXISTS events AS
SELECT
    x.n AS exchange,
    x.received_at AS received_at,
    json_extract(e.value, '$.id') AS id,
    json_extract(e.value, '$.type') AS type,
    json_extract(e.value, '$.visitor') AS visitor,
    json_extract(e.value, '$.outcome') AS outcome,
    coalesce(
        json_extract(x.exchange, '$.request.body.events[' || json_extract(e.value, '$.index') || ']'),
        json_extract(x.exchange, '$.request.body.event')
    ) AS event
FROM exchanges AS x, json_each(x.exchange, '$.entry.events') AS e;
"""
# The file numbers its rows itself: those of the recorder start anew with every process.
_INSERT = (
    "INSERT INTO exchanges (received_at, method, path, status, recorded, exchange) VALUES (?, ?, ?, ?, ?, ?)"
)
_NEWEST = "SELECT n, exchange FROM exchanges ORDER BY n DESC LIMIT ?"
_EARLIER = "SELECT count(*), coalesce(sum(recorded), 0) FROM exchanges WHERE n < ?"


class SQLiteFile:
    """A sink in one SQLite file: table ``exchanges`` in order of arrival, and the view ``events``.

    The file holds personal data, so it is created for its owner alone (mode 0600). A recorder loads it at once, so that
    a path that does not work is heard at the start. Transactions survive a crash of the process; after a power cut the
    last of them may be missing, which a development edge may do for speed.

    Args:
        path: the file; its folder must exist.

    Raises (with the first use):
        ValueError: the file was written by another version, or holds something else.
        OSError, sqlite3.Error: the file cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._open: sqlite3.Connection | None = None

    def load(self, limit: int) -> Past:
        """Return the newest exchanges of earlier runs, at most ``limit``, and no more than memory takes."""
        connection = self._connection()
        texts: deque[str] = deque()
        oldest = size = 0
        for n, text in connection.execute(_NEWEST, (limit,)):
            size += len(text)
            if texts and size > MAX_SIZE:
                break
            texts.appendleft(text)
            oldest = n
        earlier = connection.execute(_EARLIER, (oldest,)).fetchone()
        return Past(read_exchanges(texts, self._path), *earlier)

    def write(self, exchange: Exchange) -> None:
        """Keep one exchange, in its own transaction."""
        row = (
            exchange.received_at,
            exchange.method,
            exchange.path.encode(errors="backslashreplace").decode(),
            exchange.answer.status,
            len(exchange.recorded),
            exchange.as_json(),
        )
        with self._connection() as connection:
            connection.execute(_INSERT, row)

    def clear(self) -> None:
        """Delete all exchanges."""
        with self._connection() as connection:
            connection.execute("DELETE FROM exchanges")

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
    create_private(path)
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
    connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
