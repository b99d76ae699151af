"""The outbox in Redis, on a real server: what it promises, and what becomes of that when things go wrong."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from common import IDS
from processes import running
from redis_server import redis_server

from alloy_async import Alloy
from alloy_async._redis import Script
from alloy_async.errors import ConfigurationError, OutboxError
from alloy_async.outbox import (
    OutboxEvent,
    Row,
    Shelf,
    VisitorKey,
    _redis_scripts as scripts,
    _redis_worker,
    redis,
)
from alloy_async.outbox.base import LEASE
from alloy_async.outbox.redis import RedisOutbox
from alloy_async.stores import MemoryStore
from alloy_async.testing import LoopbackEdge, ManualClock, OutboxConformance, RecordingEdge

pytestmark = pytest.mark.integration

ANNE = VisitorKey("ADB3LETTERSANDNUMBERS@AdobeOrg", "ebebf826-a01f-4458-8cec-ef61de241c93", "anne-of-green")
BERT = ANNE._replace(visitor="bert")
SECRET = b"a-secret-nobody-else-has"
MANY = 1 << 30

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture(scope="module")
def shared():
    """A server for all tests that leave it alive."""
    with redis_server("--rdbcompression", "no") as server:
        yield server


@pytest.fixture
def server(shared):
    """The same, and nothing in it."""
    shared.command("FLUSHDB")
    return shared


@pytest.fixture
def own():
    """A server of the test's own, to be paused or killed, that keeps what it is given."""
    with redis_server(*DURABLE) as server:
        yield server


@pytest.fixture
async def make():
    """Makes outboxes, which are closed at the end."""
    made = []

    def make(server, **options):
        made.append(RedisOutbox(server.url, **options))
        return made[-1]

    yield make
    for outbox in made:
        await outbox.aclose()


def event(visitor=ANNE, body=b"{}", event_id="id", accepted_at=1.0):
    return OutboxEvent(
        visitor, event_id, body, needs_answer=False, names_person=False, accepted_at=accepted_at
    )


async def opened(outbox):
    return outbox, await outbox.open()


async def store(outbox, epoch, events):
    return list((await outbox.write(events, [], epoch=epoch)).keys)


async def claimed_by(outbox, *visitors):
    return [one.key for one in await outbox.claim(visitors, count=10_000, size=MANY)]


async def until(condition, seconds=10.0):
    """Wait for something that happens in the background."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


class TestRedisOutbox(OutboxConformance):
    """What every outbox must do."""

    @pytest.fixture
    async def make_outbox(self, server, make, clock):
        return lambda: make(server, clock=clock, **self.bounds)


# What is in Redis


async def test_keys_name_nobody_and_lie_in_one_slot(server, make):
    """Names of keys, the stream and the index hold digests; a hash tag keeps all keys together in a cluster."""
    outbox, epoch = await opened(make(server, name="shop"))
    await store(outbox, epoch, [event(body=SECRET)])
    await outbox.erase(BERT)
    keys = server.keys()
    assert {key.partition("}")[0] for key in keys} == {"alloy:{shop"}
    bodies = server.command("DUMP", "alloy:{shop}:bodies")
    assert ANNE.visitor.encode() in bodies and SECRET in bodies
    others = [server.command("DUMP", key) for key in keys if not key.endswith("bodies")]
    assert not [dump for dump in others if ANNE.visitor.encode() in dump or SECRET in dump]


async def test_what_was_erased_is_in_no_dump(server, make):
    """Nothing of an erased event stays in the data, although its neighbours do; nor in a log that is rewritten."""
    outbox, epoch = await opened(make(server))
    await store(outbox, epoch, [event(BERT, b"b"), event(ANNE, SECRET, "anne's"), event(BERT, b"c")])
    await outbox.erase(ANNE)
    keys = server.keys()
    dumps = b"".join(server.command("DUMP", key) for key in keys)
    assert not [text for text in (SECRET, ANNE.visitor.encode(), b"anne's") if text in dumps]
    assert BERT.visitor.encode() in dumps


async def test_rewriting_the_log_erases_what_was_erased(own, make):
    """The append-only file keeps what was written; once it is rewritten nothing of an erased event is left."""
    own.command("CONFIG", "SET", "rdbcompression", "no")
    outbox, epoch = await opened(make(own))
    await store(outbox, epoch, [event(BERT, b"a-neighbour"), event(body=SECRET), event(BERT)])
    await outbox.erase(ANNE)
    folder = Path(own.command("CONFIG", "GET", "dir")[b"dir"].decode())
    assert SECRET in files_in(folder)
    own.command("BGREWRITEAOF")
    await until(lambda: own.command("INFO", "persistence")["aof_rewrite_in_progress"] == 0)
    files = files_in(folder)
    assert (SECRET in files, ANNE.visitor.encode() in files, b"a-neighbour" in files) == (False, False, True)


def files_in(folder):
    """What is on the disk: in the files, at whatever depth."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def test_looking_writes_nothing_to_the_log(own, make):
    """Workers that have nothing to do do not make the append-only file grow."""
    outbox, _ = await opened(make(own))
    looks = set()
    size = own.command("INFO", "persistence")["aof_current_size"]
    await until(
        lambda: looks.add(own.command("HGET", "alloy:{outbox}:looks", outbox._worker.id)) or len(looks) > 2
    )
    assert own.command("INFO", "persistence")["aof_current_size"] == size


async def test_whose_an_event_is_can_be_seen(server, make):
    """The pending lists of a consumer group say it, one consumer a worker; ended events are acknowledged and deleted."""
    one, epoch = await opened(make(server))
    other, _ = await opened(make(server))
    keys = await store(one, epoch, [event() for _ in range(3)])
    await store(other, epoch, [event()])
    await one.write([], keys[:1], epoch=epoch)
    stream = "alloy:{outbox}:events"
    pending = server.command("XPENDING", stream, "workers")
    assert sorted(each["pending"] for each in pending["consumers"]) == [1, 2]
    assert server.command("XLEN", stream) == 3
    (group,) = server.command("XINFO", "GROUPS", stream)
    assert group[b"last-delivered-id"] == b"4-0"  # there is nothing that a stray reader would get


