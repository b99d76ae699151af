"""The SQLite outbox: what it leaves on the disk, what it makes of a bad file, sweeping, forks and processes that die."""

import asyncio
import logging
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from contextlib import closing, contextmanager

import pytest
from common import settle

from alloy_async._database import Unsafe, _Job
from alloy_async.errors import OutboxError
from alloy_async.outbox import OutboxEvent, Shelf, SQLiteOutbox, VisitorKey, _tables
from alloy_async.outbox._damage import set_aside
from alloy_async.outbox.base import LEASE

ANNE = VisitorKey(
    "ADB3LETTERSANDNUMBERS@AdobeOrg", "ebebf826-a01f-4458-8cec-ef61de241c93", "anne-of-green-gables"
)
BERT = ANNE._replace(visitor="bert")
SECRET = b"a-secret-nobody-else-has"

posix = pytest.mark.skipif(os.name != "posix", reason="forks, signals and permissions as POSIX has them")
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which process is dead")


def event(visitor=ANNE, body=b"{}", event_id="id"):
    return OutboxEvent(visitor, event_id, body, needs_answer=False, names_person=False, accepted_at=1.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "outbox.sqlite3"


@pytest.fixture
async def make(path, clock):
    """Makes outboxes on the file, which are closed at the end."""
    made = []

    def make():
        made.append(SQLiteOutbox(path, clock=clock))
        return made[-1]

    yield make
    for outbox in made:
        await outbox.aclose()


@pytest.fixture
async def outbox(make):
    """An outbox that is open, in a folder that was not there."""
    outbox = make()
    await outbox.open()
    return outbox


@pytest.fixture
def no_waiting(monkeypatch):
    """A lock that another connection holds is not waited for."""
    monkeypatch.setattr("alloy_async._database.LOCK_TIMEOUT", 0.0)


def connect(path):
    """Another connection; to be closed."""
    return closing(sqlite3.connect(path, isolation_level=None, timeout=0))


@contextmanager
def reader(path):
    """Another connection that reads, and ends its transaction with the block."""
    with connect(path) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM event").fetchall()
        yield


@contextmanager
def traced(outbox):
    """The statements that run on the outbox's connection during the block."""
    statements = []
    put(outbox, lambda connection: connection.set_trace_callback(statements.append))
    yield statements
    put(outbox, lambda connection: connection.set_trace_callback(None))


@contextmanager
def busy(outbox):
    """Keep the outbox's thread busy for the time of the block."""
    gate = threading.Event()
    put(outbox, lambda _: gate.wait(10))
    try:
        yield
    finally:
        gate.set()


def put(outbox, work):
    # By hand: a task would have to be awaited by the loop that a block may keep for itself.
    outbox._database._jobs.put(_Job(work, asyncio.Future(), create=True))


def found(path, text):
    """The files in which a text can be read: the database, its log, and whatever else is there."""
    return [file.name for file in path.parent.iterdir() if text in file.read_bytes()]


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def names(path):
    return sorted(file.name for file in path.parent.iterdir())


async def left(outbox, *visitors):
    """The bodies of what is taken over."""
    return [one.event.body for one in await outbox.claim(visitors or [ANNE], count=1_000, size=10_000_000)]


# What it leaves on the disk


@posix
async def test_files_and_folder_are_private(path, make):
    """Database, log and index of the log are for the user alone, also where the umask forbids nothing."""
    before = os.umask(0)
    try:
        outbox = make()
        epoch = await outbox.open()
        await outbox.write([event()], [], epoch=epoch)
        found = {file.name: mode(file) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert found == {path.name + part: 0o600 for part in ("", "-wal", "-shm")}
    assert mode(path.parent) == 0o700


async def test_closing_leaves_one_file(path, outbox):
    """After the last one has closed there is no log."""
    await outbox.aclose()
    assert names(path) == [path.name]


async def test_pragmas(outbox):
    """Commits reach the disk, in a log; what is deleted is overwritten; nothing temporary is written."""

    def pragmas(connection):
        words = ["journal_mode", "synchronous", "secure_delete", "temp_store"]
        return [connection.execute(f"PRAGMA {word}").fetchone()[0] for word in words]

    assert await outbox._database.run(pragmas) == ["wal", 2, 1, 2]


async def test_write_is_one_transaction(outbox):
    """Any number of events, and of ended ones, costs one commit."""
    epoch = await outbox.open()
    first = await outbox.write([event() for _ in range(50)], [], epoch=epoch)
    with traced(outbox) as statements:
        await outbox.write([event() for _ in range(50)], first.keys, epoch=epoch)
    assert [word for word in statements if word.split()[0] in {"BEGIN", "COMMIT"}] == [
        "BEGIN IMMEDIATE",
        "COMMIT",
    ]


async def test_counts_are_what_is_there(path, make):
    """After a random walk of several workers the counts that are kept are those of the rows."""
    generator = random.Random(1)
    outboxes = [make() for _ in range(3)]
    epochs = [await outbox.open() for outbox in outboxes]
    keys = []
    for _ in range(150):
        number = generator.randrange(3)
        outbox, visitor = outboxes[number], ANNE._replace(visitor=f"{generator.randrange(4)}")
        match generator.randrange(6):
            case 0 | 1 | 2:
                bodies = [b"x" * generator.randrange(100) for _ in range(generator.randrange(5))]
                ended = generator.sample(keys, min(len(keys), 3))
                stored = await outbox.write(
                    [event(visitor, body) for body in bodies], ended, epoch=epochs[number]
                )
                keys += filter(None, stored.keys)
            case 3:
                epochs[number] = await outbox.open()
                keys += [one.key for one in await outbox.claim([visitor], count=2, size=100)]
            case 4:
                await outbox.erase(visitor)
            case 5:
                await outbox.purge(generator.sample(keys, min(len(keys), 2)))
        with connect(path) as other:
            rows = other.execute("SELECT count(*), coalesce(sum(length(body)), 0) FROM event").fetchone()
            kept = other.execute(
                "SELECT id, events, size FROM worker WHERE events OR size ORDER BY id"
            ).fetchall()
            counted = other.execute(
                "SELECT owner, count(*), sum(length(body)) FROM event GROUP BY owner ORDER BY owner"
            ).fetchall()
        shelf = await outbox.shelf()
        assert kept == counted
        assert (shelf.events, shelf.size) == rows


# Erasing


async def fill(outbox, seed=0):
    """Write and end events of many sizes here and there, half of them Anne's, so that SQLite moves rows about."""
    generator = random.Random(seed)
    epoch = await outbox.open()
    keys = set()
    for _ in range(4):
        bodies = [b"x" * generator.randint(1, 900) for _ in range(100)]
        events = [event(*generator.choice([(ANNE, SECRET + body), (BERT, body)])) for body in bodies]
        keys.update((await outbox.write(events, [], epoch=epoch)).keys)
        ended = generator.sample(sorted(keys), len(keys) // 5)
        await outbox.write([], ended, epoch=epoch)
        keys.difference_update(ended)
    return epoch


@pytest.mark.parametrize("seed", range(6))
async def test_erased_events_are_not_in_the_files(path, outbox, seed):
    """No byte of an erased event, nor its visitor's key, is in the database, its log or next to them."""
    await fill(outbox, seed)
    assert found(path, SECRET)
    await outbox.erase(ANNE)
    assert (found(path, SECRET), found(path, ANNE.visitor.encode())) == ([], [])
    assert (await outbox.shelf()).erasing is False
    assert (await outbox.shelf()).events > 50


async def test_purged_events_are_not_in_the_files(path, outbox):
    """What a person purges is as unreadable as what a visitor refuses; one by one, and all."""
    await fill(outbox)
    keys = [row.key for row in await outbox.rows(1_000) if row.visitor == ANNE]
    assert await outbox.purge(keys) == len(keys)
    assert found(path, SECRET) == []
    await outbox.write([event(BERT, SECRET)], [], epoch=(await outbox.changes(0)).epoch)
    assert await outbox.purge(None) > 0
    assert found(path, SECRET) == []
    assert await outbox.shelf() == Shelf(workers=1)


async def test_deleting_alone_would_leave_something(path, outbox, monkeypatch):
    """The reason for sweeping: without it erased events can be read in the log or the file."""
    monkeypatch.setattr("alloy_async.outbox._sweeper.Sweeper.sweep", lambda _: settle(1))
    await fill(outbox)
    await outbox.erase(ANNE)
    assert found(path, SECRET)
    assert (await outbox.shelf()).erasing is True


async def test_reader_delays_sweeping(path, outbox, clock):
    """While another one reads, erasing waits, and says so; then it is done without being asked."""
    await fill(outbox)
    with reader(path):
        await outbox.erase(ANNE)
        assert await left(outbox, ANNE) == []
        assert (await outbox.shelf()).erasing is True
        for _ in range(3):
            clock.advance(8)
            await outbox._sweeper._task
        assert (await outbox.shelf()).erasing is True
    assert found(path, SECRET)
    clock.advance(30)
    await outbox._sweeper._task
    assert (await outbox.shelf()).erasing is False
    assert found(path, SECRET) == []


async def test_sweeping_is_tried_less_and_less_often(path, outbox, clock):
    """The pauses grow from one second to half a minute."""
    await fill(outbox)
    pauses = []
    with reader(path):
        await outbox.erase(ANNE)
        for _ in range(7):
            pauses.append(clock._arranged[0].when - clock.monotonic())
            clock.advance(pauses[-1])
            await outbox._sweeper._task
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


async def test_sweeping_at_close(path, outbox):
    """What could not be swept is tried once more at close."""
    await fill(outbox)
    with connect(path) as other:
        other.execute("SELECT count(*) FROM event").fetchall()  # so that it is not the last one to close
        with reader(path):
            await outbox.erase(ANNE)
        await outbox.aclose()
        assert found(path, SECRET) == []
        assert other.execute("SELECT unswept FROM state").fetchone() == (0,)


async def test_next_start_sweeps(path, make, outbox):
    """What was never swept, because others read until the end, is swept by whoever opens the file next."""
    await fill(outbox)
    with reader(path):
        await outbox.erase(ANNE)
        await outbox.aclose()
        assert found(path, SECRET)
    await make().open()
    assert found(path, SECRET) == []


async def test_another_worker_sweeps(path, make, outbox):
    """Any erasing sweeps for all, whoever erased before."""
    await fill(outbox)
    other = make()
    epoch = await other.open()
    await other.write([event(BERT)], [], epoch=epoch)
    with reader(path):
        await outbox.erase(ANNE)
    await other.erase(BERT)
    assert found(path, SECRET) == []
    assert (await outbox.shelf()).erasing is False


async def test_erasing_during_a_sweep_is_swept_too(path, outbox):
    """What another process erases between rewriting and emptying the log is not taken for swept."""
    epoch = await fill(outbox)
    await outbox.write([event(BERT)], [], epoch=epoch)

    def erase_meanwhile(statement):
        if statement.startswith("PRAGMA wal_checkpoint"):
            with connect(path) as other:
                _tables.erase(other, BERT)

    await outbox._database.run(lambda connection: connection.set_trace_callback(erase_meanwhile))
    await outbox.erase(ANNE)
    await outbox._database.run(lambda connection: connection.set_trace_callback(None))
    assert (await outbox.shelf()).erasing is True


async def test_delivered_events_are_not_in_the_files_after_a_refusal(path, outbox):
    """Events that were delivered leave copies too, in the log and elsewhere; a refusal takes them along."""
    epoch = await fill(outbox)
    delivered = [row.key for row in await outbox.rows(1_000) if row.visitor == ANNE]
    await outbox.write([], delivered, epoch=epoch)
    assert found(path, SECRET)
    await outbox.erase(ANNE)
    assert (found(path, SECRET), found(path, ANNE.visitor.encode())) == ([], [])


async def test_events_that_were_swept_past_are_not_in_the_files_after_a_refusal(path, outbox):
    """Sweeping for somebody else leaves rows where they were, and these leave copies when they are delivered later."""
    epoch = await fill(outbox)
    await outbox.erase(BERT)
    await outbox.write([], [row.key for row in await outbox.rows(1_000)], epoch=epoch)
    assert found(path, SECRET)
    await outbox.erase(ANNE)
    assert found(path, SECRET) == []


async def test_erasing_nothing_rewrites_nothing(outbox):
    """Where a visitor has no events, and none came or went since the file was rewritten, it is left as it is."""
    nobody = ANNE._replace(visitor="nobody")
    await outbox.open()
    with traced(outbox) as statements:
        await outbox.erase(nobody)
    await fill(outbox)
    await outbox.erase(ANNE)
    with traced(outbox) as more:
        await outbox.erase(nobody)
    assert "VACUUM" not in [*statements, *more]


async def test_nothing_is_known_of_a_file_that_is_opened_again(path, outbox):
    """What was swept before says nothing of a file that has been put in its place, though it looks the same."""
    for _ in range(2):
        epoch = await outbox.open()
        stored = await outbox.write([event(ANNE, SECRET)], [], epoch=epoch)
        await outbox.write([], stored.keys, epoch=epoch)
        assert found(path, SECRET)
        await outbox.erase(ANNE)
        assert found(path, SECRET) == []
        await outbox.aclose()
        path.unlink()


async def test_erasures_at_once_share_one_sweep(path, outbox):
    """Many refusals at the same time rewrite the file once."""
    epoch = await fill(outbox)
    visitors = [ANNE._replace(visitor=f"{number}") for number in range(20)]
    await outbox.write([event(visitor) for visitor in visitors], [], epoch=epoch)
    with traced(outbox) as statements:
        await asyncio.gather(*(outbox.erase(visitor) for visitor in visitors))
    assert statements.count("VACUUM") == 1
    assert (await outbox.shelf()).erasing is False


async def test_erasures_soon_after_one_another_wait_for_one_sweep(path, outbox, clock, monkeypatch):
    """After a sweep that took long the next one waits ten times as long, and serves all that came meanwhile."""
    epoch = await fill(outbox)
    visitors = [ANNE._replace(visitor=f"{number}") for number in range(4)]
    await outbox.write([event(visitor) for visitor in visitors], [], epoch=epoch)
    sweep = _tables.sweep

    def slow(*arguments):
        clock.advance(0.5)
        return sweep(*arguments)

    monkeypatch.setattr("alloy_async.outbox._sweeper.sweep", slow)
    with traced(outbox) as statements:
        for visitor in visitors:
            await outbox.erase(visitor)
        assert statements.count("VACUUM") == 1
        assert (await outbox.shelf()).erasing is True
        clock.advance(5)
        await outbox._sweeper._task
    assert statements.count("VACUUM") == 2
    assert (await outbox.shelf()).erasing is False


async def test_sweep_without_room_is_tried_later(outbox, clock):
    """A disk that has no room for rewriting the file delays sweeping, and fails no refusal."""
    await fill(outbox)

    def refuse(action, *_):
        return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH else sqlite3.SQLITE_OK  # as VACUUM does

    await outbox._database.run(lambda connection: connection.set_authorizer(refuse))
    await outbox.erase(ANNE)
    assert (await outbox.shelf()).erasing is True
    await outbox._database.run(lambda connection: connection.set_authorizer(None))
    clock.advance(1)
    await outbox._sweeper._task
    assert (await outbox.shelf()).erasing is False


async def test_known_refusals_are_not_kept(path, make, outbox):
    """Nothing is kept of a refusal once every worker knows of it; as long as one does not, it is."""
    other = make()
    epoch = await other.open()
    refused_at = await outbox.erase(ANNE)
    for known, kept in ((False, 2), (True, 1)):
        if known:
            await other.changes((await other.changes(epoch)).epoch)
        await outbox.write([], [], epoch=refused_at)
        last = await outbox.erase(BERT)
        with connect(path) as file:
            assert file.execute("SELECT count(*) FROM refusal").fetchone() == (kept,)
    assert (await other.changes(refused_at)).refused == {}
    assert last > refused_at


# may_send


async def test_sending_does_not_wait_for_a_writer(path, outbox):
    """While another one writes, and this one's thread waits for it, ``may_send`` answers."""
    epoch = await outbox.open()
    with connect(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        other.execute("UPDATE state SET epoch = epoch + 1")
        writing = asyncio.create_task(outbox.write([event()], [], epoch=epoch))
        await settle()
        assert outbox.may_send(epoch)
        other.execute("ROLLBACK")
    assert len((await writing).keys) == 1


async def test_sending_does_not_wait_for_the_thread(outbox):
    """While the thread is busy ``may_send`` answers."""
    epoch = await outbox.open()
    with busy(outbox):
        assert outbox.may_send(epoch)
        assert not outbox.may_send(epoch + 1)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM state",
        "DROP TABLE state",
        "UPDATE state SET epoch = 'many'",
        "UPDATE state SET epoch = x'00'",
    ],
)
async def test_nothing_is_sent_where_the_epoch_cannot_be_told(path, outbox, statement):
    """Where the file does not tell the epoch, the answer is no."""
    epoch = await outbox.open()
    with connect(path) as other:
        other.execute(statement)
    assert outbox.may_send(epoch) is False


# Files that cannot be used, and files that are lost


@pytest.mark.parametrize("how", ["delete", "replace"])
async def test_lost_file(path, tmp_path, clock, outbox, how):
    """When somebody deletes or replaces the file nothing is sent, each call says so, and opening again goes on."""
    epoch = await outbox.open()
    await outbox.write([event()], [], epoch=epoch)
    if how == "delete":
        path.unlink()
        path.with_name(path.name + "-wal").unlink()
    else:
        path.with_name(path.name + "-wal").unlink()
        fresh = SQLiteOutbox(tmp_path / "other" / "outbox.sqlite3", clock=clock)
        await fresh.open()
        await fresh.aclose()
        fresh.path.replace(path)
    assert not outbox.may_send(epoch)
    for _ in range(2):
        for call in (outbox.renew, outbox.shelf, lambda: outbox.changes(epoch), lambda: outbox.erase(ANNE)):
            with pytest.raises(OutboxError, match=r"moved or deleted.* Restart"):
                await call()
    epoch = await outbox.open()
    assert outbox.may_send(epoch)
    await outbox.write([event()], [], epoch=epoch)
    assert (await outbox.shelf()).events == 1


async def test_newer_file_is_left_alone(path, make, outbox, caplog):
    """A file that a newer version wrote is refused and not touched."""
    await outbox.aclose()
    with connect(path) as other:
        other.execute(f"PRAGMA user_version = {_tables.SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(OutboxError, match=r"could not open .* newer version .* upgrade"):
        await make().open()
    assert path.read_bytes() == before
    assert names(path) == [path.name]


@posix
@pytest.mark.parametrize("version", [0, _tables.SCHEMA_VERSION, _tables.SCHEMA_VERSION + 1])
async def test_database_of_another_program_is_left_alone(path, make, version):
    """One that is not an outbox is refused, whatever it counts as its version; no byte of it changes, nor its mode."""
    path.parent.mkdir(mode=0o700)
    with connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
        other.execute(f"PRAGMA user_version = {version}")
    path.chmod(0o644)
    before = path.read_bytes()
    for use in (SQLiteOutbox.open, SQLiteOutbox.shelf):
        with pytest.raises(OutboxError, match=r"another program"):
            await use(make())
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (before, 0o644)
    assert names(path) == [path.name]


@posix
async def test_a_file_that_is_no_database_keeps_its_mode_when_looked_at(path, make):
    """Looking at what was named by mistake changes nothing of it."""
    path.parent.mkdir(mode=0o700)
    path.write_text("127.0.0.1 localhost\n" * 99)
    path.chmod(0o644)
    with pytest.raises(OutboxError, match=r"not a database"):
        await make().shelf()
    assert path.stat().st_mode & 0o777 == 0o644


@posix
async def test_wide_damaged_file_is_set_aside_in_private(path, make):
    """What is set aside may hold events: others may not read it, even if they could before."""
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b"damaged" * 2_000)
    path.chmod(0o644)
    await make().open()
    (aside,) = path.parent.glob("*.damaged-*")
    assert aside.stat().st_mode & 0o777 == 0o600


@posix
async def test_wide_file_is_made_private(path, make, outbox):
    """A file that others may read is tightened when it is opened, with its log."""
    await outbox.aclose()
    path.chmod(0o666)
    await make().open()
    assert {part.stat().st_mode & 0o777 for part in path.parent.iterdir()} == {0o600}


@posix
async def test_unsafe_place_is_refused(path, make):
    """A folder that others may write to is refused, and so is a link; nothing is set aside."""
    path.parent.mkdir(mode=0o700)
    path.parent.chmod(0o777)
    with pytest.raises(OutboxError, match=r"others may put files") as caught:
        await make().open()
    assert isinstance(caught.value.__cause__, Unsafe)
    path.parent.chmod(0o700)
    path.symlink_to(path.parent / "elsewhere")
    with pytest.raises(OutboxError, match=r"not a regular file"):
        await make().open()


@pytest.mark.usefixtures("no_waiting")
async def test_locked_file(path, make, clock):
    """A file that another process holds fails the call, with advice, and works once it lets go."""
    outbox = make()
    epoch = await outbox.open()
    with connect(path) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            OutboxError, match=r"could not write .* locked. Another process holds the file; try again"
        ):
            await outbox.write([event()], [], epoch=epoch)
    assert outbox.may_send(epoch)
    assert (await outbox.write([event()], [], epoch=epoch)).keys == (1,)


async def test_full_disk(outbox):
    """A full disk fails the call, with advice, keeps nothing of it, and the next call works."""
    epoch = await outbox.open()
    await outbox._database.run(lambda connection: connection.execute("PRAGMA max_page_count = 1").fetchone())
    with pytest.raises(OutboxError, match=r"full. Free some space"):
        await outbox.write([event(body=b"x" * 100_000)], [], epoch=epoch)
    assert (await outbox.write([event()], [], epoch=epoch)).keys == (1,)
    assert (await outbox.changes(epoch)).gone == frozenset()


@posix
async def test_no_room_for_the_index_of_the_log(make):
    """SQLite calls that an I/O error, not a full disk; the advice is there all the same, and the next call works."""
    import resource

    outbox = make()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Less than the index takes, whatever it holds.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OutboxError, match=r"disk I/O error. The disk may be full"):
            await outbox.open()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    epoch = await outbox.open()
    assert (await outbox.write([event()], [], epoch=epoch)).keys == (1,)


