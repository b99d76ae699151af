"""What may come between two steps of the delivery: refusals, cancellations, other workers, disks that hang."""

from __future__ import annotations

import asyncio
import json

import pytest
from common import IDS, SlowToWrite, settle

from alloy_async import (
    Alloy,
    AlloyError,
    ConsentDeclined,
    ConsentStoreError,
    NetworkError,
    _group_writer,
    _taking_over,
    _unwritten,
)
from alloy_async.edge import EdgeResponse
from alloy_async.edge.breaker import TOLERATED
from alloy_async.outbox import LEASE, MemoryOutbox, MemoryShelf, OutboxEvent, VisitorKey
from alloy_async.stores import MemoryStore, Preference

KEY = VisitorKey(IDS["ims_org_id"], IDS["config_id"])


@pytest.fixture(autouse=True)
def chance(monkeypatch):
    """Jitter at its upper end."""
    monkeypatch.setattr("alloy_async._courier.random.random", lambda: 1.0)


@pytest.fixture
def shelf():
    """What the outboxes of a test share."""
    return MemoryShelf()


def stored(name, clock, key=KEY):
    """An event as an outbox keeps it."""
    return OutboxEvent(
        key, name, json.dumps({"xdm": {"eventType": name}}).encode(), False, True, clock.time()
    )


async def left_behind(shelf, clock, *names, key=KEY):
    """Leave events on the shelf, as a worker that has closed."""
    worker = MemoryOutbox(shelf, clock=clock)
    await worker.open()
    await worker.write([stored(name, clock, key) for name in names], [], epoch=shelf.epoch)
    await worker.aclose()


def cancel_requests():
    for task in asyncio.all_tasks():
        if task.get_name() == "alloy-request":
            task.cancel()


class SlowToTakeOver(MemoryOutbox):
    """Events that are taken over arrive when a test says so."""

    held = None

    async def claim(self, *arguments, **keywords):
        claimed = await super().claim(*arguments, **keywords)
        if claimed:
            self.held = asyncio.get_running_loop().create_future()
            await self.held
        return claimed


async def test_what_comes_back_during_a_refusal_is_refused(options, shelf, clock, edge):
    """None and all again while events are being taken over: they belong to what was refused."""

    outbox = SlowToTakeOver(shelf, clock=clock)
    await left_behind(shelf, clock, "old")
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": outbox})
        await alloy.opt_in(purposes="all")
        alloy.event(type="new")
        await settle()
        assert outbox.held is not None
        refused = alloy.opt_in(purposes="none")
        agreed = alloy.opt_in(purposes="all")
        outbox.held.set_result(None)
        await refused
        await agreed
        await alloy.event(type="after")
    assert edge.event_types == ["after"]


async def test_nobody_stands_behind_many_events_that_wait_for_older_ones(options, shelf, clock, edge):
    """What waits for what an earlier start has left delays no other visitor, and goes in order."""
    outbox = SlowToTakeOver(shelf, clock=clock)
    await left_behind(shelf, clock, "old")
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": outbox})
        await alloy.opt_in(purposes="all")
        events = [alloy.event(type=f"{number}") for number in range(3_000)]
        await settle(100)
        assert outbox.held is not None
        events.append(alloy.visitor("bert", purposes="all").event(type="bert"))
        await settle(100)
        meanwhile = [*edge.event_types]
        outbox.held.set_result(None)
        for event in events:
            await event
    assert meanwhile == ["bert"]
    assert edge.event_types[1:] == ["old", *(f"{number}" for number in range(3_000))]


