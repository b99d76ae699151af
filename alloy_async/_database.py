"""One SQLite file, used by one connection on one thread of ours.

A thread, because every statement may wait for the disk; one, because then statements need no further order. It is a
daemon: a database that hangs must not keep the interpreter from exiting. It starts with the first job and ends when
the ``Database`` is closed or collected.

A process that forks closes its connections first and opens them again later. SQLite keeps a table of the locks that the
process holds; a child that inherits it believes in locks that only its parent has, and then what it commits is lost
when the parent closes the file. (Tried: a row that the child had committed was gone.)

Source: SQLite, "How To Corrupt An SQLite Database File", section 2.6.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeAlias, TypeVar

from ._threads import start_thread

__all__ = [
    "ROLLBACK_JOURNAL",
    "WRITE_AHEAD_LOG",
    "Database",
    "Guarded",
    "Repair",
    "Transaction",
    "Unsafe",
    "describe",
    "is_damage",
    "upgrade",
]

T = TypeVar("T")

LOCK_TIMEOUT = 2.0
"""Seconds to wait for another process that holds the file."""

ROLLBACK_JOURNAL = (
    "PRAGMA journal_mode = DELETE",
    "PRAGMA secure_delete = ON",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA synchronous = EXTRA",
)
"""For what is written seldom: with ``secure_delete`` nothing stays readable of what was erased, in no other file."""

WRITE_AHEAD_LOG = (
    "PRAGMA page_size = 8192",  # of a new file; more rows fit on a page, so that fewer are written
    "PRAGMA journal_mode = WAL",
    "PRAGMA secure_delete = ON",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA synchronous = FULL",
)
"""For what is written often: one write to the disk a commit, and whoever reads never waits. The log keeps copies of what
was erased, until a checkpoint truncates it."""


Repair: TypeAlias = Callable[[Path], None]
"""Called where the file is damaged, with nothing open; then it is opened once more."""


class _Job(NamedTuple):
    work: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]
    create: bool
    repair: Repair | None = None


_End: TypeAlias = "asyncio.Future[None] | None"


class Unsafe(OSError):
    """The file, or its folder, is not what may hold a person's choice."""


class _File(NamedTuple):
    """Which file is opened, and how."""

    path: Path
    prepare: Callable[[sqlite3.Connection], None]
    pragmas: Sequence[str]
    tables: frozenset[str]


class Guarded:
    """A connection that one thread uses at a time, and that is closed before the process forks.

    Args:
        connection: an open one, made with ``check_same_thread=False``; None for one that comes later.
        rank: 0 for the connection of a ``Database``; 1 for one that its jobs make, whose lock they may take.
    """

    def __init__(self, connection: sqlite3.Connection | None = None, *, rank: int = 0) -> None:
        self.connection = connection
        self.rank = rank
        self.lock = threading.Lock()
        with _registering:
            _guarded.add(self)

    def discard(self) -> None:
        """Close the connection; call it with the lock."""
        connection, self.connection = self.connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


