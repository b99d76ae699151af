"""A durable outbox behind an instance: what is stored when, who sends it, and what others' deeds change."""

from __future__ import annotations

import asyncio

import pytest
from common import IDS, SlowToWrite, settle

from alloy_async import (
    Alloy,
    AlloyClosed,
    ConsentDeclined,
    InvalidCommand,
    OutboxError,
    OutboxFull,
    _group_writer,
    _taking_over,
    _unwritten,
)
from alloy_async.edge import EdgeResponse
from alloy_async.outbox import LEASE, MemoryOutbox, MemoryShelf, OutboxEvent, VisitorKey
from alloy_async.stores import Preference

KEY = VisitorKey(IDS["ims_org_id"], IDS["config_id"])


class Watched(MemoryOutbox):
    """Counts what it is asked, and fails as told."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.writes = []
        self.failing = False

    async def write(self, events, ended, *, epoch):
        if self.failing:
            raise OutboxError("write", "the test's outbox", "the disk is full.")
        self.writes.append((len(events), len(ended)))
        return await super().write(events, ended, epoch=epoch)


@pytest.fixture
def shelf():
    """What the outboxes of a test share."""
    return MemoryShelf()


@pytest.fixture
def outbox(shelf, clock):
    """An outbox that counts."""
    return Watched(shelf, clock=clock)


@pytest.fixture
async def open_alloy(options, outbox, edge):
    """An instance with a durable outbox, whose visitor consents."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": outbox})
        await alloy.opt_in(purposes="all")
        await alloy.event(type="first")
        yield alloy
        edge.release()


async def closed(alloy, clock, grace=1.0):
    closing = asyncio.ensure_future(alloy.aclose(grace=grace))
    await settle()
    clock.advance(grace)
    return await closing


async def another(options, shelf, clock, **changes):
    """Open another worker on the same events."""
    alloy = Alloy()
    await alloy.configure(**options | {"outbox": MemoryOutbox(shelf, clock=clock)} | changes)
    return alloy


async def test_stored_is_told_before_the_edge_has_answered(open_alloy, edge):
    """ack="stored" ends when the event is safe; the books wait for its own end."""
    edge.hold()
    event = open_alloy.event(type="a", ack="stored")
    result = await event
    await settle()
    assert (result.stored, result.event_id) == (True, edge.events[-1]["xdm"]["_id"])
    assert open_alloy.statistics().sending == 1
    edge.release()
    await open_alloy.flush()
    assert open_alloy.statistics().delivered == 2


async def test_what_was_stored_and_then_failed_is_logged(open_alloy, edge, caplog):
    """Nobody can await it any more, so the log says it."""
    edge.answers.append(EdgeResponse(500, {}, b"oops"))
    await open_alloy.event(ack="stored")
    await open_alloy.flush()
    assert open_alloy.statistics().failed == 1
    await open_alloy.aclose()
    assert any("1 EdgeError that nobody awaited" in line for line in caplog.messages)


async def test_a_busy_process_pays_for_few_writes(open_alloy, outbox):
    """What gathers while a group is written is the next group, and erasing travels with it."""
    events = [open_alloy.event(type=str(number)) for number in range(2_500)]
    for event in events:
        await event
    stored = [stored for stored, _ in outbox.writes]
    assert sum(stored) == 2_501
    assert len(stored) < 20
    assert max(stored) <= _unwritten.GROUP


async def test_what_was_delivered_is_erased_soon(open_alloy, shelf, clock):
    """A moment later the outbox is empty."""
    await open_alloy.event()
    clock.advance(_group_writer.LAZY)
    await settle()
    assert shelf.events == 0


async def test_what_ends_while_a_group_is_written_waits_for_company(options, shelf, clock, edge):
    """It costs no write of its own: it is erased along with the next group, or a moment later."""

    class Slow(SlowToWrite, Watched):
        pass

    outbox = Slow(shelf, clock=clock)
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": outbox, "opt_in_enabled": False})
        edge.hold()
        under_way = alloy.event()
        await settle()
        outbox.held = asyncio.get_running_loop().create_future()
        being_written = alloy.event()
        await settle()
        edge.release()
        await under_way
        outbox.held.set_result(None)
        await being_written
        await settle()
        assert outbox.writes == [(1, 0), (1, 0)]
        clock.advance(_group_writer.LAZY)
        await settle()
        assert outbox.writes == [(1, 0), (1, 0), (0, 2)]


