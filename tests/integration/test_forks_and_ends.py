"""Real processes: forks, workers, signals, dead endpoints, and ends that nobody prepared."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from common import IDS, connections_of
from processes import running

from alloy_async.testing import LoopbackEdge

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.name != "posix", reason="forks and signals as POSIX has them"),
]

GRACE = 0.5


@pytest.fixture
async def edge():
    async with asyncio.timeout(120), LoopbackEdge() as edge:
        yield edge


@pytest.fixture
def durable(edge, tmp_path):
    """Options of an instance that keeps choice, identity and events in files."""
    return {
        **IDS,
        "endpoint": edge.url,
        "opt_in_enabled": True,
        "outbox": "sqlite",
        "state_dir": str(tmp_path / "state"),
    }


@pytest.fixture
def fleeting(edge):
    """Options of an instance that keeps everything in memory, and asks for no consent."""
    return {**IDS, "endpoint": edge.url, "store": "memory"}


def kept_in(options):
    """How many events wait in the outbox file, which is sound."""
    path = Path(options["state_dir"], "outbox.sqlite3")
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return file.execute("SELECT count(*) FROM event").fetchone()[0]


# Forks

FORKING = """
def open_databases():
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            pass  # the one with which the folder is listed
    return [link for link in links if ".sqlite3" in link]

async def use(alloy):
    before = alloy.statistics()
    results = await asyncio.gather(*[alloy.event(type=f"child {n}") for n in range(40)])
    books = await alloy.aclose()
    say("child", before.accepted, len(results), books.accepted, books.delivered)

def in_child(alloy):
    if sys.platform == "linux":
        assert open_databases() == []
    asyncio.run(use(alloy))

def by_os_fork(alloy):
    number = os.fork()
    if number:
        return lambda: os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    status = 1
    try:
        in_child(alloy)
        status = 0
    except BaseException as error:
        say(repr(error))
    finally:
        os._exit(status)

def by_multiprocessing(alloy):
    process = multiprocessing.get_context("fork").Process(target=in_child, args=(alloy,))
    process.start()
    def wait():
        process.join()
        return process.exitcode
    return wait

async def main():
    alloy = Alloy()
    await alloy.configure(**options)
    await alloy.opt_in(purposes="all")
    await asyncio.gather(*[alloy.event(type=f"parent early {n}") for n in range(40)])
    say("early")
    await told()
    flying = [alloy.event(type=f"parent flying {n}", view_start=True) for n in range(5)]
    say("flying")
    await told()
    waiting = [alloy.event(type=f"parent waiting {n}") for n in range(40)]
    wait = FORK(alloy)
    assert await asyncio.to_thread(wait) == 0
    say("forked")
    await asyncio.gather(*flying, *waiting, *[alloy.event(type=f"parent late {n}") for n in range(40)])
    books = await alloy.aclose()
    say("parent", books.accepted, books.delivered)

