"""Many visitors of one instance: each with a consent, an identity and an order of its own."""

from __future__ import annotations

import asyncio
import gc
import json

import pytest
from common import WatchedStore, settle
from hypothesis import given, strategies as st

from alloy_async import (
    Alloy,
    ConsentDeclined,
    ConsentTimeout,
    InvalidCommand,
    NotConfigured,
    OutboxError,
    ParkingFull,
    StillParked,
    _unwritten,
)
from alloy_async._commands import EventCommand
from alloy_async._courier import Courier
from alloy_async.edge import EdgeResponse
from alloy_async.outbox.memory import MemoryOutbox, MemoryShelf
from alloy_async.stores.base import Change
from alloy_async.testing import ManualClock, RecordingEdge
from alloy_async.visitor import ClientState

FPID = "6f1c0f7e-3f0a-4a1c-9d58-0d6f6c1f2b3a"
ECID = "4" * 38


def identity_of(event):
    """Return which identities an event names, and by which ids."""
    return {name: entries[0]["id"] for name, entries in event["xdm"]["identityMap"].items()}


async def test_a_yes_in_a_later_request_releases_what_earlier_ones_parked(alloy, edge):
    """Views of one key share everything; the order is that of the calls."""
    first = alloy.visitor("anne").event(type="first")
    second = alloy.visitor("anne").event(type="second")
    await settle()
    assert not edge.requests
    assert await alloy.visitor("anne").opt_in(purposes="all") == "all"
    assert (await first).event_id != (await second).event_id
    assert edge.event_types == ["first", "second"]
    await alloy.visitor("anne").event(type="third")
    assert edge.event_types == ["first", "second", "third"]


async def test_one_says_yes_and_another_no(alloy, edge):
    """A choice concerns nobody else."""
    anne, bert, carl = (alloy.visitor(name) for name in ("anne", "bert", "carl"))
    events = [person.event(type=person.key) for person in (anne, bert, carl)]
    await bert.opt_in(purposes="none")
    await anne.opt_in(purposes="all")
    await events[0]
    with pytest.raises(ConsentDeclined):
        await events[1]
    await settle()
    assert edge.event_types == ["anne"]
    assert (anne.purposes, bert.purposes, carl.purposes) == ("all", "none", "pending")
    assert alloy.statistics().parked == 1
    with pytest.raises(ConsentDeclined):
        await alloy.visitor("bert").event(type="later")


async def test_silence_ends_what_is_parked(alloy, clock, edge):
    """After visitor_parked_ttl, half an hour."""
    event = alloy.visitor("anne").event(type="parked")
    clock.advance(0.19)
    await settle()
    assert not event.done()
    clock.advance(0.02)
    with pytest.raises(StillParked, match="parked_wait"):
        await event
    assert alloy.statistics().parked == 1
    clock.advance(1_800)
    await settle()
    assert (alloy.statistics().parked, alloy.statistics().expired) == (0, 1)
    await alloy.visitor("anne").opt_in(purposes="all")
    await settle()
    assert not edge.requests


async def test_whoever_awaits_a_parked_event_is_not_kept_waiting(alloy, clock, edge):
    """The future ends; the event stays parked, and is sent after a yes. The same with the other commands."""
    visitor = alloy.visitor("anne")
    event, ecid = visitor.event(type="parked"), visitor.get_ecid()
    ids = visitor.set_customer_ids({"CRMID": {"id": "7", "primary": True}})
    clock.advance(0.2)
    for future, advice in (
        (event, "stays parked"),
        (ecid, "call it again once they have"),
        (ids, "stays parked"),
    ):
        with pytest.raises(StillParked, match=advice):
            await future
    await visitor.opt_in(purposes="all")
    await visitor.event(type="later")
    assert edge.event_types == ["parked", "later"]
    assert [identity_of(event).get("CRMID") for event in edge.events] == [None, "7"]
    assert {request.action for request in edge.requests} == {"collect"}  # nobody waits for the ECID any more
    assert alloy.statistics().delivered == 2


async def test_the_one_person_of_a_single_person_process_waits_as_long_as_it_takes(alloy, clock):
    """parked_wait is for visitors."""
    event = alloy.event(type="parked")
    clock.advance(3_600)
    await settle()
    assert not event.done()
    event.cancel()