async def test_errors_hold_no_events(outbox):
    """What a failed call raises has no traceback that leads to bodies, and no text of them."""
    epoch = await outbox.open()
    odd = ANNE._replace(visitor="half \ud83d")
    with pytest.raises(OutboxError) as caught:
        await outbox.write([event(odd, SECRET)], [], epoch=epoch)
    assert caught.value.__cause__.__traceback__ is None
    assert SECRET.decode() not in f"{caught.value} {caught.value.__cause__!r}"
    assert "half" not in str(caught.value)


# Damage


def as_random_bytes(path):
    path.write_bytes(random.Random(1).randbytes(10_000))


def as_text(path):
    path.write_text("events\n" * 1_000)


def as_truncated(path):
    path.write_bytes(path.read_bytes()[:9_000])


def as_broken_page(path):
    content = bytearray(path.read_bytes())
    content[4_096 * 2 : 4_096 * 9] = random.Random(1).randbytes(4_096 * 7)
    path.write_bytes(content)


def as_missing_table(path):
    with connect(path) as other:
        other.execute("DROP TABLE worker")


def as_missing_state(path):
    with connect(path) as other:
        other.execute("DELETE FROM state")


DAMAGES = [as_random_bytes, as_text, as_truncated, as_broken_page, as_missing_table, as_missing_state]