asyncio.run(main())
"""


@pytest.mark.parametrize("fork", ["by_os_fork", "by_multiprocessing"])
async def test_a_forked_child_begins_anew_and_its_parent_is_unharmed(edge, durable, fork):
    """The child delivers its own events over its own connections, the parent all of its own, nobody any twice."""
    async with running(FORKING.replace("FORK", fork), durable) as process:
        assert await process.hear() == "early"
        edge.hold()
        process.tell()
        assert await process.hear() == "flying"
        await edge.until(lambda: edge.holding == 5)
        edge.release()
        edge.hold()  # what comes next: events of the parent that nobody answers before the child has ended
        edge.release()
        process.tell()
        assert await process.hear() == "child 0 40 40 40"
        assert await process.hear() == "forked"
        assert await process.ends_well() == ["parent 125 125"]
    counted = Counter(edge.event_types)
    names = {"parent early": 40, "parent flying": 5, "parent waiting": 40, "parent late": 40, "child": 40}
    assert counted == Counter({f"{name} {n}": 1 for name, count in names.items() for n in range(count)})
    assert not connections_of(edge, "parent") & connections_of(edge, "child")
    assert kept_in(durable) == 0


async def test_a_child_forked_while_requests_are_on_the_wire_ends_none_of_them(edge, durable):
    """Answers that are still to come reach the parent, whatever the child does and however it ends."""
    script = """
    async def main():
        alloy = Alloy()
        await alloy.configure(**options)
        await alloy.opt_in(purposes="all")
        flying = [alloy.event(type=f"parent {n}", view_start=True) for n in range(5)]
        say("flying")
        await told()
        number = os.fork()
        if not number:
            status = 1
            try:
                asyncio.run(child(alloy))
                gc.collect()  # what it has inherited is not to be closed
                status = 7
            except BaseException as error:
                say(repr(error))
            finally:
                os._exit(status)
        say("forked")
        status = await asyncio.to_thread(os.waitpid, number, 0)
        results = await asyncio.gather(*flying)
        books = await alloy.aclose()
        say("parent", len(results), books.delivered, os.waitstatus_to_exitcode(status[1]))

    async def child(alloy):
        alloy.event(type="child")
        books = await alloy.aclose()
        say("child", books.accepted, books.delivered)

    import gc
    asyncio.run(main())
    """
    async with running(script, durable) as process:
        edge.hold()
        assert await process.hear() == "flying"
        await edge.until(lambda: edge.holding == 5)
        process.tell()
        assert await process.hear() == "forked"
        await edge.until(lambda: edge.holding == 6)
        edge.release()
        assert await process.hear() == "child 1 1"
        assert await process.ends_well() == ["parent 5 5 7"]
    assert sorted(edge.event_types) == ["child", *[f"parent {n}" for n in range(5)]]
    assert not connections_of(edge, "parent") & connections_of(edge, "child")
    assert kept_in(durable) == 0


async def test_preloaded_workers_share_one_outbox(edge, durable):
    """An instance made before workers are forked serves each of them; all events go through one file, each once."""
    script = """
    alloy = Alloy()  # the module is loaded by the master

    async def work(name):
        async with alloy:
            await alloy.configure(**options)
            await alloy.opt_in(purposes="all")
            futures = [alloy.event(type=f"{name} {n}", ack="stored") for n in range(300)]
            assert all([result.stored for result in await asyncio.gather(*futures)])
        say(name, alloy.statistics().delivered)

    workers = [fork(work, name) for name in ("one", "two")]
    sys.exit(sum(os.waitpid(number, 0)[1] for number in workers))
    """
    async with running(script, durable) as process:
        assert sorted(await process.ends_well()) == ["one 300", "two 300"]
    assert Counter(edge.event_types) == Counter(
        {f"{name} {n}": 1 for name in ("one", "two") for n in range(300)}
    )
    assert not connections_of(edge, "one") & connections_of(edge, "two")
    assert kept_in(durable) == 0


WORKER = """
async def main():
    alloy = Alloy()
    await alloy.configure(**options, clock=Hasty())
    await alloy.opt_in(purposes="all")
    say("ready")
    while (line := await told()):
        name, count = line.split()
        futures = [alloy.event(type=f"{name} {n}", ack="stored") for n in range(int(count))]
        await asyncio.gather(*futures)
        say("stored")
    await alloy.flush()
    books = await alloy.aclose()
    say(books.accepted, books.recovered, books.delivered)

asyncio.run(main())
"""


async def test_a_living_worker_takes_over_what_a_killed_one_left(edge, durable):
    """Events that were stored by a worker that is killed arrive through the one that shares its file, unchanged."""
    doomed = durable | {"endpoint": f"{edge.url}/killed"}
    async with running(WORKER, doomed) as killed, running(WORKER, durable) as living:
        assert await living.hear() == await killed.hear() == "ready"
        edge.hold()
        killed.tell("killed 500")
        assert await killed.hear() == "stored"
        await edge.until(
            lambda: edge.holding > 0
        )  # some are on the wire, and nobody will know whether they arrived
        killed.signal(signal.SIGKILL)
        await killed.end()
        assert killed.status == -signal.SIGKILL
        edge.release()
        wanted = {f"killed {n}" for n in range(500)}
        await edge.until(lambda: set(types_at(edge, "/ee/")) == wanted)
        living.tell()
        assert await living.ends_well() == ["500 500 500"]
    versions = {}
    for event in edge.events:
        versions.setdefault(event["xdm"]["_id"], set()).add(json.dumps(event, sort_keys=True))
    assert len(versions) == 500
    assert all(len(texts) == 1 for texts in versions.values())
    assert kept_in(durable) == 0


def types_at(edge, path):
    """Types of the events that came to such an address."""
    return [
        event["xdm"]["eventType"]
        for request in edge.requests
        if path in request.url
        for event in request.events
    ]


# Signals

UVICORN = """
import contextlib, uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

