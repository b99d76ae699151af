"""What may come between two steps of a visitor's event: choices elsewhere, slow stores, cancellations, other visitors."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref

import pytest
from common import WatchedStore, settle

from alloy_async import (
    Alloy,
    AlloyError,
    ConfigurationError,
    ConsentDeclined,
    ConsentStoreError,
    EventTooLarge,
    InvalidCommand,
)
from alloy_async.edge import EdgeResponse
from alloy_async.errors import OutboxError
from alloy_async.outbox import MemoryOutbox, MemoryShelf
from alloy_async.stores.base import Change
from alloy_async.testing import RecordingEdge
from alloy_async.visitor import ClientState

FPID = "6f1c0f7e-3f0a-4a1c-9d58-0d6f6c1f2b3a"
ECID = "4" * 38
OFF = {"opt_in_enabled": False}


class SlowStore(WatchedStore):
    """A store that tells a visitor's choice when the test lets it: what was there when it was asked for.

    Attributes:
        gates: what the next readings wait for, one each.
        written: what the next writing waits for once it is done.
        fails: whether it can be read.
        full: whether it cannot be written.
        hangs: whether an identity is never written.
        reader: the task that read last.
    """

    def __init__(self):
        super().__init__()
        self.gates, self.fails, self.full, self.hangs, self.reader = [], False, False, False, None
        self.written = None

    async def gate(self):
        await settle()  # readings that have begun are not meant
        self.gates.append(asyncio.get_running_loop().create_future())
        return self.gates[-1]

    async def load_preference(self, key):
        preference = await super().load_preference(key)
        if key.visitor:
            self.reader = asyncio.current_task()
            if self.fails:
                raise OSError
            if self.gates:
                await asyncio.shield(self.gates.pop(0))
        return preference

    async def save_preference(self, key, preference, *, by=""):
        if self.full:
            raise OSError
        await super().save_preference(key, preference, by=by)
        written, self.written = self.written, None
        if written is not None:
            await written

    async def forget(self, key, *, by=""):
        if self.full:
            raise OSError
        await super().forget(key, by=by)

    async def save_identity(self, key, identity):
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        await super().save_identity(key, identity)


@pytest.fixture
def store():
    """A store that instances of a test share; it tells what was changed, as late as the test wants."""
    return SlowStore()


@pytest.fixture
def shelf():
    """What the outboxes of a test share."""
    return MemoryShelf()


@pytest.fixture
async def start(options, clock, edge):
    """What starts an instance with further options; all are closed in the end, whatever they wait for."""
    alloys = []

    async def start(**more):
        alloys.append(Alloy())
        await alloys[-1].configure(**options | {"parked_wait": 9_999.0} | more)
        return alloys[-1]

    yield start
    edge.release()
    for alloy in alloys:
        await closed(alloy, clock)


async def closed(alloy, clock):
    """Close an instance that is given a second for it, and return its books."""
    closing = asyncio.ensure_future(alloy.aclose(grace=1))
    while not closing.done():
        await settle()
        clock.advance(1)
    return await closing


@pytest.fixture
def leave(start, shelf, clock):
    """What stores an event of each visitor and ends before the edge has answered."""

    async def leave(*names):
        down = RecordingEdge()
        down.hold()
        alloy = await start(transport=down, outbox=MemoryOutbox(shelf, clock=clock))
        for name in names:
            await alloy.visitor(name).opt_in(purposes="all")
            await alloy.visitor(name).event(type=name, ack="stored")
        assert (await closed(alloy, clock)).kept == len(names)
        gc.collect()

    return leave


@pytest.fixture
async def two(start, edge):
    """Two processes that share a store, which tells them what the other has changed."""
    return await start(transport=edge), await start(transport=RecordingEdge())


@pytest.fixture
async def two_by_outbox(start, store, shelf, clock, edge):
    """Two processes that share an outbox; they hear of refusals by it alone."""
    outboxes = [MemoryOutbox(shelf, clock=clock) for _ in range(2)]
    here, there = [
        await start(transport=one, outbox=outbox)
        for one, outbox in zip((edge, RecordingEdge()), outboxes, strict=True)
    ]
    store.watchers.clear()
    return here, there


def identity_of(event):
    """Return which identities an event names, and by which ids."""
    return {name: entries[0]["id"] for name, entries in event["xdm"]["identityMap"].items()}


# Reading what the store says


async def test_a_refusal_told_while_the_choice_is_read_counts(two, store, edge, clock):
    """An answer of the store that was under way when somebody declined is not believed."""
    here, there = two
    await there.visitor("anne").opt_in(purposes="all")
    answer = await store.gate()
    visitor = here.visitor("anne")
    events = [visitor.event(type="first")]
    await settle()
    clock.advance(1)
    await there.visitor("anne").opt_in(purposes="none")
    answer.set_result(None)
    await settle()
    events.append(visitor.event(type="long after the refusal"))
    await settle()
    assert (visitor.purposes, edge.event_types) == ("none", [])
    for event in events:
        with pytest.raises(ConsentDeclined):
            await event


async def test_an_old_answer_that_comes_late_lifts_no_refusal(two, store, edge, clock):
    """Whichever of two readings ends last, what was there last holds."""
    here, there = two
    visitor = here.visitor("anne")
    visitor.event(type="parked")
    await settle()
    store.hold()
    await there.visitor("anne").opt_in(purposes="all")
    answer = await store.gate()
    store.let_go()
    await settle()
    clock.advance(1)
    await there.visitor("anne").opt_in(purposes="none")
    await settle()
    answer.set_result(None)
    await settle()
    event = visitor.event(type="after the refusal")
    await settle()
    assert (visitor.purposes, edge.event_types) == ("none", [])
    assert isinstance(event.exception(), ConsentDeclined)


async def test_a_yes_that_did_not_see_a_refusal_elsewhere_lifts_none(two_by_outbox, store, edge, clock):
    """While it is being read what was refused elsewhere, a browser's yes of before is not taken."""
    here, there = two_by_outbox
    visitor = here.visitor("anne")
    await visitor.opt_in(purposes="all")
    await visitor.event(type="before")
    seen_at = visitor.chosen_at
    clock.advance(10)
    await there.visitor("anne").opt_in(purposes="none")
    answer = await store.gate()
    refused = visitor.event(type="refused")
    await settle()
    late = here.visitor("anne", purposes="all", seen_at=seen_at)
    answer.set_result(None)
    await settle()
    event = late.event(type="late")
    await settle()
    assert (visitor.purposes, edge.event_types) == ("none", ["before"])
    assert all(isinstance(one.exception(), ConsentDeclined) for one in (refused, event))
    (preference,) = store._preferences.values()
    assert preference.purposes == "none"