class Database:
    """Runs functions on the connection, one after the other.

    Args:
        path: the file; made with mode 0600, its folder with 0700, when the first job runs.
        prepare: brings a fresh or older file to the present schema; called after each connect.
        pragmas: how the file is kept.
        tables: names of which a file of ours has at least one; a database without any is another program's, and
            nothing of it is changed.
    """

    def __init__(
        self,
        path: Path,
        prepare: Callable[[sqlite3.Connection], None],
        pragmas: Sequence[str] = ROLLBACK_JOURNAL,
        *,
        tables: frozenset[str],
    ) -> None:
        self.path = path
        self._file = _File(path, prepare, pragmas, tables)
        self._jobs: SimpleQueue[_Job | _End] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._process = 0
        self._lock = threading.Lock()

    async def run(
        self, work: Callable[[sqlite3.Connection], T], *, create: bool = True, repair: Repair | None = None
    ) -> T:
        """Run a function on the connection, and return what it returns.

        Cancelling the caller does not stop the function.

        Args:
            work: called with the connection, on the thread.
            create: whether to make the file when it is missing.
            repair: called, on the thread, when the file turns out to be damaged while it is opened.

        Raises:
            sqlite3.Error: SQLite refused.
            FileNotFoundError: there is no file, and none was to be made.
            OSError: the file or its folder could not be made, or is ``Unsafe``.
        """
        return await self.submit(work, create=create, repair=repair)

    def submit(
        self, work: Callable[[sqlite3.Connection], T], *, create: bool = True, repair: Repair | None = None
    ) -> asyncio.Future[T]:
        """Run a function as ``run`` does, and return its future: for those who must not have a task.

        Raises:
            OSError: no thread can be started.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with self._lock:  # so that no job is put behind the end of a thread that somebody else is closing
            self._ensure_thread().put(_Job(work, future, create, repair))
        return future

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
            self._thread = _start(self._jobs, self._file)
            self._process = os.getpid()
            weakref.finalize(self, self._jobs.put, None)
        return self._jobs


def _start(jobs: SimpleQueue[_Job | _End], file: _File) -> threading.Thread:
    try:
        return start_thread(_work, jobs, file, name="alloy-sqlite")
    except RuntimeError as error:
        raise OSError("no thread can be started for it") from error


def _work(jobs: SimpleQueue[_Job | _End], file: _File) -> None:
    """Serve jobs until None comes. A function of the module, so that the thread does not keep its owner alive."""
    guarded = Guarded()
    while isinstance(job := jobs.get(), _Job):
        with guarded.lock:
            _serve(job, guarded, file)
        del job  # while this thread waits for the next one, nothing of the last must stay alive
    with guarded.lock:
        guarded.discard()
    if job is not None:
        _post(job, None, None)


def _serve(job: _Job, guarded: Guarded, file: _File) -> None:
    """Do one job; after an error close, so that the next job opens the file again, perhaps with better luck."""
    try:
        if guarded.connection is None:
            guarded.connection = _open(file, create=job.create, repair=job.repair)
        _post(job.future, job.work(guarded.connection), None)
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the job
        guarded.discard()
        _post(job.future, None, error)


def _open(file: _File, *, create: bool, repair: Repair | None) -> sqlite3.Connection:
    try:
        return _connect(file, create=create)
    except sqlite3.DatabaseError as error:
        if repair is None or not (is_damage(error) or _lost_its_file(error)):
            raise
    repair(file.path)
    return _connect(file, create=create)


def _connect(file: _File, *, create: bool) -> sqlite3.Connection:
    _check_place(file.path, create=create)
    # Not bound to its thread, because whichever thread forks closes it; the lock of Guarded keeps them apart.
    connection = sqlite3.connect(
        file.path, timeout=LOCK_TIMEOUT, isolation_level=None, check_same_thread=False
    )
    try:
        _refuse_foreign(connection, file.tables)
        _make_private(file.path)
        for pragma in file.pragmas:
            _execute_patiently(connection, pragma)
        file.prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_foreign(connection: sqlite3.Connection, tables: frozenset[str]) -> None:
    """Leave a database alone that another program has made.

    Args:
        connection: to the file.
        tables: see ``Database``.

    Raises:
        sqlite3.DatabaseError: it is no database, or a damaged one.
        Unsafe: it is a database, and not ours.
    """
    # First, since another process may make the tables, and the version with them, just now.
    names = {name for (name,) in _execute_patiently(connection, "SELECT name FROM sqlite_master")}
    if names and (names.isdisjoint(tables) or _version(connection) == 0):
        raise Unsafe("it is the database of another program; choose another file.")


def _execute_patiently(connection: sqlite3.Connection, statement: str) -> list[Any]:
    """Execute a statement, and again while somebody else holds the file; return what it returns.

    SQLite's own patience does not reach as far as the change to a write-ahead log: of several processes that open a new
    file at once, all but one are told at once that it is locked.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            return connection.execute(statement).fetchall()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)  # on the file's own thread


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


