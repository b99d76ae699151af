"""Events on the disk of this machine while a real Redis is down, full, slow or failing over."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from common import IDS
from processes import running
from redis_server import redis_server

from alloy_async import Alloy, ConsentDeclined, ConsentStoreError
from alloy_async._clock import SystemClock
from alloy_async.outbox import LEASE, VisitorKey
from alloy_async.outbox.redis import RedisOutbox
from alloy_async.stores import Preference, SQLiteStore
from alloy_async.testing import LoopbackEdge, RecordingEdge

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.name != "posix", reason="signals and files as POSIX has them"),
]

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")

SECRET = "a-secret-nobody-else-has"


@pytest.fixture
def server():
    """A server of the test's own, to be paused or killed, that keeps what it is given."""
    with redis_server(*DURABLE) as server:
        yield server


@pytest.fixture
def options(server, tmp_path):
    """Options of a worker whose choices are in a file, and whose events are in Redis or on this machine."""
    return {
        **IDS,
        "opt_in_enabled": True,
        "outbox": "redis",
        "redis_url": server.url,
        "when_outbox_fails": "local",
        "parked_wait": 30.0,  # however slow the machine is
        "state_dir": str(tmp_path),
    }


@pytest.fixture
async def start(options):
    """Starts workers, which are closed at the end; their books add up."""
    started = []

    async def start(**changes):
        alloy = Alloy(f"worker{len(started)}")
        started.append(alloy)
        await alloy.configure(**options | changes)
        return alloy

    yield start
    for alloy in started:
        books = await alloy.aclose(grace=0)
        assert books.open == 0
        assert books.accepted == books.ended


def stored_here(options):
    """The ids of the events that lie on this machine, oldest first."""
    with closing(sqlite3.connect(Path(options["state_dir"], "outbox.sqlite3"))) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [event_id for (event_id,) in file.execute("SELECT event_id FROM event ORDER BY key")]


def stored_there(server):
    """How many events are in Redis."""
    return server.command("HLEN", "alloy:{outbox}:bodies")


