"""What holds when consent changes, callers leave or hooks misbehave in the most awkward moment."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

import httpx
import pytest
from common import IDS, settle

from alloy_async import (
    Alloy,
    AlloyClosed,
    ConsentDeclined,
    ConsentStoreError,
    EdgeError,
    InvalidCommand,
    NotConfigured,
    OptInState,
)
from alloy_async._consent import _opt_in
from alloy_async.edge import EdgeResponse
from alloy_async.edge.transport import Withdrawn
from alloy_async.hooks import Delivered, Failed, Lost, Parked, Refused, Released, Sending
from alloy_async.stores import MemoryStore
from alloy_async.stores.base import VisitorKey
from alloy_async.testing import ManualClock, RecordingEdge

KEY = VisitorKey(IDS["ims_org_id"], IDS["config_id"])
BAD_EVENT = json.dumps(
    {
        "type": "https://ns.adobe.com/aep/errors/EXEG-0104-400",
        "title": "bad",
        "report": {"eventIndex": 0},
    }
).encode()


class FullDisk(MemoryStore):
    """A store that cannot save while ``broken``."""

    broken = False

    async def save_preference(self, key, preference, *, by=""):
        if self.broken:
            raise ConsentStoreError("save", "here", "the disk is full")
        await super().save_preference(key, preference, by=by)


class RawEdge(RecordingEdge):
    """An edge that keeps the bytes of each body."""

    def __init__(self):
        super().__init__()
        self.bodies = []

    async def send(self, request, may_start):
        if may_start():
            self.bodies.append(request.body)
        return await super().send(request, may_start)


@dataclass
class SlowToConnect:
    """An edge that takes some turns of the loop to connect and asks only then; it refuses the first request."""

    attempts: int = 0
    answered: int = 0

    async def send(self, request, may_start):
        attempt, self.attempts = self.attempts, self.attempts + 1
        await settle(1 if attempt == 0 else 20 + attempt % 5)
        if not may_start():
            raise Withdrawn
        self.answered += 1
        if attempt == 0:
            return EdgeResponse(400, {"content-type": "application/problem+json"}, BAD_EVENT)
        return EdgeResponse(204, {}, b"")

    async def aclose(self):
        """Nothing to close."""


def identity_of(edge, index=-1):
    return edge.events[index]["xdm"]["identityMap"]


def fpid_of(edge, index=-1):
    return identity_of(edge, index)["FPID"][0]["id"]


def add_up(statistics):
    return statistics.accepted == statistics.ended + statistics.open


async def settled(*futures):
    """Return how each future ended, or None where it is pending."""
    await settle(100)
    return [None if not future.done() else future.exception() or future.result() for future in futures]


# Requests that turn round


async def test_requests_that_turn_round_do_not_turn_each_other_round_for_ever(options):
    """One refused event of eight makes the other seven start again once at most, and all of them settle."""
    edge = SlowToConnect()
    async with Alloy() as alloy:
        await alloy.configure(**options | {"transport": edge, "opt_in_enabled": False})
        events = [alloy.event(type=str(number), view_start=True) for number in range(8)]
        await settle(1_000)
        pending = [event for event in events if not event.done()]
        for event in pending:
            event.cancel()  # or closing would wait for them
        assert not pending
        assert isinstance(events[0].exception(), EdgeError)
        assert edge.attempts <= 16
        assert edge.answered == 8


# Choices that overlap


@pytest.mark.parametrize("narrow", ["none", "forget"])
async def test_a_refusal_that_a_yes_overtakes_still_erases_the_identity(options, store, edge, narrow):
    """Between none (or forget) and all of the same turn, the identity is erased and the stored epoch grows."""
    async with Alloy() as alloy:
        await alloy.configure(**options)
        await alloy.opt_in(purposes="all")
        await alloy.set_customer_ids({"CRM": {"id": "bob"}})
        await alloy.event()
        before, epoch = fpid_of(edge), (await store.load_preference(KEY)).epoch
        first = alloy.forget() if narrow == "forget" else alloy.opt_in(purposes="none")
        assert await asyncio.gather(first, alloy.opt_in(purposes="all")) == ["all", "all"]
        await alloy.event()
        assert fpid_of(edge) != before
        assert identity_of(edge).keys() == {"FPID"}
        kept = await store.load_identity(KEY)
        assert (kept.fpid, kept.customer_ids) == (fpid_of(edge), {})
        assert (await store.load_preference(KEY)).epoch > epoch


async def test_a_refusal_that_could_not_be_saved_is_owed_after_a_yes_that_fails_too(options, clock):
    """Once the disk has recovered the store holds "none", and the next start refuses."""
    store = FullDisk()
    async with Alloy() as alloy:
        await alloy.configure(**options | {"store": store})
        await alloy.opt_in(purposes="all")
        store.broken = True
        for purposes in ("none", "all"):
            with pytest.raises(ConsentStoreError):
                await alloy.opt_in(purposes=purposes)
        assert isinstance(alloy.event().exception(), ConsentDeclined)
        store.broken = False
        clock.advance(60)
        await settle()
        assert (await store.load_preference(KEY)).purposes == "none"
    edge = RecordingEdge()
    async with Alloy() as alloy:
        await alloy.configure(**options | {"store": store, "transport": edge})
        assert isinstance(alloy.event().exception(), ConsentDeclined)
    assert edge.requests == []


async def test_a_yes_that_fails_after_a_refusal_has_expired_leaves_the_choice_open(options, clock):
    """An expired "none" is not brought back; what is called waits."""
    store = FullDisk()
    async with Alloy() as alloy:
        await alloy.configure(**options | {"store": store, "preference_max_age": 100.0})
        await alloy.opt_in(purposes="none")
        clock.advance(200)
        store.broken = True
        with pytest.raises(ConsentStoreError):
            await alloy.opt_in(purposes="all")
        event = alloy.event()
        await settle()
        assert not event.done()
        assert alloy.statistics().parked == 1


# get_ecid


async def test_get_ecid_ends_when_no_and_yes_are_said_while_it_is_asked(options, edge):
    """What was asked before the refusal is refused, what is asked after it gets its answer."""
    async with Alloy() as alloy:
        await alloy.configure(**options)
        await alloy.opt_in(purposes="all")
        edge.hold()
        before = alloy.get_ecid()
        await settle()
        await alloy.opt_in(purposes="none")
        await alloy.opt_in(purposes="all")
        after = alloy.get_ecid()
        await settle()
        edge.release()
        refused, ecid = await settled(before, after)
        assert isinstance(refused, ConsentDeclined)
        assert isinstance(ecid, str)
        assert len(ecid) == 38


async def test_get_ecid_waits_again_when_consent_expires_while_it_is_asked(options, edge, clock):
    """An answer that comes after consent has expired is not used; the next yes asks again."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"preference_max_age": 100.0})
        await alloy.opt_in(purposes="all")
        edge.hold()
        future = alloy.get_ecid()
        await settle()
        clock.advance(200)
        edge.release()
        assert await settled(future) == [None]
        await alloy.opt_in(purposes="all")
        (ecid,) = await settled(future)
        assert isinstance(ecid, str)
        assert [request.action for request in edge.requests] == ["acquire", "acquire"]


