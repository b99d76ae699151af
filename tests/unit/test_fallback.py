"""A shared outbox that comes and goes, and the outbox of this machine that stands in for it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from common import IDS, settle

from alloy_async import (
    Alloy,
    AlloyClosed,
    ConfigurationError,
    ConsentDeclined,
    ConsentStoreError,
    OutboxError,
    OutboxFull,
    _fallback,
    _lookout,
    _taking_over,
    _unwritten,
)
from alloy_async.outbox import LEASE, MemoryOutbox, MemoryShelf, OutboxEvent, VisitorKey
from alloy_async.stores import MemoryStore, Preference
from alloy_async.testing import ManualClock

AGAIN = _lookout.AGAIN


class Shared(MemoryOutbox):
    """One that is out of reach while it is down, and takes no events while it is full."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.down = False
        self.full = False
        self.written = []
        self.on_write = None

    def _check(self, action):
        if self.down:
            raise OutboxError(action, "that is shared", "it is down.")

    async def open(self):
        self._check("open")
        return await super().open()

    async def write(self, events, ended, *, epoch):
        self._check("write")
        if self.full and events:
            raise OutboxError("write", "that is shared", "it is full.")
        if self.on_write is not None and events:
            await self.on_write()
        stored = await super().write(events, ended, epoch=epoch)
        self.written += [event.event_id for event in events]
        return stored

    async def claim(self, visitors, *, count, size):
        self._check("read")
        return await super().claim(visitors, count=count, size=size)

    async def abandoned(self):
        self._check("read")
        return await super().abandoned()

    async def release(self):
        self._check("write")
        await super().release()

    async def renew(self):
        self._check("write")
        return await super().renew()

    async def changes(self, since):
        self._check("read")
        return await super().changes(since)

    async def erase(self, visitor):
        self._check("erase")
        return await super().erase(visitor)

    async def shelf(self):
        self._check("read")
        return await super().shelf()

    def may_send(self, epoch):
        return not self.down and super().may_send(epoch)


class Local(MemoryOutbox):
    """That of this machine, which fails as told."""

    failing = False
    claiming = None
    erasing = None
    asking = None

    async def changes(self, since):
        if self.asking is not None:
            await self.asking
        return await super().changes(since)

    async def erase(self, visitor):
        if self.erasing is not None:
            await self.erasing
        return await super().erase(visitor)

    async def claim(self, visitors, *, count, size):
        if self.claiming is not None:
            await self.claiming
        return await super().claim(visitors, count=count, size=size)

    async def write(self, events, ended, *, epoch):
        if self.failing and events:
            raise OutboxError("write", "of this machine", "the disk is full.")
        return await super().write(events, ended, epoch=epoch)


class World:
    """A shared outbox, machines with an outbox of their own, and the workers on them."""

    def __init__(self, options, clock, monkeypatch):
        self.options = options
        self.clock = clock
        self.shared_shelf = MemoryShelf()
        self.here = MemoryShelf()
        self.local_bounds = {}
        self.shared_bounds = {}
        self.local = None
        self.workers = []
        monkeypatch.setattr("alloy_async._engine._make_file_outbox", self._make_local)

    def _make_local(self, path, settings, clock):
        self.local = Local(self.here, clock=clock, **self.local_bounds)
        return self.local

    def make_shared(self):
        return Shared(self.shared_shelf, clock=self.clock, **self.shared_bounds)

    async def start(self, *, down=False, **changes):
        """Start a worker on this machine."""
        shared = self.make_shared()
        shared.down = down
        alloy = Alloy()
        alloy.shared = shared
        self.workers.append(alloy)
        await alloy.configure(**self.options | {"outbox": shared, "when_outbox_fails": "local"} | changes)
        await settle()
        return alloy

    async def pass_time(self, seconds=AGAIN):
        await settle()
        self.clock.advance(seconds)
        await settle(50)

    async def kill(self, alloy):
        """End a worker without a word; its leases run out, and the locks of a dead process with them."""
        alloy._engine._farewell.detach()
        keeper = alloy._engine._keeper
        tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith("alloy-")]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks or [asyncio.ensure_future(settle())])
        keeper._stop()
        keeper._fallback._visitors = None
        alloy._engine._courier._closed = True
        self.workers.remove(alloy)
        self.clock.advance(LEASE)
        await settle()

    def stored_here(self):
        return [event.event_id for worker in self.here.workers for event in worker.events.values()]

    def stored_there(self):
        return [event.event_id for worker in self.shared_shelf.workers for event in worker.events.values()]


@pytest.fixture
async def world(options, clock, monkeypatch):
    """What a test needs; its workers are closed at the end."""
    world = World(options, clock, monkeypatch)
    yield world
    for alloy in world.workers:
        closing = asyncio.ensure_future(alloy.aclose(grace=0.001))
        await settle()
        clock.advance(5)
        await settle()
        books = await closing
        assert books.open == 0
        assert books.accepted == books.ended


def key_of(name):
    return VisitorKey(IDS["ims_org_id"], IDS["config_id"], name)


# While it is down


async def test_events_are_stored_on_this_machine_and_go_on_in_order(world, edge):
    """They are acknowledged at once, nothing is sent meanwhile, and they leave through the shared outbox when it is back."""
    alloy = await world.start()
    anne = alloy.visitor("anne", purposes="all")
    await anne.event(type="0")
    alloy.shared.down = True
    results = [await anne.event(type=number, ack="stored") for number in "123"]
    assert all(result.stored for result in results)
    assert world.stored_here() == [result.event_id for result in results]
    assert (alloy.statistics().queued, edge.event_types) == (3, ["0"])
    await world.pass_time()
    assert edge.event_types == ["0"]
    alloy.shared.down = False
    await world.pass_time()
    assert edge.event_types == ["0", "1", "2", "3"]
    assert world.stored_here() == []
    assert alloy.shared.written[1:] == [result.event_id for result in results]
    assert (alloy.statistics().delivered, alloy.statistics().open) == (4, 0)


