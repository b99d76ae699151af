"""The courier: what travels together, when it starts, and how each event ends."""

from __future__ import annotations

import asyncio
import json

import pytest
from common import settle

from alloy_async import Alloy, AlloyError, ConsentDeclined, EdgeError, NetworkError, OutboxFull
from alloy_async._batch import Batch
from alloy_async.edge import EdgeResponse
from alloy_async.testing import RecordingEdge


@pytest.fixture
async def open_alloy(options):
    """An instance whose gate is open."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"opt_in_enabled": False})
        await alloy.event(type="first")  # the identity is known from here on
        yield alloy


def problem(status, code="0104", **report):
    body = {"type": f"https://ns.adobe.com/aep/errors/EXEG-{code}-{status}", "title": "no", "report": report}
    return EdgeResponse(status, {"content-type": "application/problem+json"}, json.dumps(body).encode())


async def test_an_idle_courier_sends_at_once(open_alloy, edge):
    """Without anything on the wire no event waits for company."""
    event = open_alloy.event(type="a")
    await settle()
    assert event.done()
    assert edge.event_types == ["first", "a"]


async def test_what_is_called_in_one_turn_travels_together(open_alloy, edge):
    """Events of one turn of the loop share a request."""
    events = [open_alloy.event(type=str(number)) for number in range(10)]
    for event in events:
        await event
    assert [len(request.events) for request in edge.requests] == [1, 10]


async def test_events_gather_while_a_request_is_on_the_wire(open_alloy, edge, clock):
    """Another request starts when the oldest event has waited a few milliseconds, not before."""
    edge.hold()
    open_alloy.event(type="on the wire")
    await settle()
    for number in range(3):
        open_alloy.event(type=str(number))
        await settle()
    assert len(edge.requests) == 2
    clock.advance(0.015)
    await settle()
    assert [len(request.events) for request in edge.requests] == [1, 1, 3]
    edge.release()


async def test_a_full_batch_does_not_wait(open_alloy, edge):
    """Once a batch cannot grow, it goes."""
    edge.hold()
    open_alloy.event(type="on the wire")
    await settle()
    for _ in range(5):
        open_alloy.event(data="x" * 20_000)
    await settle()
    assert [len(request.events) for request in edge.requests] == [1, 1, 3]
    edge.release()


async def test_batches_are_cut_by_bytes(open_alloy, edge):
    """No request is larger than the edge takes, and none is smaller than it need be."""
    events = [open_alloy.event(data="é" * 700) for _ in range(200)]
    for event in events:
        await event
    sizes = [request.size for request in edge.requests[1:]]
    assert max(sizes) <= 65_536
    assert all(size > 63_000 for size in sizes[:-1])


async def test_an_event_that_wants_an_answer_goes_alone_to_interact(open_alloy, edge):
    """view_start and decision scopes go to interact, the others around it to collect, in call order."""
    calls = [
        open_alloy.event(type="a"),
        open_alloy.event(type="b", view_start=True),
        open_alloy.event(type="c", decision_scopes=["hero"]),
        open_alloy.event(type="d"),
        open_alloy.event(type="e"),
    ]
    for call in calls:
        await call
    assert [(request.action, len(request.events)) for request in edge.requests[1:]] == [
        ("collect", 1),
        ("interact", 1),
        ("interact", 1),
        ("collect", 2),
    ]
    assert edge.event_types == ["first", "a", "b", "c", "d", "e"]
    assert edge.events[3]["query"]["personalization"]["decisionScopes"] == ["hero"]


async def test_at_most_eight_requests_are_on_the_wire(open_alloy, edge):
    """More requests than that make httpx slower, not faster."""
    edge.hold()
    events = [open_alloy.event(view_start=True) for _ in range(20)]
    await settle()
    assert edge.holding == 8
    edge.release(3)
    await settle()
    assert edge.holding == 8
    edge.release()
    for event in events:
        await event


async def test_ordered_waits_for_the_end_of_each_request(options, edge):
    """With ordered=True a request starts when the one before has ended."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"opt_in_enabled": False, "ordered": True})
        edge.hold()
        events = [alloy.event(view_start=True) for _ in range(3)]
        await settle()
        assert edge.holding == 1
        edge.release()
        for event in events:
            await event


async def test_queue_time_is_told(open_alloy, edge, clock):
    """The edge hears how long an event waited, in milliseconds, parking included."""
    edge.hold()
    blockers = [open_alloy.event(view_start=True) for _ in range(8)]
    late = open_alloy.event(view_start=True)
    await settle()
    clock.advance(2.5)
    edge.release()
    for event in [*blockers, late]:
        await event
    assert edge.requests[-1].body["meta"] == {"queueTimeMillis": 2_500}