async def test_closing_ends_a_get_ecid_whose_consent_expired_while_it_was_asked(options, edge, clock):
    """A command that waits for consent a second time is ended by ``aclose`` like any other."""
    alloy = Alloy()
    await alloy.configure(**options | {"preference_max_age": 100.0})
    await alloy.opt_in(purposes="all")
    edge.hold()
    future = alloy.get_ecid()
    await settle()
    clock.advance(200)
    edge.release()
    await settle()
    await alloy.aclose()
    assert future.done()
    assert isinstance(future.exception(), AlloyClosed)


# Closing


async def test_a_request_that_is_cancelled_before_its_first_step_settles_its_events(options):
    """A task that closing cancels as soon as it is made runs nothing; its events end all the same."""
    for turns in range(21):
        clock, edge, alloy = ManualClock(), RecordingEdge(), Alloy()
        ordered = {"clock": clock, "transport": edge, "ordered": True, "opt_in_enabled": False}
        await alloy.configure(**options | ordered)
        edge.hold()
        events = [alloy.event(view_start=True) for _ in range(2)]
        await settle()
        closing = asyncio.ensure_future(alloy.aclose(grace=5))
        await settle()
        edge.release(1)  # the first one ends, and the second request is made so many turns before time is up
        await settle(turns)
        clock.advance(5)
        statistics = await closing
        assert all(event.done() for event in events), turns
        assert statistics.open == 0, turns
        assert add_up(statistics), turns


async def test_closing_after_a_configure_that_failed_leaves_nothing_pending(options, monkeypatch):
    """Thousands of commands that waited for ``configure`` have all ended when ``aclose`` returns."""
    monkeypatch.setattr(_opt_in, "SLICE", 20)  # a hundred slices, as with many more commands

    class Unreadable(MemoryStore):
        async def load_preference(self, key):
            await settle(3)
            raise ConsentStoreError("load", "here", "it is gone")

    alloy = Alloy()
    configured = alloy.configure(**options | {"store": Unreadable(), "opt_in_enabled": False})
    events = [alloy.event() for _ in range(2_000)]
    with pytest.raises(ConsentStoreError):
        await configured
    statistics = await alloy.aclose()
    assert sum(not event.done() for event in events) == 0
    assert all(isinstance(event.exception(), NotConfigured) for event in events)
    assert statistics.open == 0