async def test_a_caller_who_waits_for_the_edge_goes_on_waiting(world, edge):
    """Only who asked for it is told that the event is stored."""
    alloy = await world.start()
    alloy.shared.down = True
    event = alloy.visitor("anne", purposes="all").event(type="1")
    await settle()
    assert (len(world.stored_here()), event.done()) == (1, False)
    alloy.shared.down = False
    await world.pass_time()
    assert not event.result().stored


async def test_a_full_shared_outbox(world, edge):
    """It goes on sending what it has, takes nothing new, and is asked about once a second, not more often."""
    alloy = await world.start()
    anne = alloy.visitor("anne", purposes="all")
    alloy.shared.full = True
    tried = 0

    async def count():
        nonlocal tried
        tried += 1

    alloy.shared.full = False
    edge.hold()
    under_way = anne.event(type="0")
    await settle()
    alloy.shared.full = True
    assert (await anne.event(type="1", ack="stored")).stored
    edge.release()
    await under_way
    assert edge.event_types == ["0"]
    alloy.shared.full = False
    alloy.shared.on_write = count
    await settle(50)
    assert tried == 0
    await world.pass_time()
    assert (tried, edge.event_types) == (1, ["0", "1"])


async def test_what_comes_later_does_not_wait_for_the_shared_outbox(world):
    """While it hangs it is asked by nobody who is waited for."""
    alloy = await world.start()
    anne = alloy.visitor("anne", purposes="all")
    alloy.shared.down = True
    await anne.event(type="1", ack="stored")
    alloy.shared.down = False
    hanging = asyncio.get_running_loop().create_future()

    async def renew():
        await hanging
        return True

    alloy.shared.renew = renew
    await world.pass_time()
    assert (await anne.event(type="2", ack="stored")).stored
    assert len(world.stored_here()) == 2
    del alloy.shared.renew
    hanging.set_result(None)
    await settle(50)
    assert world.stored_here() == []


async def test_many_events_keep_their_order(world, edge, monkeypatch):
    """They go in groups, and what is called meanwhile comes behind them."""
    monkeypatch.setattr(_unwritten, "GROUP", 7)
    alloy = await world.start()
    anne = alloy.visitor("anne", purposes="all")
    alloy.shared.down = True
    events = [anne.event(type=str(number)) for number in range(50)]
    await settle()

    async def call():
        if len(events) < 70:
            events.append(anne.event(type=str(len(events))))

    alloy.shared.on_write = call
    alloy.shared.down = False
    world.clock.advance(AGAIN)
    await settle(200)
    assert len(events) == 70
    assert edge.event_types == [str(number) for number in range(len(events))]
    assert alloy.shared.written == [event.result().event_id for event in events]


async def test_bounds_hold_here_too(world):
    """What finds no room on this machine ends with OutboxFull; what is stored goes on."""
    world.local_bounds = {"max_events": 2}
    alloy = await world.start()
    anne = alloy.visitor("anne", purposes="all")
    alloy.shared.down = True
    events = [anne.event(ack="stored") for _ in range(3)]
    await settle()
    assert [event.exception() for event in events[:2]] == [None, None]
    assert isinstance(events[2].exception(), OutboxFull)
    alloy.shared.down = False
    await world.pass_time()
    assert (alloy.statistics().delivered, alloy.statistics().overflowed) == (2, 1)


async def test_a_bound_of_the_shared_outbox_turns_away_nothing_that_is_stored(world, edge):
    """It waits on this machine until there is room."""
    world.shared_bounds = {"max_events": 2}
    alloy = await world.start()
    other = world.make_shared()
    epoch = await other.open()
    row = OutboxEvent(key_of("bert"), "id", b"{}", False, False, world.clock.time())
    (key, _) = (await other.write([row, row], [], epoch=epoch)).keys
    alloy.shared.down = True
    anne = alloy.visitor("anne", purposes="all")
    for number in "123":
        await anne.event(type=number, ack="stored")
    alloy.shared.down = False
    await world.pass_time()
    assert (len(world.stored_here()), alloy.statistics().overflowed, edge.events) == (3, 0, [])
    await other.write([], [key], epoch=epoch)
    for _ in range(10):
        await world.pass_time()
    assert edge.event_types == ["1", "2", "3"]


async def test_a_disk_that_fails_too_is_told(world):
    """An event that neither takes ends with the reason of the disk."""
    alloy = await world.start()
    alloy.shared.down = True
    world.local.failing = True
    with pytest.raises(OutboxError, match="of this machine: the disk is full"):
        await alloy.visitor("anne", purposes="all").event()


async def test_nothing_waits_here_without_end(world):
    """After delivery_timeout it is erased, and the caller told."""
    alloy = await world.start(delivery_timeout=60.0)
    alloy.shared.down = True
    event = alloy.visitor("anne", purposes="all").event()
    await settle()
    for _ in range(61):
        await world.pass_time()
        alloy.visitor("bert", purposes="all").event()
    with pytest.raises(OutboxError, match="delivery_timeout"):
        await event
    await world.pass_time()
    assert alloy.statistics().failed >= 1
    assert len(world.stored_here()) == alloy.statistics().queued


