"""The development edge in a test: what it shows, and what its assertions say."""

from __future__ import annotations

import asyncio
import re

import pytest
from common import settle

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from alloy_async import Alloy, ConsentDeclined, EdgeError
from alloy_async.devserver import DevelopmentEdge
from alloy_async.testing import RecordingEdge, SentEvent
from alloy_async.testing._sent import as_table, rows
from alloy_async.testing._serving import observe

CLOCK = re.compile(r"\d\d:\d\d:\d\d\.\d{3}")


@pytest.fixture
def observed():
    """An edge in this process."""
    with observe() as edge:
        yield edge


@pytest.fixture
async def alloy(observed):
    """An instance in front of it."""
    async with Alloy() as alloy:
        await alloy.configure(**observed.settings)
        yield alloy


def failure(call):
    """What an assertion says, without times and ids that are random."""
    with pytest.raises(AssertionError) as caught:
        call()
    return without_chance(str(caught.value))


def without_chance(text):
    text = CLOCK.sub("TIME", text)
    return re.sub(r"(ECID|FPID) [-0-9a-f]{36,38}", r"\1 …", text)


async def test_what_is_parked_is_counted_and_not_sent(alloy, observed):
    """Until there is a choice; then it arrives."""
    alloy.event(type="commerce.purchases", xdm={"commerce": {"order": {"priceTotal": 59.9}}}, data={"a": 1})
    await settle()
    assert observed.events == [] and observed.parked == alloy.statistics().parked == 1
    observed.assert_nothing_sent()
    await alloy.opt_in(purposes="all")
    [event] = await observed.wait_for("commerce.purchases")
    assert observed.parked == 0
    assert event.xdm["commerce"] == {"order": {"priceTotal": 59.9}}
    assert (event.type, event.id, event.data) == ("commerce.purchases", event["xdm"]["_id"], {"a": 1})
    assert set(event.identity) == {"FPID"}
    assert observed.assert_sent(count=1) == observed.events == [event]
    assert [request["status"] for request in observed.requests] == [204]


@pytest.mark.parametrize("broken", [{}, {"xdm": 1, "data": []}, {"xdm": {"eventType": 1, "identityMap": []}}])
def test_an_event_without_its_parts_has_empty_ones(broken):
    """Whatever came in can be looked at."""
    event = SentEvent(broken)
    assert (event.type, event.id, event.data, event.identity) == (None, None, {}, {})


async def test_waiting_ends_when_the_event_arrives(alloy, observed):
    """Not before, and without looking again and again."""
    waiting = asyncio.create_task(observed.wait_for("b", count=2))
    alloy.opt_in(purposes="all")
    await alloy.event(type="b")
    await alloy.event(type="a")
    await settle()
    assert not waiting.done()
    await alloy.event(type="b")
    assert [event.type for event in await waiting] == ["b", "b"]


async def test_a_wait_for_many_parses_them_once(alloy, observed, monkeypatch):
    """Once for each that arrives would take the time of the square."""
    parsed, events = [], DevelopmentEdge.events
    monkeypatch.setattr(
        DevelopmentEdge, "events", property(lambda self: parsed.append(1) or events.fget(self))
    )
    await alloy.opt_in(purposes="all")
    waiting = asyncio.create_task(observed.wait_for(count=5))
    for _ in range(5):
        alloy.event(type="web")
        await alloy.flush()
    assert len(await waiting) == 5
    assert len(parsed) == 1


def test_news_after_the_wait_and_its_loop_have_ended_harm_nobody(observed, monkeypatch):
    """The thread of the server has asked whom to tell when the test's thread is done already."""
    recorder, listeners = observed.edge.recorder, []
    monkeypatch.setattr(recorder, "subscribe", lambda listener: listeners.append(listener) or (lambda: None))

    async def wait():
        with pytest.raises(AssertionError):
            await observed.wait_for(timeout=0)

    asyncio.run(wait())
    [told_late] = listeners
    told_late()


async def test_a_wait_that_fails_says_what_came_and_what_waits(alloy, observed):
    """The table, the nearest type, and the reason."""
    await alloy.opt_in(purposes="all")
    await alloy.event(type="commerce.purchases")
    with pytest.raises(AssertionError) as caught:
        await observed.wait_for("commerce.purchase", timeout=0)
    assert without_chance(str(caught.value)) == (
        "waited 0 s for 1 event of type commerce.purchase; none arrived. Did you mean commerce.purchases?\n"
        "\n"
        "time          type                visitor                                      outcome\n"
        "TIME  commerce.purchases  ECID …  recorded"
    )