# What the application brings, and its cancellations


def cancelled():
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    return future


async def test_a_hook_that_raises_a_cancellation_does_not_stop_other_events(options, edge):
    """A hook that reads a cancelled future is a hook that raised: all of the batch are delivered."""

    def hook(record):
        if isinstance(record, Delivered):
            cancelled().result()

    async with Alloy() as alloy:
        await alloy.configure(**options | {"hooks": [hook]})
        await alloy.opt_in(purposes="all")
        events = [alloy.event(type=str(number)) for number in range(3)]
        results = await settled(*events)
        assert [result.event_id for result in results] == [event["xdm"]["_id"] for event in edge.events]
        assert alloy.statistics().delivered == 3


async def test_a_hook_that_raises_a_cancellation_stops_neither_a_choice_nor_closing(options):
    """``opt_in`` and ``aclose`` end, and so does every event that they refuse or close."""

    def hook(record):
        if isinstance(record, Refused | Lost):
            cancelled().result()

    alloy = Alloy()
    await alloy.configure(**options | {"hooks": [hook]})
    refused = [alloy.event() for _ in range(3)]
    assert await alloy.opt_in(purposes="none") == "none"
    assert all(isinstance(event.exception(), ConsentDeclined) for event in refused)
    await alloy.forget()
    lost = [alloy.event() for _ in range(3)]
    statistics = await alloy.aclose()
    assert all(isinstance(event.exception(), AlloyClosed) for event in lost)
    assert (statistics.refused, statistics.failed, statistics.open) == (3, 3, 0)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_filter_that_raises_a_cancellation_stops_that_event_only(options, edge, asynchronous):
    """Nothing of it is sent, the events behind it are, and the instance closes."""

    def filter_now(content):
        if content["xdm"]["eventType"] == "a":
            cancelled().result()

    async def filter_later(content):
        if content["xdm"]["eventType"] == "a":
            await cancelled()

    event_filter = filter_later if asynchronous else filter_now
    alloy = Alloy()
    await alloy.configure(**options | {"on_before_event_send": event_filter})
    await alloy.opt_in(purposes="all")
    first, second = await settled(alloy.event(type="a"), alloy.event(type="b"))
    assert isinstance(first, InvalidCommand)
    assert "CancelledError" in str(first)
    assert second is not None
    assert edge.event_types == ["b"]
    statistics = await alloy.aclose()
    assert (statistics.failed, statistics.delivered, statistics.open) == (1, 1, 0)


async def test_a_hook_that_cancels_another_event_of_the_batch_leaves_a_body_that_can_be_read(options):
    """The cancelled one is withdrawn without a trace, the others are delivered."""
    edge, events = RawEdge(), []

    def hook(record):
        if isinstance(record, Sending):
            events[1].cancel()

    async with Alloy() as alloy:
        await alloy.configure(**options | {"transport": edge, "hooks": [hook]})
        await alloy.opt_in(purposes="all")
        events += [alloy.event(type=name) for name in "abc"]
        await settle(100)
        bodies = [json.loads(body) for body in edge.bodies]
        assert [event["xdm"]["eventType"] for body in bodies for event in body["events"]] == ["a", "c"]
        assert events[0].result().event_id
        assert events[1].cancelled()
        assert events[2].result().event_id
        assert add_up(alloy.statistics())
        assert alloy.statistics().open == 0


async def test_the_books_add_up_in_every_hook(options, edge, clock):
    """Whatever a hook is told, accepted = ended + open when it looks."""
    alloy, wrong, told = Alloy(), [], set()

    def hook(record):
        told.add(type(record))
        if not add_up(alloy.statistics()):
            wrong.append((record, alloy.statistics()))

    def withhold(content):
        return content["xdm"].get("eventType") != "withheld"

    more = {
        "hooks": [hook],
        "on_before_event_send": withhold,
        "max_parked": 3,
        "max_queued": 3,
        "parked_ttl": 60,
    }
    await alloy.configure(**options | more)
    alloy.event().cancel()
    alloy.event()
    clock.advance(60)
    parked = [alloy.event() for _ in range(4)]
    await alloy.opt_in(purposes="none")
    await alloy.opt_in(purposes="all")
    edge.answers.append(EdgeResponse(500, {}, b"oops"))
    await settled(alloy.event(view_start=True))
    queued = [alloy.event(type=name) for name in ("withheld", "a", "b", "c")]
    queued[2].cancel()
    await settle(100)
    await alloy.forget()
    parked.append(alloy.event())
    assert add_up(await alloy.aclose())
    assert wrong == []
    assert told == {Parked, Released, Sending, Delivered, Refused, Failed, Lost}


