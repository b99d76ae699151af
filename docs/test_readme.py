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
    assert edge.requests == []


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


@row("the network is down")
async def test_network_down(start, edge):
    """One attempt is made; an _id of the caller's own is kept when the event is called again."""
    alloy = await start()
    await alloy.opt_in(purposes="all")
    edge.answers.append(NetworkError("https://edge.example", "ConnectError"))
    xdm = {"_id": "order-17"}
    assert type(await outcome(alloy.event(xdm=xdm))) is NetworkError
    assert len(edge.requests) == 1
    assert (await alloy.event(xdm=xdm)).event_id == "order-17"


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
