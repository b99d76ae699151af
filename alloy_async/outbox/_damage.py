"""Setting a damaged file aside: work goes on with a fresh one, and a person may look at the old one."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from .._database import is_damage

if sys.platform != "win32":
    import fcntl

__all__ = ["set_aside"]

_PARTS = ("-wal", "-shm", "")
"""What belongs to a file. The log first: left alone, SQLite would play it into the fresh file."""

_logger = logging.getLogger("alloy_async")


def set_aside(path: Path, check: Callable[[sqlite3.Connection], None], now: float) -> None:
    """Rename a damaged file, with its log, to a name that says when; never over another one. It stays private.

    Args:
        path: the file.
        check: raises ``sqlite3.DatabaseError`` where a file is damaged.
        now: seconds since 1970, for the name.
    """
    with _alone(path.parent):
        if not _is_damaged(path, check):
            return  # another process was faster, and this is its fresh file
        target = _free_name(path, now)
        for part in _PARTS:
            # Not there, or removed at this moment by whoever closes the file last.
            with suppress(FileNotFoundError):
                path.with_name(path.name + part).rename(target.with_name(target.name + part)).chmod(0o600)
    _logger.error("%s is damaged; it was set aside as %s, and a fresh outbox was begun", path, target)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from doing the same in this folder, where the system can."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_damaged(path: Path, check: Callable[[sqlite3.Connection], None]) -> bool:
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            check(connection)
    except sqlite3.DatabaseError as error:
        return is_damage(error)
    return False


def _free_name(path: Path, now: float) -> Path:
    moment = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    number = 1
    while True:
        again = f"-{number}" if number > 1 else ""
        target = path.with_name(f"{path.name}.damaged-{moment}{again}")
        if not any(target.with_name(target.name + part).exists() for part in _PARTS):
            return target
        number += 1