def _make_private(path: Path) -> None:
    """Take a file away from others, and with it what SQLite made beside it with the same mode when it was read.

    Only once it is known to be ours: a file that was named by mistake keeps its mode.
    """
    for part in ("", "-wal", "-shm"):
        one = path.with_name(path.name + part)
        with contextlib.suppress(FileNotFoundError):
            if one.stat().st_mode & 0o077:
                one.chmod(0o600)


def _create(path: Path) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    try:
        os.close(os.open(path, flags, 0o600))
    except FileExistsError:
        _check_file(path)  # another process was faster


class Transaction:
    """Writes all of it or nothing; takes the write lock first, so that two processes never wait for each other."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._connection.execute("COMMIT")
        elif self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


def upgrade(
    connection: sqlite3.Connection, schema: str, version: int, changes: Sequence[tuple[int, str]] = ()
) -> None:
    """Bring a file to a schema.

    Args:
        connection: to the file.
        schema: statements that each do nothing where they have been done.
        version: of the schema; kept in the file.
        changes: what else is to be done to a file that was written under an older schema than the one that is named.

    Raises:
        Unsafe: a newer version of the library wrote the file.
    """
    found = _version(connection)
    if found > version:
        raise Unsafe(
            "it was written by a newer version of alloy_async; upgrade, or choose another state_dir."
        )
    if found < version:
        with Transaction(connection):
            if _version(connection) < version:  # another process may have been faster
                for statement in schema.split(";"):
                    connection.execute(statement)
                for since, statement in changes:
                    if 0 < found < since:
                        connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {version}")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


_DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_DAMAGE_SIGNS = ("not a database", "malformed")


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether an error says that the file is no database, or a broken one."""
    code = getattr(error, "sqlite_errorcode", None)  # missing where the error was raised by us
    if code is not None:
        return code & 0xFF in _DAMAGE_CODES  # the rest is detail
    return any(sign in str(error) for sign in _DAMAGE_SIGNS)


def _lost_its_file(error: sqlite3.Error) -> bool:
    """Return whether an error while opening may come of another process that has just set the damaged file aside."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR


def describe(error: Exception, *, damage: str) -> str:
    """Say what is wrong and what to do about it.

    Args:
        error: what the database or the operating system says.
        damage: what to do about a damaged file.
    """
    text = str(getattr(error, "strerror", None) or error)
    if any(sign in text for sign in _DAMAGE_SIGNS):
        return f"{text.rstrip('.')}. {damage}"
    advice = next((advice for sign, advice in _ADVICE.items() if sign in text), "")
    return f"{text.rstrip('.')}. {advice}".rstrip()


_ADVICE: Mapping[str, str] = {
    "locked": "Another process holds the file; try again.",
    "readonly": "Make the file and its folder writable, or choose another state_dir.",
    "unable to open": "Check the permissions of the file and its folder, or choose another state_dir.",
    "Permission denied": "Check the permissions of the file and its folder, or choose another state_dir.",
    "full": "Free some space, or choose another state_dir.",
    # Also of a full disk that has no room for the index of a write-ahead log.
    "I/O error": "The disk may be full, or fail; free some space, or choose another state_dir.",
}


# Forking

_guarded: weakref.WeakSet[Guarded] = weakref.WeakSet()

_registering = threading.Lock()

_stopped: list[Guarded] = []

_FORK_TIMEOUT = 10.0
"""Seconds that a fork waits for a statement to end. After that it goes ahead: a disk that hangs must not hang it too."""


def _before_fork() -> None:
    """Close every connection, and keep them from being opened until the fork is over."""
    for rank in (0, 1):  # once no job runs, none makes another connection of the second rank
        with _registering:
            found = [guarded for guarded in _guarded if guarded.rank == rank]
        for guarded in found:
            if guarded.lock.acquire(timeout=_FORK_TIMEOUT):
                _stopped.append(guarded)
                guarded.discard()


def _after_fork() -> None:
    """Let them be used again."""
    while _stopped:
        _stopped.pop().lock.release()


def _after_fork_in_child() -> None:
    global _registering  # noqa: PLW0603 - a thread that is not in the child may have held it
    _registering = threading.Lock()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