async def test_who_cannot_be_found_again_waits_in_memory(world):
    """Events of visitors without a key are not stored on this machine: after a restart nobody could say whether they consent."""
    alloy = await world.start(relay=True)
    alloy.shared.down = True
    event = alloy.visitor(purposes="all").event(type="1")
    await settle()
    assert (event.done(), world.stored_here()) == (False, [])
    alloy.shared.down = False
    await world.pass_time()
    assert event.result().stored
    assert world.stored_there() == [event.result().event_id]


async def test_a_relay_gets_everything(world, edge):
    """A worker that only stores tells its caller at once, and leaves the event to relays when they can be reached."""
    alloy = await world.start(relay=True)
    anne = alloy.visitor("anne", purposes="all")
    alloy.shared.down = True
    results = [await anne.event(type=number) for number in "12"]
    assert all(result.stored for result in results)
    assert (alloy.statistics().queued, alloy.statistics().kept) == (2, 0)
    alloy.shared.down = False
    await world.pass_time()
    assert (alloy.statistics().queued, alloy.statistics().kept) == (0, 2)
    assert (world.stored_here(), world.stored_there()) == ([], [result.event_id for result in results])
    relay = world.make_shared()
    await relay.open()
    assert len(await relay.claim([key_of("anne")], count=9, size=9_999)) == 2
    assert edge.events == []


async def test_closing_while_it_is_down_keeps_what_is_here(world, caplog):
    """It counts as kept, and the log says so; what is not stored anywhere does not."""
    alloy = await world.start()
    alloy.shared.down = True
    anne = alloy.visitor("anne", purposes="all")
    event = anne.event()
    await anne.event(ack="stored")
    closing = asyncio.ensure_future(alloy.aclose(grace=1))
    await settle()
    world.clock.advance(1)
    books = await closing
    world.workers.clear()
    assert (books.kept, books.failed, books.open) == (2, 0, 0)
    assert isinstance(event.exception(), AlloyClosed)
    assert event.exception().kept
    assert any("2 are kept in the outbox for the next start" in line for line in caplog.messages)


async def test_nothing_is_taken_over_while_it_is_being_closed(world, edge, monkeypatch):
    """Also when the shared outbox comes back at that moment: what was left there is left to the next start."""
    first = await world.start()
    await first.visitor("anne").opt_in(purposes="all")
    edge.hold()
    first.visitor("anne").event(type="1")
    await settle()
    await world.kill(first)
    edge.release()
    second = await world.start(down=True)
    assert await second.visitor("anne").get_purposes() == "all"
    keeper, coming = second._engine._keeper, asyncio.get_running_loop().create_future()
    renew, finish = second.shared.renew, keeper.finish

    async def renew_slowly():
        await asyncio.shield(coming)
        return await renew()

    async def finish_slowly():
        await finish()
        coming.set_result(None)
        await settle()

    monkeypatch.setattr(second.shared, "renew", renew_slowly)
    monkeypatch.setattr(keeper, "finish", finish_slowly)
    second.shared.down = False
    await world.pass_time()
    closing = asyncio.ensure_future(second.aclose(grace=1))
    await world.pass_time()
    books = await closing
    world.workers.remove(second)
    assert (books.open, books.recovered) == (0, 0)
    assert len(world.stored_there()) == 1


async def test_flushing_waits_for_what_is_here(world, edge):
    """It ends once that has been sent, and does not keep the loop busy meanwhile."""
    alloy = await world.start(down=True)
    await alloy.visitor("anne", purposes="all").event(type="1", ack="stored")
    flushed = alloy.flush()
    await world.pass_time()
    assert not flushed.done()
    renewed = 0

    def slow(renew, turns):
        async def count():
            nonlocal renewed
            renewed += 1
            await settle(turns)
            return await renew()

        return count

    alloy.shared.renew = slow(alloy.shared.renew, 3)
    world.local.renew = slow(world.local.renew, 5)
    alloy.shared.down = False
    world.clock.advance(AGAIN)
    await settle(500)
    assert (flushed.done(), edge.event_types) == (True, ["1"])
    assert renewed < 10


# The next start


@pytest.mark.parametrize("relay", [False, True])
@pytest.mark.parametrize("end", ["closed", "killed"])
async def test_the_next_start_takes_over_what_was_left_here(world, edge, end, relay):
    """However the process ended: under the same id, in order, before anything new of its visitor."""
    first = await world.start(relay=relay)
    await first.visitor("anne").opt_in(purposes="all")
    first.shared.down = True
    ids = [(await first.visitor("anne").event(type=number, ack="stored")).event_id for number in "12"]
    if end == "closed":
        closing = asyncio.ensure_future(first.aclose(grace=1))
        await settle()
        world.clock.advance(1)
        assert (await closing).kept == 2
        world.workers.remove(first)
    else:
        await world.kill(first)
    assert world.stored_here() == ids
    second = await world.start(relay=relay)
    third = second.visitor("anne").event(type="3")
    await settle(100)
    assert world.stored_here() == []
    assert second.shared.written == [*ids, third.result().event_id]
    if not relay:
        assert edge.event_types == ["1", "2", "3"]
    assert (second.statistics().recovered, second.statistics().accepted) == (2, 3)


@pytest.mark.parametrize("relay", [False, True])
async def test_nothing_overtakes_what_is_being_taken_over(world, edge, relay, monkeypatch):
    """A new event of the same visitor is stored here too, and goes behind; others go on."""
    first = await world.start(relay=relay)
    for name in ("anne", "bert"):
        await first.visitor(name).opt_in(purposes="all")
    first.shared.down = True
    ids = [(await first.visitor("anne").event(type=number, ack="stored")).event_id for number in "12"]
    await world.kill(first)
    claiming = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(Local, "claiming", claiming)
    second = await world.start(relay=relay)
    new = await second.visitor("anne").event(type="3", ack="stored")
    other = await second.visitor("bert").event(type="bert", ack="stored")
    await settle(50)
    assert second.shared.written == [other.event_id]
    assert world.stored_here() == [*ids, new.event_id]
    claiming.set_result(None)
    await settle(100)
    assert second.shared.written == [other.event_id, *ids, new.event_id]
    assert world.stored_here() == []
    if not relay:
        assert edge.event_types == ["bert", "1", "2", "3"]