async def test_what_is_said_here_later_overtakes_a_yes_that_was_to_be_read(alloy, edge, store):
    """Forgetting, right after a browser's yes, forgets it."""
    visitor = alloy.visitor("anne", purposes="all")
    forgotten, event = visitor.forget(), visitor.event(type="after")
    await settle()
    assert await forgotten == "pending"
    assert (visitor.purposes, edge.event_types, store._preferences) == ("pending", [], {})
    event.cancel()


async def test_a_refusal_told_while_the_store_fails_counts(two, store, edge, clock):
    """Nothing is sent until the store can be read."""
    here, there = two
    visitor = here.visitor("anne")
    await visitor.opt_in(purposes="all")
    await visitor.event(type="before")
    clock.advance(1)
    await there.visitor("anne").get_purposes()
    store.fails = True
    await there.visitor("anne").opt_in(purposes="none")
    await settle()
    event = visitor.event(type="after")
    await settle()
    assert edge.event_types == ["before"]
    store.fails = False
    clock.advance(600)
    await settle()
    assert (visitor.purposes, edge.event_types) == ("none", ["before"])
    assert isinstance(event.exception(), ConsentDeclined)


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_a_reading_that_came_to_nothing_is_made_again(two_by_outbox, store, edge, clock, how):
    """After a refusal and a yes elsewhere, the yes is found in the end."""
    here, there = two_by_outbox
    visitor = here.visitor("anne")
    await visitor.opt_in(purposes="all")
    await visitor.event(type="before")
    await there.visitor("anne").opt_in(purposes="none")
    await there.visitor("anne").opt_in(purposes="all")
    if how == "fails":
        store.fails = True
    else:
        await store.gate()
    refused = visitor.event(type="refused")
    await settle()
    if how == "is cancelled":
        store.reader.cancel()
    store.fails = False
    with pytest.raises(ConsentDeclined):
        await refused
    clock.advance(60)
    await settle()
    event = here.visitor("anne").event(type="after")
    await settle()
    assert (visitor.purposes, event.done(), edge.event_types) == ("all", True, ["before", "after"])


@pytest.mark.parametrize(
    ("asked", "person_of"),
    [
        (True, lambda alloy: alloy.visitor(purposes="all")),
        (False, lambda alloy: alloy),
        (False, lambda alloy: alloy.visitor("anne")),
    ],
    ids=["without a key", "the one person, not asked", "a visitor, not asked"],
)
async def test_news_that_may_be_missing_concern_only_what_can_be_read(start, store, edge, asked, person_of):
    """Who has no key, or is not asked, is refused nothing when changes may have been missed."""
    alloy = await start(opt_in_enabled=asked, max_in_flight=1)
    person = person_of(alloy)
    edge.hold()
    events = []
    for number in "123":
        events.append(person.event(type=number, view_start=True))
        await settle()
    store.tell()
    await settle()
    edge.release()
    await settle()
    assert edge.event_types == ["1", "2", "3"]
    assert all(event.exception() is None for event in events)


async def test_ones_own_refusal_is_not_counted_again(start, two, store, clock):
    """What was called after one's own no and yes is sent, when somebody else says yes once more."""
    _, there = two
    await there.visitor("anne").opt_in(purposes="all")
    clock.advance(1)
    edge = RecordingEdge()
    here = await start(transport=edge, max_in_flight=1)
    visitor = here.visitor("anne")
    await visitor.event(type="before")
    await visitor.opt_in(purposes="none")
    clock.advance(1)
    await visitor.opt_in(purposes="all")
    await visitor.event(type="0")
    clock.advance(1)
    edge.hold()
    for number in "123":
        visitor.event(type=number)
        await settle()
    await there.visitor("anne").opt_in(purposes="all")
    await settle()
    edge.release()
    await settle()
    assert edge.event_types == ["before", "0", "1", "2", "3"]


# What a visitor chose, and who they are


async def test_a_choice_that_was_not_saved_has_no_moment(alloy, store):
    """None while no choice is known."""
    store.full = True
    visitor = alloy.visitor("anne")
    with pytest.raises(ConsentStoreError):
        await visitor.opt_in(purposes="all")
    assert (visitor.purposes, visitor.chosen_at) == ("pending", None)