alloy = Alloy()

@contextlib.asynccontextmanager
async def lifespan(app):
    async with alloy:
        await alloy.configure(**options)
        yield
        say("closing")
    books = alloy.statistics()
    say(books.accepted, books.delivered)

async def order(request):
    alloy.event(type=request.query_params["type"])  # nobody awaits it
    return PlainTextResponse("thank you")

app = Starlette(lifespan=lifespan, routes=[Route("/order", order)])
import socket
listening = socket.socket()
listening.bind(("127.0.0.1", 0))
say(listening.getsockname()[1])
server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
server.run(sockets=[listening])
"""


async def test_sigterm_under_uvicorn_delivers_what_was_called(edge, fleeting):
    """A server that is told to stop ends in time, with every event of its requests at the edge."""
    pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    edge.hold()
    async with running(UVICORN, fleeting, dev=False) as process:
        port = int(await process.hear())
        for number in range(20):
            assert b"thank you" in await asked(port, f"/order?type={number}")
        await edge.until(lambda: edge.holding > 0)
        process.signal(signal.SIGTERM)
        assert await process.hear() == "closing"
        edge.release()
        assert await process.end() == ["20 20"]
    assert process.status in {0, -signal.SIGTERM}  # newer uvicorns end as if nobody had caught the signal
    assert process.stderr == ""
    assert Counter(edge.event_types) == Counter(str(number) for number in range(20))


async def asked(port, path):
    """What a server of this machine answers; asked again while it is not listening yet."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            continue
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer


async def test_ctrl_c_closes_the_instance(edge, fleeting):
    """SIGINT leaves ``async with`` as any error does: what was called is delivered, and Python ends as it should."""
    script = """
    async def main():
        async with Alloy() as alloy:
            await alloy.configure(**options)
            for number in range(20):
                alloy.event(type=str(number))
            say("called")
            try:
                await asyncio.Event().wait()
            finally:
                say("leaving")
                books.append(alloy)

    books = []
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        found = books[0].statistics()
        say("interrupted", found.accepted, found.delivered)
    """
    edge.hold()
    async with running(script, fleeting) as process:
        assert await process.hear() == "called"
        await edge.until(lambda: edge.holding > 0)
        process.signal(signal.SIGINT)
        assert await process.hear() == "leaving"
        edge.release()
        assert await process.ends_well() == ["interrupted 20 20"]
    assert Counter(edge.event_types) == Counter(str(number) for number in range(20))


# Ends

DEAD = """
from alloy_async.hooks import Retrying, Sending

async def main():
    tried = asyncio.Event()
    def hear_of(moment):
        if isinstance(moment, MOMENT):
            tried.set()
    alloy = Alloy()
    await alloy.configure(**options, hooks=[hear_of])
    for number in range(200):
        alloy.event(type=str(number))
    await tried.wait()
    started = time.monotonic()
    books = await alloy.aclose(grace=GRACE)
    took = time.monotonic() - started
    say(f"{took:.3f}", books.accepted, books.failed, books.kept, books.open)

asyncio.run(main())
"""


@pytest.mark.parametrize("outbox", ["memory", "sqlite"])
@pytest.mark.parametrize("endpoint", ["closed", "silent"])
async def test_a_dead_endpoint_costs_a_bounded_end(tmp_path, outbox, endpoint):
    """Closing ends within its grace where nobody listens, and where somebody listens who never answers."""
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        if endpoint == "silent":
            dead.listen(16)
        options = {**IDS, "outbox": outbox, "state_dir": str(tmp_path / "state")}
        options["endpoint"] = f"http://127.0.0.1:{dead.getsockname()[1]}"
        moment = "Sending" if endpoint == "silent" else "Retrying"
        script = DEAD.replace("MOMENT", moment).replace("GRACE", str(GRACE))
        async with running(script, options, dev=False) as process:
            (line,) = await process.end()
    assert process.status == 0
    took, *books = line.split()
    assert float(took) < GRACE + 0.2
    kept = 200 if outbox == "sqlite" else 0
    assert books == ["200", str(200 - kept), str(kept), "0"]
    if kept:
        assert kept_in(options) == kept
    lines = process.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"WARNING closed: {200 - kept} events could not be sent and are gone")
    assert f"{kept} are kept in the outbox for the next start" in lines[0]