@pytest.fixture
async def damaged(path, clock, request):
    """A file that was an outbox; returns what is in it now."""
    outbox = SQLiteOutbox(path, clock=clock)
    await fill(outbox)
    await outbox.aclose()
    request.param(path)
    return path.read_bytes()


@pytest.mark.parametrize("damaged", DAMAGES, indirect=True)
async def test_damaged_file_is_set_aside(path, make, damaged, caplog):
    """A damaged file is kept under another name, said to be there, and work goes on with a fresh one."""
    outbox = make()
    epoch = await outbox.open()
    assert (await outbox.write([event()], [], epoch=epoch)).keys == (1,)
    (aside,) = path.parent.glob("*.damaged-*Z")
    assert aside.name == "outbox.sqlite3.damaged-20260101T000000Z"
    assert aside.read_bytes() == damaged
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.name == "alloy_async"
    assert str(path) in record.getMessage()
    assert str(aside) in record.getMessage()


def always_damaged(connection):
    raise sqlite3.DatabaseError("the file is malformed")


def test_log_is_set_aside_too(path):
    """The log of a damaged file goes with it: SQLite would play it into the fresh one."""
    path.parent.mkdir()
    for part in ("", "-wal", "-shm"):
        path.with_name(path.name + part).write_text(part)
    set_aside(path, always_damaged, 0.0)
    aside = {f"{path.name}.damaged-19700101T000000Z{part}": part for part in ("", "-wal", "-shm")}
    assert {file.name: file.read_text() for file in path.parent.iterdir()} == aside