# Consent that expires and is given again


async def expired_and_given_again(alloy, edge, clock):
    """Let an event lose its consent between gate and wire, and get it back; end it."""
    await alloy.opt_in(purposes="all")
    edge.hold()
    first = alloy.event(type="a")
    await settle()
    second = alloy.event(type="b")
    await settle()
    clock.advance(200)
    edge.release()
    await settle()
    assert alloy.statistics().parked == 1
    await alloy.opt_in(purposes="all")
    assert None not in await settled(first, second)


EXPIRING = {"preference_max_age": 100.0, "ordered": True}


async def test_an_event_that_consent_came_back_to_names_the_visitor_once(options, clock):
    """Its body holds exactly one ``identityMap``, and the books know its size."""
    edge = RawEdge()
    async with Alloy() as alloy:
        await alloy.configure(**options | EXPIRING | {"transport": edge})
        await expired_and_given_again(alloy, edge, clock)
    assert [body.count(b'"identityMap"') for body in edge.bodies] == [1, 1]
    assert edge.event_types == ["a", "b"]


async def test_the_filter_sees_an_event_once_though_consent_came_back_to_it(options, clock, edge):
    """``on_before_event_send`` runs once for each event, however often it starts."""
    seen = []

    def event_filter(content):
        seen.append(content["xdm"]["eventType"])

    async with Alloy() as alloy:
        await alloy.configure(**options | EXPIRING | {"on_before_event_send": event_filter})
        await expired_and_given_again(alloy, edge, clock)
    assert seen == ["a", "b"]
    assert edge.event_types == ["a", "b"]


async def test_flush_ends_when_what_it_waits_for_goes_back_to_parking(options, edge, clock):
    """Parked events are not waited for, also not those that were released once."""
    async with Alloy() as alloy:
        await alloy.configure(**options | EXPIRING)
        await alloy.opt_in(purposes="all")
        edge.hold()
        alloy.event(type="a")
        await settle()
        behind, flushed = alloy.event(type="b"), alloy.flush()
        await settle()
        assert not flushed.done()
        clock.advance(200)
        edge.release()
        await settle(100)
        assert flushed.done()
        assert not behind.done()


async def test_many_events_that_lose_their_consent_go_back_in_few_steps(options, edge, clock, monkeypatch):
    """Thousands go back to parking in slices, in order, instead of one by one."""
    calls, readmit = [], OptInState.readmit
    first, opened = [], asyncio.Event()

    async def event_filter(content):
        if not first:
            first.append(content)
            await opened.wait()

    def count(state, commands):
        commands = list(commands)
        calls.append(commands)
        readmit(state, commands)

    monkeypatch.setattr(OptInState, "readmit", count)
    async with Alloy() as alloy:
        await alloy.configure(**options | {"preference_max_age": 100.0, "on_before_event_send": event_filter})
        await alloy.opt_in(purposes="all")
        events = [alloy.event(type=str(number)) for number in range(3_000)]
        await settle()
        clock.advance(200)
        opened.set()
        await settle()
        assert alloy.statistics().parked == 3_000
        assert len(calls) <= 10
        await alloy.opt_in(purposes="all")
        await asyncio.gather(*events)
    assert edge.event_types == [str(number) for number in range(3_000)]


async def test_an_event_that_goes_back_to_parking_is_parked_once(options, clock):
    """Hooks are told once for each, and the bytes that wait are counted once."""
    told, opened = [], asyncio.Event()

    def hook(record):
        if isinstance(record, Parked):
            told.append(record.event_id)

    async def event_filter(content):
        await opened.wait()

    more = {"preference_max_age": 100.0, "on_before_event_send": event_filter, "hooks": [hook]}
    async with Alloy() as alloy:
        await alloy.configure(**options | more)
        await alloy.opt_in(purposes="all")
        for _ in range(1_200):
            alloy.event()
        await settle()
        clock.advance(200)
        opened.set()
        await settle()
        assert len(told) == len(set(told)) == 1_200


# Identity