async def test_a_yes_that_was_not_saved_makes_no_refusal_newer(alloy, store, edge, clock):
    """A browser that has seen the refusal can lift it."""
    visitor = alloy.visitor("anne")
    await visitor.opt_in(purposes="none")
    refused_at = visitor.chosen_at
    clock.advance(5)
    store.full = True
    with pytest.raises(ConsentStoreError):
        await visitor.opt_in(purposes="all")
    store.full = False
    assert visitor.chosen_at == refused_at
    await alloy.visitor("anne", purposes="all", seen_at=refused_at).event(type="after")
    assert edge.event_types == ["after"]


async def test_a_refusal_forgets_the_identities_of_the_browser(alloy, edge):
    """After a new yes the visitor is somebody new."""
    visitor = alloy.visitor("anne", fpid=FPID, ecid=ECID, purposes="all")
    await visitor.event(type="before")
    await alloy.visitor("anne").opt_in(purposes="none")
    await alloy.visitor("anne").opt_in(purposes="all")
    await alloy.visitor("anne").event(type="after")
    before, after = map(identity_of, edge.events)
    assert before["ECID"] == ECID
    assert not {FPID, ECID} & set(after.values())


# Without a key


async def test_ending_a_view_takes_nothing_back_that_may_be_sent(alloy, edge):
    """What was called after a yes is sent, although the view of nobody was closed at once."""
    visitor = alloy.visitor(purposes="all")
    event = visitor.event(type="called")
    visitor.close()
    await event
    assert edge.event_types == ["called"]


async def test_a_refusal_of_nobody_leaves_nothing_behind(start, shelf, clock):
    """Of a visitor without a key nothing can be in the outbox, so nothing is to be erased."""
    alloy = await start(outbox=MemoryOutbox(shelf, clock=clock))
    for _ in range(10):
        alloy.visitor(purposes="none").close()
    await settle(50)
    assert (shelf.epoch, shelf.refusals) == (0, {})


async def test_what_nobody_could_consent_to_later_is_not_stored(start, shelf, clock, edge):
    """Events of a visitor without a key wait in memory, and whoever wants them stored is told."""
    edge.hold()
    alloy = await start(outbox=MemoryOutbox(shelf, clock=clock))
    visitor = alloy.visitor(purposes="all")
    with pytest.raises(InvalidCommand):
        await visitor.event(type="stored", ack="stored")
    visitor.event(type="sent")
    await settle()
    assert (edge.event_types, shelf.events) == (["sent"], 0)


# The order of each visitor


async def test_a_visitor_who_waits_for_an_answer_keeps_nobody_waiting(start, edge, clock):
    """An event of somebody else that joins the line is looked at, although all others in it have to wait."""
    alloy = await start(ordered=True)
    anne, bert = [alloy.visitor(name, purposes="all") for name in ("anne", "bert")]
    for visitor in (anne, bert):
        await visitor.event(type="before")
    edge.hold()
    anne.event(type="anne 1")
    await settle()
    anne.event(type="anne 2")
    await settle()
    clock.advance(1)
    await settle()
    bert.event(type="bert")
    await settle()
    clock.advance(1)
    await settle()
    assert edge.event_types[2:] == ["anne 1", "bert"]


async def test_a_visitor_whose_old_events_cannot_be_read_keeps_nobody_waiting(
    start, leave, shelf, clock, edge
):
    """Events of others are sent meanwhile."""

    class Busy(MemoryOutbox):
        async def claim(self, *arguments, **keywords):
            raise OutboxError("read", "somewhere", "busy.")

    await leave("anne")
    alloy = await start(outbox=Busy(shelf, clock=clock))
    bert = alloy.visitor("bert")
    await bert.opt_in(purposes="all")
    await bert.event(type="bert 1")
    alloy.visitor("anne").event(type="anne, newer")
    await settle(50)
    event = bert.event(type="bert 2")
    await settle(50)
    assert (event.done(), edge.event_types) == (True, ["bert 1", "bert 2"])


async def test_halves_of_a_batch_are_sent_one_after_the_other(start, edge):
    """With ordered=True, also after the edge has refused the whole."""
    alloy = await start(ordered=True)
    visitor = alloy.visitor("anne", purposes="all")
    await visitor.event(type="before")
    problem = {"type": "https://ns.adobe.com/aep/errors/EXEG-0104-422", "status": 422, "title": "unfit"}
    headers = {"content-type": "application/problem+json"}
    edge.answers.append(EdgeResponse(422, headers, json.dumps(problem).encode()))
    events = [visitor.event(type=number) for number in "0123"]
    edge.hold()
    await settle()
    edge.release(1)
    await settle()
    assert [len(request.events) for request in edge.requests] == [1, 4, 2]
    edge.release()
    await asyncio.gather(*events)
    assert edge.event_types[5:] == ["0", "1", "2", "3"]


async def test_an_event_whose_departure_was_cancelled_is_not_overtaken(alloy, store, edge):
    """The next event takes it along, before itself."""
    visitor = alloy.visitor("anne")
    await visitor.opt_in(purposes="all")

    store.hangs = True
    events = [visitor.event(type="1")]
    await settle()
    store.hangs = False
    next(task for task in asyncio.all_tasks() if task.get_name() == "alloy-departure").cancel()
    await settle()
    events += [visitor.event(type=number) for number in "23"]
    await settle()
    assert edge.event_types == ["1", "2", "3"]
    assert all(event.done() for event in events)