def test_no_earlier_damaged_file_is_overwritten(path):
    """Damaged files of the same second get names of their own, and so does one whose log alone is there."""
    path.parent.mkdir()
    for number in range(3):
        path.write_text(f"{number}")
        set_aside(path, always_damaged, 0.0)
    path.with_name(f"{path.name}.damaged-19700101T000000Z-4-wal").touch()
    path.write_text("3")
    set_aside(path, always_damaged, 0.0)
    texts = {file.name[len(path.name) :]: file.read_text() for file in path.parent.iterdir()}
    begin = ".damaged-19700101T000000Z"
    assert texts == {
        begin: "0",
        f"{begin}-2": "1",
        f"{begin}-3": "2",
        f"{begin}-4-wal": "",
        f"{begin}-5": "3",
    }


def test_healthy_file_is_not_set_aside(path):
    """A fresh file that another process has made in the meantime stays; where there is none nothing is made."""
    path.parent.mkdir()
    set_aside(path, always_damaged, 0.0)
    assert names(path) == []
    path.touch()
    set_aside(path, lambda connection: None, 0.0)
    assert names(path) == [path.name]


def test_a_log_that_goes_at_this_moment_does_not_matter(path, monkeypatch):
    """Whoever closes the file last removes its log, perhaps just before it is renamed."""
    path.parent.mkdir()
    for part in ("", "-wal", "-shm"):
        path.with_name(path.name + part).touch()
    rename = type(path).rename

    def rename_late(source, target):
        if not source.name.endswith(path.name):
            source.unlink()
        return rename(source, target)

    monkeypatch.setattr(type(path), "rename", rename_late)
    set_aside(path, always_damaged, 0.0)
    assert names(path) == [f"{path.name}.damaged-19700101T000000Z"]


