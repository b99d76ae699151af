"""What the courier does after a failure: waits, splits, probes, gives up, and always asks for consent again."""

from __future__ import annotations

import asyncio
import json

import pytest
from common import settle

from alloy_async import Alloy, AlloyClosed, ConsentDeclined, EdgeError, NetworkError, hooks
from alloy_async.edge import EdgeResponse
from alloy_async.edge.breaker import TOLERATED

BUSY = EdgeResponse(503, {}, b"busy")


@pytest.fixture(autouse=True)
def chance(monkeypatch):
    """Jitter at its upper end: waits are 0.5, 1, 2, 4 … seconds."""
    monkeypatch.setattr("alloy_async._courier.random.random", lambda: 1.0)


@pytest.fixture
async def open_alloy(options):
    """An instance whose gate is open by the visitor's choice."""
    async with Alloy() as alloy:
        await alloy.configure(**options)
        await alloy.opt_in(purposes="all")
        await alloy.event(type="first")  # the identity is known from here on
        yield alloy


def reset():
    return NetworkError("http://edge", "reset")


def refused(code="0102", status=400, **report):
    body = {"type": f"https://ns.adobe.com/aep/errors/EXEG-{code}-{status}", "title": "no", "report": report}
    return EdgeResponse(status, {}, json.dumps(body).encode())


async def test_a_busy_edge_is_asked_again_with_the_same_events(open_alloy, edge, clock):
    """The repetition carries the same bodies under another request id, after the wait and not before."""
    edge.answers += [BUSY, reset()]
    events = [open_alloy.event(type=name) for name in "ab"]
    await settle()
    clock.advance(0.49)
    await settle()
    assert len(edge.requests) == 2
    clock.advance(0.01)
    await settle()
    assert len(edge.requests) == 3
    clock.advance(1.0)
    for event in events:
        await event
    attempts = edge.requests[1:]
    assert [request.body for request in attempts] == [attempts[0].body] * 3
    assert len({request.query["requestId"] for request in attempts}) == 3
    assert open_alloy.statistics().retries == 2


async def test_retry_after_is_obeyed(open_alloy, edge, clock):
    """In seconds, instead of the usual wait."""
    edge.answers.append(EdgeResponse(429, {"retry-after": "20"}, b""))
    event = open_alloy.event()
    await settle()
    clock.advance(19.9)
    await settle()
    assert not event.done()
    clock.advance(0.2)
    await event


async def test_the_last_attempt_is_final(open_alloy, edge, clock):
    """After five the caller is told what the last one ended with."""
    edge.answers += [EdgeResponse(503, {}, b"busy")] * 5
    event = open_alloy.event()
    for _ in range(6):
        await settle()
        clock.advance(30)
    assert event.exception().status == 503
    assert len(edge.requests) == 6
    assert open_alloy.statistics().failed == 1


async def test_waiting_takes_no_place_and_delays_nobody(open_alloy, edge, clock):
    """While a batch waits for its next attempt, later events are delivered."""
    edge.answers += [EdgeResponse(429, {"retry-after": "60"}, b"")] * 20
    waiting = [open_alloy.event(view_start=True) for _ in range(20)]
    await settle()
    assert open_alloy.statistics().queued == 20
    await open_alloy.event(type="later")
    clock.advance(60)
    for event in waiting:
        await event


async def test_ordered_events_wait_behind_a_retry(options, edge, clock):
    """With ordered=True nothing passes an event that is to be tried again."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"opt_in_enabled": False, "ordered": True})
        edge.answers.append(BUSY)
        first = alloy.event(type="a", view_start=True)
        second = alloy.event(type="b", view_start=True)
        await settle()
        assert edge.event_types == ["a"]
        clock.advance(0.5)
        await first
        await second
    assert edge.event_types == ["a", "a", "b"]


@pytest.fixture
async def aside(options, edge, clock):
    """One visitor's event waits for another attempt, and 1 200 more wait for that one."""
    edge.answers.append(EdgeResponse(429, {"retry-after": "200"}, b""))
    async with Alloy() as alloy:
        await alloy.configure(**options | {"ordered": True})
        anne = alloy.visitor("anne", purposes="all")
        events = [anne.event(type="0", view_start=True)]
        await settle()
        events += [anne.event(type=f"{number}") for number in range(1, 1_201)]
        await settle(50)
        assert edge.event_types == ["0"]
        yield alloy, anne, events
        clock.advance(200)  # so that a test that fails comes to its end


async def test_what_stands_aside_may_be_cancelled(aside, edge, clock):
    """It is not sent; what is around it is, in order."""
    alloy, _, events = aside
    for event in (*events[1:50], events[700], events[1_200]):
        event.cancel()
    await settle()
    assert alloy.statistics().queued == 1_150
    clock.advance(200)
    for number in (0, *range(50, 700), *range(701, 1_200)):
        await events[number]
    await settle()
    assert edge.event_types[1:] == [f"{number}" for number in (0, *range(50, 700), *range(701, 1_200))]
    assert alloy.statistics().queued == 0


