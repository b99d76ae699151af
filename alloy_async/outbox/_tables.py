"""The tables of an outbox in a file, and what is done to them; each function is one transaction.

An event belongs to a worker, and a worker has one row: with its lease, so that renewing touches one row, and with how
many events it has, so that bounds are checked without counting. The row stays as long as the worker has events.

Refusals are kept by a digest of the visitor, since nothing of a person may stay that was forgotten, and only until
every worker knows of them.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, count, islice
from typing import NamedTuple

from .._database import Transaction, upgrade
from .._process import identify, is_dead
from ..stores.base import visitor_digest
from ._admission import Admission, Room, admit, cut
from .base import LEASE, Changes, Claimed, OutboxEvent, Row, Shelf, Stored, VisitorKey

__all__ = [
    "NEVER",
    "TABLES",
    "Rewritten",
    "Swept",
    "Worker",
    "abandoned",
    "begin",
    "changes",
    "claim",
    "erase",
    "leave",
    "prepare",
    "purge",
    "release",
    "renew",
    "row",
    "rows",
    "shelf",
    "sweep",
    "write",
]

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE state (
    epoch INTEGER NOT NULL,    -- counts refusals, forgettings and purges
    next_key INTEGER NOT NULL, -- no key is given twice
    unswept INTEGER NOT NULL   -- the epoch of the last erasing that may still be readable, or 0
);
INSERT INTO state VALUES (0, 1, 0);
CREATE TABLE worker (
    id INTEGER PRIMARY KEY, process TEXT NOT NULL, lease_until REAL NOT NULL,
    seen INTEGER NOT NULL,     -- the epoch up to which it knows of refusals
    events INTEGER NOT NULL, size INTEGER NOT NULL
);
CREATE TABLE refusal (digest BLOB PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX refusal_epoch ON refusal (epoch);
CREATE TABLE event (
    key INTEGER PRIMARY KEY, owner INTEGER NOT NULL, digest BLOB NOT NULL,
    organisation TEXT NOT NULL, datastream TEXT NOT NULL, visitor TEXT NOT NULL,
    event_id TEXT NOT NULL, needs_answer INTEGER NOT NULL, names_person INTEGER NOT NULL,
    accepted_at REAL NOT NULL, body BLOB NOT NULL
);
CREATE INDEX event_owner ON event (owner, digest)
"""

TABLES = frozenset({"state", "worker", "refusal", "refusal_epoch", "event", "event_owner"})
"""By these the file is known for an outbox, and for a whole one."""

_LEFT = 0.0
"""The lease of a worker that has gone and will not come back."""

_REMEMBERED = 604_800.0
"""Seconds after the end of its lease in which a worker may come back (a laptop was closed) and hears of all refusals."""

_MET = 100_000
"""Visitors that a worker can tell by name when others refuse for them; later ones replace earlier ones."""

_AT_ONCE = 500
"""Parameters of one statement; SQLite takes 999 everywhere."""

_CELLS = 11
"""Columns of an event."""

_ROWS_AT_ONCE = (80, 10, 1)
"""Events that one statement inserts; SQLite takes 999 parameters everywhere."""

_CLAIM_AT_ONCE = 10_000
"""Events that are taken over in one transaction at most."""

_SHORT = 50
"""Milliseconds that sweeping waits for others: whatever else the thread is asked for waits too."""