@pytest.mark.parametrize("damaged", [as_text, as_broken_page], indirect=True)
async def test_one_of_many_sets_aside(path, make, damaged):
    """Of several that open a damaged file at once one sets it aside, and all share the fresh one."""
    outboxes = [make() for _ in range(6)]
    epochs = await asyncio.gather(*(outbox.open() for outbox in outboxes))
    stored = await asyncio.gather(
        *(outbox.write([event()], [], epoch=epoch) for outbox, epoch in zip(outboxes, epochs, strict=True))
    )
    assert sorted(one.keys[0] for one in stored) == [1, 2, 3, 4, 5, 6]
    assert len(list(path.parent.glob("*.damaged-*Z"))) == 1


@pytest.mark.parametrize("damaged", [as_text], indirect=True)
async def test_looking_does_not_set_aside(path, make, damaged):
    """A person who looks changes nothing: the error says what will happen."""
    outbox = make()
    for call in (outbox.shelf, lambda: outbox.rows(1), lambda: outbox.purge(None)):
        with pytest.raises(OutboxError, match=r"damaged; the next start sets it aside"):
            await call()
    assert names(path) == [path.name]


async def test_damage_found_later(path, outbox, make):
    """A file that is damaged while it is used fails each call, with advice; nothing is sent; the next open goes on."""
    epoch = await fill(outbox)
    # So that everything is in the file and nothing in a cache; the next call connects again.
    await outbox._database.run(
        lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    )
    await outbox._database.aclose()
    overwrite = "import sys; file = open(sys.argv[1], 'r+b'); file.write(b'x' * 50_000)"
    # In another process: closing the file in this one would drop the locks of the other connection.
    subprocess.run([sys.executable, "-c", overwrite, str(path)], check=True)
    with pytest.raises(OutboxError, match=r"damaged; the next start sets it aside"):
        await outbox.write([event()], [], epoch=epoch)
    assert not outbox.may_send(epoch)
    epoch = await outbox.open()
    assert outbox.may_send(epoch)
    assert len(list(path.parent.glob("*.damaged-*Z"))) == 1