async def test_a_batch_carries_several_visitors_each_with_an_identity(alloy, edge):
    """Each event names its own visitor and nobody else."""
    people = [alloy.visitor(f"person-{number}") for number in range(5)]
    for person in people:
        await person.opt_in(purposes="all")
        await person.event(type=person.key)  # makes the identity
    before = len(edge.requests)
    await asyncio.gather(*(person.event(type=person.key) for person in people))
    (request,) = edge.requests[before:]
    by_person = {event["xdm"]["eventType"]: identity_of(event)["FPID"] for event in request.events}
    assert by_person == {person.key: person.fpid for person in people}
    assert len(set(by_person.values())) == 5


async def test_without_a_key_nothing_is_kept(alloy, store, edge):
    """A view without key lives as long as its request; what its browser says counts."""
    silent, willing = alloy.visitor(), alloy.visitor(purposes="all", fpid=FPID)
    parked = silent.event(type="silent")
    await willing.event(type="willing")
    assert [identity_of(event) for event in edge.events] == [{"FPID": FPID}]
    silent.close()
    with pytest.raises(ConsentTimeout, match="Give the view a key"):
        await parked
    with pytest.raises(ConsentDeclined):
        await alloy.visitor(purposes="none").event(type="unwilling")
    assert store._preferences == store._identities == {}


async def test_identities_of_the_browser_are_used_after_consent(alloy, edge):
    """An ECID that the browser has wins over a first-party id of ours."""
    visitor = alloy.visitor("anne", ecid=ECID)
    event = visitor.event(type="parked")
    assert (visitor.fpid, visitor.ecid) == (None, None)
    await visitor.opt_in(purposes="all")
    await event
    assert identity_of(edge.events[0])["ECID"] == ECID
    assert visitor.ecid == ECID


async def test_what_the_browser_says_is_kept(alloy, store, edge):
    """A yes of the page counts for other requests of the same key, a no likewise."""
    await alloy.visitor("anne", purposes="all").event(type="first")
    await alloy.visitor("anne").event(type="second")
    assert edge.event_types == ["first", "second"]
    refused = alloy.visitor("anne", purposes="none").event(type="third")
    with pytest.raises(ConsentDeclined):
        await refused
    assert alloy.visitor("anne").purposes == "none"
    await settle()
    (preference,) = store._preferences.values()
    assert preference.purposes == "none"


@pytest.mark.parametrize("known", [True, False], ids=["known here", "read from the store"])
async def test_a_yes_that_was_under_way_lifts_no_refusal(options, clock, edge, known):
    """A request that left the browser before the visitor said no cannot turn it back; one that left later can."""
    async with Alloy() as alloy:
        await alloy.configure(**options)
        clock.advance(10)
        await alloy.visitor("anne").opt_in(purposes="none")
        refused_at = alloy.visitor("anne").chosen_at
        if not known:
            alloy._engine.visitors._kept.clear()
            gc.collect()
            assert alloy._engine.visitors.known("anne") is None
        for seen_at in (None, refused_at - 1):
            late = alloy.visitor("anne", purposes="all", seen_at=seen_at)
            event = late.event(type="late")
            with pytest.raises(ConsentDeclined):
                await event
        assert not edge.requests
        await alloy.visitor("anne", purposes="all", seen_at=refused_at).event(type="after")
        assert edge.event_types == ["after"]


async def test_choices_are_read_from_the_store(options, store, edge):
    """Another start, another process: who said yes is sent, who said no is refused."""
    async with Alloy() as alloy:
        await alloy.configure(**options)
        await alloy.visitor("anne").opt_in(purposes="all")
        await alloy.visitor("bert").opt_in(purposes="none")
        await alloy.visitor("anne").event(type="first")
        fpid = alloy.visitor("anne").fpid
    async with Alloy() as alloy:
        await alloy.configure(**options)
        events = [alloy.visitor(name).event(type=name) for name in ("anne", "bert")]
        await events[0]
        with pytest.raises(ConsentDeclined):
            await events[1]
    assert identity_of(edge.events[-1]) == {"FPID": fpid}