async def test_an_event_whose_departure_was_cancelled_before_it_began_goes_with_the_next(alloy, edge):
    """Who cancels every task of a loop meets some that have run nothing yet."""
    visitor = alloy.visitor("anne")
    await visitor.opt_in(purposes="all")
    events = [visitor.event(type="1")]
    next(task for task in asyncio.all_tasks() if task.get_name() == "alloy-departure").cancel()
    await settle()
    events.append(visitor.event(type="2"))
    await settle()
    assert edge.event_types == ["1", "2"]
    assert all(event.done() for event in events)


async def test_an_ecid_whose_request_was_cancelled_before_it_began_is_asked_for_with_the_next(alloy):
    """Likewise: whoever asks next asks for both."""
    visitor = alloy.visitor("anne")
    await visitor.opt_in(purposes="all")
    waiting = [visitor.get_ecid()]
    next(task for task in asyncio.all_tasks() if task.get_name() == "alloy-ecid").cancel()
    await settle()
    waiting.append(visitor.get_ecid())
    await settle()
    assert all(future.done() and future.result() for future in waiting)


@pytest.mark.parametrize("begun", [False, True], ids=["before it began", "while it was under way"])
async def test_a_refusal_whose_writing_was_cancelled_is_written_all_the_same(alloy, store, clock, begun):
    """Whoever cancels every task of a loop takes no refusal back, and leaves nobody waiting."""
    visitor = alloy.visitor("anne")
    await visitor.opt_in(purposes="all")
    store.written = asyncio.get_running_loop().create_future()
    refusal = visitor.opt_in(purposes="none")
    await settle(begun)
    next(task for task in asyncio.all_tasks() if task.get_name() == "alloy-preference").cancel()
    await settle()
    assert isinstance(refusal.exception(), ConsentStoreError)
    store.written = None
    clock.advance(1)
    await settle()
    (kept,) = store._preferences.values()
    assert (kept.purposes, visitor.purposes) == ("none", "none")
    agreement = visitor.opt_in(purposes="all")
    await settle()
    assert (agreement.done(), visitor.purposes) == (True, "all")


# What others store, and what an earlier start has left


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_refusal_is_heard_between_two_stored_events(start, store, shelf, clock, tmp_path, kind):
    """A web worker that has left its events to a relay still hears who declined elsewhere meanwhile."""
    path = tmp_path / "outbox.sqlite3"
    one, other = [
        await start(outbox=MemoryOutbox(shelf, clock=clock) if kind == "memory" else path, relay=True)
        for _ in range(2)
    ]
    store.watchers.clear()
    for name in ("anne", "bert"):
        await one.visitor(name).opt_in(purposes="all")
    await one.visitor("anne").event(type="before")
    await other.visitor("anne").opt_in(purposes="none")
    await one.visitor("bert").event(type="bert")
    with pytest.raises(ConsentDeclined):
        await one.visitor("anne").event(type="after the refusal")
    assert (await one.get_outbox_info()).events == 1
    for alloy in (one, other):
        await alloy.aclose()


async def test_an_outbox_that_failed_once_is_used_again(start, shelf, clock):
    """An event was stored and left to a relay, and then the outbox could not be opened anew: the next event does it."""

    class Flaky(MemoryOutbox):
        opened = 0

        async def open(self):
            self.opened += 1
            await self.aclose()
            if self.opened == 2:
                raise OutboxError("open", "somewhere", "locked for a moment.")
            return await super().open()

    alloy = await start(outbox=Flaky(shelf, clock=clock), relay=True)
    visitor = alloy.visitor("anne", purposes="all")
    for number in range(3):
        assert (await visitor.event(type=str(number))).stored
        await settle()
    assert shelf.events == 3


async def test_flush_ends_where_others_send(start, shelf, clock):
    """It does not wait for what it would have to take over, which is the relay's to do."""

    class Slow(MemoryOutbox):
        async def renew(self):
            await settle(5)
            return await super().renew()

    alloy = await start(outbox=Slow(shelf, clock=clock), relay=True, **OFF)
    flushed = alloy.flush()
    await settle(50)
    assert flushed.done()


async def test_an_event_cancelled_while_it_is_stored_reaches_no_relay(start, shelf, clock):
    """It is erased before the others may take it over."""

    class Slow(MemoryOutbox):
        held = None

        async def write(self, *arguments, **keywords):
            stored = await super().write(*arguments, **keywords)
            if self.held:
                await self.held
            return stored

    outbox = Slow(shelf, clock=clock)
    alloy = await start(outbox=outbox, relay=True)
    visitor = alloy.visitor("anne", purposes="all")
    await visitor.event(type="before")
    outbox.held = asyncio.get_running_loop().create_future()
    cancelled = visitor.event(type="cancelled")
    await settle()
    assert cancelled.cancel()
    outbox.held.set_result(None)
    outbox.held = None
    await settle()
    assert (shelf.events, alloy.statistics().cancelled) == (1, 1)


async def test_an_outbox_that_fails_is_left_in_peace_by_a_relay(start, caplog, clock):
    """However often the relay looks, it is asked again and complained of after a pause."""

    class Broken(MemoryOutbox):
        asked = 0

        async def renew(self):
            self.asked += 1
            raise OutboxError("write", "somewhere", "gone.")

    outbox = Broken(clock=clock)
    alloy = await start(outbox=outbox, **OFF)
    work = asyncio.create_task(alloy.relay(every=0.0))
    await settle(50)
    complaints = [record for record in caplog.records if record.name.startswith("alloy_async")]
    assert (outbox.asked, len(complaints)) == (1, 1)
    clock.advance(60)
    await settle(50)
    assert outbox.asked == 2
    work.cancel()