# For people


async def test_looking_leaves_no_trace(path, make):
    """Where there is no outbox, looking and purging find nothing and make nothing."""
    outbox = make()
    assert await outbox.shelf() == Shelf()
    assert await outbox.rows(10) == []
    assert await outbox.row(1) is None
    assert await outbox.purge(None) == 0
    assert await outbox.purge([1]) == 0
    assert not path.parent.exists()


async def test_rows(make, outbox, clock):
    """A person sees what waits, oldest first, and whether its worker lives; without becoming a worker."""
    epoch = await outbox.open()
    rich = OutboxEvent(BERT, "another", b"[]" * 5, needs_answer=True, names_person=True, accepted_at=2.5)
    await outbox.write([event(), rich, event()], [], epoch=epoch)
    person = make()
    rows = await person.rows(2)
    assert [row.key for row in rows] == [1, 2]
    assert rows[1] == (2, "another", BERT, 10, 2.5, True, True, None)
    assert await person.row(2) == (2, "another", BERT, 10, 2.5, True, True, b"[]" * 5)
    assert await person.row(4) is None
    assert (await person.shelf()).workers == 1
    clock.advance(LEASE)
    assert [row.claimed for row in await person.rows(9)] == [False] * 3


async def test_purging_is_noticed(make, outbox):
    """A worker whose events a person purges may not send before it has heard which are gone."""
    epoch = await outbox.open()
    await outbox.write([event(), event(), event()], [], epoch=epoch)
    person = make()
    assert await person.purge([2, 99]) == 1
    assert not outbox.may_send(epoch)
    changes = await outbox.changes(epoch)
    assert (changes.gone, changes.refused) == (frozenset({2}), {})
    assert await person.purge([2]) == 0
    assert outbox.may_send(changes.epoch)
    assert await person.purge(None) == 2
    assert (await outbox.changes(changes.epoch)).gone == frozenset({1, 3})