async def test_what_stands_aside_is_sent_though_what_it_waited_for_was_cancelled(aside, edge):
    """At once: nothing of the visitor's has to end any more."""
    _, _, events = aside
    events[0].cancel()
    for event in events[1:]:
        await event
    assert edge.event_types == [f"{number}" for number in range(1_201)]


async def test_what_stands_aside_is_refused_with_the_rest(aside, edge, clock):
    """And what is called after a new yes goes."""
    _, anne, events = aside
    await anne.opt_in(purposes="none")
    await settle(50)
    assert all(isinstance(event.exception(), ConsentDeclined) for event in events)
    await anne.opt_in(purposes="all")
    await anne.event(type="after")
    clock.advance(200)
    await settle()
    assert edge.event_types == ["0", "after"]


async def test_what_stands_behind_one_that_a_hook_cancels_still_waits_for_its_turn(options, edge, clock):
    """The hook hears of another one's end, and what is in front then has a request on the wire."""
    cancelled = []

    def hear(record):
        if isinstance(record, hooks.Failed):
            for event in cancelled:
                event.cancel()

    async with Alloy() as alloy:
        await alloy.configure(
            **options | {"ordered": True, "max_in_flight": 2, "delivery_timeout": 10.0, "hooks": [hear]}
        )
        anne, bert, carl, dora = (alloy.visitor(name, purposes="all") for name in "abcd")
        edge.hold()
        dora.event(type="dora", view_start=True)
        await settle()
        anne.event(type="anne 0", view_start=True)
        await settle()
        carl.event(type="too old")
        await settle()
        clock.advance(9.0)
        cancelled.append(bert.event(type="bert"))
        await settle()
        last = anne.event(type="anne 1")
        await settle()
        clock.advance(1.0)
        edge.release(1)
        await settle()
        meanwhile = [*edge.event_types]
        edge.release()
        await last
    assert meanwhile == ["dora", "anne 0"]


async def test_closing_ends_what_stands_aside(aside, clock):
    """The books add up."""
    alloy, _, events = aside
    closing = asyncio.create_task(alloy.aclose(grace=1))
    await settle()
    clock.advance(1)
    summary = await closing
    assert all(isinstance(event.exception(), AlloyClosed) for event in events)
    assert summary.accepted == summary.failed == 1_201


async def test_a_refusal_ends_what_waits_for_another_attempt(open_alloy, edge, clock):
    """At once, and nothing of it is sent later."""
    edge.answers.append(BUSY)
    event = open_alloy.event()
    await settle()
    open_alloy.opt_in(purposes="none")
    assert isinstance(event.exception(), ConsentDeclined)
    await open_alloy.opt_in(purposes="all")
    clock.advance(10)
    await settle()
    assert len(edge.requests) == 2


async def test_a_refusal_while_an_attempt_fails_is_the_end(open_alloy, edge, clock):
    """What was on the wire settles with the truth, and is not tried again."""
    edge.hold()
    edge.answers.append(BUSY)
    event = open_alloy.event()
    await settle()
    await open_alloy.opt_in(purposes="none")
    edge.release()
    await settle()
    assert isinstance(event.exception(), EdgeError)
    clock.advance(100)
    await settle()
    assert len(edge.requests) == 2