async def until(condition, seconds=30.0):
    """Wait for something that happens in the background."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def store(alloy, *types, visitor="anne"):
    """Call events, and return their ids once they are stored."""
    view = alloy.visitor(visitor, purposes="all")
    results = [await view.event(type=kind, ack="stored") for kind in types]
    assert all(result.stored for result in results)
    return [result.event_id for result in results]


# What Redis may do


async def test_a_server_that_is_killed_and_comes_back(server, options, start):
    """Nothing is sent while it is away, and then everything, in order; nothing stays on this machine."""
    edge = RecordingEdge()
    alloy = await start(transport=edge, ordered=True)
    await store(alloy, "0")
    await until(lambda: edge.event_types == ["0"])
    server.kill()
    ids = await store(alloy, "1", "2", "3")
    assert (stored_here(options), edge.event_types) == (ids, ["0"])
    server.restart()
    await store(alloy, "4")
    await until(lambda: len(edge.events) == 5)
    assert edge.event_types == ["0", "1", "2", "3", "4"]
    await alloy.flush()
    await until(lambda: stored_here(options) == [])
    await until(lambda: stored_there(server) == 0)
    assert alloy.statistics().delivered == 5


async def test_a_full_server(server, options, start):
    """What it has goes on being sent, what is new is stored on this machine until there is room."""
    edge = RecordingEdge()
    alloy = await start(transport=edge)
    edge.hold()
    await store(alloy, "0")
    await until(lambda: edge.holding)
    server.command("CONFIG", "SET", "maxmemory", "1")
    ids = await store(alloy, "1", "2")
    assert stored_here(options) == ids
    edge.release()
    await until(lambda: alloy.statistics().delivered == 1)
    assert edge.event_types == ["0"]
    server.command("CONFIG", "SET", "maxmemory", "0")
    await until(lambda: edge.event_types == ["0", "1", "2"])


async def test_a_server_that_hangs(server, options, start):
    """Only the first event waits for it; then all goes on by itself."""
    edge = RecordingEdge()
    alloy = await start(transport=edge)
    await store(alloy, "0")
    server.pause()
    began = time.monotonic()
    ids = await store(alloy, "1")
    assert time.monotonic() - began < 10
    for number in range(2, 8):
        began = time.monotonic()
        ids += await store(alloy, str(number))
        assert time.monotonic() - began < 1.5
    assert stored_here(options) == ids
    server.resume()
    await until(lambda: len(edge.events) >= 8)
    assert edge.event_types == [str(number) for number in range(8)]
    assert len({event["xdm"]["_id"] for event in edge.events}) == 8


async def test_a_fail_over(server, options, start):
    """A primary that becomes a replica takes nothing; when there is one again the events go there."""
    edge = RecordingEdge()
    alloy = await start(transport=edge)
    server.command("REPLICAOF", "127.0.0.1", "1")
    ids = await store(alloy, "1", "2")
    assert (stored_here(options), edge.events) == (ids, [])
    server.command("REPLICAOF", "NO", "ONE")
    await until(lambda: edge.event_types == ["1", "2"])


async def test_a_server_that_comes_back_without_its_data(server, options, start):
    """What lay on this machine is sent, whatever Redis has lost."""
    edge = RecordingEdge()
    alloy = await start(transport=edge)
    server.kill()
    await store(alloy, "1", "2")
    for path in (path for path in server._folder.rglob("*") if path.is_file() and "aof" in path.name):
        path.unlink()
    server.restart()
    await until(lambda: edge.event_types == ["1", "2"])


async def test_a_server_that_is_away_at_the_start(server, options, start):
    """Workers start all the same, and store on this machine until it is there."""
    edge = RecordingEdge()
    server.kill()
    alloy = await start(transport=edge)
    ids = await store(alloy, "1", "2")
    assert stored_here(options) == ids
    server.restart()
    await until(lambda: edge.event_types == ["1", "2"])


async def test_a_server_that_comes_and_goes(server, options, start):
    """Two workers of one machine lose nothing and keep each visitor's order, however often it goes."""
    edge = RecordingEdge()
    workers = [await start(transport=edge, ordered=True) for _ in range(2)]
    ids = []

    async def work(alloy, visitor):
        for number in range(60):
            ids.extend(await store(alloy, f"{visitor} {number:03}", visitor=visitor))
            await asyncio.sleep(0.02)

    async def trouble():
        for _ in range(2):
            await asyncio.sleep(0.3)
            server.kill()
            await asyncio.sleep(0.3)
            server.restart()
            await asyncio.sleep(0.3)
            server.command("CONFIG", "SET", "maxmemory", "1")
            await asyncio.sleep(0.3)
            server.command("CONFIG", "SET", "maxmemory", "0")

    visitors = [(alloy, f"{index}{name}") for index, alloy in enumerate(workers) for name in "ab"]
    await asyncio.gather(trouble(), *(work(alloy, visitor) for alloy, visitor in visitors))
    await until(lambda: {event["xdm"]["_id"] for event in edge.events} == set(ids))
    for _, visitor in visitors:
        types = [kind for kind in edge.event_types if kind.startswith(visitor)]
        assert list(dict.fromkeys(types)) == [f"{visitor} {number:03}" for number in range(60)]
    await until(lambda: stored_here(options) == [])


async def test_a_relay_gets_what_was_stored_here(server, options, start):
    """Workers that only store tell their callers at once; relays on whatever machine send it later."""
    edge = RecordingEdge()
    web = await start(relay=True, transport=RecordingEdge())
    server.kill()
    ids = [(await web.visitor("anne", purposes="all").event(type=number)).event_id for number in "123"]
    assert (stored_here(options), web.statistics().queued) == (ids, 3)
    server.restart()
    await until(lambda: web.statistics().kept == 3)
    relay = Alloy("relay")
    await relay.configure(**IDS, store="memory", outbox="redis", redis_url=server.url, transport=edge)
    work = asyncio.create_task(relay.relay(every=0.05))
    await until(lambda: edge.event_types == ["1", "2", "3"])
    work.cancel()
    await relay.aclose()
    assert stored_here(options) == []


# Refusals


async def test_a_refusal_while_redis_is_away(server, options, start):
    """The events are erased from the file so that nothing of them can be read there, and are never sent."""
    edge = RecordingEdge()
    alloy = await start(transport=edge)
    server.kill()
    anne = alloy.visitor("anne", purposes="all")
    event = anne.event(type=SECRET)
    kept = await store(alloy, "bert", visitor="bert")
    await until(lambda: len(stored_here(options)) == 2)
    assert SECRET.encode() in files_in(options)
    with pytest.raises(ConsentStoreError):
        await anne.opt_in(purposes="none")
    assert isinstance(event.exception(), ConsentDeclined)
    assert stored_here(options) == kept
    await until(lambda: SECRET.encode() not in files_in(options))
    server.restart()
    await until(lambda: edge.event_types == ["bert"])