async def test_worker_that_was_away_for_too_long(path, make, outbox, clock):
    """A worker that comes back after more than a week is told to start again: refusals may have been forgotten."""
    epoch = await outbox.open()
    clock.advance(8 * 86_400)
    await make().open()
    with pytest.raises(OutboxError, match=r"away for more than a week"):
        await outbox.changes(epoch)
    assert not outbox.may_send(epoch)
    await outbox.open()


async def test_thread_ends_with_closing(outbox):
    """Closing ends the thread."""
    thread = outbox._database._thread
    await outbox.aclose()
    thread.join(10)
    assert not thread.is_alive()


# Processes

CHILD = """
import asyncio, os, sys
from alloy_async.outbox import OutboxEvent, SQLiteOutbox, VisitorKey

def say(*words):
    print(*words, flush=True)

def event(body):
    return OutboxEvent(anne, "id", body, needs_answer=False, names_person=False, accepted_at=1.0)

anne = VisitorKey(*{anne!r})
outbox = SQLiteOutbox(sys.argv[1])

def forked(main):
    # Run a coroutine in a child of this process, whose loop is not the parent's.
    child = os.fork()
    if child == 0:
        asyncio.events._set_running_loop(None)
        status = 1
        try:
            asyncio.run(asyncio.wait_for(main(), 20))
            status = 0
        except BaseException as error:
            say(type(error).__name__, error)
        finally:
            os._exit(status)
    return child

async def main():
{body}

asyncio.run(main())
"""


@contextmanager
def process(path, body):
    """Another process that runs a few lines; killed, if it still runs, when the block ends."""
    code = CHILD.format(anne=tuple(ANNE), body=textwrap.indent(textwrap.dedent(body), "    "))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, env=environment
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def heard(child):
    return child.stdout.readline().strip()


@linux
async def test_killed_process_is_succeeded_at_once(path):
    """What a process stored before ``kill -9`` is taken over at once, although its lease still runs."""
    body = """
    epoch = await outbox.open()
    stored = await outbox.write([event(b"one"), event(b"two")], [], epoch=epoch)
    await outbox.write([], stored.keys[:1], epoch=epoch)
    say("stored")
    sys.stdin.read()
    """
    outbox = SQLiteOutbox(path)
    await outbox.open()
    with process(path, body) as child:
        assert heard(child) == "stored"
        assert await left(outbox) == []
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert await left(outbox) == [b"two"]
    await outbox.aclose()


