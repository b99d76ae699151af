"""``on_before_event_send``: looks at each event once, after consent."""

from __future__ import annotations

import asyncio

import pytest
from common import settle

from alloy_async import Alloy, ConsentDeclined, InvalidCommand


@pytest.fixture
def filtered(options, edge):
    """Return a function that opens an instance with a filter."""
    alloys = []

    async def open_with(event_filter, **more):
        alloy = Alloy()
        alloys.append(alloy)
        await alloy.configure(**options | {"on_before_event_send": event_filter} | more)
        return alloy

    yield open_with
    for alloy in alloys:
        assert alloy.statistics().open == 0, "a test must end what it began"


async def test_sees_each_event_once_and_only_after_consent(filtered, edge):
    """Nothing is looked at before the visitor's yes; then each event once, in order."""
    seen = []
    alloy = await filtered(lambda event: seen.append(event["xdm"]["eventType"]))
    events = [alloy.event(type=str(number)) for number in range(4)]
    await settle()
    assert seen == []
    await alloy.opt_in(purposes="all")
    for event in events:
        await event
    assert seen == edge.event_types == ["0", "1", "2", "3"]
    await alloy.aclose()


async def test_is_asked_once_also_when_consent_expires_meanwhile(filtered, edge, clock):
    """The event waits for consent again as it was left, and is not shown a second time."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def count(event):
        event["data"]["seen"] = event["data"].get("seen", 0) + 1
        asked.set()
        await answer.wait()

    alloy = await filtered(count, preference_max_age=10.0)
    await alloy.opt_in(purposes="all")
    event = alloy.event(type="a")
    await asked.wait()
    clock.advance(11)
    answer.set()
    await settle()
    assert (alloy.statistics().parked, edge.events) == (1, [])
    await alloy.opt_in(purposes="all")
    await event
    assert edge.events[0]["data"] == {"seen": 1}
    await alloy.aclose()


async def test_may_change_the_event_but_not_its_id(filtered, edge):
    """What it changes is normalised and sent; the id stays."""

    def change(event):
        event["xdm"]["_id"] = "another"
        event["xdm"]["n"] = (1, 2)
        event["data"]["added"] = True

    alloy = await filtered(change, opt_in_enabled=False)
    result = await alloy.event(type="a")
    sent = edge.events[0]
    assert sent["xdm"]["_id"] == result.event_id != "another"
    assert sent["xdm"]["n"] == [1, 2]
    assert sent["data"] == {"added": True}
    await alloy.aclose()


async def test_leaves_no_data_where_there_was_none(filtered, edge):
    """The empty ``data`` that it is shown is not sent."""
    alloy = await filtered(lambda event: None, opt_in_enabled=False)
    await alloy.event(decision_scopes=["hero"])
    assert sorted(edge.events[0]) == ["query", "xdm"]
    await alloy.aclose()


async def test_false_withholds(filtered, edge):
    """False stops the event; its future ends with a result that says so."""
    alloy = await filtered(lambda event: event["xdm"]["eventType"] != "secret", opt_in_enabled=False)
    withheld, sent = alloy.event(type="secret"), alloy.event(type="open")
    assert (await withheld).withheld
    assert not (await sent).withheld
    assert edge.event_types == ["open"]
    assert alloy.statistics().withheld == 1
    await alloy.aclose()


@pytest.mark.parametrize("value", [None, True, 0, "", [], "false"])
async def test_other_values_are_ignored(filtered, edge, value):
    """Only False itself withholds."""
    alloy = await filtered(lambda event: value, opt_in_enabled=False)
    await alloy.event()
    assert len(edge.events) == 1
    await alloy.aclose()


async def test_may_be_a_coroutine_function(filtered, edge):
    """An async filter is awaited, and order is kept."""
    gate = asyncio.Event()

    async def slow(event):
        if event["xdm"]["eventType"] == "slow":
            await gate.wait()

    alloy = await filtered(slow, opt_in_enabled=False)
    slow_event, quick_event = alloy.event(type="slow"), alloy.event(type="quick")
    await settle()
    assert edge.events == []
    gate.set()
    await asyncio.gather(slow_event, quick_event)
    assert edge.event_types == ["slow", "quick"]
    await alloy.aclose()


async def test_a_refusal_while_it_looks_ends_the_event_at_once(filtered, edge):
    """The event that is being looked at is refused like all others, and never sent."""
    gate = asyncio.Event()

    async def slow(event):
        await gate.wait()

    alloy = await filtered(slow)
    await alloy.opt_in(purposes="all")
    event = alloy.event()
    await settle()
    refused = alloy.opt_in(purposes="none")
    assert isinstance(event.exception(), ConsentDeclined)
    gate.set()
    await refused
    await settle()
    assert edge.requests == []
    await alloy.aclose()


async def test_raising_stops_this_event_and_no_other(filtered, edge):
    """An error of the application's ends the event without its text; nothing is sent."""

    def fail(event):
        if event["xdm"]["eventType"] == "bad":
            raise ValueError("card 4111")

    alloy = await filtered(fail, opt_in_enabled=False)
    bad, good = alloy.event(type="bad"), alloy.event(type="good")
    await good
    error = bad.exception()
    assert isinstance(error, InvalidCommand)
    assert "on_before_event_send raised ValueError" in str(error)
    assert "4111" not in repr(error) + repr(error.__context__) + repr(error.__cause__)
    assert edge.event_types == ["good"]
    await alloy.aclose()


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda event: event["xdm"].update(n=float("nan")), "xdm.n"),
        (lambda event: event.update(xdm="text"), "xdm"),
        (lambda event: event.update(data={"x": {1, 2}}), "data.x"),
        (lambda event: event["data"].update(x="y" * 70_000), ""),
    ],
)
async def test_what_it_leaves_is_checked_again(filtered, edge, change, path):
    """Something that cannot be sent ends the event, naming where it is."""
    alloy = await filtered(change, opt_in_enabled=False)
    event = alloy.event()
    await settle()
    error = event.exception()
    assert isinstance(error, InvalidCommand)
    assert error.path == path
    assert edge.requests == []
    await alloy.aclose()


async def test_may_name_the_person(filtered, edge):
    """An identityMap that it adds is the event's own; no identity of ours joins it."""
    own = {"CRMID": [{"id": "u-7", "primary": True}]}
    alloy = await filtered(lambda event: event["xdm"].update(identityMap=own), opt_in_enabled=False)
    await alloy.event()
    assert edge.events[0]["xdm"]["identityMap"] == own
    await alloy.aclose()