async def test_what_is_kept_can_be_asked(options):
    """Before anything else has read it; a page shows its banner by it."""
    async with Alloy() as alloy:
        await alloy.configure(**options)
        await alloy.visitor("anne").opt_in(purposes="none")
    async with Alloy() as alloy:
        await alloy.configure(**options)
        anne, bert = alloy.visitor("anne"), alloy.visitor("bert")
        assert (anne.purposes, bert.purposes) == ("pending", "pending")
        assert await anne.get_purposes() == "none"
        assert await bert.get_purposes() == "pending"
        assert anne.purposes == "none"


async def test_visitors_that_are_not_heard_of_are_let_go(options, clock):
    """More than max_visitors are not kept, unless something of theirs waits; what is known of them is in the store."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"max_visitors": 3})
        await alloy.visitor("kept").opt_in(purposes="all")
        waiting = alloy.visitor("waits").event(type="parked")
        for number in range(10):
            alloy.visitor(f"passer-by {number}")
            await settle()
        gc.collect()
        visitors = alloy._engine.visitors
        assert len(visitors) <= 5
        assert visitors.known("waits") is not None
        assert visitors.known("kept") is None
        await alloy.visitor("kept").event(type="released")
        await alloy.visitor("waits").opt_in(purposes="all")
        await waiting
        clock.advance(1_801)
        for _ in range(8):
            alloy.visitor("new")
            await settle()
        gc.collect()
        assert len(visitors) == 1


async def test_a_view_keeps_its_visitor(options):
    """As long as somebody holds a view there is one state of the key, however many others came."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"max_visitors": 1})
        held = alloy.visitor("held")
        await settle()
        for number in range(5):
            alloy.visitor(str(number))
            await settle()
        await alloy.visitor("held").opt_in(purposes="none")
        assert held.purposes == "none"


async def test_an_identity_that_is_being_written_keeps_its_visitor(options, store, edge, monkeypatch):
    """Whoever comes back meanwhile has what is being written, not what was kept before."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"max_visitors": 1})
        await alloy.visitor("anne").opt_in(purposes="all")
        await alloy.visitor("anne").event(type="before")
        save, written = store.save_identity, asyncio.get_running_loop().create_future()

        async def save_when_told(*arguments):
            await written
            await save(*arguments)

        monkeypatch.setattr(store, "save_identity", save_when_told)
        await alloy.visitor("anne").set_customer_ids({"CRMID": {"id": "7"}})
        for number in range(5):
            alloy.visitor(f"passer-by {number}")
            await settle()
        event = alloy.visitor("anne").event(type="after")
        await settle()
        written.set_result(None)
        await event
        assert identity_of(edge.events[-1])["CRMID"] == "7"


async def test_bounds_for_one_and_for_all(options):
    """One visitor cannot take the room of the others, and all together not more than there is."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"visitor_max_parked": 2, "max_parked": 3})
        anne, bert = alloy.visitor("anne"), alloy.visitor("bert")
        events = [anne.event(type=str(number)) for number in range(3)]
        with pytest.raises(ParkingFull, match="visitor_max_parked=2"):
            await events[2]
        events += [bert.event(type=str(number)) for number in range(2)]
        with pytest.raises(ParkingFull, match=r"\(max_parked=3"):
            await events[4]
        await anne.opt_in(purposes="none")
        assert alloy.statistics().parked == 1
        bert.event(type="room again")
        assert alloy.statistics().parked == 2
        await bert.opt_in(purposes="none")


async def test_context_lies_under_each_event(alloy, edge):
    """Object by object, what the event says wins."""
    context = {
        "web": {"webPageDetails": {"URL": "https://shop.example/a"}},
        "environment": {"type": "browser", "browserDetails": {"userAgent": "Mozilla"}},
    }
    visitor = alloy.visitor("anne", purposes="all", context=context)
    context["web"] = "changed later"
    await visitor.event(type="plain")
    await visitor.event(xdm={"web": {"webPageDetails": {"name": "checkout"}}})
    await visitor.event(xdm={"environment": "not an object"})
    plain, merged, replaced = (event["xdm"] for event in edge.events)
    assert plain["web"] == {"webPageDetails": {"URL": "https://shop.example/a"}}
    assert merged["web"] == {"webPageDetails": {"URL": "https://shop.example/a", "name": "checkout"}}
    assert merged["environment"]["browserDetails"] == {"userAgent": "Mozilla"}
    assert replaced["environment"] == "not an object"