async def test_much_that_waits_for_what_is_taken_over_is_stored_in_groups(world, edge, monkeypatch):
    """No step takes longer than another, whatever has gathered, and the order stays."""
    monkeypatch.setattr(_unwritten, "GROUP", 3)
    claiming, steps = asyncio.get_running_loop().create_future(), []
    monkeypatch.setattr(Local, "claiming", claiming)
    alloy = await world.start()
    anne, bert = (alloy.visitor(name) for name in ("anne", "bert"))
    for visitor in (anne, bert):
        await visitor.opt_in(purposes="all")
    await left_by_another(world, "anne", "anne 0")
    await world.pass_time(LEASE / 3)
    write = world.local.write

    async def count(events, ended, *, epoch):
        steps.append(len(events))
        return await write(events, ended, epoch=epoch)

    world.local.write = count
    for number in range(1, 11):
        anne.event(type=f"anne {number}")
        bert.event(type=f"bert {number}")
    await settle(100)
    claiming.set_result(None)
    await settle(200)
    assert edge.event_types[:10] == [f"bert {number}" for number in range(1, 11)]
    assert edge.event_types[10:] == [f"anne {number}" for number in range(11)]
    assert (sum(steps), max(steps)) == (10, 3)


async def left_by_another(world, name, *types, there=False):
    """Store events on this machine, or in the shared outbox, as a process that has ended."""
    outbox = world.make_shared() if there else Local(world.here, clock=world.clock)
    epoch = await outbox.open()
    bodies = [b'{"xdm":{"_id":"%s","eventType":"%s"}}' % (kind.encode(), kind.encode()) for kind in types]
    now = world.clock.time()
    events = [
        OutboxEvent(key_of(name), kind, body, False, False, now)
        for kind, body in zip(types, bodies, strict=True)
    ]
    await outbox.write(events, [], epoch=epoch)
    await outbox.aclose()


async def test_nothing_overtakes_what_came_while_it_was_being_taken_over(world, edge, store, monkeypatch):
    """Also while what others have declined is still being erased here."""
    first = await world.start()
    for name in ("anne", "bert"):
        await first.visitor(name).opt_in(purposes="all")
    first.shared.down = True
    for name in ("anne", "bert"):
        await first.visitor(name).event(type=f"{name} 1", ack="stored")
    await world.kill(first)
    kept = await store.load_preference(key_of("bert"))
    await store.save_preference(key_of("bert"), replace(kept, purposes="none"))
    claiming, erasing = (asyncio.get_running_loop().create_future() for _ in range(2))
    monkeypatch.setattr(Local, "claiming", claiming)
    monkeypatch.setattr(Local, "erasing", erasing)
    second = await world.start()
    anne = second.visitor("anne")
    await anne.event(type="anne 2", ack="stored")
    await settle(50)
    claiming.set_result(None)
    await settle(50)
    anne.event(type="anne 3")
    await settle(50)
    erasing.set_result(None)
    await settle(100)
    assert edge.event_types == ["anne 1", "anne 2", "anne 3"]


async def test_nothing_overtakes_while_it_is_asked_what_others_of_this_machine_did(world, monkeypatch):
    """What is called between two steps is looked at once more before it is written."""
    first = await world.start(relay=True)
    await first.visitor("anne").opt_in(purposes="all")
    first.shared.down = True
    old = await first.visitor("anne").event(type="1", ack="stored")
    await world.kill(first)
    claiming, asking = (asyncio.get_running_loop().create_future() for _ in range(2))
    monkeypatch.setattr(Local, "claiming", claiming)
    second = await world.start(relay=True)
    monkeypatch.setattr(Local, "asking", asking)
    world.here.epoch += 1
    second.visitor("bert", purposes="all").event(type="bert")
    await settle()
    new = second.visitor("anne").event(type="2")
    await settle()
    asking.set_result(None)
    await settle(50)
    claiming.set_result(None)
    await settle(100)
    assert second.shared.written[1:] == [old.event_id, new.result().event_id]


async def test_nothing_is_sent_before_what_was_taken_over(world, edge):
    """Not even what is in the shared outbox already, as long as something older of its visitor waits here."""
    alloy = await world.start(ordered=True)
    anne = alloy.visitor("anne", purposes="all")
    edge.hold()
    anne.event(type="0")
    await settle()
    await anne.event(type="2", ack="stored")
    await left_by_another(world, "anne", "1")
    alloy.shared.full = True
    await world.pass_time(LEASE / 3)
    assert world.stored_here() == ["1"]
    edge.release()
    await settle(100)
    assert edge.event_types == ["0"]
    alloy.shared.full = False
    await world.pass_time()
    assert edge.event_types == ["0", "1", "2"]


async def test_what_another_process_has_taken_over_is_not_sent_twice(world, edge):
    """A worker whose lease ran out, since its machine slept, asks what became of its events before it moves any."""
    one = await world.start()
    one.shared.down = True
    event = one.visitor("anne", purposes="all").event(type="1")
    await settle()
    one._engine._keeper._call_off_timers()  # it sleeps
    world.clock.advance(LEASE)
    other = await world.start()
    await settle(100)
    assert (edge.event_types, other.statistics().recovered) == (["1"], 1)
    one.shared.down = False
    one._engine._keeper.claim()  # it wakes, and its heart beats first
    await settle(50)
    one._engine._keeper.look()
    await settle(100)
    assert edge.event_types == ["1"]
    assert isinstance(event.exception(), OutboxError)