async def test_a_full_outbox_is_told(options, shelf, clock, edge):
    """The bound is that of all workers; what is stored stays."""
    async with Alloy() as alloy:
        outbox = MemoryOutbox(shelf, clock=clock, max_events=2)
        await alloy.configure(**options | {"outbox": outbox, "opt_in_enabled": False})
        edge.hold()
        events = [alloy.event(ack="stored") for _ in range(3)]
        assert [(await event).stored for event in events[:2]] == [True, True]
        with pytest.raises(OutboxFull, match="max_queued"):
            await events[2]
        edge.release()


async def test_a_disk_that_fails_is_told_and_harms_nobody_later(open_alloy, outbox):
    """Events that could not be stored end with the reason; the next ones are stored again."""
    outbox.failing = True
    with pytest.raises(OutboxError, match="disk is full"):
        await open_alloy.event()
    outbox.failing = False
    assert (await open_alloy.event(ack="stored")).stored


async def test_nothing_is_stored_in_memory_alone(options):
    """ack="stored" without a durable outbox is a mistake that is named; so is another word."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"opt_in_enabled": False})
        for word in ("stored", "disk"):
            error = alloy.event(ack=word).exception()
            assert isinstance(error, InvalidCommand)
            assert error.path == "ack"


async def test_nothing_is_stored_before_consent(options, shelf, clock):
    """What waits for the visitor's choice is in memory only; a refusal leaves nothing."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": MemoryOutbox(shelf, clock=clock)})
        event = alloy.event(ack="stored")
        await settle()
        assert shelf.events == 0
        await alloy.opt_in(purposes="none")
        assert isinstance(event.exception(), ConsentDeclined)
        assert shelf.events == 0


async def test_what_is_left_at_the_end_is_kept_and_sent_first_by_the_next_start(
    options, shelf, clock, edge, caplog
):
    """Under the same id, in order, before anything new; the books of both add up."""
    first = await another(options, shelf, clock)
    await first.opt_in(purposes="all")
    edge.hold()
    events = [first.event(type=str(number)) for number in range(3)]
    await settle()
    books = await closed(first, clock)
    assert (books.kept, books.failed, books.open) == (3, 0, 0)
    assert all(isinstance(event.exception(), AlloyClosed) and event.exception().kept for event in events)
    assert any("3 are kept in the outbox for the next start" in line for line in caplog.messages)
    sent = [event["xdm"]["_id"] for event in edge.events]
    edge.release()
    edge.requests.clear()
    second = await another(options, shelf, clock)
    await second.event(type="new")
    assert edge.event_types == ["0", "1", "2", "new"]
    assert [event["xdm"]["_id"] for event in edge.events[:3]] == sent
    books = await second.aclose()
    assert (books.accepted, books.recovered, books.delivered) == (4, 3, 4)


async def leave_behind(count, options, shelf, clock, edge):
    """Close an instance with so many events that the edge has not answered."""
    first = await another(options, shelf, clock)
    await first.opt_in(purposes="all")
    edge.hold()
    for number in range(count):
        first.event(type=str(number))
    await settle()
    await closed(first, clock)
    edge.release()
    edge.requests.clear()


async def test_a_large_backlog_keeps_its_order(options, shelf, clock, edge, monkeypatch):
    """It is taken over in parts; newer events wait until the last part is here."""
    monkeypatch.setattr(_taking_over, "CLAIM", 4)
    await leave_behind(30, options, shelf, clock, edge)
    second = await another(options, shelf, clock)
    await second.event(type="new")
    assert edge.event_types == [*map(str, range(30)), "new"]
    await second.aclose()