async def test_a_named_event_fails_alone(open_alloy, edge):
    """An error with an eventIndex fails that event; its neighbours are sent again under the same ids."""
    edge.answers.append(problem(422, eventIndex=1))
    events = [open_alloy.event(type=str(number)) for number in range(3)]
    await settle()
    assert [type(event.exception()) for event in events] == [type(None), EdgeError, type(None)]
    first, second = edge.requests[1:]
    assert [event["xdm"]["eventType"] for event in second.events] == ["0", "2"]
    assert [first.events[0], first.events[2]] == second.events


async def test_a_refusal_without_a_name_fails_all_each_with_its_own_error(open_alloy, edge):
    """Everybody hears of it, with an exception of their own."""
    edge.answers.append(problem(400, code="0003"))
    events = [open_alloy.event() for _ in range(3)]
    await settle()
    errors = [event.exception() for event in events]
    assert [(error.status, error.code) for error in errors] == [(400, "0003")] * 3
    assert len({id(error) for error in errors}) == 3


async def test_an_ignored_event_was_declined_at_the_edge(open_alloy, edge):
    """EXEG-0301 ends the event as declined by the edge; the local choice stays."""
    warning = {"type": "https://ns.adobe.com/aep/errors/EXEG-0301-200", "report": {"eventIndex": 1}}
    edge.answers.append(EdgeResponse(200, {}, json.dumps({"handle": [], "warnings": [warning]}).encode()))
    events = [open_alloy.event() for _ in range(2)]
    await settle()
    assert events[0].result().warnings == ()
    error = events[1].exception()
    assert isinstance(error, ConsentDeclined)
    assert error.by == "edge"
    await open_alloy.event()


@pytest.mark.parametrize(
    "failure", [NetworkError("http://edge", "reset"), ZeroDivisionError("in a transport")]
)
async def test_whatever_a_transport_raises_ends_in_a_documented_error(options, edge, failure):
    """A foreign exception never reaches a future, and never leaves one pending."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"opt_in_enabled": False, "max_attempts": 1})
        edge.answers.append(failure)
        event = alloy.event()
        await settle()
        error = event.exception()
        assert isinstance(error, NetworkError)
        assert error.__cause__ is None
        await alloy.event()


async def test_a_mistake_of_ours_leaves_no_future_pending(open_alloy, edge, monkeypatch):
    """Even an internal error ends every future of the batch."""
    monkeypatch.setattr("alloy_async._courier.result_for", lambda *_: 1 / 0)
    event = open_alloy.event(view_start=True)
    await settle()
    assert type(event.exception()) is AlloyError


async def test_a_full_queue_is_told(options, edge):
    """At the bound the caller hears it; what was parked before is never turned away by it."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"max_queued": 3})
        parked = [alloy.event(type="parked") for _ in range(10)]
        await alloy.opt_in(purposes="all")
        edge.hold()
        alloy.event(view_start=True)
        await settle()
        queued = [alloy.event(view_start=True) for _ in range(11)]
        error = queued[-1].exception()
        assert isinstance(error, OutboxFull)
        assert "max_queued=3" in str(error)
        edge.release()
        for event in parked:
            await event
        assert alloy.statistics().overflowed > 0


async def test_region_of_an_answer_is_used_for_the_next_requests(open_alloy, edge, clock):
    """The location hint becomes part of the path until it expires."""
    hint = {
        "type": "locationHint:result",
        "payload": [{"scope": "EdgeNetwork", "hint": "or2", "ttlSeconds": 60}],
    }
    edge.answers.append(EdgeResponse(200, {}, json.dumps({"handle": [hint]}).encode()))
    await open_alloy.event(view_start=True)
    await open_alloy.event()
    clock.advance(60)
    await open_alloy.event()
    assert ["/or2/" in request.url for request in edge.requests] == [False, False, True, False]


async def test_a_request_does_not_start_before_one_that_turned_round(options, clock, monkeypatch):
    """Consent that is gone for the first and back for the second of two requests does not change their order."""
    asked = Batch.consents

    def asked_and_given_back(batch):
        consents = asked(batch)
        if not consents:  # the first of the two; the second is asked in the same turn
            gate.choose("all")
        return consents

    edge = RecordingEdge()
    async with Alloy() as alloy:
        await alloy.configure(**options | {"transport": edge, "preference_max_age": 100.0})
        await alloy.opt_in(purposes="all")
        await alloy.event(type="first")
        await settle()
        gate = alloy._engine.visitor.gate
        events = [alloy.event(type=name, view_start=True) for name in ("a", "b")]
        while alloy.statistics().sending < 2:
            await asyncio.sleep(0)
        clock.advance(101)
        monkeypatch.setattr(Batch, "consents", asked_and_given_back)
        for event in events:
            await event
    assert edge.event_types == ["first", "a", "b"]
