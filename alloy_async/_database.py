"""One SQLite file, used by one connection on one thread of ours.

A thread, because every statement may wait for the disk; one, because then statements need no further order. It is a
daemon: a database that hangs must not keep the interpreter from exiting. It starts with the first job and ends when
the ``Database`` is closed or collected.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import stat
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeAlias, TypeVar

__all__ = ["Database", "Unsafe"]

T = TypeVar("T")

LOCK_TIMEOUT = 2.0
"""Seconds to wait for another process that holds the file."""


class _Job(NamedTuple):
    work: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]
    create: bool


_End: TypeAlias = "asyncio.Future[None] | None"


class Unsafe(OSError):
    """The file, or its folder, is not what may hold a person's choice."""


class Database:
    """Runs functions on the connection, one after the other.

    Args:
        path: the file; made with mode 0600, its folder with 0700, when the first job runs.
        prepare: brings a fresh or older file to the present schema; called after each connect.
    """

    def __init__(self, path: Path, prepare: Callable[[sqlite3.Connection], None]) -> None:
        self.path = path
        self._prepare = prepare
        self._jobs: SimpleQueue[_Job | _End] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._process = 0
        self._lock = threading.Lock()

    async def run(self, work: Callable[[sqlite3.Connection], T], *, create: bool = True) -> T:
        """Run a function on the connection, and return what it returns.

        Cancelling the caller does not stop the function.

        Args:
            work: called with the connection, on the thread.
            create: whether to make the file when it is missing.

        Raises:
            sqlite3.Error: SQLite refused.
            FileNotFoundError: there is no file, and none was to be made.
            OSError: the file or its folder could not be made, or is ``Unsafe``.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with self._lock:  # so that no job is put behind the end of a thread that somebody else is closing
            self._ensure_thread().put(_Job(work, future, create))
        return await future

    async def aclose(self) -> None:
        """Close the connection and end the thread, after the jobs that wait."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._thread is None or self._process != os.getpid():
                return
            self._thread = None
            self._jobs.put(ended)
        await ended

    def _ensure_thread(self) -> SimpleQueue[_Job | _End]:
        """Return the queue of a thread that runs.

        Each thread has a queue of its own, so that two never share a job: one that is closing and the next one, or one
        that stayed behind in the parent process after a fork.
        """
        if self._thread is None or self._process != os.getpid():
            self._jobs = SimpleQueue()
            self._thread = _start(self._jobs, self.path, self._prepare)
            self._process = os.getpid()
            weakref.finalize(self, self._jobs.put, None)
        return self._jobs


def _start(
    jobs: SimpleQueue[_Job | _End], path: Path, prepare: Callable[[sqlite3.Connection], None]
) -> threading.Thread:
    thread = threading.Thread(target=_work, args=(jobs, path, prepare), name="alloy-sqlite", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError("no thread can be started for it") from error
    return thread


def _work(jobs: SimpleQueue[_Job | _End], path: Path, prepare: Callable[[sqlite3.Connection], None]) -> None:
    """Serve jobs until None comes. A function of the module, so that the thread does not keep its owner alive."""
    connection: sqlite3.Connection | None = None
    while isinstance(job := jobs.get(), _Job):
        try:
            if connection is None:
                connection = _open(path, prepare, create=job.create)
            _post(job.future, job.work(connection), None)
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the job
            _discard(connection)
            connection = None
            _post(job.future, None, error)
        del job  # while this thread waits for the next one, nothing of the last must stay alive
    _discard(connection)
    if job is not None:
        _post(job, None, None)


def _discard(connection: sqlite3.Connection | None) -> None:
    """Close after an error, so that the next job opens the file again, perhaps with better luck."""
    if connection is not None:
        with contextlib.suppress(sqlite3.Error):
            connection.close()


def _open(path: Path, prepare: Callable[[sqlite3.Connection], None], *, create: bool) -> sqlite3.Connection:
    _check_place(path, create=create)
    connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT, isolation_level=None)
    try:
        # A rollback journal, not a write-ahead log: with secure_delete it leaves nothing readable of what was erased.
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA synchronous = EXTRA")
        prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _post(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        future.get_loop().call_soon_threadsafe(_settle, future, result, error)


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _check_place(path: Path, *, create: bool) -> None:
    """Refuse a place that others may read or change; make it when asked to.

    The file is never opened here: closing it would drop the locks that SQLite holds on it in this process.

    Raises:
        FileNotFoundError: there is no file, and none is to be made.
        Unsafe: the path is a link, not a file, somebody else's, or in a folder that others may change.
    """
    if create:
        _make_folders(path.parent)
    _check_folder(path.parent)
    try:
        _check_file(path)
    except FileNotFoundError:
        if not create:
            raise
        _create(path)


def _make_folders(folder: Path) -> None:
    """Make what is missing of a path, each part with mode 0700; Path.mkdir gives it to the last part only."""
    for missing in reversed([part for part in (folder, *folder.parents) if not part.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


def _check_folder(folder: Path) -> None:
    """Refuse a folder in which somebody else may put files.

    One such file is a rollback journal, which SQLite would apply; so the sticky bit of a folder like /tmp is no help.
    """
    status = folder.stat()
    if os.name != "posix":
        return  # there are no such bits to look at
    if status.st_uid not in {os.geteuid(), 0}:
        raise Unsafe(f"the folder {folder} belongs to user {status.st_uid}; choose another state_dir.")
    if status.st_mode & 0o022:
        raise Unsafe(
            f"others may put files into the folder {folder}; run chmod go-w on it, or choose another state_dir."
        )


def _check_file(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise Unsafe("it is not a regular file (a link, a folder?); remove it, or choose another state_dir.")
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        raise Unsafe(f"it belongs to user {status.st_uid}; run as that user, or choose another state_dir.")
    if status.st_mode & 0o077:
        path.chmod(0o600)


def _create(path: Path) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    try:
        os.close(os.open(path, flags, 0o600))
    except FileExistsError:
        _check_file(path)  # another process was faster