async def test_a_large_backlog_does_not_fill_memory(options, shelf, clock, edge, monkeypatch):
    """However long the edge does not answer; and what others leave meanwhile is not held up by what is new here."""
    monkeypatch.setattr(_taking_over, "CLAIM", 4)
    await leave_behind(20, options, shelf, clock, edge)
    edge.hold()
    second = await another(options, shelf, clock)
    new = [second.event(type=f"new {number}") for number in range(6)]
    for _ in range(4):
        await settle()
        clock.advance(LEASE / 3)
    await settle()
    assert second.statistics().recovered == 4
    edge.release()
    for event in new:
        await event
    assert edge.event_types == [*map(str, range(20)), *(f"new {number}" for number in range(6))]
    await second.aclose()


async def test_events_of_a_dead_worker_are_taken_over(options, shelf, clock, edge):
    """A worker that no longer renews its lease counts as dead; a living one keeps what is its own."""
    edge.hold()
    dead = await another(options, shelf, clock)
    await dead.opt_in(purposes="all")
    dead.event(type="left behind")
    await settle()
    dead._engine._keeper._heart.cancel()  # it is not there any more
    living = await another(options, shelf, clock)
    await settle()
    assert living.statistics().recovered == 0
    edge.release()
    edge.hold()
    for _ in range(4):
        clock.advance(LEASE / 3)
        await settle()
    assert living.statistics().recovered + dead.statistics().delivered >= 1
    edge.release()
    await living.aclose()
    await dead.aclose()


async def test_a_refusal_in_another_process_is_seen_before_the_next_transmission(
    options, shelf, clock, edge, store, open_alloy
):
    """What waits here is refused, nothing more is sent, and later events are refused at once."""
    edge.hold()
    under_way = open_alloy.event(view_start=True)
    await settle()
    waiting = open_alloy.event(type="waits")
    await settle()
    other = MemoryOutbox(shelf, clock=clock)
    await other.open()
    await other.erase(KEY)
    await store.save_preference(KEY, Preference("none", clock.time(), clock.time() + 1_000))
    sent = len(edge.requests)
    edge.release()
    clock.advance(1)
    await settle()
    assert under_way.exception() is None
    assert isinstance(waiting.exception(), ConsentDeclined)
    assert isinstance(open_alloy.event().exception(), ConsentDeclined)
    assert len(edge.requests) == sent


async def test_none_and_all_again_in_another_process_revive_nothing(
    options, shelf, clock, edge, store, open_alloy
):
    """What was called before the refusal stays refused, what is called after the new yes is sent."""
    other = MemoryOutbox(shelf, clock=clock)
    await other.open()
    edge.hold()
    open_alloy.event(view_start=True)
    await settle()
    before = open_alloy.event(type="before")
    await settle()
    await other.erase(KEY)
    await store.save_preference(KEY, Preference("all", clock.time(), clock.time() + 1_000))
    edge.release()
    clock.advance(1)
    await settle()
    assert isinstance(before.exception(), ConsentDeclined)
    await open_alloy.event(type="after")
    assert "before" not in edge.event_types
    assert edge.event_types[-1] == "after"


async def test_what_was_turned_away_keeps_its_place(options, shelf, clock, monkeypatch):
    """An event that the outbox took for refused goes on once the worker has looked, and before what was called later."""
    asking, written = asyncio.get_running_loop().create_future(), []

    class Slow(MemoryOutbox):
        async def changes(self, since):
            await asyncio.shield(asking)
            return await super().changes(since)

        async def write(self, events, ended, *, epoch):
            if [event.visitor.visitor for event in events] == ["bert"]:
                asking.set_result(None)
                await settle()
            stored = await super().write(events, ended, epoch=epoch)
            written.extend(
                event.event_id for event, key in zip(events, stored.keys, strict=True) if key is not None
            )
            return stored

    monkeypatch.setattr(_unwritten, "GROUP", 1)
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": Slow(shelf, clock=clock)})
        anne, bert = alloy.visitor("anne", purposes="all"), alloy.visitor("bert", purposes="all")
        await bert.set_customer_ids(
            {"CRM": {"id": "b"}}
        )  # so that its event is written in the turn in which it is called
        await MemoryOutbox(shelf, clock=clock).erase(VisitorKey(KEY.organisation, KEY.datastream, "carl"))
        await anne.opt_in(purposes="none")
        await anne.opt_in(purposes="all")
        first = anne.event()
        await settle()
        events = [bert.event(), first, anne.event(), anne.event()]
        assert written == [(await event).event_id for event in events]