async def test_a_wait_for_what_is_parked_says_so(alloy, observed):
    """Nobody has chosen."""
    alloy.event(type="a")
    alloy.event(type="b")
    await settle()
    with pytest.raises(AssertionError) as caught:
        await observed.wait_for(count=2, timeout=0)
    assert str(caught.value) == (
        "waited 0 s for 2 events; none arrived\n"
        "\n"
        "No request arrived.\n"
        "\n"
        "2 events are parked: the visitor has not chosen (opt_in)."
    )


async def test_how_events_ended_is_told(alloy, observed):
    """Refused by the visitor."""
    event = alloy.event(type="a")
    await alloy.opt_in(purposes="none")
    with pytest.raises(ConsentDeclined):
        await event
    assert failure(observed.assert_sent).endswith("\n\n1 event is gone: the visitor declined.")


async def test_a_failure_is_told_with_its_error():
    """An edge that does not know the datastream."""
    with observe(datastreams={"a"}) as observed:
        async with Alloy() as alloy:
            await alloy.configure(**observed.settings | {"config_id": "b"})
            await alloy.opt_in(purposes="all")
            for _ in range(2):
                with pytest.raises(EdgeError):
                    await alloy.event(type="view")
        text = failure(lambda: observed.assert_sent("view"))
    assert re.search(r"view  \w+ …  refused: No datastream is known by this id\.", text)
    assert "\n\n2 events are gone: EdgeError; the first: " in text


async def test_more_than_expected_is_a_failure(alloy, observed):
    """An exact count is exact, no count means any."""
    await alloy.opt_in(purposes="all")
    for kind in ("a", "a", "b"):
        await alloy.event(type=kind)
    assert len(observed.assert_sent("a")) == 2
    assert failure(lambda: observed.assert_sent("a", count=1)).startswith(
        "expected 1 event of type a; 2 arrived\n\ntime"
    )
    assert failure(lambda: observed.assert_sent("a", count=3)).startswith(
        "expected 3 events of type a; 2 arrived\n\ntime"
    )


async def test_a_request_without_events_is_something(alloy, observed):
    """Asking for an ECID sends no event, and is shown."""
    await alloy.opt_in(purposes="all")
    await alloy.get_ecid()
    assert observed.events == []
    text = failure(observed.assert_nothing_sent)
    assert text.startswith("expected that nothing is sent; 1 request began\n")
    assert "(identity/acquire)" in text and "status 200" in text
    observed.clear()
    observed.assert_nothing_sent()


async def test_what_is_about_to_be_sent_is_something(alloy, observed):
    """A test that looks too early hears of it."""
    await alloy.opt_in(purposes="all")
    sent = alloy.event(type="a")
    assert observed.requests == []
    text = failure(observed.assert_nothing_sent)
    assert text.startswith("expected that nothing is sent; something is about to be\n")
    assert "1 event is on the way: released, without an answer so far." in text
    await sent


async def test_what_is_released_is_no_longer_parked(observed):
    """It is on the way until there is an answer."""
    way = RecordingEdge()
    way.hold()
    async with Alloy() as alloy:
        await alloy.configure(**observed.settings | {"transport": way})
        sent = alloy.event(type="a")
        await settle()
        assert observed.parked == 1
        await alloy.opt_in(purposes="all")
        await settle()
        assert observed.parked == 0
        assert failure(observed.assert_nothing_sent).startswith(
            "expected that nothing is sent; something is about to be\n"
        )
        way.release()
        await sent
        observed.assert_nothing_sent()


async def test_what_waits_is_unknown_where_nobody_tells(observed):
    """Rather than 0, which would make a test pass that proves nothing."""
    async with Alloy() as alloy:
        with pytest.raises(RuntimeError, match=r"alloy.statistics\(\).parked"):
            assert observed.parked == 0
        assert "What waits is not known" in failure(observed.assert_sent)
        assert alloy.statistics().parked == 0


