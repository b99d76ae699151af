"""``kill -9`` at any moment: what was stored arrives, in order and unchanged; what was refused is nowhere."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from common import IDS
from processes import running

from alloy_async.testing import LoopbackEdge

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.name != "posix", reason="forks and signals as POSIX has them"),
]

ROUNDS = 50

NURSERY = """
# Forks a child for each line it is told; so imports are paid once. Nothing of alloy has been made before the fork.
import random, traceback

async def live(name):
    generator = random.Random(name)
    alloy = Alloy()
    await alloy.configure(**options)
    await alloy.opt_in(purposes="all")
    def stored(future, number):
        say(name, number, future.result().event_id)
    for number in range(300):
        future = alloy.event(
            type=f"{name} {number}", data={"note": f"private note {name} {number}", "pad": "x" * generator.randrange(400)},
            view_start=generator.random() < 0.05, ack="stored",
        )
        future.add_done_callback(lambda future, number=number: stored(future, number))
        if generator.random() < 0.2:
            await future
    await asyncio.Event().wait()

async def decline():
    alloy = Alloy()
    await alloy.configure(**options)
    say(await alloy.opt_in(purposes="none"))
    await told()
    await alloy.aclose()
    say("declined", alloy.statistics().delivered)

async def drain():
    alloy = Alloy()
    await alloy.configure(**options)
    while (await alloy.get_outbox_info()).events:
        await alloy.flush()
        await asyncio.sleep(0.01)
    books = await alloy.aclose()
    say("drained", books.accepted == books.recovered == books.delivered)

def grow(line):
    name, _, rest = line.partition(" ")
    asyncio.run({"live": live, "decline": decline, "drain": drain}[name](*rest.split()))

while (line := hear()):
    number = os.fork()
    if not number:
        status = 1
        try:
            grow(line)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    say(number)
    os.waitpid(number, 0)
    say("gone")
"""


@pytest.fixture
def options(tmp_path):
    return {**IDS, "opt_in_enabled": True, "outbox": "sqlite", "state_dir": str(tmp_path / "state")}


@pytest.fixture
async def edge():
    async with asyncio.timeout(120), LoopbackEdge() as edge:
        yield edge


async def life(nursery, edge, name, generator):
    """Let a child live until it has said a random number of ids, kill it, and return what it has said."""
    holds = generator.random() < 0.5
    if holds:
        edge.hold()
    nursery.tell(f"live {name}")
    number = int(await nursery.hear())
    said = []
    for _ in range(generator.choice([0, 1, 2, 10, 50, 150])):
        said.append((await nursery.hear()).split())
        assert said[-1] != ["gone"], "it ended by itself"
    if holds and generator.random() < 0.5:
        edge.release(1)
    os.kill(number, signal.SIGKILL)
    while (line := await nursery.hear()) != "gone":
        said.append(line.split())
    edge.release()
    return [(int(place), event_id) for _, place, event_id in said]


def first_arrivals(edge):
    """Each event's ``_id`` and type, once, in the order of its first arrival; events seen twice are the same."""
    seen = {}
    for event in edge.events:
        text = json.dumps(event, sort_keys=True)
        assert seen.setdefault(event["xdm"]["_id"], text) == text
    return {event_id: json.loads(text)["xdm"]["eventType"].split() for event_id, text in seen.items()}


async def test_what_was_stored_survives_any_kill(edge, options):
    """After fifty kills at random moments no stored event is missing at the edge, and each child's are in order."""
    generator = random.Random(20)
    stored = {}
    async with running(NURSERY, {**options, "endpoint": edge.url, "ordered": True}, dev=False) as nursery:
        for number in range(ROUNDS):
            stored[str(number)] = await life(nursery, edge, str(number), generator)
        nursery.tell("drain")
        await nursery.hear()
        assert await nursery.hear() == "drained True"
        assert await nursery.hear() == "gone"
        nursery.tell()
        await nursery.ends_well()
    arrived = first_arrivals(edge)
    promised = {event_id for told in stored.values() for _, event_id in told}
    assert len(promised) > 500
    assert promised <= arrived.keys()
    for name, told in stored.items():
        assert all(arrived[event_id] == [name, str(place)] for place, event_id in told)
        places = [int(place) for whose, place in arrived.values() if whose == name]
        assert places == sorted(places)
    assert files_with("private note", options) == []


async def test_what_was_declined_after_a_kill_is_nowhere(edge, options):
    """A refusal by the next process erases what killed ones have left: in the file, in its log, and it is never sent."""
    generator = random.Random(21)
    edge.hold()
    async with running(NURSERY, {**options, "endpoint": edge.url}, dev=False) as nursery:
        for number in range(5):
            nursery.tell(f"live {number}")
            child = int(await nursery.hear())
            for _ in range(generator.randrange(20, 200)):
                await nursery.hear()
            os.kill(child, signal.SIGKILL)
            while await nursery.hear() != "gone":
                pass
        assert files_with("private note", options) != []  # so that looking for it later proves something
        begun = edge.started
        nursery.tell("decline")
        await nursery.hear()
        assert await nursery.hear() == "none"
        assert files_with("private note", options) == []  # while the file and its log are still in use
        nursery.tell()
        assert [await nursery.hear() for _ in range(2)] == ["declined 0", "gone"]
        assert rows(options) == 0
        assert files_with("private note", options) == []
        edge.release()
        nursery.tell("drain")
        await nursery.hear()
        assert [await nursery.hear() for _ in range(2)] == ["drained True", "gone"]
        nursery.tell()
        await nursery.ends_well()
    assert edge.started == begun


def rows(options):
    """How many events the file holds."""
    with closing(sqlite3.connect(Path(options["state_dir"], "outbox.sqlite3"))) as file:
        return file.execute("SELECT count(*) FROM event").fetchone()[0]


def files_with(text, options):
    """The files of the state folder in whose bytes a text can be read."""
    found = [path for path in Path(options["state_dir"]).iterdir() if text.encode() in path.read_bytes()]
    return sorted(path.name for path in found)