@linux
async def test_erasing_that_a_killed_process_began_is_finished(path):
    """A process that is killed between deleting and sweeping leaves a note, and the next start sweeps."""
    body = """
    from alloy_async.outbox import _sweeper
    async def nothing(self): pass
    _sweeper.Sweeper.sweep = nothing
    epoch = await outbox.open()
    await outbox.write([event(b"a-secret-nobody-else-has" * 100)], [], epoch=epoch)
    await outbox.erase(anne)
    say("erased")
    sys.stdin.read()
    """
    with process(path, body) as child:
        assert heard(child) == "erased"
    assert found(path, SECRET)
    outbox = SQLiteOutbox(path)
    await outbox.open()
    assert found(path, SECRET) == []
    await outbox.aclose()


@posix
async def test_fork(path):
    """A forked process is another worker: it hears that the parent's events are not its own, and stores its own."""
    body = """
    epoch = await outbox.open()
    stored = await outbox.write([event(b"parent")], [], epoch=epoch)

    async def child():
        say("may send", outbox.may_send(epoch))
        say("renewed", await outbox.renew())
        say("gone", (await outbox.changes(epoch)).gone == set(stored.keys))
        await outbox.write([event(b"child")], stored.keys, epoch=epoch)
        say("may send", outbox.may_send(epoch))
        say("workers", (await outbox.shelf()).workers)
        await outbox.aclose()

    os.waitpid(forked(child), 0)
    say("parent", outbox.may_send(epoch))
    say("renewed", await outbox.renew())
    say("parent", outbox.may_send(epoch), (await outbox.changes(epoch)).gone)
    """
    with process(path, body) as parent:
        told = parent.communicate(timeout=60)[0].splitlines()
    assert told == [
        "may send False",
        "renewed True",
        "gone True",
        "may send True",
        "workers 2",
        "parent False",  # until the next call: its connection was closed for the fork
        "renewed True",
        "parent True frozenset()",
    ]
    person = SQLiteOutbox(path)
    assert [(await person.row(row.key)).body for row in await person.rows(9)] == [b"parent", b"child"]
    await person.aclose()


@posix
async def test_what_a_forked_process_stores_survives_the_parents_end(path):
    """A parent that closes the file takes nothing from a child that was forked while it was open.

    SQLite alone would lose it: the child would inherit the belief that it holds locks, which only the parent has.
    """
    body = """
    epoch = await outbox.open()
    await outbox.write([event(b"parent")], [], epoch=epoch)
    begun, parent_has_closed = os.pipe(), os.pipe()

    async def child():
        await outbox.write([event(b"before")], [], epoch=epoch)
        os.write(begun[1], b"x")
        os.read(parent_has_closed[0], 1)
        await outbox.write([event(b"after")], [], epoch=epoch)
        say("stored")

    pid = forked(child)
    os.read(begun[0], 1)
    await outbox.aclose()
    os.write(parent_has_closed[1], b"x")
    os.waitpid(pid, 0)
    """
    with process(path, body) as parent:
        assert parent.communicate(timeout=60)[0].splitlines() == ["stored"]
    person = SQLiteOutbox(path)
    bodies = [(await person.row(row.key)).body for row in await person.rows(9)]
    await person.aclose()
    assert bodies == [b"parent", b"before", b"after"]


@posix
async def test_fork_in_the_middle_of_a_write(path):
    """A fork waits for the statement that runs; parent and child both go on."""
    body = """
    epoch = await outbox.open()
    writes = [asyncio.ensure_future(outbox.write([event(b"x" * 1_000)] * 200, [], epoch=epoch)) for _ in range(20)]
    await asyncio.sleep(0)

    async def child():
        await outbox.write([event(b"child")], [], epoch=epoch)
        say("child")

    os.waitpid(forked(child), 0)
    await asyncio.gather(*writes)
    say((await outbox.shelf()).events)
    await outbox.aclose()
    """
    with process(path, body) as parent:
        assert parent.communicate(timeout=60)[0].splitlines() == ["child", "4001"]


@posix
async def test_many_processes_at_once(path):
    """Processes that open, write and end at the same time lose nothing and never fail."""
    body = """
    epoch = await outbox.open()
    for _ in range(20):
        stored = await outbox.write([event(b"x")] * 5, [], epoch=epoch)
        await outbox.write([], stored.keys[1:], epoch=epoch)
    await outbox.aclose()
    say("done")
    """
    with process(path, body) as one, process(path, body) as two, process(path, body) as three:
        for child in (one, two, three):
            assert child.communicate(timeout=60)[0].strip() == "done"
    outbox = SQLiteOutbox(path)
    await outbox.open()
    assert await left(outbox) == [b"x"] * 60
    await outbox.aclose()
