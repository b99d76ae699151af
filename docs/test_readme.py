"""The README's table "What happens to your event when…", row by row."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from alloy_async import (
    Alloy,
    AlloyClosed,
    ConsentDeclined,
    ConsentTimeout,
    EdgeError,
    EventTooLarge,
    InvalidCommand,
    NetworkError,
    OutboxFull,
    ParkingFull,
    StillParked,
    __version__,
)
from alloy_async.edge import EdgeResponse
from alloy_async.stores import MemoryStore
from alloy_async.testing import ManualClock, RecordingEdge

README = Path(__file__).parents[1] / "README.md"
IDS = {"config_id": "ebebf826", "ims_org_id": "ADB3@AdobeOrg"}
KEY = ("ADB3@AdobeOrg", "ebebf826", "")

SHOWN = set()


def row(text: str):
    """Say which row of the table a test proves."""
    SHOWN.add(text)
    return lambda test: test


@pytest.fixture
def edge():
    return RecordingEdge()


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
async def start(edge, store, clock):
    """Starts instances on the same edge, store and clock; closes them in the end."""
    started = []

    async def start(**options) -> Alloy:
        alloy = Alloy()
        defaults = {"opt_in_enabled": True, "transport": edge, "store": store, "clock": clock}
        await alloy.configure(**IDS, **defaults | options)
        started.append(alloy)
        return alloy

    yield start
    for alloy in started:
        await alloy.aclose(grace=0.001 if edge.holding else 5)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def outcome(future):
    return (await asyncio.gather(future, return_exceptions=True))[0]


def problem(status: int, code: str, **report: object) -> EdgeResponse:
    import json

    body = {
        "type": f"https://ns.adobe.com/aep/errors/{code}",
        "status": status,
        "title": "no",
        "report": report,
    }
    return EdgeResponse(status, {"content-type": "application/problem+json"}, json.dumps(body).encode())


def test_the_table_has_no_row_without_a_test():
    """Each row of the README's table is proven by a test here, and each test's row is in the table."""
    table = README.read_text("utf-8").partition("| …this happens |")[2].partition("\n\n")[0]
    assert SHOWN == {line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]}


def test_the_readme_links_to_what_is_there():
    """Each relative link of the README leads to a file or folder of the repository."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text("utf-8"))
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []


def test_the_changelog_begins_with_this_version():
    """The newest section of the changelog is about the version in the code."""
    headings = re.findall(
        r"^## (\S+)", (README.parent / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE
    )
    assert headings[0] in {__version__, "Unreleased"}


@row("the visitor has not chosen yet")
async def test_parked(start, edge, store):
    """A parked event leaves the process in no way, and nothing about the visitor is stored."""
    alloy = await start()
    event = alloy.event(type="a")
    await turns()
    assert not event.done()
    assert edge.requests == []
    assert await store.load_preference(KEY) is None
    assert await store.load_identity(KEY) is None


@row("the visitor says all")
async def test_released(start, edge):
    """Parked events leave in call order, each with its own result."""
    alloy = await start()
    events = [alloy.event(type=name) for name in "abc"]
    await alloy.opt_in(purposes="all")
    results = await asyncio.gather(*events)
    assert edge.event_types == ["a", "b", "c"]
    assert len({result.event_id for result in results}) == 3


@row("the visitor says none")
async def test_refused(start, edge, store):
    """Parked events end with ConsentDeclined and nothing is sent; an identity that was kept is erased."""
    alloy = await start()
    await alloy.opt_in(purposes="all")
    await alloy.event(type="a")
    assert await store.load_identity(KEY) is not None
    await alloy.forget()
    event = alloy.event(type="b")
    await alloy.opt_in(purposes="none")
    assert type(await outcome(event)) is ConsentDeclined
    assert edge.event_types == ["a"]
    assert await store.load_identity(KEY) is None


@row("the visitor says none after all")
async def test_refused_later(start, edge):
    """What is queued ends with ConsentDeclined; what is on the wire with the edge's answer."""
    alloy = await start(max_in_flight=1)
    await alloy.opt_in(purposes="all")
    edge.hold()
    on_the_wire = alloy.event(type="a")
    await turns()
    queued = alloy.event(type="b")
    await turns()
    refusal = alloy.opt_in(purposes="none")
    assert type(queued.exception()) is ConsentDeclined
    edge.release()
    assert (await on_the_wire).event_id
    await refusal
    assert edge.event_types == ["a"]


@row("the visitor never answers")
async def test_expired(start, edge, clock):
    """After parked_ttl, a day unless told otherwise, a parked event ends with ConsentTimeout."""
    alloy = await start()
    event = alloy.event(type="a")
    clock.advance(86_399)
    assert not event.done()
    clock.advance(2)
    assert type(await outcome(event)) is ConsentTimeout
    alloy.visitor("session").event(type="a")
    clock.advance(1_801)
    assert alloy.statistics().expired == 2
    assert edge.requests == []


@row("a handler awaits the event of a visitor who has not chosen")
async def test_still_parked(start, edge, clock):
    """After parked_wait the waiting ends, and a yes still sends the event."""
    alloy = await start()
    visitor = alloy.visitor("session")
    event = visitor.event(type="a")
    clock.advance(0.2)
    assert type(await outcome(event)) is StillParked
    await visitor.opt_in(purposes="all")
    await alloy.flush()
    assert edge.event_types == ["a"]


@row("too many wait for consent")
async def test_parking_full(start):
    """At either bound of parking an event ends with ParkingFull."""
    alloy = await start(max_parked=1)
    alloy.event()
    assert type(await outcome(alloy.event())) is ParkingFull
    alloy = await start(max_parked_bytes=400)
    alloy.event()
    assert type(await outcome(alloy.event(data={"a": "x" * 400}))) is ParkingFull


@row("too many wait for the wire")
async def test_outbox_full(start, edge):
    """At either bound of the queue an event ends with OutboxFull."""
    edge.hold()
    for bounds in ({"max_queued": 1}, {"max_queued_bytes": 500}):
        alloy = await start(max_in_flight=1, **bounds)
        await alloy.opt_in(purposes="all")
        futures = []
        for _ in range(4):
            futures.append(alloy.event())
            await turns()
        assert type(futures[-1].exception()) is OutboxFull
    edge.release()


@row("it holds something JSON cannot")
async def test_unfit(start):
    """The path to the value is named."""
    alloy = await start()
    error = await outcome(alloy.event(xdm={"a": [{"b": float("nan")}]}))
    assert type(error) is InvalidCommand
    assert error.path == "xdm.a[0].b"
    assert alloy.statistics().accepted == 0


@row("it can never fit into a request")
async def test_too_large(start):
    """An event larger than a request is refused at the call."""
    alloy = await start()
    assert type(await outcome(alloy.event(data={"a": "x" * 70_000}))) is EventTooLarge


@row("your hook withholds it")
async def test_withheld(start, edge):
    """False from on_before_event_send ends the event with a result that says so."""
    alloy = await start(on_before_event_send=lambda event: False)
    await alloy.opt_in(purposes="all")
    assert (await alloy.event()).withheld
    assert edge.requests == []


@row("the edge refuses the event")
async def test_edge_refuses(start, edge):
    """The event that the edge names fails, the others of its batch are sent again."""
    alloy = await start()
    await alloy.opt_in(purposes="all")
    await alloy.event()  # so that the identity is known and the next ones travel together
    edge.answers.append(problem(400, "EXEG-0305-400", eventIndex=1))
    events = [alloy.event(type=name) for name in "abc"]
    outcomes = await asyncio.gather(*events, return_exceptions=True)
    assert [type(one).__name__ for one in outcomes] == ["EventResult", "EdgeError", "EventResult"]
    assert edge.event_types[-5:] == ["a", "b", "c", "a", "c"]
    edge.answers += [problem(400, "EXEG-0305-400")] * 2  # where none is named: abc, a
    events = [alloy.event(type=name) for name in "abc"]
    outcomes = await asyncio.gather(*events, return_exceptions=True)
    assert [type(one).__name__ for one in outcomes] == ["EdgeError", "EventResult", "EventResult"]
    edge.answers.append(problem(400, "EXEG-0003-400"))
    assert type(await outcome(alloy.event())) is EdgeError


@row("the edge ignores it for lack of consent")
async def test_edge_ignores(start, edge):
    """EXEG-0301 in a good answer ends the event as declined, said to come from the edge."""
    alloy = await start()
    await alloy.opt_in(purposes="all")
    warning = b'{"warnings": [{"type": "https://ns.adobe.com/aep/errors/EXEG-0301-200"}]}'
    edge.answers.append(EdgeResponse(200, {}, warning))
    error = await outcome(alloy.event())
    assert type(error) is ConsentDeclined
    assert error.by == "edge"


async def through(alloy, clock, future):
    """Let time pass until an event has ended."""
    await turns()
    while not future.done():
        clock.advance(1)
        await turns()
    return await outcome(future)


def down() -> NetworkError:
    return NetworkError("https://edge.example", "ConnectError")


@row("the network is down")
async def test_network_down(start, edge, clock, tmp_path):
    """Every attempt carries the same _id; after the last one, or when the time is over, the error is told."""
    alloy = await start()
    await alloy.opt_in(purposes="all")
    edge.answers += [down(), down()]
    result = await through(alloy, clock, alloy.event())
    assert [event["xdm"]["_id"] for event in edge.events] == [result.event_id] * 3
    edge.answers += [down()] * 5
    assert type(await through(alloy, clock, alloy.event())) is NetworkError
    assert len(edge.requests) == 8
    durable = await start(outbox=tmp_path / "outbox.sqlite3")
    edge.answers += [down()] * 20
    assert (await through(durable, clock, durable.event())).event_id
    assert len(edge.requests) == 8 + 21
    edge.answers.append(down())
    late = durable.event()
    await turns()
    clock.advance(604_801)
    assert type(await outcome(late)) is NetworkError


@row("the edge is busy or down")
async def test_edge_busy(start, edge, clock):
    """The edge is asked again when it says; after five outages in a row only one request at a time is risked."""
    alloy = await start()
    await alloy.opt_in(purposes="all")
    edge.answers.append(EdgeResponse(429, {"retry-after": "60"}, b""))
    event = alloy.event()
    await turns()
    clock.advance(59)
    await turns()
    assert len(edge.requests) == 1
    clock.advance(2)
    assert (await event).event_id
    edge.answers += [EdgeResponse(503, {}, b"")] * 5
    assert type(await through(alloy, clock, alloy.event())) is EdgeError
    assert alloy.statistics().circuit == "open"
    before = len(edge.requests)
    events = [alloy.event(view_start=True) for _ in range(3)]
    await turns()
    assert len(edge.requests) == before
    edge.hold()
    clock.advance(1)
    await turns()
    assert (len(edge.requests), alloy.statistics().circuit) == (before + 1, "half-open")
    edge.release()
    await asyncio.gather(*events)
    assert alloy.statistics().circuit == "closed"


@row('you ask for `ack="stored"`')
async def test_stored(start, edge, tmp_path):
    """The future ends when the event is on disk, whatever the edge does; it is sent all the same."""
    alloy = await start(outbox=tmp_path / "outbox.sqlite3")
    await alloy.opt_in(purposes="all")
    edge.hold()
    result = await alloy.event(ack="stored")
    assert result.stored
    assert (await alloy.get_outbox_info()).events == 1
    edge.release()
    await alloy.flush()
    assert [event["xdm"]["_id"] for event in edge.events] == [result.event_id]
    alloy = await start()
    assert type(await outcome(alloy.event(ack="stored"))) is InvalidCommand


@row("you cancel its future")
async def test_cancelled(start, edge):
    """A cancelled event is not sent; on the wire only the waiting ends, and the books say what became of it."""
    alloy = await start(max_in_flight=1)
    parked = alloy.event(type="parked")
    assert parked.cancel()
    await alloy.opt_in(purposes="all")
    edge.hold()
    on_the_wire = alloy.event(type="wire")
    await turns()
    queued = alloy.event(type="queued")
    queued.cancel()
    on_the_wire.cancel()
    edge.release()
    await alloy.flush()
    assert edge.event_types == ["wire"]
    statistics = alloy.statistics()
    assert (statistics.cancelled, statistics.delivered) == (2, 1)


@row("the app closes")
async def test_closed(start, edge):
    """Parked events end with AlloyClosed; released ones are sent, or end likewise when the grace time is over."""
    alloy = await start()
    parked = alloy.event()
    await alloy.aclose()
    assert type(await outcome(parked)) is AlloyClosed
    alloy = await start()
    await alloy.opt_in(purposes="all")
    released = alloy.event()
    await alloy.aclose()
    assert (await released).event_id
    alloy = await start(clock=None)
    edge.hold()
    stuck = alloy.event()
    await turns()
    statistics = await alloy.aclose(grace=0.001)
    assert type(await outcome(stuck)) is AlloyClosed
    assert statistics.open == 0


@row("the app closes, and the outbox is durable")
async def test_closed_and_kept(start, edge, tmp_path):
    """What could not be sent ends with AlloyClosed, stays on disk, and the next start sends it under the same _id."""
    durable = {"outbox": tmp_path / "outbox.sqlite3", "clock": None}
    alloy = await start(**durable)
    parked = alloy.event(type="parked")
    await alloy.aclose()
    assert not (await outcome(parked)).kept
    alloy = await start(**durable, max_in_flight=1)
    await alloy.opt_in(purposes="all")
    edge.hold()
    events = [alloy.event(type=name) for name in "ab"]
    await alloy.event(type="c", ack="stored")
    books = await alloy.aclose(grace=0.001)
    errors = [await outcome(event) for event in events]
    assert [(type(error), error.kept) for error in errors] == [(AlloyClosed, True)] * 2
    assert books.accepted == books.kept == 3
    edge.release()
    edge.requests.clear()
    alloy = await start(**durable)
    while alloy.statistics().delivered < 3:
        await asyncio.sleep(0)
    assert edge.event_types == ["a", "b", "c"]
    assert alloy.statistics().accepted == alloy.statistics().recovered == 3


@row("the process restarts")
async def test_restarted(start, edge, store):
    """The next start takes the kept choice without asking; it knows nothing of earlier events."""
    first = await start()
    await first.opt_in(purposes="all")
    await first.aclose()
    second = await start()
    assert second.statistics().accepted == 0
    await second.event(type="b")
    assert edge.event_types == ["b"]


KILLED = """
import asyncio, os, signal, sys
from alloy_async import Alloy

async def main():
    alloy = Alloy()
    await alloy.configure(config_id="ebebf826", ims_org_id="ADB3@AdobeOrg", opt_in_enabled=True, state_dir=sys.argv[1])
    alloy.event(type="lost")
    await alloy.opt_in(purposes="none")
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@row("the process is killed (`kill -9`)")
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
async def test_killed(start, tmp_path):
    """A choice whose future had ended is found by the next start."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "s")], check=False, env={**os.environ}
    )
    assert done.returncode == -signal.SIGKILL
    alloy = await start(store="sqlite", state_dir=tmp_path / "s")
    assert type(await outcome(alloy.event())) is ConsentDeclined
    assert alloy.statistics().accepted == 1


KILLED_WITH_AN_OUTBOX = """
import asyncio, os, signal, sys
from alloy_async import Alloy
from alloy_async.testing import RecordingEdge

async def main():
    alloy, edge = Alloy(), RecordingEdge()
    edge.hold()
    await alloy.configure(
        config_id="ebebf826", ims_org_id="ADB3@AdobeOrg", opt_in_enabled=True, state_dir=sys.argv[1],
        outbox="sqlite", transport=edge,
    )
    await alloy.opt_in(purposes="all")
    print((await alloy.event(type="kept", ack="stored")).event_id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@row("the process is killed, and the outbox is durable")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the lease has to run out first")
async def test_killed_with_an_outbox(start, edge, tmp_path):
    """What was stored is sent by the next start, under the same _id."""
    folder = tmp_path / "s"
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WITH_AN_OUTBOX, str(folder)],
        check=False, env={**os.environ}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    alloy = await start(store="sqlite", state_dir=folder, outbox="sqlite", clock=None)
    while alloy.statistics().delivered < 1:
        await asyncio.sleep(0)
    assert [event["xdm"]["_id"] for event in edge.events] == [done.stdout.strip()]
    assert alloy.statistics().recovered == 1