async def test_a_context_names_nobody(alloy):
    """An identity map there would stand beside the visitor's own, under the same name, and which one counts nobody knows."""
    with pytest.raises(InvalidCommand, match=r"context\.identityMap: a person is named by set_customer_ids"):
        alloy.visitor("anne", context={"identityMap": {"CRM": [{"id": "1"}]}})


async def test_state_goes_up_and_comes_back(alloy, edge):
    """With an event that wants an answer, and with no other; what comes back belongs to this view alone."""
    entries = [("kndctr_ORG_identity", "abc=="), ("kndctr_ORG_cluster", "or2")]
    visitor = alloy.visitor("anne", purposes="all", state=ClientState("shop.example", entries))
    handle = {
        "type": "state:store",
        "payload": [{"key": "kndctr_ORG_cluster", "value": "va6", "maxAge": 1800}],
    }
    body = json.dumps({"requestId": "r", "handle": [handle]}).encode()
    edge.answers.append(EdgeResponse(200, {"content-type": "application/json"}, body))
    await visitor.event(type="page", view_start=True)
    await visitor.event(type="purchase")
    first, second = (request.body for request in edge.requests)
    assert first["meta"]["state"] == {
        "domain": "shop.example",
        "cookiesEnabled": True,
        "entries": [{"key": key, "value": value} for key, value in entries],
    }
    assert "meta" not in second
    assert all("/or2/" in request.url for request in edge.requests)
    (update,) = visitor.state_updates
    assert (update.key, update.value, update.max_age) == ("kndctr_ORG_cluster", "va6", 1_800)
    (handle,) = visitor.browser_payload()["responseBody"]["handle"]
    assert handle["type"] == "state:store"
    assert alloy.visitor("anne").state_updates == ()


async def test_ordered_is_for_each_visitor(options, clock, edge):
    """A visitor's next request waits for the one before; those of others do not."""
    edge.hold()
    async with Alloy() as alloy:
        await alloy.configure(**options | {"ordered": True})
        events = []
        for name in ("anne", "bert"):
            visitor = alloy.visitor(name, purposes="all")
            for number in "12":
                events.append(visitor.event(type=f"{name} {number}", view_start=True))
                await settle()
        assert edge.event_types == ["anne 1", "bert 1"]
        edge.release(1)
        await settle()
        assert edge.event_types == ["anne 1", "bert 1", "anne 2"]
        edge.release()
        for event in events:
            await event
    assert edge.event_types == ["anne 1", "bert 1", "anne 2", "bert 2"]


async def test_a_refusal_looks_at_the_visitors_own_events_only(options, edge, monkeypatch):
    """Others may have very many in the queue, and visitors who decline have mostly none."""
    edge.hold()
    looked_at, gone_through = [], []
    end_if_refused, queued = EventCommand.end_if_refused, Courier._queued
    async with Alloy() as alloy:
        await alloy.configure(**options)
        anne, bert = (alloy.visitor(name, purposes="all") for name in ("anne", "bert"))
        events = [bert.event() for _ in range(100)]
        own = anne.event()
        await settle()
        later = [visitor.event(type=f"later {number}") for number in range(20) for visitor in (anne, bert)]
        monkeypatch.setattr(
            EventCommand, "end_if_refused", lambda one: (looked_at.append(one.visitor), end_if_refused(one))
        )
        monkeypatch.setattr(Courier, "_queued", lambda one: (gone_through.append(one), queued(one))[1])
        alloy.visitor("carl").opt_in(purposes="none")
        await settle()
        assert (looked_at, gone_through) == ([], [])
        anne.opt_in(purposes="none")
        assert len(looked_at) == 20
        assert len({*looked_at}) == 1
        edge.release()
        await settle(50)
        refused = [event.exception() is not None for event in later]
        assert refused == [True, False] * 20
        for event in (*events, own):
            await event


async def test_nobody_stands_behind_the_many_events_of_a_visitor_who_waits(options, clock, edge):
    """However many of one visitor's wait for another attempt, another's goes at once; in the end all are in order."""
    edge.answers.append(EdgeResponse(429, {"retry-after": "200"}, b""))
    async with Alloy() as alloy:
        await alloy.configure(**options | {"ordered": True})
        anne, bert = (alloy.visitor(name, purposes="all") for name in ("anne", "bert"))
        events = [anne.event(type="anne 0", view_start=True)]
        await settle()
        events += [anne.event(type=f"anne {number}") for number in range(1, 5_000)]
        for number in range(3):
            events.append(bert.event(type=f"bert {number}"))
            await settle(50)
        meanwhile = [*edge.event_types]
        clock.advance(200)
        for event in events:
            await event
    assert meanwhile == ["anne 0", "bert 0", "bert 1", "bert 2"]
    assert edge.event_types[4:] == [f"anne {number}" for number in range(5_000)]