@pytest.mark.parametrize("key", ["anne", None])
async def test_a_refusal_is_told_as_soon_as_redis_is_back(server, options, start, monkeypatch, key):
    """A relay sends what it finds there: the refusal does not wait for its next attempt, a minute later at last."""
    monkeypatch.setattr("alloy_async._preference.FIRST_RETRY", 3_600.0)
    alloy = await start(relay=True, transport=RecordingEdge())
    visitor = alloy.visitor(key)
    await visitor.opt_in(purposes="all")
    await visitor.event(type="anne", ack="stored")
    await store(alloy, "bert", visitor="bert")
    assert stored_there(server) == 2
    server.kill()
    with pytest.raises(ConsentStoreError):
        await visitor.opt_in(purposes="none")
    server.restart()
    await until(lambda: stored_there(server) == 1)


def files_in(options):
    return b"".join(path.read_bytes() for path in Path(options["state_dir"]).glob("outbox.sqlite3*"))


async def test_a_refusal_by_another_worker_of_this_machine(server, options, start):
    """It holds for what both have here, also when it could not be told to Redis before."""
    edge = RecordingEdge()
    one, other = await start(transport=edge), await start(transport=edge)
    server.kill()
    event = one.visitor("anne", purposes="all").event(type="anne")
    await store(one, "bert", visitor="bert")
    await until(lambda: len(stored_here(options)) == 2)
    with pytest.raises(ConsentStoreError):
        await other.visitor("anne").opt_in(purposes="none")
    server.restart()
    await until(lambda: edge.events and event.done())
    assert isinstance(event.exception(), ConsentDeclined)
    assert edge.event_types == ["bert"]


async def test_a_refusal_on_another_machine(server, options, start):
    """It is heard from Redis before anything moves."""
    edge = RecordingEdge()
    alloy = await start(transport=edge)
    await store(alloy, "first")
    await alloy.flush()
    server.command("CONFIG", "SET", "maxmemory", "1")
    event = alloy.visitor("anne", purposes="all").event(type="anne")
    await until(lambda: len(stored_here(options)) == 1)
    key = VisitorKey(IDS["ims_org_id"], IDS["config_id"], "anne")
    choices, outbox = (
        SQLiteStore(options["state_dir"]),
        RedisOutbox(server.url),
    )  # as if shared, and another machine's
    await choices.save_preference(key, Preference("none", time.time(), time.time() + 1_000))
    await outbox.erase(key)
    for one in (choices, outbox):
        await one.aclose()
    server.command("CONFIG", "SET", "maxmemory", "0")
    await until(event.done)
    assert isinstance(event.exception(), ConsentDeclined)
    await until(lambda: stored_here(options) == [])
    assert edge.event_types == ["first"]


# Processes

WORKER = """
async def main():
    alloy = Alloy()
    await alloy.configure(**options)
    visitor = alloy.visitor("anne", purposes="all")
    say("ready")
    await told()
    for number in "123":
        say((await visitor.event(type=number, ack="stored")).event_id)
    await told()

logging.disable(logging.ERROR)
asyncio.run(main())
"""


@pytest.mark.parametrize("relay", [False, True])
async def test_what_a_killed_process_has_left(server, options, start, relay):
    """The next start on this machine takes it over, under the same ids, before anything new."""
    async with LoopbackEdge() as edge:
        async with running(WORKER, options | {"endpoint": edge.url, "relay": relay}) as process:
            assert await process.hear() == "ready"
            server.kill()
            process.tell()
            ids = [await process.hear() for _ in range(3)]
            process.signal(signal.SIGKILL)
            await process.end()
        assert stored_here(options) == ids
        server.restart()
        alloy = await start(endpoint=edge.url, relay=relay)
        new = await alloy.visitor("anne").event(type="new", ack="stored")
        if relay:
            await until(lambda: alloy.statistics().kept == 4)
            outbox = RedisOutbox(server.url)
            await outbox.open()
            claimed = await outbox.claim(await outbox.abandoned(), count=9, size=1 << 20)
            await outbox.aclose()
            assert [one.event.event_id for one in claimed] == [*ids, new.event_id]
        else:
            await until(lambda: len(edge.events) == 4)
            assert [event["xdm"]["_id"] for event in edge.events] == [*ids, new.event_id]
        await until(lambda: stored_here(options) == [])