async def test_an_empty_outbox_keeps_no_worker(server, make):
    """Who has left and has left nothing is not remembered."""
    for _ in range(3):
        outbox, epoch = await opened(make(server))
        keys = await store(outbox, epoch, [event()])
        await outbox.write([], keys, epoch=epoch)
        await outbox.erase(ANNE)
        await outbox.aclose()
    assert server.keys() == ["alloy:{outbox}:events", "alloy:{outbox}:state"]
    assert server.command("XINFO", "CONSUMERS", "alloy:{outbox}:events", "workers") == []


async def test_outboxes_of_other_names_are_others(server, make):
    """Two names in one database are two outboxes."""
    one, epoch = await opened(make(server, name="one"))
    other, _ = await opened(make(server, name="other"))
    await store(one, epoch, [event()])
    await other.erase(ANNE)
    assert (await one.shelf()).events == 1
    assert one.may_send(epoch)


@pytest.mark.parametrize("name", ["", "a b", "a}b", "x" * 65, "ümlaut"])
def test_a_name_that_breaks_the_hash_tag_is_refused(name):
    with pytest.raises(ConfigurationError, match="name"):
        RedisOutbox("redis://localhost", name=name)


async def test_a_newer_version_is_left_alone(server, make):
    """What a later version of the library has written is not touched."""
    server.command("HSET", "alloy:{outbox}:state", "version", "2")
    with pytest.raises(OutboxError, match="newer version"):
        await make(server).open()


# Several workers


async def test_bounds_hold_for_all_workers(server, make):
    """Neither count nor bytes go beyond the bounds, whoever writes, also at the same time."""
    bounds = {"max_events": 50, "max_bytes": 2_000}
    workers = [await opened(make(server, **bounds)) for _ in range(3)]
    writes = [store(outbox, epoch, [event(body=b"x" * 10)] * 30) for outbox, epoch in workers]
    keys = [key for some in await asyncio.gather(*writes) for key in some if key is not None]
    assert len(keys) == len(set(keys)) == 50
    assert (await workers[0][0].shelf()).size == 500
    for outbox, epoch in workers:
        await outbox.write([], keys, epoch=epoch)
    stored = [await outbox.write([event(body=b"x" * 900)], [], epoch=epoch) for outbox, epoch in workers]
    assert [one.bound for one in stored] == [None, None, "max_queued_bytes"]


async def test_a_killed_process_leaves_its_events(server, make):
    """What a process had stored when it was killed is taken over once its lease has run out, as it was."""
    script = """
    from alloy_async.outbox import OutboxEvent, VisitorKey
    from alloy_async.outbox.redis import RedisOutbox
    from alloy_async.testing import ManualClock

    async def main():
        outbox = RedisOutbox(options["url"], clock=ManualClock())
        epoch = await outbox.open()
        visitor = VisitorKey("org", "stream", "anne")
        events = [OutboxEvent(visitor, f"{n}", b"{}", False, True, 0.1 + n) for n in range(3)]
        say(len((await outbox.write(events, [], epoch=epoch)).keys))
        await told()

    logging.disable(logging.WARNING)
    asyncio.run(main())
    """
    clock = ManualClock()
    async with running(script, {"url": server.url}) as process:
        assert await process.hear() == "3"
        process.signal(signal.SIGKILL)
        await process.end()
    outbox, _ = await opened(make(server, clock=clock))
    visitor = VisitorKey("org", "stream", "anne")
    clock.advance(LEASE - 0.001)
    assert await claimed_by(outbox, visitor) == []
    clock.advance(0.001)
    claimed = await outbox.claim([visitor], count=9, size=MANY)
    events = [OutboxEvent(visitor, f"{n}", b"{}", False, True, 0.1 + n) for n in range(3)]
    assert [one.event for one in claimed] == events


async def test_leases_go_by_the_clock_of_redis(server, make, monkeypatch):
    """Where no clock is given those of the machines need not agree: a worker of yesterday is alive, and then dead."""
    monkeypatch.setattr(_redis_worker, "LEASE", 0.3)
    one, epoch = await opened(make(server))
    keys = await store(one, epoch, [event()])
    monkeypatch.setattr(_redis_worker, "LEASE", LEASE)
    other, _ = await opened(make(server))
    ahead = time.time() + 86_400.0
    monkeypatch.setattr("time.time", lambda: ahead)
    assert await claimed_by(other, ANNE) == []
    async with asyncio.timeout(10):
        while not (claimed := await claimed_by(other, ANNE)):
            await asyncio.sleep(0.01)
    assert claimed == keys


@pytest.mark.parametrize("ordered", [False, True])
async def test_order_over_workers(server, make, clock, ordered):
    """With ``ordered`` nothing is taken over while another living worker has something older of the visitor."""
    one, epoch = await opened(make(server, clock=clock))
    other, _ = await opened(make(server, clock=clock))
    taker, _ = await opened(make(server, clock=clock, ordered=ordered))
    first = await store(one, epoch, [event()])
    later = await store(other, epoch, [event(), event(BERT)])
    await other.release()
    assert await claimed_by(taker, ANNE, BERT) == (later[1:] if ordered else later)
    await one.release()
    assert await claimed_by(taker, ANNE, BERT) == (first + later[:1] if ordered else first)


async def test_order_after_a_worker_that_was_killed(server, make, clock):
    """What waits for a worker's older events goes on once it is dead, behind them."""
    one, epoch = await opened(make(server, clock=clock))
    first = await store(one, epoch, [event()])
    clock.advance(LEASE / 2)
    other, _ = await opened(make(server, clock=clock))
    later = await store(other, epoch, [event()])
    await other.release()
    taker, _ = await opened(make(server, clock=clock, ordered=True))
    assert await claimed_by(taker, ANNE) == []
    clock.advance(LEASE / 2)
    assert await claimed_by(taker, ANNE) == first + later


async def test_order_among_takers(server, make, clock):
    """What one has found is left, when another one has taken something older meanwhile."""
    one, epoch = await opened(make(server, clock=clock))
    keys = await store(one, epoch, [event(), event()])
    await one.release()
    taker, rival = [(await opened(make(server, clock=clock, ordered=True)))[0] for _ in range(2)]
    found = await taker._left._oldest(taker._worker, [taker._worker.meet(ANNE)], 9)
    assert [one.key for one in await rival.claim([ANNE], count=1, size=MANY)] == keys[:1]
    take = partial(taker._worker.claim, members=found, size=MANY, ordered=True)
    assert await taker._place.run("read", take) == []
    await rival.write([], keys[:1], epoch=epoch)
    assert await claimed_by(taker, ANNE) == keys[1:]