async def test_events_of_visitors_survive_in_an_outbox(options, clock, store):
    """The next start sends what is left of those who consent, and of nobody else."""
    shelf, down = MemoryShelf(), RecordingEdge()
    down.hold()
    alloy = Alloy()
    await alloy.configure(**options | {"transport": down, "outbox": MemoryOutbox(shelf, clock=clock)})
    for name in ("anne", "bert", "carl"):
        visitor = alloy.visitor(name)
        await visitor.opt_in(purposes="all")
        await visitor.event(type=name, ack="stored")
    closing = asyncio.create_task(alloy.aclose(grace=1))
    await settle()
    clock.advance(1)
    assert (await closing).kept == 3
    (bert,) = [key for key in store._preferences if key.visitor == "bert"]
    del store._preferences[bert]
    edge = RecordingEdge()
    async with Alloy() as alloy:
        await alloy.configure(**options | {"transport": edge, "outbox": MemoryOutbox(shelf, clock=clock)})
        await settle(50)
        assert sorted(edge.event_types) == ["anne", "carl"]
        newer = alloy.visitor("bert").event(type="bert, newer")
        await alloy.visitor("bert").opt_in(purposes="all")
        await newer
        assert edge.event_types[2:] == ["bert", "bert, newer"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"key": ""},
        {"key": "x" * 201},
        {"key": 7},
        {"key": "a\nb"},
        {"purposes": "yes"},
        {"fpid": "7"},
        {"ecid": "7"},
        {"context": {"a": float("nan")}},
        {"context": [1]},
    ],
)
async def test_bad_arguments(alloy, arguments):
    """They are told at the call, by name, and never with what was given."""
    with pytest.raises(InvalidCommand) as caught:
        alloy.visitor(**arguments)
    assert caught.value.path.split(".")[0] in arguments


async def test_before_configure(clock):
    """There is no view of nothing."""
    alloy = Alloy()
    with pytest.raises(NotConfigured):
        alloy.visitor("anne")


async def test_while_configuring(options, edge):
    """A view may be made before configure has ended; its commands wait."""
    async with Alloy() as alloy:
        configuring = alloy.configure(**options)
        visitor = alloy.visitor("anne", purposes="all")
        event = visitor.event(type="early")
        await configuring
        await event
    assert edge.event_types == ["early"]


PEOPLE = ["anne", "bert", "carl"]
steps = st.lists(
    st.tuples(st.sampled_from(PEOPLE), st.sampled_from(["event", "all", "none", "forget", "pause"])),
    max_size=40,
)


@given(steps)
def test_whatever_interleaves_nobody_is_another(steps):
    """Each delivered event is of somebody who consented since it was called, in order, under one identity at a time."""
    asyncio.run(_interleave(steps))


async def _interleave(steps):
    edge, clock = RecordingEdge(), ManualClock()
    called, epochs, futures = 0, dict.fromkeys(PEOPLE, 0), []
    async with Alloy() as alloy:
        await alloy.configure(
            config_id="d",
            ims_org_id="o@AdobeOrg",
            opt_in_enabled=True,
            transport=edge,
            store="memory",
            clock=clock,
            parked_wait=10_000.0,
        )
        for name, step in steps:
            visitor = alloy.visitor(name)
            if step == "event":
                called += 1
                text = {"name": name, "order": called, "epoch": epochs[name]}
                futures.append(visitor.event(type=name, data=text))
            elif step == "pause":
                await settle(3)
            elif step == "forget":
                epochs[name] += 1
                visitor.forget()
            else:
                epochs[name] += step == "none"
                visitor.opt_in(purposes=step)
        await settle(60)
        statistics = await alloy.aclose()
    identities: dict[str, tuple[str, int]] = {}
    for name in PEOPLE:
        theirs = [event for event in edge.events if event["data"]["name"] == name]
        assert [event["data"]["order"] for event in theirs] == sorted(
            event["data"]["order"] for event in theirs
        )
    for event in edge.events:
        fpid = identity_of(event)["FPID"]
        owner = (event["data"]["name"], event["data"]["epoch"])
        assert identities.setdefault(fpid, owner)[0] == owner[0]
    assert statistics.open == 0
    assert statistics.accepted == called
    await asyncio.gather(*futures, return_exceptions=True)