async def test_a_start_while_the_shared_outbox_is_down(world, edge, caplog):
    """Events are stored here from the beginning; what was left here waits with them."""
    first = await world.start()
    await first.visitor("anne").opt_in(purposes="all")
    first.shared.down = True
    await first.visitor("anne").event(type="1", ack="stored")
    await world.kill(first)
    second = await world.start(down=True)
    assert any("stored on this machine until it takes them" in line for line in caplog.messages)
    assert (await second.visitor("anne").event(type="2", ack="stored")).stored
    assert len(world.stored_here()) == 2
    await world.pass_time()
    second.shared.down = False
    await world.pass_time()
    assert edge.event_types == ["1", "2"]
    assert world.stored_here() == []


@pytest.mark.parametrize("how", ["unwritten", "idle"])
async def test_a_refusal_elsewhere_before_the_shared_outbox_was_there(world, edge, store, how):
    """Nobody could tell of it; whoever is known here is asked about again, also when nothing of theirs waits."""
    first = await world.start()
    await first.visitor("anne").opt_in(purposes="all")
    second = await world.start(down=True)
    anne = second.visitor("anne")
    assert await anne.get_purposes() == "all"
    if how == "unwritten":
        await anne.event(type="1", ack="stored")
    await world.pass_time()
    kept = await store.load_preference(key_of("anne"))
    await store.save_preference(key_of("anne"), replace(kept, purposes="none", chosen_at=world.clock.time()))
    await world.make_shared().erase(key_of("anne"))
    second.shared.down = False
    await world.pass_time()
    late = anne.event(type="2")
    await settle(50)
    assert edge.events == []
    assert isinstance(late.exception(), ConsentDeclined)
    await world.pass_time()


async def test_a_look_that_somebody_has_cancelled(world, edge):
    """The next beat of the heart looks again."""
    alloy = await world.start(down=True)
    await alloy.visitor("anne", purposes="all").event(type="1", ack="stored")
    hanging = asyncio.get_running_loop().create_future()

    async def open_slowly():
        await hanging

    alloy.shared.open = open_slowly
    await world.pass_time()
    looking = alloy._engine._keeper._lookout._looking
    looking.cancel()
    await asyncio.wait([looking])
    del alloy.shared.open
    alloy.shared.down = False
    await world.pass_time(AGAIN)
    assert edge.events == []
    await world.pass_time(LEASE / 3)
    assert edge.event_types == ["1"]


async def test_a_crash_between_writing_and_erasing_stores_twice(world, edge):
    """Under one id, and nothing is lost."""
    first = await world.start()
    await first.visitor("anne").opt_in(purposes="all")
    first.shared.down = True
    stored = await first.visitor("anne").event(type="1", ack="stored")
    first.shared.down = False
    edge.hold()

    async def die(*_, **__):
        raise asyncio.CancelledError

    world.local.write = die
    await world.pass_time()
    assert world.stored_here() == world.stored_there() == [stored.event_id]
    await world.kill(first)
    edge.release()
    edge.requests.clear()
    second = await world.start()
    await settle(100)
    assert [event["xdm"]["_id"] for event in edge.events] == [stored.event_id] * 2
    assert second.statistics().delivered == 2


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("left", [False, True])
async def test_a_write_that_somebody_cancels_is_done_again(world, edge, left, carried_out):
    """What is stored here goes on from here, under its id; nothing waits behind it for ever."""
    alloy = await world.start()
    anne = alloy.visitor("anne")
    await anne.opt_in(purposes="all")
    if left:
        await left_by_another(world, "anne", "1")
    alloy.shared.down = True
    if not left:
        await anne.event(type="1", ack="stored")
    await world.pass_time(LEASE / 3)
    write, hanging = alloy.shared.write, asyncio.get_running_loop().create_future()

    async def hang(events, ended, *, epoch):
        if carried_out:
            await write(events, ended, epoch=epoch)
        await hanging

    alloy.shared.write = hang
    alloy.shared.down = False
    await world.pass_time()
    next(task for task in asyncio.all_tasks() if task.get_name() == "alloy-outbox-write").cancel()
    await settle()
    del alloy.shared.write
    flushed = alloy.flush()
    anne.event(type="2")
    await world.pass_time(LEASE / 3)
    await world.pass_time()
    assert edge.event_types == ["1", "2"]
    assert (flushed.done(), world.stored_here()) == (True, [])


async def test_much_that_was_left_comes_in_parts(world, edge, monkeypatch):
    """Memory holds a part of it; newer events wait until all of it is in the shared outbox."""
    first = await world.start()
    await first.visitor("anne").opt_in(purposes="all")
    first.shared.down = True
    for number in range(30):
        first.visitor("anne").event(type=str(number))
    await settle(50)
    await world.kill(first)
    monkeypatch.setattr(_taking_over, "CLAIM", 4)
    second = await world.start()
    second.visitor("anne").event(type="new")
    for _ in range(5):
        await settle(200)
    assert edge.event_types == [*map(str, range(30)), "new"]