async def test_an_outbox_must_tell_whose_events_were_left(start):
    """One of an earlier protocol is refused when it is given, and not when it is needed."""

    class Old:
        def __getattr__(self, name):
            if name == "abandoned":
                raise AttributeError(name)
            return getattr(outbox, name)

    outbox = MemoryOutbox()
    with pytest.raises(ConfigurationError, match="abandoned"):
        await start(outbox=Old())


async def test_all_that_was_left_is_sent_however_few_visitors_are_kept(start, leave, shelf, clock, edge):
    """A visitor stays known from the look at the choice until the events have been taken over."""
    names = [f"person {number}" for number in range(6)]
    await leave(*names)
    alloy = await start(outbox=MemoryOutbox(shelf, clock=clock), max_visitors=2)
    await settle(100)
    assert sorted(edge.event_types) == names
    await alloy.flush()
    assert alloy.statistics().delivered == alloy.statistics().recovered == 6


async def test_flush_waits_for_what_was_left(start, leave, store, shelf, clock, edge):
    """Also while the choices of those visitors are still being read."""
    await leave("anne")
    answer = await store.gate()
    alloy = await start(outbox=MemoryOutbox(shelf, clock=clock))
    flushed = alloy.flush()
    await settle(50)
    assert not flushed.done()
    answer.set_result(None)
    await flushed
    assert edge.event_types == ["anne"]


async def test_what_was_left_is_sent_once_the_store_can_be_read(start, leave, store, shelf, clock, edge):
    """A store that failed for a moment is asked again."""
    await leave("anne")
    store.fails = True
    await start(outbox=MemoryOutbox(shelf, clock=clock))
    await settle(50)
    assert not edge.requests
    store.fails = False
    for _ in range(10):
        clock.advance(5)
        await settle()
    assert edge.event_types == ["anne"]


# Closing


@pytest.mark.parametrize("said", [{}, {"purposes": "all"}], ids=["silent", "says yes"])
async def test_closing_waits_for_the_choice_that_is_being_read(options, start, store, edge, said):
    """A yes that is found still releases what waits for it."""
    first = await start()
    await first.visitor("anne").opt_in(purposes="all")
    answer = await store.gate()
    alloy = Alloy()
    await alloy.configure(**options)
    event = alloy.visitor("anne", **said).event(type="called")
    await settle()
    closing = asyncio.create_task(alloy.aclose())
    await settle()
    assert not closing.done()
    answer.set_result(None)
    assert (await closing).delivered == 1
    await event
    assert edge.event_types == ["called"]


async def test_a_question_that_the_store_never_answers_ends_with_closing(start, store, clock):
    """Nothing is pending afterwards."""
    alloy = await start()
    for _ in range(3):
        await store.gate()
    asked = alloy.visitor("anne").get_purposes()
    await settle()
    await closed(alloy, clock)
    assert asked.done()
    assert isinstance(asked.exception(), AlloyError)


async def test_news_after_closing_start_nothing(start, store, clock):
    """The store lives on, and still tells what was changed."""
    alloy = await start()
    await alloy.visitor("anne").opt_in(purposes="all")
    await closed(alloy, clock)
    tasks = asyncio.all_tasks()
    store.tell()
    store.tell(Change("anne", refused=True))
    assert asyncio.all_tasks() == tasks


async def test_a_store_that_tells_keeps_no_closed_instance(options, store):
    """It may serve many, one after the other."""
    alloy = Alloy()
    await alloy.configure(**options)
    await alloy.aclose()
    engine = weakref.ref(alloy._engine)
    del alloy
    await settle()
    gc.collect()
    assert store.watchers
    assert engine() is None


async def test_closing_lets_the_loop_go_on(start, clock):
    """However many visitors wait, their events end in slices."""
    alloy = await start()
    count, most, step = 1_200, 0, 0
    for number in range(count):
        alloy.visitor(str(number)).event().add_done_callback(lambda _: end())

    def end():
        nonlocal step
        step += 1

    async def watch():
        nonlocal most, step
        while True:
            most, step = max(most, step), 0
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    await closed(alloy, clock)
    watching.cancel()
    assert 0 < most <= count / 2


# What the visitor's browser keeps for the edge


async def test_an_endless_age_of_a_cookie_is_none(alloy, edge):
    """What else the answer hands back is kept."""
    items = '{"key": "a", "value": "1", "maxAge": 1e999}, {"key": "b", "value": "2"}'
    body = f'{{"requestId": "r", "handle": [{{"type": "state:store", "payload": [{items}]}}]}}'.encode()
    edge.answers.append(EdgeResponse(200, {"content-type": "application/json"}, body))
    visitor = alloy.visitor("anne", purposes="all", state=ClientState("shop.example"))
    await visitor.event(type="page", view_start=True)
    assert [(update.key, update.max_age) for update in visitor.state_updates] == [("a", None), ("b", None)]


async def test_state_counts_as_a_part_of_an_event_that_a_hook_lets_grow(start, edge):
    """A request with both never becomes larger than the edge takes."""

    def grow(content):
        content["data"] = {"text": "x" * 64_500}

    alloy = await start(on_before_event_send=grow)
    state = ClientState("shop.example", [("kndctr_ORG_identity", "x" * 4_000)])
    visitor = alloy.visitor("anne", purposes="all", state=state)
    with pytest.raises(EventTooLarge):
        await visitor.event(type="page", view_start=True)
    assert not edge.requests