@pytest.fixture
async def two(options):
    """Two processes that share a store: two instances, with an edge each."""
    store, edges = WatchedStore(), (RecordingEdge(), RecordingEdge())
    async with Alloy("here") as here, Alloy("there") as there:
        for alloy, edge in zip((here, there), edges, strict=True):
            await alloy.configure(**options | {"store": store, "transport": edge, "parked_wait": 9_999.0})
        yield here, there, edges, store


async def test_a_yes_elsewhere_releases_what_is_parked_here(two):
    """And concerns nobody else."""
    here, there, (edge, _), _ = two
    event, other = here.visitor("anne").event(type="parked"), here.visitor("bert").event(type="other")
    await settle()
    await there.visitor("anne").opt_in(purposes="all")
    await event
    await settle()
    assert edge.event_types == ["parked"]
    assert not other.done()
    other.cancel()


async def test_a_no_elsewhere_refuses_what_is_parked_here(two):
    """Likewise what is called later; and forgetting refuses what waits."""
    here, there, (edge, _), _ = two
    visitor = here.visitor("anne")
    event = visitor.event(type="parked")
    await settle()
    await there.visitor("anne").opt_in(purposes="none")
    with pytest.raises(ConsentDeclined):
        await event
    with pytest.raises(ConsentDeclined):
        await visitor.event(type="later")
    await there.visitor("anne").forget()
    await settle()
    assert visitor.purposes == "pending"
    event = visitor.event(type="parked again")
    await settle()
    await there.visitor("anne").forget()
    with pytest.raises(ConsentDeclined):
        await event
    assert not edge.requests


async def test_a_no_and_a_yes_between_two_looks_revive_nothing(two):
    """What waited before the no is refused, although the store says yes when it is read."""
    here, there, (edge, _), store = two
    event = here.visitor("anne").event(type="parked")
    await settle()
    store.hold()
    await there.visitor("anne").opt_in(purposes="none")
    await there.visitor("anne").opt_in(purposes="all")
    store.let_go()
    with pytest.raises(ConsentDeclined):
        await event
    await here.visitor("anne").event(type="after")
    assert edge.event_types == ["after"]


async def test_news_that_may_be_missing(two):
    """Everything is read again: who said yes is in doubt sent nothing from before; who is silent stays parked."""
    here, there, (edge, _), store = two
    events = {name: here.visitor(name).event(type=name) for name in ("anne", "bert", "carl")}
    await settle()
    store.hold()
    await there.visitor("anne").opt_in(purposes="all")
    await there.visitor("bert").opt_in(purposes="none")
    store.held = None  # lost
    store.tell()
    await settle()
    for name in ("anne", "bert"):
        with pytest.raises(ConsentDeclined):
            await events[name]
    assert not events["carl"].done()
    await here.visitor("anne").event(type="after")
    assert edge.event_types == ["after"]
    events["carl"].cancel()


@pytest.mark.parametrize("between", [(), ("none",), ("pending",)])
async def test_a_yes_that_is_said_again_while_news_are_missing(two, clock, between):
    """It refuses nothing of what was released by one that was said here, unless there was a refusal or a forgetting between."""
    here, there, (edge, _), store = two
    edge.hold()
    visitor, other = here.visitor("anne"), there.visitor("anne")
    await visitor.opt_in(purposes="all")
    await settle()
    store.hold()
    clock.advance(1.0)
    for choice in between:
        await (other.forget() if choice == "pending" else other.opt_in(purposes=choice))
    await other.opt_in(purposes="all")
    store.held = None  # lost
    events = [visitor.event(type=str(number)) for number in range(40)]
    store.tell()
    await settle()
    edge.release()
    await settle()
    declined = [isinstance(event.exception(), ConsentDeclined) for event in events if event.done()]
    assert declined
    assert any(declined) == bool(between)