async def test_much_that_was_left_does_not_fill_memory_while_the_shared_outbox_is_down(
    world, edge, store, monkeypatch
):
    """However long that lasts, memory holds a part of it, and the rest comes when it is back."""
    monkeypatch.setattr(_taking_over, "CLAIM", 4)
    first = await world.start()
    for name in ("anne", "bert"):
        await first.visitor(name).opt_in(purposes="all")
    await world.kill(first)
    second = await world.start(down=True)
    await left_by_another(world, "anne", *map(str, range(20)))
    for _ in range(4):
        await world.pass_time(LEASE / 3)
    await left_by_another(world, "bert", "bert")
    await store.save_preference(key_of("dora"), Preference("none", world.clock.time(), 4_000_000_000.0))
    await left_by_another(world, "dora", "dora")
    await world.pass_time(LEASE / 3)
    assert second.statistics().queued == 4
    assert max(world.stored_here()) == "bert"  # what was declined is erased nevertheless
    second.shared.down = False
    second.visitor("bert").event(type="new")
    for _ in range(5):
        await world.pass_time()
    assert [kind for kind in edge.event_types if "b" not in kind and kind != "new"] == [*map(str, range(20))]
    assert edge.event_types.index("bert") < edge.event_types.index("new")


async def test_only_what_may_be_sent_is_taken_over(world, store, edge):
    """What belongs to nobody who consents stays; what was declined in the meantime is erased."""
    first = await world.start()
    for name in ("anne", "bert", "carl"):
        await first.visitor(name).opt_in(purposes="all")
    first.shared.down = True
    ids = {}
    for name in ("anne", "bert", "carl"):
        ids[name] = (await first.visitor(name).event(type=name, ack="stored")).event_id
    await world.kill(first)
    kept = (
        store.kept(key_of("anne")) if hasattr(store, "kept") else await store.load_preference(key_of("anne"))
    )
    await store.save_preference(key_of("anne"), replace(kept, purposes="none"))
    await store.forget(key_of("bert"))
    await world.start()
    await settle(100)
    assert edge.event_types == ["carl"]
    assert world.stored_here() == [ids["bert"]]


async def test_a_refusal_between_is_not_undone_by_a_new_yes(world, store, edge):
    """What is older than the choice that holds is refused: nobody could erase it while no worker ran here."""
    first = await world.start()
    await first.visitor("anne").opt_in(purposes="all")
    first.shared.down = True
    await first.visitor("anne").event(type="before", ack="stored")
    await world.kill(first)
    kept = await store.load_preference(key_of("anne"))
    await store.save_preference(key_of("anne"), replace(kept, purposes="none"))
    await store.save_preference(key_of("anne"), replace(kept, chosen_at=world.clock.time()))
    second = await world.start()
    await second.visitor("anne").event(type="after")
    assert edge.event_types == ["after"]
    assert second.statistics().refused == 1
    await world.pass_time()
    assert world.stored_here() == []


async def test_what_nobody_may_send_is_erased_in_the_end(world, caplog):
    """With a line in the log."""
    first = await world.start()
    await first.visitor("anne").opt_in(purposes="all")
    first.shared.down = True
    await first.visitor("anne").event(ack="stored")
    await world.kill(first)
    world.clock.advance(604_801)
    await world.start(store=MemoryStore())
    assert world.stored_here() == []
    assert any("1 events were erased on this machine unsent" in line for line in caplog.messages)


# Refusals


@pytest.mark.parametrize("how", ["opt_in", "forget"])
async def test_a_refusal_erases_here_while_the_shared_outbox_is_down(world, edge, how):
    """The caller hears that it is not erased everywhere; here it is, and it is never sent."""
    alloy = await world.start()
    anne, bert = alloy.visitor("anne", purposes="all"), alloy.visitor("bert", purposes="all")
    alloy.shared.down = True
    event = anne.event(type="anne")
    kept = await bert.event(type="bert", ack="stored")
    await settle()
    with pytest.raises(ConsentStoreError):
        await (anne.opt_in(purposes="none") if how == "opt_in" else anne.forget())
    assert isinstance(event.exception(), ConsentDeclined)
    assert world.stored_here() == [kept.event_id]
    alloy.shared.down = False
    await world.pass_time()
    await world.pass_time()
    assert edge.event_types == ["bert"]


async def test_a_refusal_in_another_process_of_this_machine(world, edge, store):
    """It reaches what this one has here, although nobody could be told through the shared outbox."""
    one, other = await world.start(), await world.start()
    for name in ("anne", "bert"):
        await one.visitor(name).opt_in(purposes="all")
    one.shared.down = other.shared.down = True
    event = one.visitor("anne").event(type="anne")
    await one.visitor("bert").event(type="bert", ack="stored")
    await settle()
    refusing = other.visitor("anne").opt_in(purposes="none")
    await settle()
    assert isinstance(refusing.exception(), ConsentStoreError)
    assert len(world.stored_here()) == 1
    one.shared.down = False
    await world.pass_time()
    assert isinstance(event.exception(), ConsentDeclined)
    assert edge.event_types == ["bert"]
    other.shared.down = False
    await world.pass_time()


async def test_a_refusal_on_another_machine_is_heard_before_anything_moves(world, edge, store):
    """What waits here is refused and erased, although it was never in the place where the refusal erased."""
    alloy = await world.start()
    for name in ("anne", "bert"):
        await alloy.visitor(name).opt_in(purposes="all")
        await alloy.visitor(name).event(type="first")
    alloy.shared.down = True
    event = alloy.visitor("anne").event(type="anne")
    await alloy.visitor("bert").event(type="bert", ack="stored")
    await settle()
    elsewhere = world.make_shared()
    kept = await store.load_preference(key_of("anne"))
    await store.save_preference(key_of("anne"), replace(kept, purposes="none", chosen_at=world.clock.time()))
    await elsewhere.erase(key_of("anne"))
    alloy.shared.down = False
    await world.pass_time()
    assert isinstance(event.exception(), ConsentDeclined)
    assert edge.event_types == ["first", "first", "bert"]
    await world.pass_time()
    assert world.stored_here() == []