async def test_consent_that_expires_while_an_event_waits_is_asked_for_again(options, edge, clock):
    """It is parked, and goes on once the visitor consents."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"preference_max_age": 10.0})
        await alloy.opt_in(purposes="all")
        edge.answers.append(EdgeResponse(503, {"retry-after": "20"}, b""))
        event = alloy.event(type="a")
        await settle()
        clock.advance(20)
        await settle()
        assert alloy.statistics().parked == 1
        await alloy.opt_in(purposes="all")
        await event


async def test_an_event_that_waits_may_be_withdrawn(open_alloy, edge, clock):
    """Cancelling before the next attempt leaves it out of that attempt."""
    edge.answers.append(BUSY)
    events = [open_alloy.event(type=name) for name in "ab"]
    await settle()
    events[0].cancel()
    clock.advance(0.5)
    await events[1]
    assert edge.event_types == ["first", "a", "b", "b"]
    assert open_alloy.statistics().cancelled == 1


async def test_the_event_at_fault_is_found_by_halves(open_alloy, edge):
    """A request that is refused for its input, without naming an event, is split until the bad one is alone."""
    edge.answers += [refused(), EdgeResponse(204, {}, b""), refused(), refused()]
    events = [open_alloy.event(type=name) for name in "abcd"]
    await settle()
    for event in events:
        if not event.done():
            await event
    failed = [name for name, event in zip("abcd", events, strict=True) if event.exception() is not None]
    assert failed == ["c"]
    assert [len(request.events) for request in edge.requests[1:]] == [4, 2, 2, 1, 1]


async def test_with_ordered_the_second_half_does_not_overtake_the_first(options, edge, clock):
    """A request is split, and the first half waits for another attempt."""
    async with Alloy() as alloy:
        await alloy.configure(**options | {"opt_in_enabled": False, "ordered": True})
        edge.answers += [refused(), EdgeResponse(429, {"retry-after": "20"}, b"")]
        events = [alloy.event(type=name) for name in "abcd"]
        await settle()
        meanwhile = [*edge.event_types]
        clock.advance(20)
        for event in events:
            await event
    assert meanwhile == [*"abcd", *"ab"]
    assert edge.event_types[6:] == [*"abcd"]


@pytest.mark.parametrize("code", ["0003", "0501", "0302"])
async def test_what_is_not_about_input_is_not_split(open_alloy, edge, code):
    """A datastream or a permission at fault would refuse each part alike."""
    edge.answers.append(refused(code))
    events = [open_alloy.event() for _ in range(4)]
    await settle()
    assert all(isinstance(event.exception(), EdgeError) for event in events)
    assert len(edge.requests) == 2


async def test_the_neighbours_of_a_named_event_are_sent_again(open_alloy, edge):
    """The edge names the event at fault: it fails alone."""
    edge.answers.append(refused("0104", 422, eventIndex=1))
    events = [open_alloy.event(type=name) for name in "abc"]
    await settle()
    assert [event.exception() is None for event in events] == [True, False, True]
    assert edge.event_types == ["first", "a", "b", "c", "a", "c"]


async def test_a_dead_endpoint_is_probed_gently(options, edge, clock):
    """After some outages nothing starts; then one request, and all others once it is answered."""
    told = []
    async with Alloy() as alloy:
        await alloy.configure(
            **options | {"opt_in_enabled": False, "max_attempts": 100, "hooks": [told.append]}
        )
        edge.answers += [reset() for _ in range(TOLERATED)]
        events = [alloy.event(view_start=True) for _ in range(TOLERATED)]
        await settle()
        assert alloy.statistics().circuit == "open"
        late = alloy.event(type="late")
        clock.advance(0.49)
        await settle()
        assert len(edge.requests) == TOLERATED
        edge.hold()
        clock.advance(0.1)
        await settle()
        assert alloy.statistics().circuit == "half-open"
        assert len(edge.requests) == TOLERATED + 1
        edge.release()
        for event in [*events, late]:
            await event
        assert alloy.statistics().circuit == "closed"
    circuits = [record.circuit for record in told if isinstance(record, hooks.CircuitChanged)]
    assert circuits == ["open", "half-open", "closed"]


async def test_nothing_waits_longer_than_the_delivery_timeout(options, edge, clock):
    """While the endpoint is dead, what waits ends in time, tried or not; the caller is told why."""
    async with Alloy() as alloy:
        await alloy.configure(
            **options | {"opt_in_enabled": False, "max_attempts": 100, "delivery_timeout": 10.0}
        )
        edge.answers += [reset() for _ in range(100)]
        tried = [alloy.event(view_start=True) for _ in range(TOLERATED)]
        await settle()
        untried = alloy.event()
        for _ in range(40):
            clock.advance(0.3)
            await settle()
        errors = [event.exception() for event in [*tried, untried]]
        assert all(isinstance(error, NetworkError) for error in errors)
        assert "delivery_timeout=10 s" in str(untried.exception())
        assert alloy.statistics().failed == TOLERATED + 1


async def test_what_stands_aside_waits_no_longer_than_the_delivery_timeout(options, edge, clock):
    """While the endpoint is dead: also behind another visitor, whose oldest event is younger."""
    edge.answers += [EdgeResponse(429, {"retry-after": "60"}, b"")] * 2
    edge.answers += [reset() for _ in range(200)]
    async with Alloy() as alloy:
        await alloy.configure(
            **options | {"ordered": True, "max_attempts": 100, "max_in_flight": 9, "delivery_timeout": 61.0}
        )
        anne, bert, carl = (alloy.visitor(name, purposes="all") for name in ("anne", "bert", "carl"))
        tried = [visitor.event(view_start=True) for visitor in (anne, bert)]
        await settle()
        first = anne.event()
        await settle()
        clock.advance(1.0)
        waits = bert.event()
        await settle()
        clock.advance(5.0)
        younger = anne.event()
        await settle()
        first.cancel()
        for _ in range(565):
            carl.event(view_start=True)
            clock.advance(0.1)
            await settle(5)
        ended = [event.done() for event in (*tried, waits, younger)]
        circuit = alloy.statistics().circuit
        edge.answers.clear()
        clock.advance(100.0)
        await settle(50)
    assert circuit == "open"
    assert ended == [True, True, True, False]
    assert "delivery_timeout=61 s" in str(waits.exception())


async def test_closing_ends_what_waits_for_another_attempt(options, edge, clock, caplog):
    """With AlloyClosed, and one line says how many could not be sent."""
    alloy = Alloy()
    await alloy.configure(**options | {"opt_in_enabled": False})
    edge.answers += [EdgeResponse(503, {"retry-after": "100"}, b"")]
    events = [alloy.event() for _ in range(3)]
    await settle()
    closing = alloy.aclose(grace=1.0)
    import asyncio

    task = asyncio.ensure_future(closing)
    await settle()
    clock.advance(1.0)
    books = await task
    assert [type(event.exception()) for event in events] == [AlloyClosed] * 3
    assert (books.failed, books.open) == (3, 0)
    assert [line for line in caplog.messages if line.startswith("closed: 3 events could not be sent")]