@pytest.mark.parametrize("told", [True, False])
async def test_a_refusal_that_the_store_has_lost_holds_on(two, clock, told):
    """Whoever knows of it goes on refusing, also where a browser still carries an older yes, until there is a new one."""
    here, there, (edge, _), store = two
    visitor = here.visitor("anne")
    await there.visitor("anne").opt_in(purposes="none")
    assert await visitor.get_purposes() == "none"
    store._preferences.clear()
    store.tell(*[] if told else [Change("anne", refused=False)])
    await settle()
    stale = here.visitor("anne", purposes="all", seen_at=visitor.chosen_at - 1)
    with pytest.raises(ConsentDeclined):
        await stale.event(type="denied")
    assert visitor.purposes == "none"
    clock.advance(1.0)
    await there.visitor("anne").opt_in(purposes="all")
    await settle()
    await visitor.event(type="after")
    assert edge.event_types == ["after"]


async def test_what_was_called_after_the_yes_is_not_in_doubt(two, clock):
    """As where an instance has just begun to listen: whoever had said yes before has not refused since."""
    here, there, (edge, _), store = two
    await there.visitor("anne").opt_in(purposes="all")
    clock.advance(1.0)
    store.hold()
    event = here.visitor("anne").event(type="called later")
    store.tell()
    await event
    assert edge.event_types == ["called later"]


async def test_news_of_ones_own_choices_change_nothing(two):
    """They come back, late, when something newer has been said."""
    here, _, (edge, _), store = two
    visitor = here.visitor("anne")
    store.hold()
    await visitor.opt_in(purposes="none")
    await visitor.opt_in(purposes="all")
    event = visitor.event(type="released")
    store.let_go()
    await event
    await settle()
    assert (edge.event_types, visitor.purposes) == (["released"], "all")


@pytest.mark.parametrize("purposes", ["all", "none"])
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_news_of_a_choice_that_has_run_out_refuse_nothing(two, clock, purposes, elsewhere):
    """What waits since then stays parked: nobody has refused it, or forgotten the visitor."""
    here, there, (edge, _), store = two
    await (there if elsewhere else here).visitor("anne").opt_in(purposes=purposes)
    visitor = here.visitor("anne")
    await visitor.get_purposes()
    clock.advance(15_552_001)
    event = visitor.event(type="parked")
    store.tell(Change("anne", refused=False))
    await settle()
    assert not event.done()
    await visitor.opt_in(purposes="all")
    await event
    assert edge.event_types == ["parked"]


@pytest.mark.parametrize("relay", [True, False])
async def test_what_was_left_to_a_relay_is_not_bemoaned(options, clock, edge, caplog, relay):
    """When a worker is closed it has been sent, perhaps; of what nobody has taken over one line in the log tells."""
    edge.hold()
    async with Alloy() as web:
        await web.configure(**options | {"outbox": MemoryOutbox(clock=clock), "relay": relay})
        visitor = web.visitor("anne")
        await visitor.opt_in(purposes="all")
        await visitor.event(type="page", ack="stored")
        clock.advance(1)
        closing = asyncio.ensure_future(web.aclose(grace=1))
        while not closing.done():
            await settle()
            clock.advance(1)
    lines = [message for message in caplog.messages if message.startswith("closed: ")]
    assert [line.endswith("1 are kept in the outbox for the next start") for line in lines] == [True] * (
        not relay
    )


async def test_a_relay_sends_what_others_store(options, clock, store, edge):
    """A web worker returns once its events are stored; another process, which knows nobody, sends them in order."""
    shelf, nothing = MemoryShelf(), RecordingEdge()
    relaying = {"opt_in_enabled": False, "store": "memory"}
    async with Alloy("web") as web, Alloy("relay") as relay:
        outboxes = [MemoryOutbox(shelf, clock=clock) for _ in range(2)]
        await web.configure(**options | {"transport": nothing, "outbox": outboxes[0], "relay": True})
        await relay.configure(**options | relaying | {"outbox": outboxes[1]})
        work = asyncio.create_task(relay.relay(every=0.0))
        for name in ("anne", "bert"):
            await web.visitor(name).opt_in(purposes="all")
            for number in "12":
                result = await web.visitor(name).event(type=f"{name} {number}")
                assert result.stored
        while len(edge.events) < 4:
            await asyncio.sleep(0)
        await relay.flush()
        work.cancel()
        assert [kind for kind in edge.event_types if "anne" in kind] == ["anne 1", "anne 2"]
        assert web.statistics().kept == relay.statistics().delivered == 4
        assert not nothing.requests
        await relay.aclose()
        assert (await web.get_outbox_info()).events == 0