async def refuse_elsewhere(world, store, name):
    """Decline for a visitor on another machine."""
    kept = await store.load_preference(key_of(name))
    await store.save_preference(key_of(name), replace(kept, purposes="none", chosen_at=world.clock.time()))
    await world.make_shared().erase(key_of(name))


async def test_a_refusal_elsewhere_erases_what_nobody_has_here(world, store, monkeypatch):
    """And leaves what another process of this machine has, which hears of it itself."""
    alloy = await world.start()
    await alloy.visitor("anne").opt_in(purposes="all")
    living = Local(world.here, clock=world.clock)
    epoch = await living.open()
    await living.write(
        [OutboxEvent(key_of("bert"), "living", b"{}", False, False, world.clock.time())], [], epoch=epoch
    )
    monkeypatch.setattr(Local, "claiming", asyncio.get_running_loop().create_future())
    await left_by_another(world, "anne", "1")
    await refuse_elsewhere(world, store, "anne")
    await world.make_shared().erase(key_of("bert"))
    alloy._engine._keeper.look()
    await settle(50)
    assert world.stored_here() == ["living"]


@pytest.mark.parametrize("end", ["none", "killed"])
async def test_a_refusal_elsewhere_spares_what_another_process_has_after_a_new_yes(world, edge, store, end):
    """It was stored on this machine by one that knew of the yes; also when that one has ended meanwhile."""
    one, other = await world.start(), await world.start()
    await one.visitor("anne").opt_in(purposes="all")
    one.shared.down = other.shared.down = True
    before = one.visitor("anne").event(type="before")
    await settle()
    world.clock.advance(0.1)
    await refuse_elsewhere(world, store, "anne")
    await other.visitor("anne").opt_in(purposes="all")
    after = await other.visitor("anne").event(type="after", ack="stored")
    if end == "killed":
        world.here.workers[1].lease_until = 0.0
        other._engine._keeper._call_off_timers()
    one.shared.down = False
    await world.pass_time(AGAIN - 0.1)
    assert isinstance(before.exception(), ConsentDeclined)
    if end == "none":
        assert (world.stored_here(), edge.event_types) == ([after.event_id], [])
        other.shared.down = False
    await world.pass_time(LEASE / 3)
    await world.pass_time()
    assert (world.stored_here(), edge.event_types) == ([], ["after"])
    other.shared.down = False
    await world.pass_time()


async def test_a_new_yes_elsewhere_is_read_before_anything_is_erased(world, edge):
    """A refusal that this process still has in memory may have been lifted in another one, which has ended."""
    one, other = await world.start(), await world.start()
    await one.visitor("anne").opt_in(purposes="none")
    await settle()
    world.clock.advance(0.1)
    other.shared.down = True
    await other.visitor("anne").opt_in(purposes="all")
    await other.visitor("anne").event(type="after", ack="stored")
    world.here.workers[1].lease_until = 0.0
    other._engine._keeper._call_off_timers()
    await world.pass_time(LEASE / 3)
    await world.pass_time(LEASE / 3)
    assert (world.stored_here(), edge.event_types) == ([], ["after"])
    other.shared.down = False
    await world.pass_time()


async def test_forgetting_elsewhere_erases_what_nobody_has_here(world, store):
    """Whose choice cannot be read is asked about again; nothing is erased of one who has not been forgotten."""
    alloy = await world.start()
    alloy.shared.full = True
    for name in ("anne", "bert"):
        await alloy.visitor(name).opt_in(purposes="all")
        await left_by_another(world, name, name)
    await store.forget(key_of("anne"))
    reading = alloy._engine._household.store
    load = reading.load_preference

    async def fail(_):
        raise OSError

    reading.load_preference = fail
    await world.make_shared().erase(key_of("anne"))
    alloy._engine._keeper.look()
    await settle(50)
    assert sorted(world.stored_here()) == ["anne", "bert"]
    reading.load_preference = load
    for _ in range(3):
        await world.pass_time(LEASE / 3)
    assert world.stored_here() == ["bert"]
    alloy.shared.full = False
    await world.pass_time()


async def test_what_is_turned_away_while_a_refusal_is_being_erased_here_goes_on(world, edge, monkeypatch):
    """The outbox did not know of the yes that came after the refusal; the worker looks once more, and writes it again."""
    alloy = await world.start()
    anne = alloy.visitor("anne")
    await anne.opt_in(purposes="all")
    monkeypatch.setattr(Local, "claiming", asyncio.get_running_loop().create_future())
    await left_by_another(world, "bert", "1")
    erasing = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(Local, "erasing", erasing)

    async def hear_of_refusals():
        alloy.shared.on_write = None
        for name in ("anne", "bert"):
            await world.make_shared().erase(key_of(name))
        alloy._engine._keeper.look()
        await settle()

    alloy.shared.on_write = hear_of_refusals
    event = anne.event(type="after the yes")
    await settle(50)
    erasing.set_result(None)
    await settle()
    await world.pass_time()
    assert event.done()
    assert edge.event_types == ["after the yes"]


@pytest.mark.parametrize("relay", [False, True])
@pytest.mark.parametrize("where", ["this process", "this machine", "another machine"])
async def test_a_refusal_while_events_move_wins(world, edge, store, where, relay):
    """Whoever says it: what is being written to the shared outbox is not sent, and kept nowhere."""
    alloy = await world.start(relay=relay)
    await alloy.visitor("anne").opt_in(purposes="all")
    await alloy.visitor("anne").event(type="first")
    first = len(world.stored_there())
    other = await world.start()
    alloy.shared.down = True
    await alloy.visitor("anne").event(type="second", ack="stored")
    alloy.shared.down = False

    async def refuse():
        alloy.shared.on_write = None
        if where == "this process":
            refusing.append(asyncio.ensure_future(_refuse(alloy)))
        elif where == "this machine":
            other.shared.down = True
            refusing.append(asyncio.ensure_future(_refuse(other)))
        else:
            kept = await store.load_preference(key_of("anne"))
            await store.save_preference(
                key_of("anne"), replace(kept, purposes="none", chosen_at=kept.chosen_at + 1)
            )
            await world.make_shared().erase(key_of("anne"))
        await settle(3)

    refusing = []
    alloy.shared.on_write = refuse
    await world.pass_time()
    for task in refusing:
        await task
    other.shared.down = False
    for _ in range(3):
        await world.pass_time()
    assert "second" not in edge.event_types
    assert world.stored_here() == []
    assert len(world.stored_there()) <= first
    assert alloy.statistics().refused == 1


