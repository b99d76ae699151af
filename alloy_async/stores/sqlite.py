"""Choices and identities in one SQLite file that several processes may share; the default."""

from __future__ import annotations

import asyncio
import logging
import math
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from .._clock import Clock, SystemClock
from .._consent._rules import parse_choice
from .._database import Database, Transaction, describe, upgrade
from .._json import encode
from ..errors import ConsentStoreError
from ..identity import StoredIdentity, read_stored
from ._sqlite_news import SCHEMA as NEWS, News, Position, begin, note
from .base import Change, Heard, Preference, VisitorKey, consents_since, visitor_digest

__all__ = ["FILE_NAME", "SQLiteStore", "default_state_dir"]

T = TypeVar("T")

FILE_NAME = "alloy.sqlite3"

SCHEMA_VERSION = 4

_CHANGES = [
    (3, "ALTER TABLE preference ADD COLUMN consents_since REAL NOT NULL DEFAULT 0"),
    (4, "DROP TABLE IF EXISTS news"),
]
"""What is to be done to a file that was written under an older schema than the one that is named."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS preference (
    organisation TEXT NOT NULL, datastream TEXT NOT NULL, visitor TEXT NOT NULL,
    purposes TEXT NOT NULL, chosen_at REAL NOT NULL, expires_at REAL NOT NULL,
    source TEXT NOT NULL, epoch INTEGER NOT NULL, consents_since REAL NOT NULL,
    PRIMARY KEY (organisation, datastream, visitor)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS identity (
    organisation TEXT NOT NULL, datastream TEXT NOT NULL, visitor TEXT NOT NULL,
    fpid TEXT NOT NULL, ecid TEXT, customer_ids TEXT NOT NULL,
    PRIMARY KEY (organisation, datastream, visitor)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO counter VALUES ('epoch', 0);
"""

_TABLES = frozenset({"preference", "identity", "counter"})
"""By these a file of whatever schema is known for ours."""

_SELECT_KEYS = """
SELECT organisation, datastream, visitor FROM preference
UNION SELECT organisation, datastream, visitor FROM identity
"""

_SELECT_PREFERENCE = """
SELECT purposes, chosen_at, expires_at, source, epoch, consents_since FROM preference
WHERE organisation = ? AND datastream = ? AND visitor = ?
"""

_EPOCH = 4
"""Its column there."""

_COUNT_UP = "UPDATE counter SET value = value + 1 WHERE name = 'epoch'"

_SELECT_IDENTITY = """
SELECT fpid, ecid, customer_ids FROM identity WHERE organisation = ? AND datastream = ? AND visitor = ?
"""

_WHERE = "WHERE organisation = ? AND datastream = ? AND visitor = ?"

_logger = logging.getLogger("alloy_async")


def default_state_dir() -> Path:
    """Return the folder for state that belongs to the user who runs the process."""
    import platformdirs  # noqa: PLC0415 - needed only by those who do not name a folder

    return Path(platformdirs.user_state_dir("alloy-async", appauthor=False))