async def test_a_refusal_reaches_a_relay(options, clock, edge):
    """What is stored and not sent is erased; what the relay has in hand is not sent."""
    shelf = MemoryShelf()
    edge.hold()
    async with Alloy("web") as web, Alloy("relay") as relay:
        outboxes = [MemoryOutbox(shelf, clock=clock) for _ in range(2)]
        await web.configure(**options | {"outbox": outboxes[0], "relay": True})
        await relay.configure(
            **options
            | {"opt_in_enabled": False, "store": "memory", "outbox": outboxes[1], "max_in_flight": 1}
        )
        for name in ("first", "anne", "bert"):
            await web.visitor(name).opt_in(purposes="all")
            await web.visitor(name).event(type=name, view_start=True)
        work = asyncio.create_task(relay.relay(every=0.0))
        while not edge.requests:
            await asyncio.sleep(0)
        await web.visitor("anne").opt_in(purposes="none")
        edge.release()
        await settle(50)
        await relay.flush()
        work.cancel()
    assert edge.event_types == ["first", "bert"]


class OutboxThatComesAndGoes(MemoryOutbox):
    """One that cannot be written while it is down."""

    down = True

    async def write(self, events, ended, *, epoch):
        if self.down:
            raise OutboxError("write", "of the test", "it is down.")
        return await super().write(events, ended, epoch=epoch)


@pytest.mark.parametrize("choice", ["refuse", "wait"])
async def test_an_outbox_that_is_down(options, clock, edge, choice):
    """Its events are refused, or wait in memory, in order, until it is back; a refusal ends those that wait."""
    outbox = OutboxThatComesAndGoes(clock=clock)
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": outbox, "when_outbox_fails": choice})
        anne, bert = (alloy.visitor(name, purposes="all") for name in ("anne", "bert"))
        events = [
            visitor.event(type=f"{visitor.key} {number}") for number in "12" for visitor in (anne, bert)
        ]
        await settle()
        if choice == "refuse":
            assert {type(event.exception()) for event in events} == {OutboxError}
            return
        assert not any(event.done() for event in events)
        await bert.opt_in(purposes="none")
        clock.advance(1)
        await settle()
        outbox.down = False
        clock.advance(1)
        await settle()
        assert edge.event_types == ["anne 1", "anne 2"]
        assert {type(event.exception()) for event in events[1::2]} == {ConsentDeclined}


async def test_what_was_cancelled_while_the_outbox_is_down_takes_no_memory(options, clock, monkeypatch):
    """However many callers lose patience, behind more than one group of those that go on waiting."""
    monkeypatch.setattr(_unwritten, "GROUP", 3)
    monkeypatch.setattr(_unwritten, "ENDED", 10)
    outbox = OutboxThatComesAndGoes(clock=clock)
    async with Alloy() as alloy:
        await alloy.configure(**options | {"outbox": outbox, "when_outbox_fails": "wait"})
        anne = alloy.visitor("anne", purposes="all")
        waiting = [anne.event(type=str(number)) for number in range(5)]
        await settle()
        for _ in range(100):
            event = anne.event()
            await settle(3)
            event.cancel()
        await settle()
        held = len(alloy._engine._keeper.unwritten())
        outbox.down = False
        clock.advance(1)
        await asyncio.gather(*waiting)
        assert held < 25
        assert (alloy.statistics().delivered, alloy.statistics().cancelled) == (5, 100)


async def test_nothing_waits_for_an_outbox_without_end(options, clock, edge):
    """After delivery_timeout an event ends, and says why."""
    outbox = OutboxThatComesAndGoes(clock=clock)
    async with Alloy() as alloy:
        await alloy.configure(
            **options | {"outbox": outbox, "when_outbox_fails": "wait", "delivery_timeout": 60.0}
        )
        event = alloy.visitor("anne", purposes="all").event(type="waits")
        await settle()
        for _ in range(61):
            clock.advance(1)
            await settle()
        with pytest.raises(OutboxError, match="delivery_timeout"):
            await event
    assert not edge.requests