@pytest.mark.parametrize("outbox", ["memory", "sqlite"])
@pytest.mark.parametrize("held_by", ["the function", "the module"])
async def test_an_instance_that_is_never_closed_says_what_it_could_not_send(edge, durable, outbox, held_by):
    """A loop that ends under it leaves status 0, no warning of asyncio's, and one line with counts."""
    script = """
    async def main():
        HELD
        alloy = Alloy()
        await alloy.configure(**options | {"opt_in_enabled": True})
        for number in range(30):
            alloy.event(type=f"parked {number}")
        if options["outbox"] == "memory":
            return
        await alloy.opt_in(purposes="all")
        await asyncio.gather(*[alloy.event(type=str(number), ack="stored") for number in range(10)])
        alloy.event(type="on the wire", view_start=True)
        say("called")
        await told()

    asyncio.run(main())
    say("done")
    """
    script = script.replace("HELD", "global alloy" if held_by == "the module" else "pass")
    edge.hold()
    async with running(script, durable | {"outbox": outbox}) as process:
        if outbox == "sqlite":
            assert await process.hear() == "called"
            await edge.until(lambda: len(edge.events) == 41 and edge.holding == len(edge.requests))
            process.tell()
        assert await process.end() == ["done"]
    assert process.status == 0, process.stderr
    lines = [line for line in process.stderr.splitlines() if "that nobody awaited" not in line]
    assert len(lines) == 1, process.stderr
    gone, kept = (30, 0) if outbox == "memory" else (0, 41)
    assert lines[0].startswith(f"WARNING closed: {gone} events could not be sent and are gone")
    assert f"{kept} are kept in the outbox for the next start" in lines[0]
    for word in ("never retrieved", "destroyed", "Traceback", "never awaited"):
        assert word not in process.stderr
    if outbox == "memory":
        assert "30 events could not be sent and are gone (30 waited for consent" in lines[0]
    else:
        assert kept_in(durable) == 41


async def test_an_interpreter_that_exits_in_the_middle_does_not_hang(edge, durable):
    """``sys.exit`` in a coroutine, with requests on the wire and a file open, ends the process with its status."""
    script = """
    async def main():
        alloy = Alloy()
        await alloy.configure(**options)
        await alloy.opt_in(purposes="all")
        await alloy.event(type="stored", ack="stored")
        say("stored")
        await told()
        sys.exit(3)

    asyncio.run(main())
    """
    edge.hold()
    async with running(script, durable) as process:
        assert await process.hear() == "stored"
        await edge.until(lambda: edge.holding == 1)
        process.tell()
        await process.end()
    assert process.status == 3
    for word in ("never retrieved", "destroyed", "Traceback", "never awaited"):
        assert word not in process.stderr
    assert kept_in(durable) == 1


async def test_another_loop_is_refused_in_the_future(edge, fleeting):
    """An instance that has met one loop refuses a second one, and another thread's, and goes on in its own."""
    script = """
    async def refused(alloy):
        kinds = set()
        for future in (alloy.event(), alloy.flush(), alloy.configure(**options), alloy.opt_in(purposes="all")):
            try:
                await future
            except AlloyError as error:
                kinds.add(type(error).__name__)
        try:
            await alloy.aclose()
        except AlloyError as error:
            kinds.add(type(error).__name__)
        return kinds

    async def main(alloy):
        await alloy.configure(**options)
        say(*await asyncio.to_thread(lambda: asyncio.run(refused(alloy))))
        await alloy.event(type="mine")
        await alloy.flush()

    alloy = Alloy()
    asyncio.run(main(alloy))
    say(*asyncio.run(refused(alloy)))
    """
    async with running(script, fleeting) as process:
        assert (await process.end()) == ["InvalidCommand", "InvalidCommand"]
    assert (process.status, process.stderr) == (0, "")
    assert edge.event_types == ["mine"]