@pytest.mark.parametrize("purposes", ["all", "none"])
async def test_visitors_may_have_chosen_before(purposes):
    """Everybody has, and may choose anew."""
    with observe(consent=purposes) as observed:
        async with Alloy() as alloy:
            await alloy.configure(**observed.settings)
            visitor = alloy.visitor("somebody")
            assert await visitor.get_purposes() == purposes
            for owner in (alloy, visitor):
                outcome = owner.event(type="a")
                if purposes == "all":
                    await outcome
                else:
                    with pytest.raises(ConsentDeclined):
                        await outcome
            await alloy.opt_in(purposes="all")
            await alloy.event(type="later")
        assert "later" in [event.type for event in observed.events]


async def test_a_refusal_right_before_the_first_byte_holds(observed):
    """The way to the edge in this process asks once more, as the one through a socket does."""
    asked = []
    transport = observed.settings["transport"]

    class Asking:
        async def send(self, request, may_start):
            return await transport.send(request, lambda: asked.append(1) or may_start())

        async def aclose(self):
            pass

    async with Alloy() as alloy:
        await alloy.configure(**observed.settings | {"transport": Asking()})
        await alloy.opt_in(purposes="all")
        await alloy.event(type="a")
    assert asked == [1]


def test_options_that_do_not_exist_are_refused():
    """With the nearest name."""
    with pytest.raises(TypeError, match=r"^datastream: unknown option. Did you mean datastreams\?$"):
        observe(datastream={"a"}).__enter__()
    with pytest.raises(ValueError, match=r"^consent: must be one of 'pending', 'all', 'none', not 'yes'.$"):
        observe(consent="yes").__enter__()


def test_the_settings_fit_the_edge():
    """Its organisation, its path, a datastream that it knows."""
    with observe(org_id="X@AdobeOrg", base_path="ee-pre", datastreams=["d"]) as observed:
        settings = observed.settings
    assert settings["ims_org_id"] == "X@AdobeOrg"
    assert (settings["config_id"], settings["edge_base_path"]) == ("d", "ee-pre")


def test_an_edge_without_a_socket_has_no_address(observed):
    """It says how to get one."""
    with pytest.raises(RuntimeError, match=r"@pytest.mark.alloy\(live=True\)"):
        observed.url  # noqa: B018 - the look is the test
    assert repr(observed) == "<ObservedEdge in this process: events 0, requests 0>"


async def test_a_blocking_wait_does_not_stop_the_loop(observed):
    """It refuses instead."""
    with pytest.raises(RuntimeError, match=r"await edge.wait_for"):
        observed.wait_for_blocking()


# The table


def event(**changes):
    return {"type": "view", "visitor": "ECID 41", "outcome": "recorded", **changes}


def entry(*events, **changes):
    about = {
        "receivedAt": "2026-11-23T15:20:48.830Z",
        "path": "/ee/v1/collect",
        "action": "collect",
        "status": 204,
    }
    return {**about, "visitor": None, "fault": None, "problem": None, "events": list(events), **changes}


REFUSED = event(outcome="refused")


@pytest.mark.parametrize(
    ("given", "row"),
    [
        (entry(event()), ("view", "ECID 41", "recorded")),
        (entry(event(type=None, visitor=None, outcome="duplicate")), ("(no type)", "", "duplicate")),
        (entry(event(outcome="withheld")), ("view", "ECID 41", "withheld")),
        (entry(REFUSED, problem={"detail": "No."}), ("view", "ECID 41", "refused: No.")),
        (
            entry(REFUSED, problem={"detail": "No."}, fault="status 503"),
            ("view", "ECID 41", "refused: fault status 503"),
        ),
        (entry(), ("(collect)", "", "status 204")),
        (entry(action=None, path="/x", visitor="FPID 1", status=404), ("(/x)", "FPID 1", "status 404")),
    ],
)
def test_a_row_says_what_became_of_it(given, row):
    """Type, visitor, outcome, after the time of day."""
    assert rows([given]) == [("15:20:48.830", *row)]


def test_each_event_has_a_row():
    """In the order of arrival."""
    found = rows([entry(event(type="a"), event(type="b")), entry(event(type="c"))])
    assert [row.type for row in found] == ["a", "b", "c"]


def test_the_newest_rows_are_shown():
    """And how many are not."""
    lines = as_table(rows([entry(*[event()] * 49, event(type="commerce.purchases"))])).splitlines()
    assert lines[0] == "time          type                visitor  outcome"
    assert lines[1] == "15:20:48.830  view                ECID 41  recorded"
    assert lines[40] == "15:20:48.830  commerce.purchases  ECID 41  recorded"
    assert lines[41:] == ["(10 earlier ones are not shown)"]