@dataclass(slots=True, eq=False)
class Worker:
    """What a worker knows of itself; changed in the thread that uses the file.

    Attributes:
        id: random, since a number that counts would be given again in a new file.
        lease_until: seconds since 1970; read in any thread.
        seen: the epoch up to which it knows of refusals, as the file has it.
        held: its events, and those it has lost without having heard of it: bytes of the body by key.
        met: the digests of visitors it has had to do with.
    """

    id: int = field(default_factory=lambda: int.from_bytes(os.urandom(8), "big") >> 1)
    lease_until: float = _LEFT
    seen: int = 0
    held: dict[int, int] = field(default_factory=dict)
    met: dict[VisitorKey, bytes] = field(default_factory=dict)

    def successor(self) -> Worker:
        """Return the worker of a forked process: another one, that does not have this one's events, and hears of it."""
        return Worker(held=dict(self.held), met=dict(self.met))

    def digest(self, visitor: VisitorKey) -> bytes:
        """Return a visitor's digest, and keep it, so that the visitor can be told from it."""
        digest = self.met.get(visitor)
        if digest is None:
            if len(self.met) >= _MET:
                self.met = dict(islice(self.met.items(), _MET // 2, None))
            digest = self.met[visitor] = bytes.fromhex(visitor_digest(visitor))
        return digest


# The file


def prepare(connection: sqlite3.Connection) -> None:
    """Check the file, and bring a fresh one to the present schema.

    Raises:
        sqlite3.DatabaseError: it is damaged.
        Unsafe: a newer version of the library wrote it.
    """
    if connection.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)]:
        raise sqlite3.DatabaseError("the file is malformed")
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        raise sqlite3.OperationalError("no write-ahead log can be kept there; is it a disk of this machine?")
    upgrade(connection, _SCHEMA, SCHEMA_VERSION)
    names = _names(connection)
    if not names >= TABLES or connection.execute("SELECT count(*) FROM state").fetchone() != (1,):
        raise sqlite3.DatabaseError("the file is malformed, tables are missing")


def _names(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}


