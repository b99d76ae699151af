"""A file of choices tells each process what others have changed in it."""

import asyncio
import gc
import logging
import sqlite3
import weakref
from contextlib import asynccontextmanager, closing

import pytest
from common import IDS

from alloy_async import Alloy
from alloy_async.errors import ConsentDeclined
from alloy_async.identity import StoredIdentity
from alloy_async.stores import Change, Preference, SQLiteStore, VisitorKey, _sqlite_news, visitor_digest
from alloy_async.stores._sqlite_news import LOOK_EVERY
from alloy_async.testing import ManualClock, RecordingEdge

ANNE = VisitorKey(IDS["ims_org_id"], IDS["config_id"], "anne")
BERT = ANNE._replace(visitor="bert")
NOW = ManualClock().time()
ALL, NONE = (Preference(purposes, NOW, NOW + 1_000_000.0) for purposes in ("all", "none"))


def yes(key):
    return Change(visitor_digest(key), refused=False)


def no(key):
    return Change(visitor_digest(key), refused=True)


@pytest.fixture
async def make(tmp_path, clock):
    """Makes stores on one file, each as another process would."""
    made = []

    def make():
        made.append(SQLiteStore(tmp_path / "state", clock=clock))
        return made[-1]

    yield make
    for store in made:
        await store.aclose()


@pytest.fixture
def look(clock):
    """Lets the time pass until a store looks, and waits until it has looked."""

    async def look(store, seconds=LOOK_EVERY):
        clock.advance(seconds)
        await store.load_identity(ANNE)  # done after the look, on the same thread

    return look


@asynccontextmanager
async def reopening(store):
    """Let a store open its file again, as it does after a failure."""

    def fail(connection):
        raise sqlite3.OperationalError

    with pytest.raises(sqlite3.OperationalError):
        await store._database.run(fail)
    yield


async def test_what_others_change_is_told(make, look):
    """In order, once, within a quarter of a second."""
    here, there, told = make(), make(), []
    assert await there.load_preference(ANNE) is None
    there.watch(told.append)
    await here.save_preference(ANNE, ALL)
    await look(there, LOOK_EVERY / 2)
    assert told == []
    await look(there, LOOK_EVERY / 2)
    assert told == [[yes(ANNE)]]
    await here.save_preference(BERT, NONE)
    await here.forget(ANNE)
    await look(there)
    await look(there)
    assert told == [[yes(ANNE)], [no(BERT), no(ANNE)]]


async def test_what_was_changed_since_the_first_look_is_told(make, look):
    """Whoever reads and then watches misses nothing of what came between, whether there was a file or not."""
    here, early, later, told = make(), make(), make(), []
    await early.load_preference(ANNE)
    await here.save_preference(ANNE, ALL)
    await later.load_preference(ANNE)
    await here.save_preference(ANNE, NONE)
    for store in (early, later):
        store.watch(told.append)
        await look(store)
    assert told == [[yes(ANNE), no(ANNE)], [no(ANNE)]]


async def test_ones_own_changes_are_told_too(make, look):
    """In their place among those of others, with who made each."""
    here, there, told = make(), make(), []
    there.watch(told.append)
    await there.save_preference(ANNE, ALL, by="there")
    await here.save_preference(ANNE, NONE)
    await there.forget(BERT, by="there")
    await there.save_identity(ANNE, StoredIdentity("fpid", None, {}))  # no choice, so no news
    await look(there)
    assert told == [[yes(ANNE)._replace(by="there"), no(ANNE), no(BERT)._replace(by="there")]]


async def test_watching_leaves_no_trace(make, look):
    """Where nobody has chosen, looking makes neither file nor folder."""
    store, told = make(), []
    store.watch(told.append)
    await look(store)
    assert not store.path.parent.exists()
    assert told == []


async def test_who_comes_late_reads_again(make, look):
    """What it has read may have changed before it came; from then on it hears what all do."""
    here, there, early, late = make(), make(), [], []
    there.watch(early.append)
    await here.save_preference(ANNE, ALL)
    await look(there)
    there.watch(late.append)
    await look(there)
    assert late == [None]
    await here.forget(ANNE)
    await look(there)
    assert early == [[yes(ANNE)], [no(ANNE)]]
    assert late == [None, [no(ANNE)]]


async def test_who_was_away_for_long_reads_everything_again(make, look, monkeypatch):
    """Changes are remembered in bounds: so many, for so long."""
    monkeypatch.setattr(_sqlite_news, "_ENTRIES", 3)
    here, there, told = make(), make(), []
    there.watch(told.append)
    await here.save_preference(ANNE, ALL)
    await look(there)
    for _ in range(4):
        await here.save_preference(ANNE, ALL)
    await look(there)
    await here.save_preference(BERT, NONE)
    await look(there)
    assert told == [[yes(ANNE)], None, [no(BERT)]]


async def test_old_changes_are_removed(make, clock):
    """With the first one that comes an hour later; and they never named anybody."""
    store = make()
    await store.forget(ANNE)  # where there is nothing there is nothing to tell
    for key in (ANNE, BERT):
        await store.save_preference(key, ALL)
        clock.advance(_sqlite_news._REMEMBERED / 2)
    await store.forget(ANNE)
    with closing(sqlite3.connect(store.path)) as connection:
        rows = connection.execute("SELECT number, visitor, refused FROM changes").fetchall()
    assert rows == [(2, visitor_digest(BERT), 0), (3, visitor_digest(ANNE), 1)]
    assert b"anne" not in store.path.read_bytes()