async def test_a_later_primary_customer_id_wins_over_a_stored_one(options, tmp_path):
    """Only one is primary, the later; and the identity survives the next start."""
    seen = []
    for customer in ({"A": {"id": "a", "primary": True}}, {"B": {"id": "b", "primary": True}}, None):
        edge = RecordingEdge()
        async with Alloy() as alloy:
            kept = {"store": "sqlite", "state_dir": tmp_path, "transport": edge}
            await alloy.configure(**options | kept)
            await alloy.opt_in(purposes="all")
            if customer is not None:
                await alloy.set_customer_ids(customer)
            await alloy.event()
        seen.append(identity_of(edge))
    primary = [[name for name, entries in map_.items() if entries[0]["primary"]] for map_ in seen]
    assert primary == [["A"], ["B"], ["B"]]
    assert len({map_["FPID"][0]["id"] for map_ in seen}) == 1


async def test_get_ecid_and_an_event_that_start_together_use_one_identity(options, edge):
    """However long the store takes to answer each of them, the visitor gets one FPID."""

    class SlowStore(MemoryStore):
        loads = 0

        async def load_identity(self, key):
            self.loads += 1
            kept = await super().load_identity(key)
            await settle(5 if self.loads == 1 else 40)
            return kept

    async with Alloy() as alloy:
        await alloy.configure(**options | {"store": SlowStore()})
        first, ecid = alloy.event(), alloy.get_ecid()
        await alloy.opt_in(purposes="all")
        await asyncio.gather(first, ecid)
        maps = [identity_of(edge)]
        maps += [
            request.body["xdm"]["identityMap"] for request in edge.requests if request.action == "acquire"
        ]
    assert len(maps) == 2
    assert len({map_["FPID"][0]["id"] for map_ in maps}) == 1


async def test_forget_erases_the_identity_where_consent_is_switched_off(options, edge, store):
    """Events go on afterwards, as those of another visitor."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"opt_in_enabled": False})
        await alloy.set_customer_ids({"CRM": {"id": "bob"}})
        await alloy.event()
        assert await alloy.forget() == "pending"
        assert await store.load_identity(KEY) is None
        (result,) = await settled(alloy.event())
        assert result is not None
        assert fpid_of(edge, 0) != fpid_of(edge, 1)
        assert identity_of(edge).keys() == {"FPID"}


async def test_forget_is_not_undone_by_a_slow_store_where_consent_is_switched_off(options, edge):
    """An event that is called while the store still erases does not bring the old identity back."""

    class SlowToForget(MemoryStore):
        async def forget(self, key, *, by=""):
            await settle(10)
            await super().forget(key, by=by)

    async with Alloy() as alloy:
        await alloy.configure(**options | {"store": SlowToForget(), "opt_in_enabled": False})
        await alloy.event()
        forgotten, event = alloy.forget(), alloy.event()
        assert None not in await settled(forgotten, event)
        assert fpid_of(edge, 0) != fpid_of(edge, 1)


# A client of the caller's


def answer(request):
    return httpx.Response(200, json={"requestId": "r"})


def over_httpx(options, **more):
    return {name: value for name, value in options.items() if name != "transport"} | more


async def test_a_client_with_a_mock_transport_works(options):
    """httpx' own way of testing delivers, although its answers come read already."""
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client, Alloy() as alloy:
        await alloy.configure(**over_httpx(options, client=client, opt_in_enabled=False))
        result = await alloy.event()
        assert result.request_id == "r"


async def test_the_callers_cookies_stay_and_are_not_sent(options):
    """A client that the caller brings keeps its jar, and no request of ours shows it to the edge."""
    sent = []

    def record(request):
        sent.append(request.headers.get("cookie"))
        return httpx.Response(204, stream=httpx.ByteStream(b""))

    jar = {"session": "mine"}
    transport = httpx.MockTransport(record)
    async with httpx.AsyncClient(transport=transport, cookies=jar) as client, Alloy() as alloy:
        await alloy.configure(**over_httpx(options, client=client, opt_in_enabled=False))
        try:
            await alloy.event()
        finally:
            assert dict(client.cookies) == jar
        assert sent == [None]


@pytest.mark.parametrize("layer", ["httpcore", "httpx"])
async def test_respx_can_stand_in_for_the_edge(options, layer):
    """What respx answers is delivered, at either layer that it can mock; the library is told nothing."""
    respx = pytest.importorskip("respx")
    with respx.mock(using=layer) as mocked:
        route = mocked.post(url__startswith="https://edge.adobedc.net/").mock(side_effect=answer)
        async with Alloy() as alloy:
            await alloy.configure(**over_httpx(options, opt_in_enabled=False))
            result = await alloy.event()
    assert result.request_id == "r"
    assert route.call_count == 1