async def test_a_refusal_told_while_an_older_answer_is_slow_holds(two, store, edge, clock):
    """Nothing is sent until it is known what holds now; an answer that was asked for before does not count."""
    here, there = two
    visitor = here.visitor("anne")
    await visitor.opt_in(purposes="all")
    await visitor.event(type="before")
    await there.visitor("anne").get_purposes()
    answer = await store.gate()
    store.tell(Change("anne", refused=False))
    await settle()
    clock.advance(1)
    await there.visitor("anne").opt_in(purposes="none")
    await settle()
    event = visitor.event(type="after the refusal")
    await settle()
    assert (visitor.purposes, edge.event_types) == ("pending", ["before"])
    answer.set_result(None)
    with pytest.raises(ConsentDeclined):
        await event
    assert (visitor.purposes, edge.event_types) == ("none", ["before"])


async def test_what_a_page_gets_is_json(alloy, edge):
    """A number that JSON cannot hold is handed on as null."""
    body = b'{"requestId": "r", "handle": [{"type": "a", "payload": [{"x": 1e999, "y": NaN, "z": 1.5}]}]}'
    edge.answers.append(EdgeResponse(200, {"content-type": "application/json"}, body))
    visitor = alloy.visitor("anne", purposes="all", state=ClientState("shop.example"))
    await visitor.event(type="page", view_start=True)
    (handle,) = visitor.browser_payload()["responseBody"]["handle"]
    assert json.loads(json.dumps(handle["payload"], allow_nan=False)) == [{"x": None, "y": None, "z": 1.5}]


async def test_who_asks_nobody_heeds_what_the_outbox_turned_away(options, clock, edge):
    """An event that the outbox refuses ends, once; it does not go round between gate and outbox."""
    shelf = MemoryShelf()
    async with Alloy("off") as off, Alloy("on") as on:
        await off.configure(**options | OFF | {"outbox": MemoryOutbox(shelf, clock=clock), "store": "memory"})
        await on.configure(**options | {"outbox": MemoryOutbox(shelf, clock=clock), "store": "memory"})
        visitor = off.visitor("anne")
        await visitor.event(type="before")
        await on.visitor("anne").opt_in(purposes="none")
        with pytest.raises(ConsentDeclined):
            await visitor.event(type="refused elsewhere")
    assert edge.event_types == ["before"]


async def test_very_many_events_of_before_a_refusal(options, store, edge):
    """All of them are refused before the gate opens again, however many slices that takes."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"store": store, "max_in_flight": 1, "visitor_max_parked": 2_000})
        visitor = alloy.visitor("anne")
        edge.hold()
        events = [visitor.event(type="before") for _ in range(1_500)]
        await visitor.opt_in(purposes="all")
        await settle(60)
        started = len(edge.events)
        answer = await store.gate()
        store.tell(Change("anne", refused=True))
        await settle()
        edge.release()
        await settle(60)
        answer.set_result(None)
        await settle(60)
        assert visitor.purposes == "all"
        assert len(edge.events) == started
        assert sum(isinstance(event.exception(), ConsentDeclined) for event in events) == 1_500 - started


async def test_a_yes_that_is_being_written_does_not_end_a_doubt(two, store, edge, clock):
    """Somebody else refuses while a yes is on its way to the store; nothing is sent before it is known which came last."""
    here, there = two
    visitor = here.visitor("anne")
    event = visitor.event(type="waits")
    await settle()
    written = store.written = asyncio.get_running_loop().create_future()
    choice = visitor.opt_in(purposes="all")
    await settle()
    clock.advance(1)
    await there.visitor("anne").opt_in(purposes="none")
    answer = await store.gate()
    written.set_result(None)
    await settle()
    assert (visitor.purposes, edge.event_types) == ("pending", [])
    answer.set_result(None)
    with pytest.raises(ConsentDeclined):
        await event
    assert await choice == "none"


async def test_events_wait_while_a_refusal_cannot_be_looked_into(two, store, edge, clock):
    """What came before is refused; what comes now waits until the store can be read, and goes if the yes still holds."""
    here, _ = two
    visitor = here.visitor("anne")
    await visitor.opt_in(purposes="all")
    await visitor.event(type="before")
    store.fails = True
    store.tell(Change("anne", refused=True))
    await settle()
    waiting = []
    for _ in range(3):
        clock.advance(0.6)
        waiting.append(visitor.event(type="waits"))
        await settle()
    assert not any(event.done() for event in waiting)
    store.fails = False
    clock.advance(1.1)
    for event in waiting:
        await event
    assert edge.event_types == ["before", "waits", "waits", "waits"]


async def test_ones_own_forgetting_does_not_refuse_what_came_after_it(options, clock, edge):
    """Also where another visitor's refusal has kept the outbox from telling the two apart."""
    shelf, looks = MemoryShelf(), []

    class SlowToLook(MemoryOutbox):
        async def renew(self):
            if looks:
                await looks[0]
            return await super().renew()

    async with Alloy("here") as here, Alloy("there") as there:
        for alloy, one, kind in ((here, edge, SlowToLook), (there, RecordingEdge(), MemoryOutbox)):
            outbox = kind(shelf, clock=clock)
            await alloy.configure(**options | {"transport": one, "outbox": outbox, "parked_wait": 9e3})
        visitor = here.visitor("anne")
        await visitor.opt_in(purposes="all")
        await visitor.event(type="before")
        await settle()
        await there.visitor("bert").opt_in(purposes="none")
        looks.append(asyncio.get_running_loop().create_future())
        clock.advance(1)
        await visitor.forget()
        event = visitor.event(type="after")
        clock.advance(1)
        choice = visitor.opt_in(purposes="all")
        await settle()
        looks.pop().set_result(None)
        assert await choice == "all"
        await event
    assert edge.event_types == ["before", "after"]