async def test_an_event_that_was_purged_elsewhere_is_not_sent(open_alloy, shelf, clock, edge):
    """The worker notices before its next transmission, and tells the caller."""
    edge.answers.append(EdgeResponse(503, {"retry-after": "10"}, b""))
    event = open_alloy.event()
    await settle()
    for worker in shelf.workers:
        shelf.remove(worker, list(worker.events))
    shelf.epoch += 1
    clock.advance(10)
    await settle()
    error = event.exception()
    assert isinstance(error, OutboxError)
    assert error.action == "keep"
    assert len(edge.requests) == 2


async def test_what_was_refused_is_erased_by_the_next_start(options, shelf, clock, edge, store):
    """A process was killed between writing the refusal and erasing the events; the next one finishes that."""
    first = await another(options, shelf, clock)
    await first.opt_in(purposes="all")
    edge.hold()
    first.event()
    await settle()
    await closed(first, clock)
    await store.save_preference(KEY, Preference("none", clock.time(), clock.time() + 1_000))
    second = await another(options, shelf, clock)
    await settle()
    assert shelf.events == 0
    await second.aclose()


class Erasing(MemoryOutbox):
    """Counts whom it erases, waits before it does, and fails as told."""

    erasing = None
    failing = False

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.erased = []

    async def erase(self, visitor):
        if self.failing:
            raise OutboxError("erase", "the test's outbox", "the disk is full.")
        self.erased.append(visitor.visitor)
        if self.erasing is not None:
            await asyncio.shield(self.erasing)
        return await super().erase(visitor)


def key_of(name):
    return KEY._replace(visitor=name)


async def left_by_a_dead_worker(shelf, clock, *names):
    worker = MemoryOutbox(shelf, clock=clock)
    epoch = await worker.open()
    rows = [
        OutboxEvent(
            key_of(name), name, b'{"xdm":{"eventType":"%s"}}' % name.encode(), False, False, clock.time()
        )
        for name in names
    ]
    await worker.write(rows, [], epoch=epoch)
    await worker.aclose()


async def choose(store, clock, purposes, *names):
    for name in names:
        await store.save_preference(key_of(name), Preference(purposes, clock.time(), clock.time() + 1e6))


def visitors_of(shelf):
    return sorted(event.visitor.visitor for worker in shelf.workers for event in worker.events.values())


async def test_what_visitors_refused_is_erased_by_whoever_finds_it(options, shelf, clock, edge, store):
    """Whoever was killed between writing refusals and erasing the events; each is erased once, of whom nobody knows it stays."""
    await choose(store, clock, "none", "anne", "bert")
    await choose(store, clock, "all", "carl")
    await left_by_a_dead_worker(shelf, clock, "anne", "carl", "bert", "anne", "dora")
    outbox = Erasing(shelf, clock=clock)
    alloy = await another(options, shelf, clock, outbox=outbox)
    for _ in range(3):
        await settle()
        clock.advance(LEASE / 3)
    await settle()
    assert (visitors_of(shelf), edge.event_types) == (["dora"], ["carl"])
    assert sorted(outbox.erased) == ["anne", "bert"]
    assert alloy.statistics().recovered == 1
    await alloy.aclose()


async def test_erasing_what_was_refused_holds_up_nobody(options, shelf, clock, edge, store):
    """Others are taken over and the lease is renewed meanwhile, and closing does not wait for it."""
    await choose(store, clock, "none", "anne")
    await choose(store, clock, "all", "bert")
    await left_by_a_dead_worker(shelf, clock, "anne")
    outbox = Erasing(shelf, clock=clock)
    outbox.erasing = asyncio.get_running_loop().create_future()
    alloy = await another(options, shelf, clock, outbox=outbox)
    await settle()
    await left_by_a_dead_worker(shelf, clock, "bert")
    for _ in range(6):
        clock.advance(LEASE / 3)
        await settle()
    assert (outbox.erased, edge.event_types) == (["anne"], ["bert"])
    assert outbox._worker.lease_until > clock.time()
    await alloy.aclose()
    outbox.erasing.cancel()