class SQLiteStore:
    """A store in one SQLite file, mode 0600, safe to share between processes.

    Args:
        state_dir: folder that holds the file; made with mode 0700 when it is missing.
        clock: where time comes from; None: the machine's.
    """

    def __init__(self, state_dir: Path | str | None = None, *, clock: Clock | None = None) -> None:
        folder = default_state_dir() if state_dir is None else Path(state_dir)
        self.path: Path = folder / FILE_NAME
        self._clock: Clock = SystemClock() if clock is None else clock
        self._position = Position()
        self._database = Database(self.path, partial(_prepare, position=self._position), tables=_TABLES)
        self._news: News | None = None
        self._unswept = False

    async def load_preference(self, key: VisitorKey) -> Preference | None:
        """Return the visitor's choice; None when there is none, or when it cannot be understood."""
        row = await self._read(lambda connection: connection.execute(_SELECT_PREFERENCE, key).fetchone())
        if row is None:
            return None
        preference = _read_preference(*row)
        if preference is None:
            _logger.warning("%s: the stored choice cannot be understood; it counts as not made", self.path)
        return preference

    async def save_preference(self, key: VisitorKey, preference: Preference, *, by: str = "") -> None:
        """Keep a choice; a refusal erases the identity in the same transaction."""
        now = self._clock.time()
        change = Change(visitor_digest(key), preference.purposes == "none", by)
        if await self._run(
            "save", lambda connection: _save_preference(connection, key, preference, change, now)
        ):
            await self._sweep()

    async def load_identity(self, key: VisitorKey) -> StoredIdentity | None:
        """Return the visitor's identity, or None."""
        row = await self._read(lambda connection: connection.execute(_SELECT_IDENTITY, key).fetchone())
        return None if row is None else read_stored(*row)

    async def save_identity(self, key: VisitorKey, identity: StoredIdentity) -> None:
        """Keep an identity, unless a refusal is kept."""
        row = (identity.fpid, identity.ecid, encode(identity.copy().customer_ids).decode())
        await self._run("save", lambda connection: _save_identity(connection, key, row))

    async def forget(self, key: VisitorKey, *, by: str = "") -> None:
        """Erase the visitor's choice and identity."""
        now = self._clock.time()
        change = Change(visitor_digest(key), refused=True, by=by)
        if await self._run("forget", lambda connection: _forget(connection, key, change, now), create=False):
            await self._sweep()

    def watch(self, heard: Heard) -> None:
        """Begin to tell of changes, in the event loop that runs, until ``aclose``; see ``WatchedStore``.

        They come within a quarter of a second. In another loop, or in a forked process, call it again.

        Args:
            heard: called in that loop with what was saved or forgotten, oldest first. Called with None when changes may
                have been missed: soon, where the store has been watched before; where the process was suspended for
                long; and where the file was removed.
        """
        before = news = self._news
        if news is None or news.loop is not asyncio.get_running_loop():
            news = self._news = News(self._database, self._position, self._clock)
        news.join(heard, late=before is not None)

    @staticmethod
    def digest(key: VisitorKey) -> str:
        """Return the name by which changes speak of a visitor, 32 hex digits."""
        return visitor_digest(key)

    async def keys(self) -> list[VisitorKey]:
        """Return the visitors of whom anything is kept, a choice or an identity; a tool for people, not for programs.

        Raises:
            ConsentStoreError: the file cannot be read.
        """
        rows = await self._read(lambda connection: connection.execute(_SELECT_KEYS).fetchall())
        return [VisitorKey(*row) for row in rows or []]

    async def aclose(self) -> None:
        """Close the file and end the thread."""
        news, self._news = self._news, None
        if news is not None:
            news.stop()
        if self._unswept:
            await self._sweep()
        await self._database.aclose()

    async def _sweep(self) -> None:
        """Rewrite the file, so that nothing remains of what was erased.

        SQLite overwrites what it deletes, but not the copies it leaves behind when it moves rows to other pages. While
        another process reads the file it cannot be rewritten; then it is tried again after the next erasing, and at
        close.
        """
        self._unswept = True  # until it is done, also when the caller is cancelled in the middle
        try:
            await self._database.run(lambda connection: connection.execute("VACUUM").close(), create=False)
            self._unswept = False
        except (sqlite3.Error, OSError) as error:
            _logger.info("%s: erased, and to be overwritten later: %s", self.path, error)

    async def _read(self, work: Callable[[sqlite3.Connection], T | None]) -> T | None:
        return await self._run("load", work, create=False)

    async def _run(
        self, action: str, work: Callable[[sqlite3.Connection], T], *, create: bool = True
    ) -> T | None:
        """Run work on the file; where there is none and none is to be made, there is nothing to do.

        Asking for a choice must leave no trace: that is why reading never makes the file.
        """
        try:
            return await self._database.run(work, create=create)
        except FileNotFoundError as error:
            if not create:
                if self._position.last is None:
                    self._position.last = 0  # what is saved from now on is news
                return None
            raise ConsentStoreError(action, str(self.path), _describe(error)) from error.with_traceback(None)
        except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: text that SQLite cannot hold
            # Without its traceback, whose frames hold the visitor's ids.
            raise ConsentStoreError(action, str(self.path), _describe(error)) from error.with_traceback(None)