async def test_what_was_withdrawn_is_not_left_to_a_relay(options, clock, edge):
    """Not even where erasing it fails at first."""
    shelf, gates = MemoryShelf(), []

    class Busy(MemoryOutbox):
        busy = False

        async def write(self, events, ended, *, epoch):
            if self.busy and not events:
                raise OutboxError("write", "of the test", "it is busy.")
            stored = await super().write(events, ended, epoch=epoch)
            if gates:
                await gates.pop()
            return stored

    outbox = Busy(shelf, clock=clock)
    async with Alloy("web") as web, Alloy("relay") as relay:
        await web.configure(**options | {"outbox": outbox, "relay": True})
        await relay.configure(
            **options | OFF | {"store": "memory", "outbox": MemoryOutbox(shelf, clock=clock)}
        )
        visitor = web.visitor("anne")
        await visitor.opt_in(purposes="all")
        gates.append(asyncio.get_running_loop().create_future())
        gate, outbox.busy = gates[0], True
        withdrawn = visitor.event(type="withdrawn")
        await settle()
        withdrawn.cancel()
        gate.set_result(None)
        await settle()
        outbox.busy = False
        await visitor.event(type="kept")
        work = asyncio.create_task(relay.relay(every=0.0))
        while not edge.events:
            await asyncio.sleep(0)
        await relay.flush()
        work.cancel()
    assert edge.event_types == ["kept"]


async def test_customer_ids_of_before_a_refusal_elsewhere_are_refused(two, store, edge):
    """They waited for a yes that came after the refusal; the yes is not for them."""
    visitor = two[0].visitor("anne")
    ids = visitor.set_customer_ids({"CRMID": {"id": "u-1"}})
    await settle()
    written = store.written = asyncio.get_running_loop().create_future()
    choice = visitor.opt_in(purposes="all")
    await settle()
    store.tell(Change("anne", refused=True))
    written.set_result(None)
    assert await choice == "all"
    with pytest.raises(ConsentDeclined):
        await ids
    await visitor.event(type="after")
    assert "CRMID" not in edge.events[-1]["xdm"]["identityMap"]


async def test_customer_ids_that_wait_behind_an_event_go_with_a_refusal_elsewhere(start, store, edge):
    """Like those that did not have to wait."""
    held = asyncio.get_running_loop().create_future()

    async def look(event):
        if event["xdm"]["eventType"] == "held":
            await held

    alloy = await start(transport=edge, on_before_event_send=look)
    visitor = alloy.visitor("anne")
    event = visitor.event(type="held")
    visitor.set_customer_ids({"CRMID": {"id": "u-1"}})
    await visitor.opt_in(purposes="all")
    await settle()
    store.tell(Change("anne", refused=True))
    await settle()
    held.set_result(None)
    with pytest.raises(ConsentDeclined):
        await event
    await visitor.event(type="after")
    assert "CRMID" not in edge.events[-1]["xdm"]["identityMap"]


async def test_a_refusal_that_is_read_before_its_yes_is_not_that_yes(two, store, edge):
    """Of choices that overlap the refusal is kept first, as if it had been said with the yes: both bear one time."""
    here, there = two
    visitor = here.visitor("anne")
    await visitor.opt_in(purposes="all")
    await settle()
    written = store.written = asyncio.get_running_loop().create_future()
    choices = [there.visitor("anne").opt_in(purposes=purposes) for purposes in ("none", "all")]
    await settle()
    assert visitor.purposes == "none"
    written.set_result(None)
    await asyncio.gather(*choices)
    await settle()
    await visitor.event(type="after")
    assert edge.event_types == ["after"]


async def test_a_refusal_that_somebody_else_has_lifted_does_not_come_back(two, store, edge, clock):
    """A later yes here cannot be saved; there is no refusal any more that would stand."""
    here, there = two
    visitor = here.visitor("anne")
    await visitor.opt_in(purposes="none")
    clock.advance(1)
    await there.visitor("anne").opt_in(purposes="all")
    await settle()
    store.full = True
    with pytest.raises(ConsentStoreError):
        await visitor.opt_in(purposes="all")
    assert visitor.purposes != "none"
    store.full = False
    await visitor.opt_in(purposes="all")


async def test_a_refusal_before_a_yes_that_was_read_counts_though_a_newer_yes_is_kept(
    start, store, edge, clock
):
    """The yes was read before the refusal was heard, and until then somebody has said yes once more."""
    here, there = await start(transport=edge, max_in_flight=1), await start(transport=RecordingEdge())
    edge.hold()
    await here.visitor("bert").opt_in(purposes="all")
    on_the_wire = here.visitor("bert").event(type="on the wire")
    visitor = here.visitor("anne")
    event = visitor.event(type="before the refusal")
    await settle()
    store.hold()
    for purposes in ("none", "all"):
        clock.advance(1)
        await there.visitor("anne").opt_in(purposes=purposes)
    store.tell(Change("anne", refused=False))
    await settle()
    assert visitor.purposes == "all"
    clock.advance(1)
    await there.visitor("anne").opt_in(purposes="all")
    store.let_go()
    await settle()
    edge.release()
    await on_the_wire
    with pytest.raises(ConsentDeclined):
        await event
    await visitor.event(type="after")
    assert edge.event_types == ["on the wire", "after"]