async def test_a_file_that_was_removed(make, look):
    """Nobody knows what is missing, so everything is read again; then a new file is heard of."""
    here, there, told = make(), make(), []
    there.watch(told.append)
    await here.save_preference(ANNE, ALL)
    await look(there)
    async with reopening(there), reopening(here):
        here.path.unlink()
    await look(there)
    await look(there)
    await here.save_preference(BERT, NONE)
    await look(there)
    assert told == [[yes(ANNE)], None, [no(BERT)]]


async def test_another_file_is_heard_of(make, look):
    """One that has fewer changes than were read already."""
    here, there, told = make(), make(), []
    there.watch(told.append)
    for key in (ANNE, BERT):
        await here.save_preference(key, ALL)
    await look(there)
    async with reopening(there), reopening(here):
        here.path.unlink()
    await here.save_preference(BERT, NONE)
    await look(there)
    assert told == [[yes(ANNE), yes(BERT)], None]


async def test_a_file_that_cannot_be_read_for_a_while(make, look, caplog):
    """It is said once, and what changed meanwhile is told."""
    here, there, told = make(), make(), []
    there.watch(told.append)
    await here.save_preference(ANNE, ALL)
    await look(there)
    aside = here.path.rename(here.path.with_suffix(".aside"))
    here.path.write_text("no database " * 100)
    async with reopening(there):
        for _ in range(2):
            with pytest.raises(Exception, match="damaged"):
                await look(there)
    aside.rename(here.path)
    await here.save_preference(ANNE, NONE)
    await look(there)
    assert told == [[yes(ANNE)], [no(ANNE)]]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "not heard for now" in caplog.messages[0]
    assert "within reach again" in caplog.messages[1]


async def test_listeners_do_not_harm_one_another(make, look, caplog):
    """One that raises is said in the log without what it raised, and others hear."""

    def raising(changes):
        raise ValueError("a secret")

    store, told = make(), []
    store.watch(raising)
    store.watch(told.append)
    await store.save_preference(ANNE, ALL)
    await look(store)
    assert told == [None, [yes(ANNE)]]
    assert caplog.messages == ["a listener to the store raised ValueError"]


async def test_closing_ends_it(make, clock):
    """Nothing is looked at any more, and a look that is under way tells nothing."""
    here, there, told = make(), make(), []
    there.watch(told.append)
    await here.save_preference(ANNE, ALL)
    clock.advance(LOOK_EVERY)
    await there.aclose()
    clock.advance(LOOK_EVERY)
    assert there._database._thread is None
    assert told == []


async def test_a_store_that_nobody_holds_goes(tmp_path, clock):
    """Watching keeps neither it nor its thread, although the next look is arranged."""
    store = SQLiteStore(tmp_path, clock=clock)
    store.watch([].append)
    clock.advance(LOOK_EVERY)
    await store.save_preference(ANNE, ALL)
    thread, gone = store._database._thread, weakref.ref(store)
    del store
    gc.collect()
    thread.join(10)
    assert gone() is None
    assert not thread.is_alive()
    clock.advance(LOOK_EVERY)


def test_another_event_loop(tmp_path):
    """There it is watched anew."""
    store, told = SQLiteStore(tmp_path), []

    async def once():
        clock = store._clock = ManualClock()
        store.watch(told.append)
        await store.save_preference(ANNE, ALL)
        clock.advance(LOOK_EVERY)
        await store.load_identity(ANNE)

    asyncio.run(once())
    asyncio.run(once())
    assert told == [[yes(ANNE)], None, [yes(ANNE)]]
    asyncio.run(store.aclose())


# Instances that share a file


@pytest.fixture
async def two(tmp_path, clock):
    """Two processes with the default store: two instances, with an edge each."""
    edges = RecordingEdge(), RecordingEdge()
    async with Alloy("here") as here, Alloy("there") as there:
        for alloy, edge in zip((here, there), edges, strict=True):
            options = IDS | {"state_dir": tmp_path, "transport": edge, "clock": clock, "max_in_flight": 1}
            await alloy.configure(**options, opt_in_enabled=True, parked_wait=9_999.0)
        yield here, there, edges[0]


async def test_a_yes_elsewhere_releases_what_is_parked_here(two, clock):
    """Of a visitor with a key, and of the one person of the process."""
    here, there, edge = two
    for person, elsewhere in ((here, there), (here.visitor("anne"), there.visitor("anne"))):
        event = person.event(type="parked")
        await elsewhere.opt_in(purposes="all")
        assert not event.done()
        clock.advance(LOOK_EVERY)
        await event
    assert edge.event_types == ["parked", "parked"]


async def test_a_no_elsewhere_stops_what_is_queued_here(two, clock):
    """And what is called later; what is on the wire settles with the truth."""
    here, there, edge = two
    for person, elsewhere in ((here, there), (here.visitor("anne"), there.visitor("anne"))):
        await person.opt_in(purposes="all")
        edge.hold()
        first = person.event(type="first")
        while not edge.holding:
            await asyncio.sleep(0)
        queued = person.event(type="queued")
        await elsewhere.opt_in(purposes="none")
        clock.advance(LOOK_EVERY)
        with pytest.raises(ConsentDeclined):
            await queued
        edge.release()
        await first
        with pytest.raises(ConsentDeclined):
            await person.event(type="later")
    assert edge.event_types == ["first", "first"]