@pytest.mark.parametrize("is_known", [False, True])
async def test_a_refusal_that_was_the_last_thing_a_process_kept_holds(
    options, shelf, clock, edge, store, is_known
):
    """It was killed before it had erased; who takes over has never heard of it, and consents again before that."""
    anne, until = KEY._replace(visitor="anne"), clock.time() + 1e6
    await store.save_preference(anne, Preference("all", clock.time(), until))
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": MemoryOutbox(shelf, clock=clock)})
        if is_known:
            await alloy.visitor("anne").event(type="known")
        for _ in range(2):
            dead = MemoryOutbox(shelf, clock=clock)
            await dead.open()
            await dead.write([stored("before", clock, anne)], [], epoch=shelf.epoch)
            clock.advance(1)
            await store.save_preference(anne, Preference("none", clock.time(), until))
            clock.advance(1)
            await store.save_preference(anne, Preference("all", clock.time(), until))
            await dead.write([stored("after", clock, anne)], [], epoch=shelf.epoch)
            clock.advance(LEASE)
            await settle(100)
            await alloy.visitor("anne", purposes="all").event(type="new")
            clock.advance(LEASE)
            await settle(100)
        books = await alloy.aclose()
    assert edge.event_types == ["known"] * is_known + ["after", "new"] * 2
    assert (books.refused, (await dead.shelf()).events) == (2, 0)


async def test_what_was_left_waits_while_it_is_not_known_since_when_the_visitor_consents(
    options, shelf, clock, edge, store, monkeypatch
):
    """The store cannot be read: what is new waits too, and goes behind it."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": MemoryOutbox(shelf, clock=clock)})
        await alloy.opt_in(purposes="all")
        load, failing = store.load_preference, [True]

        async def load_preference(key):
            if failing:
                raise ConsentStoreError("load", "the store", "the disk is gone.")
            return await load(key)

        monkeypatch.setattr(alloy._engine.visitor.keeper._store, "load_preference", load_preference)
        await left_behind(shelf, clock, "left")
        clock.advance(LEASE)
        await settle(100)
        new = alloy.event(type="new")
        await settle(100)
        meanwhile = [*edge.event_types]
        failing.clear()
        clock.advance(LEASE)
        await new
    assert (meanwhile, edge.event_types) == ([], ["left", "new"])


@pytest.mark.parametrize("wish", ["none", "pending"])
async def test_what_is_left_to_a_relay_is_erased_before_a_refusal_is_kept(options, shelf, clock, store, wish):
    """A relay asks no store: after a worker that was killed in between nobody would erase it. And once more after that."""
    left = []
    seen = store.save_preference

    async def save_preference(key, preference, *, by=""):
        if preference.purposes == "none":
            left.append(shelf.events)
            await worker.write([stored("meanwhile", clock)], [], epoch=shelf.epoch)
        await seen(key, preference, by=by)

    store.save_preference = save_preference
    worker = MemoryOutbox(shelf, clock=clock)
    await worker.open()
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": MemoryOutbox(shelf, clock=clock), "relay": True})
        await alloy.opt_in(purposes="all")
        await alloy.event(type="event")
        await (alloy.forget() if wish == "pending" else alloy.opt_in(purposes="none"))
        left.append((await worker.shelf()).events)
    assert left == [0, 0]


@pytest.mark.parametrize("ordered", [False, True])
async def test_much_that_was_left_of_a_visitor_who_waits_leaves_room_for_others(
    options, shelf, clock, edge, store, monkeypatch, ordered
):
    """What is taken over of them goes; the rest of the one who waits follows in order."""
    monkeypatch.setattr(_taking_over, "SHARE", 4)
    anne, bert = (KEY._replace(visitor=visitor) for visitor in ("anne", "bert"))
    for key in (anne, bert):
        await store.save_preference(key, Preference("all", clock.time(), 4_000_000_000.0))
    names = [f"anne {number}" for number in range(20)]
    await left_behind(shelf, clock, *names, key=anne)
    edge.answers.append(EdgeResponse(429, {"retry-after": "200"}, b""))
    outbox = MemoryOutbox(shelf, clock=clock)
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": outbox, "ordered": ordered})
        await settle(100)
        await left_behind(shelf, clock, "bert 0", "bert 1", key=bert)
        clock.advance(LEASE)
        await settle(100)
        meanwhile = [*edge.event_types]
        clock.advance(200)
        await settle(300)
    assert meanwhile == [*names[:4], "bert 0", "bert 1"]
    assert edge.event_types[6:] == names


@pytest.mark.parametrize("command", ["event", "flush"])
async def test_what_has_no_room_is_not_looked_for_without_a_pause(
    options, shelf, clock, edge, store, monkeypatch, command
):
    """Whoever waits for the rest of what was left waits until something ends."""
    monkeypatch.setattr(_taking_over, "SHARE", 4)

    class Counting(MemoryOutbox):
        looks = 0

        async def abandoned(self):
            self.looks += 1
            return await super().abandoned()

    anne = KEY._replace(visitor="anne")
    await store.save_preference(anne, Preference("all", clock.time(), 4_000_000_000.0))
    names = [f"{number}" for number in range(20)]
    await left_behind(shelf, clock, *names, key=anne)
    edge.answers.append(EdgeResponse(429, {"retry-after": "200"}, b""))
    outbox = Counting(shelf, clock=clock)
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": outbox})
        await settle(100)
        before = outbox.looks
        waits = alloy.visitor("anne").event(type="new") if command == "event" else alloy.flush()
        await settle(100)
        looks = outbox.looks - before
        clock.advance(200)
        await waits
        await alloy.flush()
    assert looks <= 1
    assert edge.event_types[4:] == [*names, *(["new"] if command == "event" else [])]


async def test_what_waits_for_older_ones_ends_when_it_is_too_old(options, shelf, clock, edge):
    """Though it stands aside: as soon as anything is looked at."""
    outbox = SlowToTakeOver(shelf, clock=clock)
    await left_behind(shelf, clock, "old")
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": outbox, "delivery_timeout": 100})
        await alloy.opt_in(purposes="all")
        events = [alloy.event(type=f"{number}") for number in range(1_200)]
        await settle(100)
        clock.advance(100)
        await alloy.visitor("bert", purposes="all").event(type="bert")
        await settle(50)
        ended = [event.done() and type(event.exception()) for event in events]
        outbox.held.set_result(None)
    assert ended == [NetworkError] * 1_200
    assert edge.event_types == ["bert"]


@pytest.mark.parametrize("text", ["Mon, 01 Jan 99999999999 00:00:00 GMT", "Mon, 99 Foo 2026", "\0"])
async def test_a_malformed_retry_after_leaves_no_future_pending(options, edge, clock, text):
    """It is as if it were not there."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"opt_in_enabled": False})
        edge.answers.append(EdgeResponse(503, {"retry-after": text}, b""))
        event = alloy.event()
        await settle()
        clock.advance(0.5)
        await event