async def test_what_was_left_has_few_owners(server, make):
    """What is left belongs to nobody in particular, so that it is found quickly; and it is told when there is more."""
    outbox, epoch = await opened(make(server))
    other, _ = await opened(make(server))
    for number in range(20):
        keys = await store(outbox, epoch, [event(ANNE._replace(visitor=f"{number}"))])
        await (outbox.open() if number % 2 else outbox.release())
        pending = server.command("XPENDING", "alloy:{outbox}:events", "workers")
        assert b"nobody----------" in [each["name"] for each in pending["consumers"]]
        left = await other.abandoned()
        assert [key.visitor for key in left] == [f"{number}"]  # one each time, and another one
        assert await claimed_by(other, *left) == keys
    consumers = server.command("XINFO", "CONSUMERS", "alloy:{outbox}:events", "workers")
    assert len(consumers) <= 3


async def test_much_is_left_as_well(server, make):
    """Whether a worker closes or goes on, others get all of it, in order."""
    outbox, epoch = await opened(make(server))
    other, _ = await opened(make(server))
    for leave in (outbox.release, outbox.aclose):
        keys = [key for _ in range(3) for key in await store(outbox, epoch, [event()] * 701)]
        await leave()
        assert (await other.shelf()).unclaimed == len(keys)
        if leave == outbox.release:
            assert (await outbox.changes(epoch)).gone == frozenset()
        claimed = [key for _ in range(3) for key in await claimed_by(other, ANNE)]
        assert claimed == keys
        await other.write([], claimed, epoch=epoch)


async def test_opened_again_it_knows_what_it_knew(server, make):
    """Whose events it had before, by name; and which keys and epochs there were, when Redis has lost its data since."""
    outbox, epoch = await opened(make(server))
    other, _ = await opened(make(server))
    await store(outbox, epoch, [event()])
    assert await outbox.open() == epoch
    refused_at = await other.erase(ANNE)
    assert (await outbox.changes(epoch)).refused == {ANNE: refused_at}
    server.command("FLUSHDB")
    assert await outbox.open() == refused_at
    assert await store(outbox, refused_at, [event()]) == [2]


async def test_opening_again_is_never_a_gap(server, make):
    """While an outbox is opened again it can be used, as the old worker or the new one."""
    outbox, epoch = await opened(make(server))
    opening = asyncio.Task(outbox.open())
    written = 0
    while not opening.done():
        written += len(await store(outbox, epoch, [event()]))
    assert written
    assert (await outbox.shelf()).events == written
    assert (await outbox.changes(epoch)).gone == frozenset()