def _prepare(connection: sqlite3.Connection, position: Position) -> None:
    upgrade(connection, _SCHEMA + NEWS, SCHEMA_VERSION, _CHANGES)
    begin(connection, position)


def _read_preference(
    purposes: object, chosen_at: object, expires_at: object, source: object, epoch: object, since: object
) -> Preference | None:
    """Read a row strictly: whatever is not exactly what was written, counts as no choice."""
    # Exactly what is written, no other case.
    choice = parse_choice(purposes) if purposes in {"all", "none"} else None
    if choice is None or not isinstance(source, str) or not isinstance(epoch, int):
        return None
    if not isinstance(chosen_at, float) or not isinstance(expires_at, float) or not isinstance(since, float):
        return None
    if (
        not 0 <= chosen_at <= expires_at < math.inf or not 0 <= since < math.inf
    ):  # also false for what is not a number
        return None
    return Preference(choice, chosen_at, expires_at, source, epoch, since)


def _save_preference(
    connection: sqlite3.Connection, key: VisitorKey, preference: Preference, change: Change, now: float
) -> bool:
    """Keep a choice, and return whether an identity was erased by it."""
    refusal, erased = change.refused, 0
    with Transaction(connection):
        note(connection, change, now=now)
        row = connection.execute(_SELECT_PREFERENCE, key).fetchone()
        kept = None if row is None else _read_preference(*row)
        own = None if row is None or refusal else int(row[_EPOCH])
        if refusal:
            erased = connection.execute(f"DELETE FROM identity {_WHERE}", key).rowcount  # noqa: S608 - names of ours
            connection.execute(_COUNT_UP)
        connection.execute(
            "INSERT OR REPLACE INTO preference VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *key,
                preference.purposes,
                preference.chosen_at,
                preference.expires_at,
                preference.source,
                _common_epoch(connection) if own is None else own,
                consents_since(kept, preference),
            ),
        )
    return erased > 0


def _common_epoch(connection: sqlite3.Connection) -> int:
    """Return the file's epoch, for a refusal and for a new visitor.

    One counter serves the whole file, so that a visitor who was forgotten does not start again at zero.
    """
    row = connection.execute("SELECT value FROM counter WHERE name = 'epoch'").fetchone()
    if row is None:
        raise sqlite3.DatabaseError("the file is malformed, its counter is missing")
    return int(row[0])


def _save_identity(connection: sqlite3.Connection, key: VisitorKey, row: tuple[str, str | None, str]) -> None:
    with Transaction(connection):
        refused = f"SELECT 1 FROM preference {_WHERE} AND purposes = 'none'"  # noqa: S608 - names of ours
        if connection.execute(refused, key).fetchone() is None:
            connection.execute("INSERT OR REPLACE INTO identity VALUES (?, ?, ?, ?, ?, ?)", (*key, *row))


def _forget(connection: sqlite3.Connection, key: VisitorKey, change: Change, now: float) -> bool:
    """Erase what is kept of a visitor, and return whether there was anything."""
    with Transaction(connection):
        note(connection, change, now=now)
        connection.execute(_COUNT_UP)
        erased = connection.execute(f"DELETE FROM preference {_WHERE}", key).rowcount  # noqa: S608 - names of ours
        erased += connection.execute(f"DELETE FROM identity {_WHERE}", key).rowcount  # noqa: S608 - names of ours
    return erased > 0


def _describe(error: Exception) -> str:
    return describe(error, damage="The file is damaged; move it away and ask for consent again.")