async def _refuse(alloy):
    refusing = alloy.visitor("anne").opt_in(purposes="none")
    await asyncio.wait([refusing])
    refusing.exception()


async def test_none_and_all_again_while_it_is_down_keeps_what_came_after(world, edge):
    """What was stored here before the refusal is gone, what came after the new yes is stored, and sent."""
    alloy = await world.start()
    anne = alloy.visitor("anne", purposes="all")
    alloy.shared.down = True
    before = anne.event(type="before")
    await settle()
    refusing = anne.opt_in(purposes="none")
    await settle()
    assert isinstance(before.exception(), ConsentDeclined)
    assert isinstance(refusing.exception(), ConsentStoreError)
    alloy.shared.down = False
    await anne.opt_in(purposes="all")
    alloy.shared.down = True
    after = await anne.event(type="after", ack="stored")
    assert world.stored_here() == [after.event_id]
    alloy.shared.down = False
    await world.pass_time()
    assert edge.event_types == ["after"]


@pytest.mark.parametrize("refused_before", [False, True])
async def test_what_was_purged_here_is_not_sent(world, edge, refused_before):
    """The worker notices before it writes it to the shared outbox, and tells the caller; an old refusal changes nothing."""
    alloy = await world.start()
    anne = alloy.visitor("anne")
    if refused_before:
        await anne.opt_in(purposes="none")
    await anne.opt_in(purposes="all")
    alloy.shared.down = True
    event = anne.event()
    await settle()
    for worker in world.here.workers:
        world.here.remove(worker, list(worker.events))
    world.here.epoch += 1
    alloy.shared.down = False
    await world.pass_time()
    assert isinstance(event.exception(), OutboxError)
    assert event.exception().action == "keep"
    assert edge.events == []


async def test_own_refusals_are_not_remembered_for_good(world):
    """They are only as long as somebody else could still tell of them."""
    alloy = await world.start()
    keeper = alloy._engine._keeper
    for name in ("anne", "bert"):
        await alloy.visitor(name).opt_in(purposes="none")
    assert (keeper._epoch._erased, keeper._fallback._epoch._erased) == ({}, {})
    await world.make_shared().erase(key_of("carl"))
    world.here.epoch += 1
    await alloy.visitor("dora").opt_in(purposes="none")
    await world.pass_time()
    assert (keeper._epoch._erased, keeper._fallback._epoch._erased) == ({}, {})


async def test_a_cancelled_event_is_erased_here(world, edge):
    """It is not sent when the shared outbox is back."""
    alloy = await world.start()
    alloy.shared.down = True
    event = alloy.visitor("anne", purposes="all").event()
    await settle()
    event.cancel()
    await world.pass_time()
    assert world.stored_here() == []
    alloy.shared.down = False
    await world.pass_time()
    assert (edge.events, alloy.statistics().cancelled) == ([], 1)


@pytest.mark.parametrize("name", ["anne", None])
async def test_what_was_cancelled_takes_no_memory(world, monkeypatch, name):
    """However many callers lose patience while the outbox is down, and although something older goes on waiting."""
    monkeypatch.setattr(_fallback, "ENDED", 10)
    alloy = await world.start(relay=name is None)  # only with it any event of a visitor without a key waits
    alloy.shared.down = True
    visitor = alloy.visitor(name, purposes="all")
    visitor.event()
    await settle()
    for _ in range(100):
        event = visitor.event()
        await settle()
        event.cancel()
    await settle()
    assert len(alloy._engine._keeper.unwritten()) < 20
    assert (alloy.statistics().queued, alloy.statistics().cancelled) == (1, 100)


# How it stands, and what it is for


async def test_the_outbox_info_counts_both_places(world):
    """What waits on this machine waits for the outbox too."""
    alloy = await world.start()
    alloy.shared.down = True
    await alloy.visitor("anne", purposes="all").event(ack="stored")
    alloy.shared.down = False
    shelf = await alloy.get_outbox_info()
    assert (shelf.events, shelf.workers) == (1, 1)


@pytest.mark.parametrize("outbox", ["memory", "sqlite", "./some.sqlite3"])
async def test_it_is_for_an_outbox_that_is_elsewhere(options, outbox):
    """In front of a file of this machine it would be the same file once more."""
    with pytest.raises(ConfigurationError, match='when_outbox_fails: "local" is for'):
        await Alloy().configure(**options | {"outbox": outbox, "when_outbox_fails": "local"})


async def test_the_fallback_is_the_outbox_of_the_machine(options, tmp_path):
    """It lies where ``outbox="sqlite"`` lies, so that workers share it and ``alloy-async outbox`` shows it."""
    shared = Shared(clock=ManualClock())
    alloy = Alloy()
    await alloy.configure(
        **options | {"outbox": shared, "when_outbox_fails": "local", "state_dir": tmp_path, "clock": None}
    )
    assert (tmp_path / "outbox.sqlite3").exists()
    await alloy.aclose(grace=0)