async def test_many_visitors_are_found_in_order(server, make):
    """Whose events the dead have left is told oldest first, however many there are, and their events come in order."""
    visitors = [ANNE._replace(visitor=f"{number * 7919 % 2503}") for number in range(2_503)]
    owners = [await opened(make(server)) for _ in range(2)]
    for start in range(0, len(visitors), 500):
        outbox, epoch = owners[start // 500 % 2]
        await store(outbox, epoch, [event(visitor) for visitor in visitors[start : start + 500]])
    other, epoch = await opened(make(server))
    assert await other.abandoned() == []
    for outbox, _ in owners:
        await outbox.aclose()
    assert await other.abandoned(3) == visitors[:3]
    assert await other.abandoned() == visitors
    assert await claimed_by(other, *visitors[::-1]) == list(range(1, 1_001))
    assert await other.abandoned() == visitors[1_000:]
    await other.erase(visitors[1_000])
    assert await other.abandoned() == visitors[1_001:]
    assert [len(await claimed_by(other, *visitors)) for _ in range(3)] == [1_000, 502, 0]


async def test_whoever_comes_back_in_time_keeps_its_events(server, make, clock):
    """Events that were found to belong to a dead worker are not taken from it, once it has renewed its lease."""
    one, epoch = await opened(make(server, clock=clock))
    await store(one, epoch, [event()])
    clock.advance(LEASE)
    other, _ = await opened(make(server, clock=clock))
    found = await other._left._oldest(other._worker, [other._worker.meet(ANNE)], 9)
    await one.renew()
    take = partial(other._worker.claim, members=found, size=MANY, ordered=False)
    claimed = await other._place.run("read", take)
    assert (len(found), claimed) == (1, [])
    assert (await one.changes(epoch)).gone == frozenset()


async def test_expiring_goes_through_everything(server, make):
    """However many events the dead have, those that are too old go, and only those."""
    outbox, epoch = await opened(make(server))
    await store(outbox, epoch, [event(accepted_at=float(number % 3)) for number in range(1_600)])
    other, _ = await opened(make(server))
    assert await other.expire(2.0) == 0
    await outbox.aclose()
    assert await other.expire(2.0) == 1_067
    assert await other.expire(2.0) == 0
    left = await other.claim([ANNE], count=2_000, size=MANY)
    assert Counter(one.event.accepted_at for one in left) == {2.0: 533}


async def test_a_worker_that_was_away_too_long_revives_nothing(server, make, clock):
    """Where refusals were forgotten that a worker does not know of, whomever it knows may have declined."""
    away, epoch = await opened(make(server, clock=clock))
    (key,) = await store(away, epoch, [event(BERT)])
    await away.write([], [key], epoch=epoch)
    clock.advance(LEASE + _redis_worker.REMEMBERED)
    other, _ = await opened(make(server, clock=clock))
    await other.erase(ANNE)
    await other.changes((await other.changes(epoch)).epoch)
    latest = await other.erase(ANNE._replace(visitor="Carl"))
    await away.renew()
    with pytest.raises(OutboxError, match="has not heard"):
        await away.write([event()], [], epoch=epoch)
    changes = await away.changes(epoch)
    assert (changes.epoch, changes.missed) == (latest, True)
    assert changes.refused == {ANNE: latest, BERT: latest}
    assert not (await away.changes(latest)).missed
    assert (await other.shelf()).events == 0


# What a person does


async def test_a_person_sees_events_without_being_a_worker(server, make):
    """Oldest first, whoever has them, with whose they are and not what they say; one by itself with what it says."""
    gone, epoch = await opened(make(server))
    keys = await store(gone, epoch, [event(body=b"{}\n12", event_id="free")])
    await gone.aclose()
    running, epoch = await opened(make(server))
    keys += await store(running, epoch, [event(BERT, SECRET, "held", 2.5)])
    person = make(server)
    seen = [
        Row(keys[0], "free", ANNE, 5, 1.0, False, False),
        Row(keys[1], "held", BERT, 24, 2.5, False, True),
    ]
    assert await person.rows(9) == seen
    assert await person.rows(1) == seen[:1]
    assert await person.rows(0) == []
    assert await person.row(keys[1]) == seen[1]._replace(body=SECRET)
    assert (await person.row(keys[0])).body == b"{}\n12"
    assert [await person.row(key) for key in (keys[1] + 1, 0, -1, 2**80)] == [None] * 4
    assert (await person.shelf()).workers == 1


async def test_a_long_list_is_read_in_steps(server, make):
    """However many there are, each is seen once and in order."""
    outbox, epoch = await opened(make(server))
    await store(outbox, epoch, [event() for _ in range(2_100)])
    assert [row.key for row in await outbox.rows(2_050)] == list(range(1, 2_051))
    assert len(await outbox.rows(9_999)) == 2_100
    assert await outbox.purge(None) == 2_100


async def test_looking_where_there_is_nothing_leaves_no_trace(server, make):
    """Nor does purging."""
    person = make(server)
    assert (await person.rows(9), await person.row(1)) == ([], None)
    assert [await person.purge(keys) for keys in (None, [1])] == [0, 0]
    assert server.keys() == []


async def test_a_purge_leaves_true_books(server, make):
    """What is left is counted rightly: events, bytes, who has them; and keys that are not there count for nothing."""
    gone, epoch = await opened(make(server))
    left = await store(gone, epoch, [event(body=b"x" * 10) for _ in range(3)])
    await gone.aclose()
    running, epoch = await opened(make(server))
    held = await store(running, epoch, [event(BERT, b"y" * 100) for _ in range(3)])
    person = make(server)
    assert await person.purge([left[0], held[0], held[0], 99, 0, -1, 2**80]) == 2
    assert await person.shelf() == Shelf(events=4, size=220, workers=1, unclaimed=2)
    assert (await running.changes(epoch)).gone == {held[0]}
    assert await claimed_by(running, ANNE, BERT) == left[1:]
    assert await person.purge(None) == 4
    assert await person.shelf() == Shelf(workers=1)
    assert server.command("XPENDING", "alloy:{outbox}:events", "workers")["pending"] == 0
    assert not set(server.keys()) & {"alloy:{outbox}:bodies", "alloy:{outbox}:index"}
    again = await store(running, (await running.changes(epoch)).epoch, [event()])
    assert again == [held[-1] + 1]  # no key is given twice
    assert (await person.shelf()).events == 1


async def test_nobody_begins_to_send_what_was_purged(server, make):
    """When purging returns all workers know of it; an empty purge disturbs nobody."""
    running, epoch = await opened(make(server))
    keys = await store(running, epoch, [event() for _ in range(2)])
    person = make(server)
    await person.purge([99])
    assert running.may_send(epoch)
    await person.purge(keys[:1])
    assert not running.may_send(epoch)
    changes = await running.changes(epoch)
    assert (changes.gone, changes.refused) == ({keys[0]}, {})
    assert running.may_send(changes.epoch)
    assert await running.purge(keys[1:]) == 1  # a worker of its own accord
    assert not running.may_send(changes.epoch)


async def test_what_was_purged_is_in_no_dump(server, make):
    """Nothing of it stays in the data, although its neighbours do."""
    outbox, epoch = await opened(make(server))
    keys = await store(outbox, epoch, [event(BERT), event(ANNE, SECRET, "anne's"), event(BERT)])
    await outbox.purge(keys[1:2])
    keys = server.keys()
    dumps = b"".join(server.command("DUMP", key) for key in keys)
    assert BERT.visitor.encode() in dumps
    assert not [text for text in (SECRET, ANNE.visitor.encode(), b"anne's") if text in dumps]


async def test_a_purge_while_a_write_is_in_doubt(server, make):
    """What a worker was never told of may be purged before it is undone, and is not counted twice."""
    running, epoch = await opened(make(server))
    await store(running, epoch, [event(body=b"12345")])
    running._worker._doubt = running._worker._ticket  # as if the answer had not come
    assert await make(server).purge(None) == 1
    await running.renew()
    assert await make(server).shelf() == Shelf(workers=1)


async def test_purging_where_redis_is_full(server, make):
    """It goes all the same: that is how room comes back."""
    outbox, epoch = await opened(make(server))
    await store(outbox, epoch, [event()])
    server.command("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(OutboxError, match="Redis is full"):
            await store(outbox, epoch, [event()])
        assert await make(server).purge(None) == 1
        assert (await outbox.shelf()).events == 0
    finally:
        server.command("CONFIG", "SET", "maxmemory", "0")


# Refusals


async def test_a_refusal_is_heard_without_messages(server, make, monkeypatch):
    """Where messages get lost, looking finds the refusal, and erasing waits for that."""
    silent = Script(scripts.ERASE._source.replace("'PUBLISH'", "'NOTHING'"))  # as for who may not publish
    monkeypatch.setattr(scripts, "ERASE", silent)
    one, epoch = await opened(make(server))
    other, _ = await opened(make(server))
    refused_at = await other.erase(ANNE)
    assert not one.may_send(epoch)
    await until(lambda: one._worker.heard == refused_at)
    assert one.may_send((await one.changes(epoch)).epoch)


async def test_a_worker_that_hangs_is_waited_for_once(server, make, monkeypatch):
    """Erasing waits until a worker that does not look may not send any more; later ones do not wait for it."""
    for module in (redis, _redis_worker):
        monkeypatch.setattr(module, "FRESH", 1.5)
    hanging, epoch = await opened(make(server))
    other, _ = await opened(make(server))
    hanging._looking.cancel()
    assert hanging.may_send(epoch)
    began = time.monotonic()
    await other.erase(ANNE)
    assert time.monotonic() - began > 0.7
    assert not hanging.may_send(epoch)
    began = time.monotonic()
    await other.erase(BERT)
    assert time.monotonic() - began < 0.7
    changes = await hanging.changes(epoch)  # it is alive after all, and waited for again
    assert hanging.may_send(changes.epoch)
    await other.erase(BERT)
    assert not hanging.may_send(changes.epoch)


async def test_erasing_waits_while_it_cannot_ask(server, make, monkeypatch):
    """Where it cannot be found out who knows, erasing returns when nobody's look counts any more."""
    hanging, epoch = await opened(make(server))
    other, _ = await opened(make(server))
    hanging._looking.cancel()
    monkeypatch.setattr(scripts, "UNHEARD", Script("return redis.error_reply('NOPERM no')"))
    await other.erase(ANNE)
    assert not hanging.may_send(epoch)


async def test_a_refusal_is_confirmed_at_once(server, make, monkeypatch):
    """A message makes a worker look, and look again to say what it knows now: erasing need not wait for the next look."""
    monkeypatch.setattr(redis, "LOOK_EVERY", 60.0)
    one, _ = await opened(make(server))
    other, _ = await opened(make(server))
    refused_at = await other.erase(ANNE)
    look = server.command("HGET", "alloy:{outbox}:looks", one._worker.id)
    assert look.split()[0] == b"%d" % refused_at


async def test_whoever_erases_knows_it(server, make):
    """A worker does not send with the epoch that it has just ended itself, whether it has looked since or not."""
    outbox, epoch = await opened(make(server))
    outbox._looking.cancel()
    assert outbox.may_send(epoch)
    refused_at = await outbox.erase(ANNE)
    assert not outbox.may_send(epoch)
    assert outbox.may_send(refused_at)


async def test_refusals_are_forgotten_once_everybody_knows(server, make):
    """Not even digests are kept of those that every worker has heard of; who has left need not hear."""
    outbox, epoch = await opened(make(server))
    gone, _ = await opened(make(server))
    await store(gone, epoch, [event(BERT)])
    await gone.aclose()
    for number in range(3):
        epoch = await outbox.erase(ANNE._replace(visitor=f"{number}"))
        await outbox.changes(epoch)
    assert server.command("ZCARD", "alloy:{outbox}:refusals") == 1


async def test_a_look_that_is_too_old_counts_for_nothing(server, make, monkeypatch):
    """Also where the wall clock was set back in the meantime."""
    outbox, epoch = await opened(make(server))
    outbox._looking.cancel()
    moment = outbox._worker._looked.wall
    monkeypatch.setattr("time.time", lambda: moment)
    monkeypatch.setattr(outbox._clock, "time", lambda: moment)
    assert outbox.may_send(epoch)
    await until(lambda: not outbox.may_send(epoch))


async def test_an_answer_is_as_old_as_its_question(server, make, monkeypatch):
    """What was answered long ago, and was long on its way, says nothing of now."""
    outbox, epoch = await opened(make(server, clock=ManualClock()))
    outbox._looking.cancel()
    ask, now = scripts.CHANGES, time.time

    async def slowly(*question):
        answer = await ask(*question)
        monkeypatch.setattr("time.time", lambda: now() + 1.0)
        return answer

    monkeypatch.setattr(scripts, "CHANGES", slowly)
    await outbox.changes(epoch)
    assert not outbox.may_send(epoch)


async def test_a_machine_that_slept_may_not_send(server, make, monkeypatch):
    """A look counts by the wall clock too: the other one stands still while a machine sleeps."""
    outbox, epoch = await opened(make(server, clock=ManualClock()))
    awake = time.time
    monkeypatch.setattr("time.time", lambda: awake() + 3_600.0)
    assert not outbox.may_send(epoch)
    await outbox.changes(epoch)
    assert outbox.may_send(epoch)


async def test_a_worker_without_lease_is_told_by_looking(server, make):
    """Where Redis says that the lease has run out, it has, whatever the worker's own clock says."""
    outbox, epoch = await opened(make(server))
    assert outbox.may_send(epoch)
    server.command("ZADD", "alloy:{outbox}:workers", 1, outbox._worker.id)
    await until(lambda: not outbox.may_send(epoch))
    assert not await outbox.renew()
    assert outbox.may_send(epoch)


async def test_a_refusal_by_nobody_in_particular(server, make):
    """An outbox that is not open erases too, and the workers hear it."""
    worker, epoch = await opened(make(server))
    await store(worker, epoch, [event(), event(BERT)])
    await make(server).erase(ANNE)
    assert not worker.may_send(epoch)
    changes = await worker.changes(epoch)
    assert (set(changes.refused), len(changes.gone)) == ({ANNE}, 1)


# Redis that hangs, dies, or is full


async def test_a_paused_server(own, make):
    """While Redis does not answer nothing may be sent, calls fail in time, and the loop is free; then all goes on."""
    outbox, epoch = await opened(make(own, timeout=0.3))
    own.pause()
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.ensure_future(tick())
    for call in (outbox.write([event()], [], epoch=epoch), outbox.changes(epoch), outbox.erase(ANNE)):
        began = time.monotonic()
        with pytest.raises(OutboxError, match="did not answer in time"):
            await call
        assert time.monotonic() - began < 1.5
    await until(lambda: not outbox.may_send(epoch))
    ticking.cancel()
    assert ticks > 20
    own.resume()
    async with asyncio.timeout(10):
        while not outbox.may_send(epoch):
            with suppress(OutboxError):
                epoch = (await outbox.changes(epoch)).epoch
    assert len(await store(outbox, epoch, [event()])) == 1


async def test_what_was_not_told_is_undone(own, make):
    """A write whose answer got lost has failed: its events are erased, and never sent to anybody's surprise."""
    outbox, epoch = await opened(make(own, timeout=0.3))
    (kept,) = await store(outbox, epoch, [event(event_id="kept")])
    own.pause()
    with pytest.raises(OutboxError):
        await outbox.write([event(body=SECRET)], [kept], epoch=epoch)
    own.resume()
    async with asyncio.timeout(10):
        while True:
            with suppress(OutboxError):
                changes = await outbox.changes(epoch)
                break
    assert changes.gone in (frozenset(), {kept})  # it has ended, if the call came through
    assert (
        SECRET not in own.command("DUMP", "alloy:{outbox}:bodies")
        if own.command("EXISTS", "alloy:{outbox}:bodies")
        else True
    )
    await outbox.write([], [kept], epoch=epoch)
    assert (await outbox.shelf()).events == 0


class Lossy:
    """Lets scripts run, or not, and loses the answers; remembers what was asked."""

    def __init__(self, script, monkeypatch, name):
        self.lost = []
        self._script = script
        self.losing = ""
        monkeypatch.setattr(scripts, name, self)

    async def __call__(self, redis, keys, arguments):
        if self.losing:
            self.lost.append((keys, arguments))
            if self.losing == "answer":
                await self._script(redis, keys, arguments)
            raise TimeoutError
        return await self._script(redis, keys, arguments)

    async def arrive(self, outbox):
        """Let what was lost arrive after all."""
        return [
            await outbox._place.link.run(lambda redis, call=call: self._script(redis, *call))
            for call in self.lost
        ]


@pytest.mark.parametrize(
    "losing", [("question", "question"), ("answer", "answer"), ("answer", "question"), ("question", "answer")]
)
@pytest.mark.parametrize("next_step", ["write", "renew", "changes", "claim", "leave"])
async def test_a_write_in_doubt_is_undone_by_the_next_step(server, make, monkeypatch, losing, next_step):
    """Whether its question or its answer was lost; and it is refused when it arrives later."""
    write = Lossy(scripts.WRITE, monkeypatch, "WRITE")
    outbox, epoch = await opened(make(server))
    await store(outbox, epoch, [event(BERT)])
    for write.losing in losing:
        with pytest.raises(OutboxError, match="in time"):
            await store(outbox, epoch, [event()])
    write.losing = ""
    expected = 1
    if next_step == "write":
        expected = 2
        await store(outbox, epoch, [event(BERT)])
    elif next_step == "renew":
        assert await outbox.renew()
    elif next_step == "changes":
        assert (await outbox.changes(epoch)).gone == frozenset()
    elif next_step == "claim":
        left, _ = await opened(make(server))
        await store(left, epoch, [event(BERT)])
        await left.aclose()
        assert len(await claimed_by(outbox, BERT)) == 1
        expected = 2
    else:
        await outbox.aclose()
    other, _ = await opened(make(server))
    assert (await other.shelf()).events == expected
    if next_step != "leave":
        assert await write.arrive(other) == [[-1], [-1]]
    assert (await other.shelf()).events == expected


@pytest.mark.parametrize("losing", ["question", "answer"])
@pytest.mark.parametrize("next_step", ["write", "renew", "changes", "claim", "leave"])
async def test_a_claim_in_doubt_is_free_again(server, make, monkeypatch, losing, next_step):
    """Events that were taken over without its knowledge are not a worker's, and not lost: anybody may take them over."""
    left, epoch = await opened(make(server))
    keys = await store(left, epoch, [event() for _ in range(3)])
    await left.aclose()
    claim = Lossy(scripts.CLAIM, monkeypatch, "CLAIM")
    outbox, _ = await opened(make(server))
    claim.losing = losing
    with pytest.raises(OutboxError, match="in time"):
        await claimed_by(outbox, ANNE)
    claim.losing = ""
    if next_step == "write":
        await store(outbox, epoch, [event(BERT)])
    elif next_step == "renew":
        assert await outbox.renew()
    elif next_step == "changes":
        assert (await outbox.changes(epoch)).gone == frozenset()
    elif next_step == "claim":
        await claimed_by(outbox, ANNE)
        await outbox.renew()
        assert sorted(await claimed_by(outbox, ANNE)) in ([], keys)
        await outbox.aclose()
    else:
        await outbox.aclose()
    other, _ = await opened(make(server))
    if next_step != "leave":
        assert set(map(tuple, await claim.arrive(other))) <= {(-1,), (-2,)}
    assert await claimed_by(other, ANNE) == keys


async def test_a_server_that_was_killed(own, make):
    """What was written before Redis was killed is there when it is back, and its worker goes on by itself."""
    outbox, epoch = await opened(make(own, timeout=0.5))
    keys = await store(outbox, epoch, [event(body=b"%d" % number) for number in range(5)])
    own.kill()
    with pytest.raises(OutboxError):
        await outbox.write([event()], keys[:1], epoch=epoch)
    await until(lambda: not outbox.may_send(epoch))
    own.restart()
    await until(lambda: outbox.may_send(epoch))
    assert (await outbox.changes(epoch)).gone == frozenset()
    await outbox.write([], keys[:1], epoch=epoch)
    await outbox.aclose()
    other, _ = await opened(make(own))
    assert [one.event.body for one in await other.claim([ANNE], count=9, size=MANY)] == [
        b"1",
        b"2",
        b"3",
        b"4",
    ]


async def test_a_server_that_has_lost_its_data(server, make):
    """The worker hears that its events are gone and begins anew; neither keys nor epochs are given twice."""
    outbox, epoch = await opened(make(server))
    epoch = await outbox.erase(BERT)
    keys = await store(outbox, epoch, [event(), event()])
    server.command("FLUSHDB")
    with pytest.raises(OutboxError, match="has lost"):
        await store(outbox, epoch, [event()])
    assert not await outbox.renew()
    changes = await outbox.changes(epoch)
    assert (changes.epoch, changes.gone) == (epoch, frozenset(keys))
    assert outbox.may_send(epoch)
    assert await store(outbox, epoch, [event()]) == [keys[-1] + 1]
    assert await outbox.erase(BERT) == epoch + 1
    assert await make(server).open() == epoch + 1


async def test_a_refusal_before_a_worker_is_back_is_not_missed(server, make):
    """Where Redis has lost its data nobody remembers a refusal for a worker that is not there: all may have declined."""
    one, epoch = await opened(make(server))
    (key,) = await store(one, epoch, [event(BERT)])
    other, _ = await opened(make(server))
    server.command("FLUSHDB")
    refused_at = await other.erase(ANNE)
    assert not await one.renew()
    changes = await one.changes(epoch)
    assert (changes.epoch, changes.missed, changes.gone) == (refused_at, True, frozenset([key]))
    assert changes.refused == {BERT: refused_at}
    assert await store(one, changes.epoch, [event(BERT)]) == [key + 1]


async def test_what_is_refused_is_remembered_for_those_who_come_back(server, make):
    """A worker that Redis had forgotten, and that has only renewed its lease so far, hears of every refusal since."""
    one, epoch = await opened(make(server))
    await store(one, epoch, [event()])
    server.command("FLUSHDB")
    await one.renew()
    other, _ = await opened(make(server))
    refused_at = await other.erase(ANNE)
    await other.changes(refused_at)
    await other.erase(BERT)
    assert (await one.changes(epoch)).refused == {ANNE: refused_at}


async def test_a_cancelled_writer(own, make):
    """Who stops waiting for a write changes nothing about it: all is stored, and the worker knows it."""
    outbox, epoch = await opened(make(own))
    own.pause()
    writing = asyncio.Task(outbox.write([event() for _ in range(3)], [], epoch=epoch))
    await asyncio.sleep(0.05)
    writing.cancel()
    await asyncio.wait([writing])
    own.resume()
    (last,) = await store(outbox, epoch, [event()])
    assert last == 4
    assert (await outbox.changes(epoch)).gone == frozenset()
    await outbox.write([], range(1, 5), epoch=epoch)
    assert (await outbox.shelf()).events == 0


async def test_a_full_server(server, make):
    """A full Redis takes no events and says so; ended ones go all the same, and so do refusals, leases and sending."""
    outbox, epoch = await opened(make(server))
    keys = await store(outbox, epoch, [event(), event(), event(BERT), event(BERT)])
    server.command("CONFIG", "SET", "maxmemory", "1")
    try:
        for ended in ([], keys[:1]):
            with pytest.raises(OutboxError, match="Redis is full"):
                await outbox.write([event()], ended, epoch=epoch)
        assert (await outbox.shelf()).events == 3
        await outbox.write([], keys[:2], epoch=epoch)
        assert (await outbox.shelf()).events == 2
        assert await outbox.renew()
        epoch = await outbox.erase(BERT)
        assert (await outbox.changes(epoch)).gone == set(keys[2:])
        assert outbox.may_send(epoch)
        other, _ = await opened(make(server))
        await outbox.aclose()
        assert (await other.shelf()).workers == 1
    finally:
        server.command("CONFIG", "SET", "maxmemory", "0")
    assert len(await store(other, epoch, [event()])) == 1


async def test_taking_over_from_a_full_server(server, make):
    """What the dead have left may be sent, or it would stay full."""
    outbox, epoch = await opened(make(server))
    keys = await store(outbox, epoch, [event(), event()])
    await outbox.aclose()
    other, _ = await opened(make(server))
    server.command("CONFIG", "SET", "maxmemory", "1")
    try:
        assert await claimed_by(other, ANNE) == keys
        await other.write([], keys, epoch=epoch)
    finally:
        server.command("CONFIG", "SET", "maxmemory", "0")
    assert (await other.shelf()).events == 0


async def test_a_replica_confirms_nothing(own, make):
    """A primary that became a replica is not believed: it may not know of refusals."""
    outbox, epoch = await opened(make(own))
    own.command("REPLICAOF", "127.0.0.1", "1")
    await until(lambda: not outbox.may_send(epoch))
    with pytest.raises(OutboxError, match="replica"):
        await store(outbox, epoch, [event()])
    own.command("REPLICAOF", "NO", "ONE")
    await until(lambda: outbox.may_send(epoch))


async def test_somebody_elses_key(server, make):
    """A key of another kind is not overwritten."""
    server.command("SET", "alloy:{outbox}:events", "mine")
    with pytest.raises(OutboxError, match="another program") as caught:
        await make(server).open()
    assert server.command("GET", "alloy:{outbox}:events") == b"mine"
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


async def test_no_server(make, tmp_path):
    """Where nobody answers opening fails, and closing does not."""
    pytest.importorskip("redis")
    outbox = RedisOutbox(f"unix://:hunter2@{tmp_path / 'nothing'}")
    with pytest.raises(OutboxError) as caught:
        await outbox.open()
    assert "hunter2" not in f"{caught.value} {caught.value!r} {outbox!r}"
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert caught.value.action == "open"
    await outbox.aclose()


async def test_closing_while_the_server_is_gone(own, make, caplog):
    """Closing ends in time without an error; what is kept is free when the lease has run out."""
    outbox, _ = await opened(make(own, timeout=0.3))
    own.kill()
    caplog.set_level(logging.INFO, "alloy_async")
    await asyncio.wait_for(outbox.aclose(), 5)
    assert "left to others once the lease has run out" in caplog.text


async def test_it_says_what_the_server_is_not_set_up_for(server, make, caplog):
    """Once: events that Redis would lose."""
    server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        outbox = make(server)
        await outbox.open()
        await outbox.open()
    finally:
        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert [record.message.partition(": ")[2].split()[0] for record in caplog.records] == [
        "appendonly",
        "maxmemory-policy",
    ]


ALLOWED = """
    +evalsha +eval +info +exists +time +hget +hmget +hvals +hset +hsetnx +hdel +hincrby
    +xadd +xlen +xrange +xdel +xack +xclaim +xpending +xgroup
    +zadd +zscore +zrem +zrange +zrangebyscore +zrangebylex +zremrangebyscore +zcount
"""
"""What a user must be allowed, as docs/howto has it."""


@pytest.mark.parametrize("more", [("&alloy:*", "+publish", "+subscribe"), ()])
async def test_what_a_user_must_be_allowed(server, make, more):
    """That and no more is needed; messages may be forbidden."""
    server.command(
        "ACL", "SETUSER", "alloy", "on", ">word", "resetchannels", "~alloy:*", *ALLOWED.split(), *more
    )
    try:
        url = server.url.replace("://", "://alloy:word@")
        one, epoch = await opened(RedisOutbox(url))
        other, _ = await opened(make(server))
        await store(one, epoch, [event(), event(BERT), event(BERT)])
        epoch = await one.erase(ANNE)
        assert len((await one.changes(epoch)).gone) == 1
        await one.write([event(BERT)], [2], epoch=epoch)
        assert await one.renew()
        await store(other, epoch, [event(BERT), event()])
        await other.aclose()
        assert await one.abandoned() == [BERT, ANNE]
        assert (await claimed_by(one, BERT), await one.expire(9.0)) == ([5], 1)
        epoch = await make(server).erase(ANNE)
        await until(lambda: one.may_send(epoch))
        await one.write([], [3, 4, 5], epoch=epoch)
        [key] = await store(one, epoch, [event()])
        assert await one.row(key) is not None
        assert (len(await one.rows(9)), await one.purge(None)) == (1, 1)
        await one.aclose()
        other, _ = await opened(make(server))
        assert (await other.shelf()).workers == 1
    finally:
        server.command("ACL", "DELUSER", "alloy")


async def test_it_has_nothing_to_say_of_a_good_server(own, make, caplog):
    await make(own).open()
    assert caplog.records == []


async def test_another_event_loop(server):
    """An outbox that was left open in a loop that has ended begins anew in the next one, as a process that forked."""

    async def first():
        epoch = await outbox.open()
        return epoch, await store(outbox, epoch, [event()])

    async def second(epoch, keys):
        assert not outbox.may_send(epoch + 1)
        assert (await outbox.changes(epoch)).gone == frozenset(keys)
        assert outbox.may_send(epoch)
        assert await store(outbox, epoch, [event()]) == [2]
        await outbox.aclose()

    outbox = RedisOutbox(server.url)
    known = await asyncio.to_thread(asyncio.run, first())
    await asyncio.to_thread(asyncio.run, second(*known))


# Forks


@pytest.mark.skipif(os.name != "posix", reason="forks as POSIX has them")
async def test_a_forked_child_is_another_worker(server):
    """The child has none of its parent's events, hears so, and stores its own over connections of its own."""
    script = """
    from alloy_async.outbox import OutboxEvent, VisitorKey
    from alloy_async.outbox.redis import RedisOutbox

    visitor = VisitorKey("org", "stream", "anne")

    def event(name):
        return OutboxEvent(visitor, name, b"{}", False, False, 1.0)

    async def child(outbox, epoch):
        assert not outbox.may_send(epoch)
        changes, stored = await asyncio.gather(outbox.changes(epoch), outbox.write([event("c")], [1], epoch=epoch))
        say("child", sorted(changes.gone), stored.keys, outbox.may_send(epoch), (await outbox.shelf()).workers)
        await outbox.aclose()

    async def main():
        outbox = RedisOutbox(options["url"])
        epoch = await outbox.open()
        keys = (await outbox.write([event("a"), event("b")], [], epoch=epoch)).keys
        number = fork(child, outbox, epoch)
        assert await asyncio.to_thread(os.waitpid, number, 0) == (number, 0)
        assert (await outbox.changes(epoch)).gone == frozenset()
        claimed = await outbox.claim([visitor], count=9, size=99)
        say("parent", [one.event.event_id for one in claimed], (await outbox.shelf()).events)
        await outbox.write([], [*keys, 3], epoch=epoch)
        say((await outbox.shelf()).events)
        await outbox.aclose()

    logging.disable(logging.WARNING)
    asyncio.run(main())
    """
    async with running(script, {"url": server.url}) as process:
        assert await process.ends_well() == [
            "child [1, 2] (3,) True 2",
            "parent ['c'] 3",
            "0",
        ]


# From end to end


async def test_another_instance_delivers_what_one_has_left(server):
    """An event that was stored when its instance was closed is sent by the next one, under the same id."""
    store, edge = MemoryStore(), RecordingEdge()
    options = {**IDS, "opt_in_enabled": True, "store": store}
    async with LoopbackEdge() as nowhere:
        nowhere.shut()
        one = Alloy()
        await one.configure(**options, outbox=RedisOutbox(server.url), endpoint=nowhere.url)
        await one.opt_in(purposes="all")
        stored = await one.event(type="order", ack="stored")
        books = await one.aclose(grace=0)
    assert (stored.stored, books.kept, books.delivered) == (True, 1, 0)
    other = Alloy()
    await other.configure(**options, outbox=RedisOutbox(server.url), transport=edge)
    await until(lambda: edge.events)
    await other.flush()
    books = await other.aclose()
    assert (books.recovered, books.delivered) == (1, 1)
    assert [each["xdm"]["_id"] for each in edge.events] == [stored.event_id]
    assert server.command("XLEN", "alloy:{outbox}:events") == 0


async def test_an_ordered_relay_waits_for_what_a_worker_has_not_handed_over(server, make):
    """It sends what is handed over of others meanwhile, and then the visitor's events as they were stored."""
    edge = RecordingEdge()
    slow, quick = [await opened(make(server)) for _ in range(2)]
    bodies = {number: b'{"xdm":{"_id":"%d","eventType":"%d"}}' % (number, number) for number in range(3)}
    now = time.time()
    await store(*slow, [event(body=bodies[0], accepted_at=now)])
    await store(
        *quick, [event(name, bodies[number], accepted_at=now) for number, name in ((1, ANNE), (2, BERT))]
    )
    await quick[0].release()
    async with Alloy() as relay:
        await relay.configure(
            config_id=ANNE.datastream,
            ims_org_id=ANNE.organisation,
            store="memory",
            outbox="redis",
            redis_url=server.url,
            ordered=True,
            transport=edge,
        )
        work = asyncio.create_task(relay.relay(every=0.01))
        await until(lambda: edge.events)
        await relay.flush()
        assert edge.event_types == ["2"]
        await slow[0].release()
        await until(lambda: len(edge.events) == 3)
        work.cancel()
    assert edge.event_types == ["2", "0", "1"]


async def test_a_refusal_in_one_instance_stops_the_others(server):
    """What one instance has stored for a visitor is not sent once another has recorded the refusal."""
    edge = RecordingEdge()
    options = {**IDS, "opt_in_enabled": True, "transport": edge}
    one, other = Alloy("one"), Alloy("other")
    shared = MemoryStore()
    await one.configure(**options, outbox=RedisOutbox(server.url), store=shared)
    await other.configure(**options, outbox=RedisOutbox(server.url), store=shared)
    await one.opt_in(purposes="all")
    edge.hold()
    flying = one.event(type="flying", view_start=True)
    await until(lambda: edge.holding)
    waiting = [one.event(type="waiting", view_start=True) for _ in range(20)]
    await until(lambda: edge.holding == 8)
    await other.opt_in(purposes="none")
    sent = len(edge.requests)
    edge.release()
    results = await asyncio.gather(flying, *waiting, return_exceptions=True)
    assert len(edge.requests) == sent
    assert Counter(type(result).__name__ for result in results)["ConsentDeclined"] == 21 - sent
    await one.aclose()
    await other.aclose()


async def test_a_refusal_after_redis_has_lost_its_data_stops_nobody_for_good(server):
    """An instance that had not been back when another one recorded it asks whether its visitors consent, and goes on."""
    edge, shared = RecordingEdge(), MemoryStore()
    options = {**IDS, "opt_in_enabled": True, "transport": edge, "store": shared}
    async with Alloy("one") as one, Alloy("other") as other:
        await one.configure(**options, outbox=RedisOutbox(server.url))
        await other.configure(**options, outbox=RedisOutbox(server.url))
        await other.visitor("ada").opt_in(purposes="all")
        await other.visitor("ada").event(type="before")
        server.command("FLUSHDB")
        await one.visitor("eve").opt_in(purposes="none")
        async with asyncio.timeout(20):
            while not await _is_delivered(other.visitor("ada").event(type="after")):
                pass
    assert edge.event_types == ["before", "after"]


async def _is_delivered(future):
    try:
        return bool(await future)
    except OutboxError:
        return False
