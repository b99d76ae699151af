"""Processes that share one file, and processes that are killed."""

import asyncio
import os
import signal
import sqlite3
import sys
import textwrap
import time
from contextlib import asynccontextmanager, closing

import pytest
from common import IDS

from alloy_async import Alloy
from alloy_async.errors import ConsentDeclined
from alloy_async.stores import SQLiteStore, VisitorKey
from alloy_async.testing import ManualClock, RecordingEdge

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.name != "posix", reason="signals and locks as POSIX has them"),
]

KEY = VisitorKey(IDS["ims_org_id"], IDS["config_id"])

CHILD = """
import asyncio, os, sys
from alloy_async import Alloy
from alloy_async.errors import AlloyError
from alloy_async.stores import Preference, SQLiteStore, VisitorKey
from alloy_async.testing import RecordingEdge

def say(*words):
    print(*words, flush=True)

def hear():
    return sys.stdin.readline().strip()

state_dir = sys.argv[1]
ids = {ids!r}
key = VisitorKey(ids["ims_org_id"], ids["config_id"])
edge = RecordingEdge()
options = {{**ids, "opt_in_enabled": True, "state_dir": state_dir, "transport": edge}}

async def main():
{body}

asyncio.run(main())
"""

FOREVER = "await asyncio.Event().wait()"


