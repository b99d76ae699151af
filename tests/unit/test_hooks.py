"""Hooks: one record a moment, and no harm from a bad one."""

from __future__ import annotations

import pytest
from common import settle

from alloy_async import Alloy, EdgeError
from alloy_async.edge import EdgeResponse
from alloy_async.hooks import Delivered, Failed, Lost, Parked, Refused, Released, Sending


@pytest.fixture
def records():
    return []


@pytest.fixture
async def watched(options, records):
    async with Alloy() as alloy:
        await alloy.configure(**options | {"hooks": [records.append], "max_parked": 3, "parked_ttl": 60})
        yield alloy


async def test_a_delivered_event_is_told_step_by_step(watched, records, clock):
    """parked, released, sending, delivered: with the event's id, its size, its wait, and the request."""
    event = watched.event(type="a")
    clock.advance(2)
    await watched.opt_in(purposes="all")
    result = await event
    assert [type(record) for record in records] == [Parked, Released, Sending, Delivered]
    assert {record.event_id for record in records} == {result.event_id}
    assert records[0].size > 100
    assert records[1].waited == 2
    assert records[2].events == 1


async def test_refused_failed_and_lost_are_told(watched, records, edge, clock):
    """Every end that is not a delivery has its own record and reason."""
    watched.event().cancel()
    watched.event()
    clock.advance(60)
    for _ in range(4):
        watched.event()
    await watched.opt_in(purposes="none")
    ends = [record for record in records if not isinstance(record, Parked)]
    assert [getattr(record, "reason", type(record)) for record in ends] == [
        "cancelled",
        "expired",
        "overflowed",
        Refused,
        Refused,
        Refused,
    ]
    records.clear()
    await watched.opt_in(purposes="all")
    edge.answers.append(EdgeResponse(500, {}, b"oops"))
    watched.event()
    await settle()
    assert isinstance(records[-1], Failed)
    assert isinstance(records[-1].error, EdgeError)


async def test_closing_tells_what_is_lost(options, records):
    """What is parked at close is lost, and said so."""
    alloy = Alloy()
    await alloy.configure(**options | {"hooks": [records.append]})
    alloy.event()
    await alloy.aclose()
    assert isinstance(records[-1], Lost)
    assert records[-1].reason == "closed"


async def test_a_hook_that_raises_is_logged_and_stops_nothing(options, edge, caplog):
    """The event goes on, the other hooks are called, and the log names the hook without its text."""
    seen = []

    def broken(record):
        raise ValueError("card 4111")

    async with Alloy() as alloy:
        await alloy.configure(**options | {"hooks": [broken, seen.append], "opt_in_enabled": False})
        await alloy.event()
    assert len(edge.events) == 1
    assert any(isinstance(record, Delivered) for record in seen)
    assert "hook broken raised ValueError; the event goes on" in caplog.text
    assert "4111" not in caplog.text


async def test_a_hook_may_call_commands(options, edge):
    """A hook that calls event or opt_in in the middle of a release disturbs no order."""
    alloy = Alloy()

    def react(record):
        if isinstance(record, Released) and len(calls) < 5:
            calls.append(alloy.event(type=f"reaction {len(calls)}"))

    calls: list = []
    await alloy.configure(**options | {"hooks": [react]})
    events = [alloy.event(type=str(number)) for number in range(2)]
    await alloy.opt_in(purposes="all")
    for event in events:
        await event
    await alloy.flush()
    assert edge.event_types[:2] == ["0", "1"]
    assert edge.event_types[2:] == [f"reaction {number}" for number in range(5)]
    await alloy.aclose()


async def test_a_hook_may_refuse_in_the_middle_of_a_release(options, edge):
    """A refusal from within a hook holds for everything that has not been sent."""
    alloy = Alloy()

    def refuse(record):
        if isinstance(record, Released):
            alloy.opt_in(purposes="none")

    await alloy.configure(**options | {"hooks": [refuse]})
    events = [alloy.event() for _ in range(3)]
    await alloy.opt_in(purposes="all")
    await settle()
    assert edge.requests == []
    assert all(event.exception() is not None for event in events)
    await alloy.aclose()