async def test_what_was_refused_and_could_not_be_erased_is_erased_later(options, shelf, clock, store, caplog):
    """With a line in the log until it can be."""
    await choose(store, clock, "none", "anne")
    await left_by_a_dead_worker(shelf, clock, "anne")
    outbox = Erasing(shelf, clock=clock)
    outbox.failing = True
    alloy = await another(options, shelf, clock, outbox=outbox)
    await settle()
    assert visitors_of(shelf) == ["anne"]
    assert any("the disk is full.; what was refused is erased later" in line for line in caplog.messages)
    outbox.failing = False
    clock.advance(LEASE / 3)
    await settle()
    assert visitors_of(shelf) == []
    await alloy.aclose()


async def test_a_refusal_that_was_lifted_elsewhere_erases_nothing(options, shelf, clock, edge, store):
    """What a process has in memory may be out of date: the choice is read again before anything is erased."""
    outbox = Erasing(shelf, clock=clock)
    alloy = await another(options, shelf, clock, outbox=outbox)
    await alloy.visitor("anne").opt_in(purposes="none")
    await settle()
    clock.advance(0.1)
    await choose(store, clock, "all", "anne")
    await left_by_a_dead_worker(shelf, clock, "anne")
    for _ in range(2):
        clock.advance(LEASE / 3)
        await settle()
    assert (outbox.erased, edge.event_types) == (["anne"], ["anne"])  # once, by the refusal itself
    await alloy.aclose()


async def test_a_new_yes_while_what_was_refused_waits_to_be_erased(options, shelf, clock, edge, store):
    """Nothing is erased any more: it would be what came after the yes. What came before the refusal is not sent."""
    outbox = Erasing(shelf, clock=clock)
    alloy = await another(options, shelf, clock, outbox=outbox)
    await settle()
    erasing = outbox.erasing = asyncio.get_running_loop().create_future()
    refused = alloy.visitor("carl").opt_in(purposes="none")
    await settle()
    await left_by_a_dead_worker(shelf, clock, "anne")
    clock.advance(LEASE / 3)
    await choose(store, clock, "none", "anne")
    await settle()
    edge.hold()
    anne = alloy.visitor("anne")
    await anne.opt_in(purposes="all")
    event = await anne.event(type="after", ack="stored")
    erasing.set_result(None)
    await refused
    await settle()
    assert outbox.erased == ["carl"]
    assert event.event_id in [row.event_id for worker in shelf.workers for row in worker.events.values()]
    edge.release()
    clock.advance(LEASE / 3)
    await settle()
    assert (edge.event_types, alloy.statistics().refused, outbox.erased) == (["after"], 1, ["carl"])
    await alloy.aclose()


async def test_an_outbox_that_cannot_be_opened_fails_configure(options, clock):
    """The error says what is wrong, and configure may be called again."""

    class Broken(MemoryOutbox):
        async def open(self):
            raise OutboxError("open", "the test's outbox", "it is not there.")

    async with Alloy() as alloy:
        with pytest.raises(OutboxError, match="not there"):
            await alloy.configure(**options | {"outbox": Broken(clock=clock)})
        await alloy.configure(**options | {"outbox": MemoryOutbox(clock=clock), "opt_in_enabled": False})
        await alloy.event()


async def test_the_outbox_can_be_asked_how_it_stands(open_alloy, options):
    """Durable or not, the same command answers."""
    shelf = await open_alloy.get_outbox_info()
    assert (shelf.workers, shelf.erasing) == (1, False)
    async with Alloy() as alloy:
        await alloy.configure(**options)
        assert (await alloy.get_outbox_info()).events == 0


async def test_what_nobody_may_send_any_more_is_erased_and_said(options, shelf, clock, edge, caplog):
    """Its visitor was never heard of again: after the delivery timeout it goes, with a line in the log."""
    first = await another(options, shelf, clock)
    await first.opt_in(purposes="all")
    edge.hold()
    first.event()
    await settle()
    await closed(first, clock)
    clock.advance(604_801)
    second = await another(options, shelf, clock, store="memory")
    await settle()
    assert shelf.events == 0
    assert any("1 events were erased from the outbox unsent" in line for line in caplog.messages)
    await second.aclose()