@asynccontextmanager
async def child(state_dir, body):
    """Another process that runs a few lines; killed, if it still runs, when the block ends."""
    code = CHILD.format(ids=IDS, body=textwrap.indent(textwrap.dedent(body), "    "))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        str(state_dir),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def heard(process):
    """The next line of a process."""
    return (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()


async def killed(process):
    """Kill a process as ``kill -9`` does."""
    process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL


async def kept(state_dir, key=KEY):
    store = SQLiteStore(state_dir)
    try:
        return await store.load_preference(key)
    finally:
        await store.aclose()


@pytest.fixture
def restarted(tmp_path):
    """Options of the next start."""
    return {**IDS, "opt_in_enabled": True, "state_dir": tmp_path, "transport": RecordingEdge()}


async def test_refusal_survives_kill(tmp_path, restarted):
    """A "none" whose future has ended holds at the next start, without being asked for."""
    body = f"""
    alloy = Alloy()
    await alloy.configure(**options)
    say(await alloy.opt_in(purposes="none"))
    {FOREVER}
    """
    async with child(tmp_path, body) as process:
        assert await heard(process) == "none"
        await killed(process)
    async with Alloy() as alloy:
        await alloy.configure(**restarted)
        with pytest.raises(ConsentDeclined):
            await alloy.event(type="a")
    assert restarted["transport"].requests == []


async def test_consent_and_identity_survive_kill(tmp_path, restarted):
    """An "all" whose future has ended holds at the next start, and the visitor keeps their identity."""
    body = f"""
    alloy = Alloy()
    await alloy.configure(**options)
    say(await alloy.opt_in(purposes="all"))
    await alloy.event(type="a")
    say(edge.events[0]["xdm"]["identityMap"]["FPID"][0]["id"])
    {FOREVER}
    """
    async with child(tmp_path, body) as process:
        assert await heard(process) == "all"
        fpid = await heard(process)
        await killed(process)
    async with Alloy() as alloy:
        await alloy.configure(**restarted)
        await alloy.event(type="b")
    (event,) = restarted["transport"].events
    assert [item["id"] for item in event["xdm"]["identityMap"]["FPID"]] == [fpid]


async def test_forgetting_survives_kill(tmp_path, restarted):
    """A ``forget`` whose future has ended holds at the next start: the choice is asked for again."""
    body = f"""
    alloy = Alloy()
    await alloy.configure(**options)
    await alloy.opt_in(purposes="all")
    await alloy.forget()
    say("forgotten")
    {FOREVER}
    """
    async with child(tmp_path, body) as process:
        assert await heard(process) == "forgotten"
        await killed(process)
    assert await kept(tmp_path) is None
    async with Alloy() as alloy:
        await alloy.configure(**restarted)
        event = alloy.event(type="a")
        await alloy.opt_in(purposes="none")
        with pytest.raises(ConsentDeclined):
            await event


@pytest.mark.parametrize("heard_before", [1, 2, 7, 20])
async def test_kill_in_the_middle_of_writing(tmp_path, heard_before):
    """A process killed while it chooses again and again leaves its last finished choice, or the one under way."""
    body = """
    alloy = Alloy()
    await alloy.configure(**options)
    for number in range(10_000):
        say(number, await alloy.opt_in(purposes=("all", "none")[number % 2]))
    """
    async with child(tmp_path, body) as process:
        said = [await heard(process) for _ in range(heard_before)]
        process.kill()
        rest, _ = await process.communicate()
    said += [line for line in rest.decode().split("\n")[:-1] if line]
    number, purposes = said[-1].split()
    preference = await kept(tmp_path)
    assert preference.epoch in {(int(number) + 1) // 2, (int(number) + 2) // 2}
    assert preference.purposes == purposes or preference.purposes == ("all", "none")[(int(number) + 1) % 2]


async def test_kill_during_a_transaction(tmp_path):
    """What a process had begun to write when it was killed is undone; the choice before it stands."""
    body = f"""
    store = SQLiteStore(state_dir)
    await store.save_preference(key, Preference("none", 1.0, 9e9))
    def half(connection):
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("PRAGMA cache_spill = 1")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE preference SET purposes = 'all'")
        for number in range(200):
            connection.execute("INSERT INTO counter VALUES (?, 1)", ("x" * 3000 + str(number),))
        say(os.path.getsize(f"{{store.path}}-journal"))
    await store._database.run(half)
    {FOREVER}
    """
    async with child(tmp_path, body) as process:
        assert int(await heard(process)) > 0
        await killed(process)
    assert (tmp_path / "alloy.sqlite3-journal").exists()
    assert (await kept(tmp_path)).purposes == "none"
    assert not (tmp_path / "alloy.sqlite3-journal").exists()


async def test_first_start_of_several_processes(tmp_path):
    """Processes that make the file at the same moment all get their choice into it, and no refusal's epoch is lost."""
    body = """
    store = SQLiteStore(state_dir + "/state")
    say("ready")
    name = hear()
    for number in range(8):
        mine = key._replace(visitor=f"{name} {number}")
        await store.save_preference(mine, Preference("all", 1.0, 9e9))
        await store.save_preference(mine, Preference("none", 1.0, 9e9))
    await store.aclose()
    say("done")
    """
    names = ["one", "two", "three"]
    async with (
        child(tmp_path, body) as one,
        child(tmp_path, body) as two,
        child(tmp_path, body) as three,
    ):
        processes = [one, two, three]
        assert [await heard(process) for process in processes] == ["ready"] * 3
        for name, process in zip(names, processes, strict=True):
            process.stdin.write(f"{name}\n".encode())
        assert [await heard(process) for process in processes] == ["done"] * 3
    visitors = [KEY._replace(visitor=f"{name} {number}") for name in names for number in range(8)]
    epochs = [(await kept(tmp_path / "state", visitor)).epoch for visitor in visitors]
    assert sorted(epochs) == list(range(1, 25))


async def test_refusal_of_another_process_is_seen_at_the_next_start(tmp_path, restarted):
    """A refusal in one process holds for the next start of another one, and bars an identity that comes late."""
    async with Alloy() as alloy:
        await alloy.configure(
            **restarted, clock=ManualClock(time.time())
        )  # it stands still: nothing is heard
        await alloy.opt_in(purposes="all")
        await alloy.event(type="a")
        body = """
        alloy = Alloy()
        await alloy.configure(**options)
        say(await alloy.opt_in(purposes="none"))
        await alloy.aclose()
        """
        async with child(tmp_path, body) as process:
            assert await heard(process) == "none"
            assert await process.wait() == 0
        await alloy.set_customer_ids({"CRMID": {"id": "late"}})
    with closing(sqlite3.connect(tmp_path / "alloy.sqlite3")) as connection:
        assert connection.execute("SELECT * FROM identity").fetchall() == []
    async with Alloy() as alloy:
        await alloy.configure(**restarted)
        with pytest.raises(ConsentDeclined):
            await alloy.event(type="b")


async def test_choices_of_others_reach_a_process_that_runs(tmp_path, restarted):
    """A yes releases what waits there, a no ends it, and a person may forget at the command line."""
    body = """
    alloy = Alloy()
    await alloy.configure(**options, parked_wait=60.0)
    anne = alloy.visitor("anne")
    parked = anne.event(type="parked")
    say("parked")
    await parked
    say(edge.event_types)
    while await anne.get_purposes() != "none":
        await asyncio.sleep(0.01)
    say("none")
    parked = alloy.event(type="of the one person")
    while await anne.get_purposes() != "pending":
        await asyncio.sleep(0.01)
    say(parked.done(), edge.event_types)
    say(await asyncio.wait([parked]) and type(parked.exception()).__name__)
    await alloy.aclose()
    """
    async with child(tmp_path, body) as process, Alloy() as alloy:
        await alloy.configure(**restarted)
        assert await heard(process) == "parked"
        await alloy.visitor("anne").opt_in(purposes="all")
        assert await heard(process) == "['parked']"
        await alloy.visitor("anne").opt_in(purposes="none")
        assert await heard(process) == "none"
        store = SQLiteStore(tmp_path)
        await store.forget(KEY._replace(visitor="anne"))
        await store.aclose()
        assert await heard(process) == "False ['parked']"
        await alloy.opt_in(purposes="none")
        assert await heard(process) == "ConsentDeclined"
        assert await process.wait() == 0


async def test_store_works_in_a_forked_process(tmp_path):
    """A store that was used before a fork works in the child too, which has none of the parent's threads."""
    code = """
    store = SQLiteStore(state_dir)
    await store.save_preference(key, Preference("none", 1.0, 9e9))
    child = os.fork()
    if child == 0:
        asyncio.events._set_running_loop(None)
        try:
            preference = asyncio.run(asyncio.wait_for(store.load_preference(key), 10))
            say(preference.purposes)
        except BaseException as error:
            say(type(error).__name__)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    """
    async with child(tmp_path, code) as process:
        assert await heard(process) == "none"