async def test_a_process_that_is_killed_while_events_move(server, options, start):
    """Each event is in one of the two places, or in both under one id."""
    script = """
    async def main():
        alloy = Alloy()
        await alloy.configure(**options)
        visitor = alloy.visitor("anne")
        await visitor.opt_in(purposes="all")
        say("ready")
        await told()
        events = [visitor.event(type=str(number), ack="stored") for number in range(3_000)]
        say(" ".join([(await event).event_id for event in events]))
        await told()

    logging.disable(logging.ERROR)
    asyncio.run(main())
    """
    async with LoopbackEdge() as edge:
        edge.hold()
        async with running(script, options | {"endpoint": edge.url}) as process:
            process._process.stdout._limit = 1 << 20
            assert await process.hear() == "ready"
            server.kill()
            process.tell()
            ids = (await process.hear()).split()
            server.restart()
            await until(lambda: stored_there(server) > 0)
            process.signal(signal.SIGKILL)
            await process.end()
        assert len(set(ids)) == 3_000
        edge.release()
        edge_before = len(edge.events)
        alloy = await start(endpoint=edge.url)
        # Those in Redis are free when the lease of the killed worker has run out.
        await until(lambda: {event["xdm"]["_id"] for event in edge.events[edge_before:]} >= set(ids), 60)
        await until(lambda: stored_here(options) == [])
        assert alloy.statistics().failed == 0


async def test_a_forked_child_has_events_of_its_own(server, options, start):
    """Parent and child store in one file, each its own; both are sent, once."""
    script = """
    async def child(alloy):
        visitor = alloy.visitor("bert", purposes="all")
        await visitor.event(type="child", ack="stored")
        say("child")
        await alloy.flush()
        say("child", alloy.statistics().accepted, alloy.statistics().delivered)
        await alloy.aclose()

    async def main():
        alloy = Alloy()
        await alloy.configure(**options)
        visitor = alloy.visitor("anne", purposes="all")
        say("ready")
        await told()
        await visitor.event(type="parent", ack="stored")
        number = fork(child, alloy)
        await alloy.flush()
        say("parent", alloy.statistics().accepted, alloy.statistics().delivered)
        assert await asyncio.to_thread(os.waitpid, number, 0) == (number, 0)
        await alloy.aclose()

    logging.disable(logging.ERROR)
    asyncio.run(main())
    """
    async with LoopbackEdge() as edge:
        async with running(script, options | {"endpoint": edge.url}) as process:
            assert await process.hear() == "ready"
            server.kill()
            process.tell()
            assert await process.hear() == "child"
            assert len(stored_here(options)) == 2
            server.restart()
            assert sorted(await process.end()) == ["child 1 1", "parent 1 1"]
        assert sorted(edge.event_types) == ["child", "parent"]
        assert stored_here(options) == []


async def test_closing_while_redis_is_away(server, options, caplog):
    """It ends in time; what lies on this machine counts as kept."""
    alloy = Alloy()
    await alloy.configure(**options, transport=RecordingEdge())
    server.kill()
    await store(alloy, "1", "2")
    began = time.monotonic()
    books = await alloy.aclose(grace=0.2)
    assert time.monotonic() - began < 8
    assert (books.kept, books.open, books.accepted) == (2, 0, 2)
    assert any("2 are kept in the outbox for the next start" in line for line in caplog.messages)
    assert len(stored_here(options)) == 2


async def test_a_process_that_is_killed_before_it_has_erased_what_was_refused(server, options, start):
    """The refusal was kept, and Redis was down: whoever finds the events there erases them, and sends none."""
    script = """
    async def main():
        alloy = Alloy()
        await alloy.configure(**options)
        for name in ("anne", "bert"):
            await alloy.visitor(name).opt_in(purposes="all")
            alloy.visitor(name).event(type=name)
            await alloy.visitor(name).event(type=name, ack="stored")
        say("ready")
        await told()
        refusing = alloy.visitor("anne").opt_in(purposes="none")
        await asyncio.wait([refusing])
        say(type(refusing.exception()).__name__)
        await told()

    logging.disable(logging.ERROR)
    asyncio.run(main())
    """
    async with LoopbackEdge() as edge:
        edge.hold()
        async with running(script, options | {"endpoint": edge.url}) as process:
            assert await process.hear() == "ready"
            server.kill()
            process.tell()
            assert await process.hear() == "ConsentStoreError"
            process.signal(signal.SIGKILL)
            await process.end()
    server.restart()
    assert stored_there(server) == 4

    class Later(SystemClock):
        def time(self):
            return super().time() + LEASE

    edge = RecordingEdge()
    await start(transport=edge, outbox=RedisOutbox(server.url, clock=Later()))
    await until(lambda: stored_there(server) == 0)
    assert edge.event_types == ["bert", "bert"]