@pytest.mark.parametrize("missed", [False, True])
async def test_a_refusal_elsewhere_counts_while_a_forgetting_cannot_be_saved(two, store, edge, missed):
    """What was called after the forgetting here and before the refusal there is not sent, whatever is said later."""
    here, there = two
    visitor = here.visitor("anne")
    await visitor.opt_in(purposes="all")
    await settle()
    store.full = True
    with pytest.raises(ConsentStoreError):
        await visitor.forget()
    event = visitor.event(type="before the refusal")
    store.full = False
    store.hold()
    await there.visitor("anne").opt_in(purposes="none")
    if missed:
        store.held = None
        store.tell()
    else:
        store.let_go()
    await settle()
    await visitor.opt_in(purposes="all")
    with pytest.raises(ConsentDeclined):
        await event
    await visitor.event(type="after")
    assert edge.event_types == ["after"]


# One's own choices, heard back


async def test_a_refusal_elsewhere_is_not_taken_for_ones_own(start, store, edge, clock):
    """Of three refusals here two were written, since they overlapped; the one that is heard besides is somebody else's."""
    here, there = await start(transport=edge, max_in_flight=1), await start(transport=RecordingEdge())
    visitor = here.visitor("anne")
    written = store.written = asyncio.get_running_loop().create_future()
    choices = [visitor.opt_in(purposes="none") for _ in range(3)]
    await settle()
    written.set_result(None)
    await asyncio.gather(*choices)
    await visitor.opt_in(purposes="all")
    edge.hold()
    events = [visitor.event(type="on the wire")]
    await settle()
    events.append(visitor.event(type="waits"))
    clock.advance(1)
    store.hold()
    await there.visitor("anne").opt_in(purposes="none")
    await there.visitor("anne").opt_in(purposes="all")
    store.let_go()
    await settle()
    edge.release()
    await events[0]
    with pytest.raises(ConsentDeclined):
        await events[1]
    assert edge.event_types == ["on the wire"]


async def test_a_refusal_that_was_written_twice_is_ones_own_twice(two, store, edge, clock):
    """What was called after the yes that follows is sent: a store that failed after it had written tells both."""
    here, _ = two
    visitor = here.visitor("anne")
    store.hold()
    for _ in range(2):
        written = store.written = asyncio.get_running_loop().create_future()
        choice = visitor.opt_in(purposes="none")
        await settle()
        written.set_exception(OSError())
        with pytest.raises(ConsentStoreError):
            await choice
    await visitor.opt_in(purposes="all")
    edge.hold()
    events = [visitor.event(type=kind) for kind in ("on the wire", "waits")]
    clock.advance(1)
    await visitor.opt_in(purposes="all")
    store.let_go()
    await settle()
    edge.release()
    await asyncio.wait(events)
    assert [event.exception() for event in events] == [None, None]


async def test_a_yes_whose_answer_was_lost_holds_once_it_is_heard(two, store, edge, clock):
    """It is kept, and everybody else goes by it; only who said it was told that it could not be saved."""
    here, there = two
    visitor = here.visitor("anne")
    await visitor.opt_in(purposes="none")
    await settle()
    clock.advance(1)
    written = store.written = asyncio.get_running_loop().create_future()
    store.hold()
    choice = visitor.opt_in(purposes="all")
    await settle()
    written.set_exception(OSError())
    with pytest.raises(ConsentStoreError):
        await choice
    assert (visitor.purposes, await there.visitor("anne").get_purposes()) == ("none", "all")
    store.let_go()
    await settle()
    await visitor.event(type="after")
    assert edge.event_types == ["after"]


async def test_ones_own_forgetting_heard_late_refuses_nothing(two, store, edge):
    """What was called after it waits for the next choice."""
    here, _ = two
    visitor = here.visitor("anne")
    await visitor.opt_in(purposes="all")
    store.hold()
    await visitor.forget()
    event = visitor.event(type="after")
    store.let_go()
    await settle()
    await visitor.opt_in(purposes="all")
    await event
    assert edge.event_types == ["after"]


async def test_a_refusal_of_which_no_news_came_shows_in_the_yes_that_replaced_it(start, store, edge, clock):
    """What was called before one's own yes is refused, although it is the yes that is known here."""
    here, there = await start(transport=edge, max_in_flight=1), await start(transport=RecordingEdge())
    visitor = here.visitor("anne")
    await visitor.opt_in(purposes="all")
    edge.hold()
    events = [visitor.event(type="on the wire")]
    await settle()
    events.append(visitor.event(type="waits"))
    store.hold()
    clock.advance(1)
    await there.visitor("anne").opt_in(purposes="none")
    clock.advance(1)
    await visitor.opt_in(purposes="all")
    events.append(visitor.event(type="after"))
    store.held = None  # lost
    store.tell()
    await settle()
    edge.release()
    with pytest.raises(ConsentDeclined):
        await events[1]
    await events[2]
    assert edge.event_types == ["on the wire", "after"]


async def test_ones_own_refusal_shows_in_the_yes_that_replaced_it_and_is_known(start, store, edge, clock):
    """Nobody else has refused: the identity of after the yes stays."""
    visitor = (await start(transport=edge)).visitor("anne")
    await visitor.get_purposes()
    store.hold()
    for purposes in ("none", "all"):
        await visitor.opt_in(purposes=purposes)
        clock.advance(1)
    await visitor.event(type="after")
    fpid = visitor.fpid
    store.let_go()
    await settle()
    assert visitor.fpid == fpid