async def test_a_mistake_after_a_failure_leaves_no_future_pending(options, edge, monkeypatch):
    """Whatever happens in deciding what follows, each event of the batch ends."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"opt_in_enabled": False})
        monkeypatch.setattr("alloy_async._courier.next_wait", lambda *_, **__: 1 / 0)
        edge.answers.append(EdgeResponse(503, {}, b""))
        event = alloy.event()
        await settle()
        assert type(event.exception()) is AlloyError


async def test_a_probe_that_somebody_cancels_leaves_its_place_to_another(options, edge, clock):
    """The courier does not stop for good: the next event's request probes the endpoint."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"opt_in_enabled": False, "max_attempts": 100})
        edge.answers += [NetworkError("http://edge", "down") for _ in range(TOLERATED)]
        events = [alloy.event(view_start=True) for _ in range(TOLERATED)]
        await settle()
        edge.hold()
        clock.advance(1.0)
        await settle()
        assert alloy.statistics().circuit == "half-open"
        cancel_requests()
        await settle()
        edge.release()
        clock.advance(1.0)
        for event in [*events, alloy.event()]:
            await event


async def test_nothing_starts_by_itself_after_requests_were_cancelled(options, edge, clock):
    """That is how a loop ends; the next command, or closing, goes on with what waits, under the same ids."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"opt_in_enabled": False, "max_in_flight": 1})
        await alloy.event(type="first")
        edge.hold()
        events = [alloy.event(type=name, view_start=True) for name in "ab"]
        await settle()
        cancel_requests()
        await settle()
        assert edge.event_types == ["first", "a"]
        edge.release()
        clock.advance(60)
        await settle()
        assert edge.event_types == ["first", "a"]
        events.append(alloy.event(type="c"))
        for event in events:
            await event
    assert edge.event_types == ["first", "a", "a", "b", "c"]


async def test_a_write_that_was_cancelled_before_it_began_is_done_with_the_next(options, shelf, clock, edge):
    """Who cancels every task of a loop meets some that have run nothing yet."""
    alloy = Alloy()
    outbox = MemoryOutbox(shelf, clock=clock)
    await alloy.configure(**options | {"outbox": outbox, "opt_in_enabled": False, "transport": edge})
    await alloy.event(type="first")
    events = [alloy.event(type="a")]
    while not (writes := [task for task in asyncio.all_tasks() if task.get_name() == "alloy-outbox-write"]):
        await settle(1)
    writes[0].cancel()
    await settle()
    events.append(alloy.event(type="b"))
    await settle()
    assert [event.done() for event in events] == [True, True]
    assert edge.event_types == ["first", "a", "b"]
    await alloy.aclose()


async def test_a_cancelled_write_is_neither_forgotten_nor_repeated(options, shelf, clock):
    """Its events end when the instance is closed, and nothing is open in the books."""

    class Hangs(MemoryOutbox):
        hanging = False

        async def write(self, *arguments, **keywords):
            if self.hanging:
                await asyncio.get_running_loop().create_future()
            return await super().write(*arguments, **keywords)

    outbox = Hangs(shelf, clock=clock)
    alloy = Alloy()
    await alloy.configure(**options | {"outbox": outbox, "opt_in_enabled": False})
    outbox.hanging = True
    event = alloy.event(type="a")
    await settle()
    next(task for task in asyncio.all_tasks() if task.get_name() == "alloy-outbox-write").cancel()
    await settle()
    outbox.hanging = False
    await alloy.event(type="b")
    closing = asyncio.ensure_future(alloy.aclose(grace=1.0))
    await settle()
    clock.advance(1.0)
    books = await closing
    assert event.done()
    assert (books.accepted, books.delivered, books.open) == (2, 1, 0)


async def test_an_outbox_that_raises_what_it_should_not_ends_in_a_documented_error(options, clock):
    """A foreign exception never reaches a future, and never leaves one pending."""

    class Broken(MemoryOutbox):
        async def write(self, *_, **__):
            raise ConnectionError("secret")

    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": Broken(clock=clock), "opt_in_enabled": False})
        event = alloy.event()
        await settle()
        assert "ConnectionError" in str(event.exception())
        assert "secret" not in str(event.exception())


async def test_a_refusal_that_only_memory_knows_is_not_undone_by_another_process(options, shelf, clock, edge):
    """The store still says the old yes; what the visitor said here holds."""

    class Full(MemoryStore):
        async def save_preference(self, key, preference, *, by=""):
            if preference.purposes == "none":
                raise ConsentStoreError("save", "the test's store", "the disk is full.")
            await super().save_preference(key, preference, by=by)

    async with Alloy() as alloy:
        outbox = MemoryOutbox(shelf, clock=clock)
        await alloy.configure(**options | {"outbox": outbox, "store": Full()})
        await alloy.opt_in(purposes="all")
        await alloy.event(type="first")
        with pytest.raises(ConsentStoreError):
            await alloy.opt_in(purposes="none")
        other = MemoryOutbox(shelf, clock=clock)
        await other.open()
        await other.erase(KEY)
        alloy._engine._keeper.look()
        await settle()
        assert isinstance(alloy.event(type="leak").exception(), ConsentDeclined)
        await settle()
    assert edge.event_types == ["first"]


async def test_closing_does_not_wait_for_a_disk_that_hangs(options, shelf, clock):
    """While a refusal is being written and erased, on a store and an outbox that never answer."""

    class Hangs(MemoryStore):
        async def save_preference(self, key, preference, *, by=""):
            if preference.purposes == "none":
                await asyncio.get_running_loop().create_future()
            await super().save_preference(key, preference, by=by)

    class HangsToo(MemoryOutbox):
        async def erase(self, visitor):
            return await asyncio.get_running_loop().create_future()

    alloy = Alloy()
    await alloy.configure(**options | {"store": Hangs(), "outbox": HangsToo(shelf, clock=clock)})
    await alloy.opt_in(purposes="all")
    alloy.opt_in(purposes="none")
    await settle()
    closing = asyncio.ensure_future(alloy.aclose(grace=0.1))
    for _ in range(40):
        await settle()
        clock.advance(0.1)
    async with asyncio.timeout(5):
        assert (await closing).open == 0


async def test_an_outbox_that_cannot_tell_is_not_asked_without_a_pause(options, shelf, clock):
    """It says that nothing may be sent, although nothing has happened: it is asked again a moment later."""

    class Undecided(MemoryOutbox):
        looks = 0
        undecided = False

        def may_send(self, epoch):
            return not self.undecided and super().may_send(epoch)

        async def changes(self, since):
            self.looks += 1
            return await super().changes(since)

    outbox = Undecided(shelf, clock=clock)
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": outbox, "opt_in_enabled": False})
        await alloy.event()
        outbox.undecided = True
        event = alloy.event()
        await settle(200)
        assert outbox.looks <= 2
        outbox.undecided = False
        clock.advance(_group_writer.LAZY)
        await event


async def test_what_loses_its_consent_while_another_group_is_written_is_not_stored(options, shelf, clock):
    """It goes back to the gate, and waits in memory."""
    outbox = SlowToWrite(shelf, clock=clock)
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": outbox, "preference_max_age": 100.0})
        await alloy.opt_in(purposes="all")
        await alloy.event(type="first")
        outbox.held = held = asyncio.get_running_loop().create_future()
        alloy.event(type="being written")
        await settle()
        late = alloy.event(type="late")
        await settle()
        clock.advance(101)
        outbox.held = None
        held.set_result(None)
        await settle()
        kept = [event.body for worker in shelf.workers for event in worker.events.values()]
        assert not any(b'"late"' in body for body in kept)
        assert alloy.statistics().parked >= 1
        late.cancel()


async def test_what_waits_behind_what_loses_its_consent_does_not_overtake_it(
    options, shelf, clock, edge, monkeypatch
):
    """A group goes back to the gate, and so does what is behind it; consent is there again before the next group."""
    monkeypatch.setattr(_unwritten, "GROUP", 2)

    class Watched(MemoryOutbox):
        on_write = None

        async def write(self, *arguments, **keywords):
            if self.on_write is not None:
                on_write, self.on_write = self.on_write, None
                await on_write()
            await settle(5)  # so that what is stored is sent before the next group is
            return await super().write(*arguments, **keywords)

    async with Alloy() as alloy:
        outbox = Watched(shelf, clock=clock)
        await alloy.configure(**options | {"outbox": outbox})
        anne = alloy.visitor("anne")
        await anne.opt_in(purposes="all")
        await anne.event(type="first")
        state = alloy._engine._find(KEY._replace(visitor="anne"))

        async def lose_consent():
            events.extend(anne.event(type=str(number)) for number in range(1, 6))
            await settle()
            state.gate.doubt()
            outbox.on_write = find_consent

        async def find_consent():
            state.look_again()
            await settle()

        outbox.on_write = lose_consent
        events = [anne.event(type="0")]
        await events[0]
        for event in events:
            await event
        assert edge.event_types == ["first", *map(str, range(6))]


async def test_forgetting_leaves_nothing_that_a_later_yes_revives(options, shelf, clock, edge, store):
    """Killed in the middle of it, the process has left a refusal: the next start erases what is left."""

    class Killed(MemoryOutbox):
        async def erase(self, visitor):
            return await asyncio.get_running_loop().create_future()

    alloy = Alloy()
    await alloy.configure(**options | {"outbox": Killed(shelf, clock=clock)})
    await alloy.opt_in(purposes="all")
    edge.hold()
    alloy.event(type="before")
    await settle()
    alloy.forget()
    await settle()
    kept = await store.load_preference(KEY)
    assert kept.purposes == "none"
    edge.release()
    closing = asyncio.ensure_future(alloy.aclose(grace=0.1))
    for _ in range(40):
        await settle()
        clock.advance(0.1)
    await closing


async def test_many_events_refused_elsewhere_end_as_refused(options, shelf, clock, edge, store):
    """Also those beyond the first slice: nobody is told that they were purged."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": MemoryOutbox(shelf, clock=clock), "max_in_flight": 1})
        await alloy.opt_in(purposes="all")
        edge.hold()
        events = [alloy.event(view_start=True) for _ in range(1_200)]
        await settle(60)
        other = MemoryOutbox(shelf, clock=clock)
        await other.open()
        await other.erase(KEY)
        await store.save_preference(KEY, Preference("none", clock.time(), clock.time() + 1_000))
        edge.release()
        await settle(60)
        ended = [event for event in events if event.done() and event.exception() is not None]
        assert len(ended) >= 1_190
        assert {type(event.exception()) for event in ended} == {ConsentDeclined}