def _state(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """Return epoch, next key, and the epoch of the last erasing that may still be readable."""
    epoch, next_key, unswept = connection.execute("SELECT epoch, next_key, unswept FROM state").fetchone()
    return epoch, next_key, unswept


class Contents(NamedTuple):
    """What there is in a file; the same once more when nothing came or went, since no key is given twice.

    Attributes:
        next_key: the key of the event that is stored next.
        events: how many there are.
    """

    next_key: int
    events: int


def _contents(connection: sqlite3.Connection) -> Contents:
    _, next_key, _ = _state(connection)
    (events,) = connection.execute("SELECT total(events) FROM worker").fetchone()
    return Contents(next_key, int(events))


class Rewritten(NamedTuple):
    """When a file was rewritten.

    Attributes:
        epoch: of the erasing for which it was.
        contents: what there was then.
    """

    epoch: int
    contents: Contents


NEVER = Rewritten(epoch=0, contents=Contents(next_key=1, events=0))
"""A file in which nothing was stored yet needs no rewriting."""


# Workers


def begin(connection: sqlite3.Connection, worker: Worker, now: float) -> int:
    """Add a worker, forget those that are not needed any more, and return the epoch."""
    with Transaction(connection):
        _bury(connection, now)
        epoch, _, _ = _state(connection)
        connection.execute(
            "INSERT INTO worker VALUES (?, ?, ?, ?, 0, 0)", (worker.id, identify(), now + LEASE, epoch)
        )
        _forget_refusals(connection)
    worker.seen = epoch
    worker.lease_until = now + LEASE
    return epoch


def _bury(connection: sqlite3.Connection, now: float) -> None:
    empty = connection.execute("SELECT id, process, lease_until FROM worker WHERE events = 0").fetchall()
    dead = [
        (identity,)
        for identity, process, lease_until in empty
        if lease_until == _LEFT or lease_until + _REMEMBERED <= now or is_dead(process)
    ]
    connection.executemany("DELETE FROM worker WHERE id = ?", dead)


def _attend(connection: sqlite3.Connection, worker: Worker) -> float:
    """Make sure that the worker is still known, and return until when its lease holds."""
    row = connection.execute("SELECT lease_until FROM worker WHERE id = ?", (worker.id,)).fetchone()
    if row is None:
        raise sqlite3.OperationalError("it has forgotten this process, which was away for more than a week")
    return float(row[0])


def renew(connection: sqlite3.Connection, worker: Worker, now: float) -> bool:
    """Renew the lease; return False when it had run out.

    The worker itself is told by the caller, in the loop: nothing may be sent under the new lease before it is known
    there that the old one had run out.
    """
    with Transaction(connection):
        held = _attend(connection, worker) > now
        connection.execute("UPDATE worker SET lease_until = ? WHERE id = ?", (now + LEASE, worker.id))
    return held


def leave(connection: sqlite3.Connection, worker: Worker, now: float) -> None:
    """Leave what the worker has to others."""
    worker.lease_until = _LEFT
    with Transaction(connection):
        connection.execute("UPDATE worker SET lease_until = ? WHERE id = ?", (_LEFT, worker.id))
        _bury(connection, now)


def release(connection: sqlite3.Connection, worker: Worker) -> None:
    """Give all that a worker has to one that is dead."""
    dead = Worker()
    with Transaction(connection):
        _attend(connection, worker)
        connection.execute(
            "INSERT INTO worker SELECT ?, process, ?, seen, events, size FROM worker WHERE id = ? AND events > 0",
            (dead.id, _LEFT, worker.id),
        )
        connection.execute("UPDATE worker SET events = 0, size = 0 WHERE id = ?", (worker.id,))
        connection.execute("UPDATE event SET owner = ? WHERE owner = ?", (dead.id, worker.id))
    worker.held.clear()


def _dead(connection: sqlite3.Connection, now: float) -> list[int]:
    """Return the workers whose lease has run out, or whose process has certainly ended."""
    found = connection.execute("SELECT id, process, lease_until FROM worker").fetchall()
    return [identity for identity, process, lease_until in found if lease_until <= now or is_dead(process)]


def _see(connection: sqlite3.Connection, worker: Worker, epoch: int) -> None:
    """Take note that the worker knows of refusals up to an epoch."""
    if epoch > worker.seen:
        connection.execute("UPDATE worker SET seen = ? WHERE id = ?", (epoch, worker.id))
        worker.seen = epoch


# Events


def write(
    connection: sqlite3.Connection,
    worker: Worker,
    events: Sequence[OutboxEvent],
    ended: Collection[int],
    *,
    epoch: int,
    bounds: Room,
) -> Stored:
    """Store events, and erase others that have ended."""
    removed = sorted(worker.held.keys() & set(ended))
    sizes = [len(event.body) for event in events]
    with Transaction(connection):
        _attend(connection, worker)
        _see(connection, worker, epoch)
        _remove(connection, worker, removed)
        refused = _refused(connection, worker, (event.visitor for event in events), since=epoch)
        admission = admit(events, refused, _room(connection, bounds))
        keys = _add(connection, worker, events, admission)
    for key in removed:
        del worker.held[key]
    worker.held.update((key, size) for key, size in zip(keys, sizes, strict=True) if key is not None)
    return Stored(keys, frozenset(refused), admission.bound)


def _remove(connection: sqlite3.Connection, worker: Worker, keys: Sequence[int]) -> None:
    """Remove a worker's events, in order; those that have gone, or are another worker's, are passed over."""
    if not keys:
        return
    runs = ((first, last, worker.id) for first, last in _runs(keys))
    cursor = connection.executemany("DELETE FROM event WHERE key BETWEEN ? AND ? AND owner = ?", runs)
    if cursor.rowcount == len(keys):
        _count(connection, worker.id, -len(keys), -sum(worker.held[key] for key in keys))
    else:
        _recount(connection)


def _runs(keys: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Return the first and the last of keys that follow one another; what was sent together was stored together."""
    first = last = keys[0]
    for key in keys[1:]:
        if key != last + 1:
            yield first, last
            first = key
        last = key
    yield first, last


def _add(
    connection: sqlite3.Connection, worker: Worker, events: Sequence[OutboxEvent], admission: Admission
) -> tuple[int | None, ...]:
    if not admission.used.events:
        return (None,) * len(events)
    _, next_key, _ = _state(connection)
    numbers = count(next_key)
    keys = tuple([next(numbers) if taken else None for taken in admission.taken])
    _insert(connection, _cells(worker, keys, events))
    connection.execute("UPDATE state SET next_key = ?", (next(numbers),))
    _count(connection, worker.id, *admission.used)
    return keys


def _insert(connection: sqlite3.Connection, rows: Sequence[tuple[object, ...]]) -> None:
    """Insert many rows by few statements.

    For each statement this thread lets go of the interpreter and has to get it back, which a busy event loop makes dear:
    with ``executemany``, a statement a row, an event costs a third more.
    """
    start = 0
    for length in _ROWS_AT_ONCE:
        while len(rows) - start >= length:
            connection.execute(_insertion(length), [*chain.from_iterable(rows[start : start + length])])
            start += length


@cache
def _insertion(rows: int) -> str:
    """Return the statement that inserts so many rows; few different ones, so that SQLite's are found again."""
    return "INSERT INTO event VALUES " + ", ".join([f"({', '.join('?' * _CELLS)})"] * rows)  # noqa: S608 - marks


def _cells(
    worker: Worker, keys: Iterable[int | None], events: Iterable[OutboxEvent]
) -> list[tuple[object, ...]]:
    """Return the rows of events, as far as it is cheap in types that sqlite3 binds as they are.

    For a bytes or a bool it first looks for an adapter, which takes a tenth of an insertion each time. A body stays what
    it is all the same: copies of a whole group cost more. Source: CPython, ``need_adapt`` of ``_sqlite``.
    """
    owner, digest = worker.id, worker.digest
    return [
        (
            key,
            owner,
            bytearray(digest(event.visitor)),
            *event.visitor,
            event.event_id,
            int(event.needs_answer),
            int(event.names_person),
            event.accepted_at,
            event.body,
        )
        for key, event in zip(keys, events, strict=True)
        if key is not None
    ]


def _room(connection: sqlite3.Connection, bounds: Room) -> Room:
    events, size = connection.execute("SELECT total(events), total(size) FROM worker").fetchone()
    return Room(bounds.events - int(events), bounds.size - int(size))


def _count(connection: sqlite3.Connection, owner: int, events: int, size: int) -> None:
    """Take note that a worker has more events, or fewer."""
    connection.execute(
        "UPDATE worker SET events = events + ?, size = size + ? WHERE id = ?", (events, size, owner)
    )


def _recount(connection: sqlite3.Connection) -> None:
    """Count everything anew."""
    connection.execute("UPDATE worker SET events = 0, size = 0")
    totals = connection.execute("SELECT owner, count(*), sum(length(body)) FROM event GROUP BY owner")
    for owner, events, size in totals.fetchall():
        _count(connection, owner, events, size)


def claim(
    connection: sqlite3.Connection, worker: Worker, visitors: Collection[VisitorKey], wanted: Room, now: float
) -> list[Claimed]:
    """Give a worker events of the dead."""
    digests = {worker.digest(visitor): visitor for visitor in visitors}
    with Transaction(connection):
        _attend(connection, worker)
        dead = [one for one in _dead(connection, now) if one != worker.id]
        keys = _oldest(connection, dead, list(digests), wanted)
        found = _give(connection, worker, keys)
    worker.held.update((key, len(body)) for key, _, body, *_ in found)
    return [
        Claimed(key, OutboxEvent(digests[digest], event_id, body, bool(answer), bool(person), accepted_at))
        for key, digest, body, event_id, answer, person, accepted_at in found
    ]


def abandoned(connection: sqlite3.Connection, worker: Worker, now: float) -> list[VisitorKey]:
    """Return the visitors of the dead workers' events."""
    dead = [one for one in _dead(connection, now) if one != worker.id]
    found = connection.execute(
        "SELECT organisation, datastream, visitor FROM event WHERE key IN "  # noqa: S608 - numbers
        f"(SELECT min(key) FROM event WHERE owner IN ({_listed(dead)}) GROUP BY digest)"
    )
    return [VisitorKey(*names) for names in found]


def _oldest(
    connection: sqlite3.Connection, owners: list[int], digests: Sequence[bytes], wanted: Room
) -> list[int]:
    """Return the keys of the oldest events of owners and visitors."""
    most = min(wanted.events, _CLAIM_AT_ONCE)
    found: list[tuple[int, int]] = []
    for some in _in_parts(digests):
        marks = ", ".join("?" * len(some))
        keys = (
            f"SELECT key FROM event WHERE owner IN ({_listed(owners)}) AND digest IN ({marks}) "  # noqa: S608 - numbers
            "ORDER BY key LIMIT ?"
        )
        found += connection.execute(
            f"SELECT key, length(body) FROM event WHERE key IN ({keys})",  # noqa: S608 - as above
            (*some, most),
        )
    found.sort()
    return [key for key, _ in found[: cut([size for _, size in found], Room(most, wanted.size))]]


def _give(
    connection: sqlite3.Connection, worker: Worker, keys: list[int]
) -> list[tuple[int, bytes, bytes, str, int, int, float]]:
    """Make events the worker's own, and return them."""
    which = f"key IN ({_listed(keys)})"
    _uncount(connection, which, ())
    connection.execute(f"UPDATE event SET owner = ? WHERE {which}", (worker.id,))  # noqa: S608 - numbers
    found = connection.execute(
        "SELECT key, digest, body, event_id, needs_answer, names_person, accepted_at FROM event "  # noqa: S608 - numbers
        f"WHERE {which} ORDER BY key"
    ).fetchall()
    _count(connection, worker.id, len(found), sum(len(body) for _, _, body, *_ in found))
    return found


def _uncount(connection: sqlite3.Connection, which: str, values: tuple[object, ...]) -> int:
    """Take note that events will leave their owners, and return how many."""
    totals = connection.execute(
        f"SELECT owner, count(*), sum(length(body)) FROM event WHERE {which} GROUP BY owner",  # noqa: S608 - ours
        values,
    ).fetchall()
    for owner, events, size in totals:
        _count(connection, owner, -events, -size)
    return sum(events for _, events, _ in totals)


def _in_parts(values: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (values[start : start + _AT_ONCE] for start in range(0, len(values), _AT_ONCE))


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


# What others did


def changes(connection: sqlite3.Connection, worker: Worker, since: int) -> Changes:
    """Return what others did after an epoch."""
    with Transaction(connection):
        _attend(connection, worker)
        _see(connection, worker, since)
        epoch, _, _ = _state(connection)
        refused = _refused(connection, worker, worker.met, since=since)
        kept = connection.execute("SELECT key FROM event WHERE owner = ?", (worker.id,)).fetchall()
    gone = worker.held.keys() - {key for (key,) in kept}
    for key in gone:
        del worker.held[key]
    return Changes(epoch, refused, frozenset(gone))


def _refused(
    connection: sqlite3.Connection, worker: Worker, visitors: Iterable[VisitorKey], *, since: int
) -> Mapping[VisitorKey, int]:
    """Return which of these visitors declined after an epoch, and when."""
    later = dict(connection.execute("SELECT digest, epoch FROM refusal WHERE epoch > ?", (since,)).fetchall())
    if not later:
        return {}
    digests = {visitor: worker.digest(visitor) for visitor in set(visitors)}
    return {visitor: later[digest] for visitor, digest in digests.items() if digest in later}


def erase(connection: sqlite3.Connection, visitor: VisitorKey, rewritten: Rewritten | None = None) -> int:
    """Erase a visitor's events, and return the epoch that begins with it.

    The visitor's may have been delivered long ago: their rows are gone, but copies of them may lie about, and nobody knows
    any more whose. So whatever came or went since the file was rewritten is reason enough to sweep.

    Args:
        connection: to the file.
        visitor: whose.
        rewritten: when the file was rewritten; None when that is not known.
    """
    digest = bytes.fromhex(visitor_digest(visitor))
    which = "owner IN (SELECT id FROM worker) AND digest = ?"  # so that the index serves
    with Transaction(connection):
        epoch = _next_epoch(connection)
        connection.execute("INSERT OR REPLACE INTO refusal VALUES (?, ?)", (digest, epoch))
        if _uncount(connection, which, (digest,)):
            connection.execute(f"DELETE FROM event WHERE {which}", (digest,))  # noqa: S608 - words of ours
        if rewritten is None or _contents(connection) != rewritten.contents:
            connection.execute("UPDATE state SET unswept = ?", (epoch,))
        _forget_refusals(connection)
    return epoch


def _next_epoch(connection: sqlite3.Connection) -> int:
    connection.execute("UPDATE state SET epoch = epoch + 1")
    epoch, _, _ = _state(connection)
    return epoch


def _forget_refusals(connection: sqlite3.Connection) -> None:
    """Remove the refusals that every worker knows of that may still come and ask."""
    seen = "SELECT min(seen) FROM worker WHERE lease_until > 0"
    connection.execute(f"DELETE FROM refusal WHERE epoch <= ({seen})")  # noqa: S608 - words of ours


def expire(connection: sqlite3.Connection, worker: Worker, accepted_before: float, now: float) -> int:
    """Erase events of the dead that are too old, and return how many there were."""
    with Transaction(connection):
        _attend(connection, worker)
        dead = [one for one in _dead(connection, now) if one != worker.id]
        old = f"DELETE FROM event WHERE owner IN ({_listed(dead)}) AND accepted_at < ?"  # noqa: S608 - numbers
        expired = connection.execute(old, (accepted_before,)).rowcount
        if expired > 0:
            _recount(connection)
            connection.execute("UPDATE state SET unswept = ?", (_next_epoch(connection),))
    return max(expired, 0)


def purge(connection: sqlite3.Connection, keys: Collection[int] | None) -> int:
    """Erase events, or all of them, of whatever worker, and return how many there were."""
    with Transaction(connection):
        if keys is None:
            purged = connection.execute("DELETE FROM event").rowcount
        else:
            purged = connection.executemany(
                "DELETE FROM event WHERE key = ?", ((key,) for key in keys)
            ).rowcount
        if purged > 0:
            _recount(connection)
            connection.execute("UPDATE state SET unswept = ?", (_next_epoch(connection),))
    return max(purged, 0)


class Swept(NamedTuple):
    """How sweeping went.

    Attributes:
        done: whether nothing remains of what was erased.
        rewritten: when the file was rewritten.
        problem: what kept it from being done; for the log.
    """

    done: bool
    rewritten: Rewritten
    problem: str = ""


def sweep(connection: sqlite3.Connection, rewritten: Rewritten) -> Swept:
    """Rewrite the file and empty its log, so that nothing remains of what was erased.

    Deleting overwrites what it deletes, but not the copies that SQLite leaves behind when it moves rows to other
    pages, nor those in the log.

    Args:
        connection: to the file.
        rewritten: of an earlier attempt; what was rewritten already is not rewritten again.
    """
    _, _, unswept = _state(connection)
    if not unswept:
        return Swept(done=True, rewritten=rewritten)
    (patience,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute(f"PRAGMA busy_timeout = {_SHORT}")
    try:
        if unswept != rewritten.epoch:
            contents = _contents(connection)
            connection.execute("VACUUM")
            rewritten = Rewritten(unswept, contents)
        return _empty_log(connection, rewritten)
    except sqlite3.OperationalError as error:
        return Swept(done=False, rewritten=rewritten, problem=str(error))
    finally:
        connection.execute(f"PRAGMA busy_timeout = {patience}")


def _empty_log(connection: sqlite3.Connection, rewritten: Rewritten) -> Swept:
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        return Swept(done=False, rewritten=rewritten, problem="others still read the log")
    # Another process may have erased more meanwhile.
    epoch = (rewritten.epoch,)
    done = connection.execute("UPDATE state SET unswept = 0 WHERE unswept = ?", epoch).rowcount == 1
    return Swept(done, rewritten)


# For people


def shelf(connection: sqlite3.Connection, now: float) -> Shelf:
    """Return how things stand."""
    dead = _dead(connection, now)
    workers = connection.execute("SELECT id, events, size FROM worker").fetchall()
    _, _, unswept = _state(connection)
    return Shelf(
        events=sum(events for _, events, _ in workers),
        size=sum(size for _, _, size in workers),
        workers=sum(identity not in dead for identity, _, _ in workers),
        unclaimed=sum(events for identity, events, _ in workers if identity in dead),
        erasing=unswept != 0,
    )


_COLUMNS = "key, event_id, organisation, datastream, visitor, length(body), accepted_at, needs_answer, owner"


def rows(connection: sqlite3.Connection, limit: int, now: float) -> list[Row]:
    """Return the oldest events, without their bodies."""
    dead = _dead(connection, now)
    found = connection.execute(f"SELECT {_COLUMNS} FROM event ORDER BY key LIMIT ?", (limit,))  # noqa: S608 - ours
    return [_row(cells, dead) for cells in found.fetchall()]


def row(connection: sqlite3.Connection, key: int, now: float) -> Row | None:
    """Return an event with its body; None where there is none."""
    dead = _dead(connection, now)
    cells = connection.execute(f"SELECT {_COLUMNS}, body FROM event WHERE key = ?", (key,)).fetchone()  # noqa: S608 - ours
    return None if cells is None else _row(cells[:-1], dead)._replace(body=cells[-1])


def _row(cells: tuple[int, str, str, str, str, int, float, int, int], dead: list[int]) -> Row:
    key, event_id, organisation, datastream, visitor, size, accepted_at, needs_answer, owner = cells
    whose = VisitorKey(organisation, datastream, visitor)
    return Row(key, event_id, whose, size, accepted_at, bool(needs_answer), owner not in dead)