async def test_a_look_that_somebody_cancels_is_taken_again_before_anything_is_sent(
    options, shelf, clock, edge
):
    """The lease had run out and others took over: a renewed lease alone must not send their events from here."""

    class Slow(MemoryOutbox):
        held = None

        async def changes(self, since):
            if self.held is not None:
                await self.held
            return await super().changes(since)

    outbox = Slow(shelf, clock=clock)
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": outbox, "opt_in_enabled": False})
        await alloy.event(type="first")
        edge.answers.append(EdgeResponse(503, {"retry-after": "60"}, b""))
        event = alloy.event(type="taken over")
        await settle()
        alloy._engine._keeper._heart.cancel()  # the process sleeps, and its lease runs out
        other = MemoryOutbox(shelf, clock=clock)
        clock.advance(60 - 0.001)
        await other.open()
        assert [one.event.event_id for one in await other.claim([KEY], count=9, size=9_999)]
        outbox.held = asyncio.get_running_loop().create_future()
        clock.advance(0.001)
        await settle()
        next(task for task in asyncio.all_tasks() if task.get_name() == "alloy-outbox-look").cancel()
        await settle()
        outbox.held.cancel()
        outbox.held = None
        alloy.event(type="later")
        await settle(60)
        assert edge.event_types.count("taken over") == 1
        assert event.done()
        await other.aclose()


@pytest.mark.parametrize("ordered", [False, True])
async def test_what_was_turned_away_is_not_overtaken(options, shelf, clock, edge, monkeypatch, ordered):
    """A refusal elsewhere came before the yes that is known here: what was called since then goes, in order."""
    monkeypatch.setattr(_unwritten, "GROUP", 1)

    class Slow(MemoryOutbox):
        async def write(self, *arguments, **keywords):
            await settle(5)
            return await super().write(*arguments, **keywords)

    outbox = Slow(shelf, clock=clock)
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": outbox, "ordered": ordered})
        other = MemoryOutbox(shelf, clock=clock)
        await other.open()
        await other.erase(KEY)
        await alloy.opt_in(purposes="all")
        events = [alloy.event(type=name) for name in "abcd"]
        await settle(100)
        assert all(event.done() for event in events)
    assert edge.event_types == [*"abcd"]
