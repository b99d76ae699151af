"""``alloy-async outbox``, beside workers that run."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from contextlib import aclosing, closing

import pytest

for _module in ("typer", "rich"):
    pytest.importorskip(_module)

from command_line import IDS, Person, run  # noqa: E402 - after the check for its packages

from alloy_async import Alloy  # noqa: E402 - as above
from alloy_async.errors import OutboxError  # noqa: E402 - as above
from alloy_async.outbox import OutboxEvent, SQLiteOutbox, VisitorKey  # noqa: E402 - as above
from alloy_async.stores import Preference, SQLiteStore  # noqa: E402 - as above
from alloy_async.testing import LoopbackEdge  # noqa: E402 - as above

pytestmark = pytest.mark.integration

VISITOR = VisitorKey("0123@AdobeOrg", "my-datastream")
OTHER = VisitorKey("0123@AdobeOrg", "another-datastream")
OPTIONS = {"config_id": VISITOR.datastream, "ims_org_id": VISITOR.organisation, "opt_in_enabled": True}


def event(event_id: str, visitor: VisitorKey = VISITOR, **more) -> OutboxEvent:
    xdm = {"_id": event_id, "eventType": event_id, "timestamp": "2026-09-21T14:13:20Z"}
    body = json.dumps({"xdm": xdm, **more}, ensure_ascii=False).encode()
    return OutboxEvent(visitor, event_id, body, False, True, 4_000_000_000.0)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "outbox.sqlite3"


async def leave(file, *events: OutboxEvent) -> list[int]:
    """Store events as a worker that ends before it could send them."""
    async with aclosing(SQLiteOutbox(file)) as outbox:
        stored = await outbox.write(events, [], epoch=await outbox.open())
    return [key for key in stored.keys if key is not None]


async def keep_choice(folder, purposes: str, visitor: VisitorKey = VISITOR) -> None:
    async with aclosing(SQLiteStore(folder)) as store:
        await store.save_preference(visitor, Preference(purposes, 1_790_000_000.0, 4_000_000_000.0))


async def cli(*words, **variables):
    """Run ``alloy-async outbox`` while this loop goes on."""
    return await asyncio.to_thread(lambda: run("outbox", *map(str, words), **variables))


async def look(folder, *words) -> dict:
    done = await cli("ls", "--state-dir", folder, "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def worker(edge: LoopbackEdge, folder, *, count: int) -> tuple[Alloy, list]:
    """Start a worker that has one event on the wire and the others behind it."""
    alloy = Alloy()
    await alloy.configure(
        **OPTIONS, endpoint=edge.url, state_dir=folder, outbox="sqlite", max_in_flight=1, max_body_bytes=1_024
    )
    await alloy.opt_in(purposes="all")
    edge.hold()
    events = [alloy.event(type=f"held-{number}", data={"room": "x" * 500}) for number in range(count)]
    await edge.until(lambda: edge.holding == 1)
    return alloy, events


@pytest.mark.parametrize("words", [["ls"], ["show", "1"], ["flush", *IDS], ["purge", "--all"]], ids=" ".join)
async def test_where_there_is_none_it_says_so_and_leaves_no_trace(tmp_path, words):
    """A folder that is empty, or missing, stays as it is: exit status 0."""
    for folder in (tmp_path, tmp_path / "missing"):
        done = await cli(*words, "--state-dir", folder)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"There is no outbox at {folder / 'outbox.sqlite3'}." in done.stdout
    assert list(tmp_path.iterdir()) == []


async def test_a_machine_gets_an_empty_answer_where_there_is_none(tmp_path):
    """With --json there is an object too."""
    assert (await look(tmp_path))["events"] == 0
    done = await cli("flush", *IDS, "--state-dir", tmp_path, "--json")
    assert (done.returncode, json.loads(done.stdout)["accepted"]) == (0, 0)


async def test_it_lists_events_with_whose_they_are_and_totals(tmp_path, file):
    """A person sees each event, whether a running worker holds it, and how the file stands."""
    async with LoopbackEdge() as edge:
        keys = await leave(file, event("free-1"), event("free-2", OTHER))
        await keep_choice(tmp_path, "none")  # so that the worker takes nothing over
        async with aclosing(SQLiteOutbox(file)) as running:
            await running.write([event("held-1")], [], epoch=await running.open())
            done = await cli("ls", "--outbox", file)
            found = await look(tmp_path)
        assert edge.requests == []
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(
        rf"^{keys[0]} +free-1 +my-datastream +\d+ +2096-.+ +collect +free$", done.stdout, re.MULTILINE
    )
    assert re.search(r"held-1 .* held$", done.stdout, re.MULTILINE)
    assert re.search(r"^held +1, by 1 running worker$", done.stdout, re.MULTILINE)
    assert re.search(r"^free +2, of no running worker$", done.stdout, re.MULTILINE)
    assert re.search(r"^erasing +finished$", done.stdout, re.MULTILINE)
    assert [(row["id"], row["datastream"], row["held"]) for row in found["rows"]] == [
        ("free-1", "my-datastream", False),
        ("free-2", "another-datastream", False),
        ("held-1", "my-datastream", True),
    ]
    assert (found["events"], found["held"], found["free"], found["workers"]) == (3, 1, 2, 1)
    assert found["erasing"] is False and found["path"] == str(file)


async def test_a_long_list_is_cut_and_says_so(tmp_path, file):
    """--limit bounds the rows, never the totals."""
    await leave(file, *[event(f"e{number}") for number in range(5)])
    done = await cli("ls", "--state-dir", tmp_path, "--limit", 2)
    assert "e1" in done.stdout and "e2" not in done.stdout and "… and 3 more" in done.stdout
    found = await look(tmp_path, "--limit", 2)
    assert (len(found["rows"]), found["events"]) == (2, 5)


async def test_remains_of_what_was_erased_are_said(tmp_path, file):
    """While another process reads, erasing cannot be finished, and ls and purge say so."""
    await leave(file, event("a"), event("b"))
    with closing(sqlite3.connect(file)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM event").fetchone()
        done = await cli("purge", "--all", "--yes", "--state-dir", tmp_path)
        assert done.returncode == 0 and "Erased: 2 events." in done.stdout and "remains" in done.stdout
        assert (await look(tmp_path))["erasing"] is True
        assert "not finished" in (await cli("ls", "--state-dir", tmp_path)).stdout


async def test_show_prints_the_event_and_nothing_that_a_terminal_obeys(tmp_path, file):
    """The JSON is exact; what would move the cursor or turn the text is escaped as JSON does it."""
    wanted = event("a", data={"text": "\u202e\x9b é", "number": 0.1})
    [key] = await leave(file, wanted)
    done = await cli("show", key, "--state-dir", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == json.loads(wanted.body)
    assert r"\u202e\u009b é" in done.stdout


async def test_a_key_that_is_not_there_is_an_error(tmp_path, file):
    """It is named: exit status 1."""
    [key] = await leave(file, event("a"))
    shown = await cli("show", 99, "--state-dir", tmp_path)
    assert (shown.returncode, shown.stdout) == (1, "") and "no event 99" in shown.stderr
    purged = await cli("purge", 99, key, "--yes", "--state-dir", tmp_path)
    assert purged.returncode == 1 and "no event 99" in purged.stderr and "Erased: 1 event." in purged.stdout
    assert (await look(tmp_path))["events"] == 0


async def test_what_is_stored_is_no_markup(tmp_path, file):
    """Ids that look like markup or escape sequences are shown as they are."""
    await leave(file, event("[red]e\x1b[2J"))
    assert r"[red]e\x1b[2J" in (await cli("ls", "--state-dir", tmp_path)).stdout


@pytest.mark.parametrize(
    "words", [["ls"], ["show", "1"], ["flush", *IDS], ["purge", "--all", "--yes"]], ids=" ".join
)
async def test_a_damaged_file_is_a_clear_error(tmp_path, file, words):
    """It is named, with what to do: exit status 1, and no traceback."""
    await keep_choice(tmp_path, "none")
    file.write_bytes(b"damaged" * 1_000)
    done = await cli(*words, "--state-dir", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert str(file) in done.stderr and "damaged" in done.stderr and "Traceback" not in done.stderr
    assert file.read_bytes() == b"damaged" * 1_000


async def test_another_programs_database_is_left_alone(tmp_path):
    """--outbox may name the wrong file; nothing in it changes."""
    file = tmp_path / "theirs.sqlite3"
    with closing(sqlite3.connect(file)) as theirs:
        theirs.execute("CREATE TABLE event (key)")
    done = await cli("purge", "--all", "--yes", "--outbox", file)
    assert done.returncode == 1 and "another program" in done.stderr


async def test_flush_sends_what_is_free_and_leaves_what_is_held(tmp_path, file):
    """Events of a worker that has gone leave under their own ids; those of one that runs are its own affair."""
    async with LoopbackEdge() as edge:
        alloy, events = await worker(edge, tmp_path, count=3)
        await leave(file, event("free-1"), event("free-2"), event("theirs", OTHER))
        edge.release(None)
        edge.hold()
        await edge.until(lambda: edge.holding == 1)
        async with LoopbackEdge() as another:
            done = await cli("flush", *IDS, "--state-dir", tmp_path, "--endpoint", another.url, "--json")
            assert another.event_types == ["free-1", "free-2"]
        books = json.loads(done.stdout)
        assert (done.returncode, done.stderr) == (0, "")
        assert (books["accepted"], books["delivered"], books["open"]) == (2, 2, 0)
        assert books["held"] >= 1 and (books["free"], books["others"]) == (0, 1)
        edge.release()
        await asyncio.gather(*events)
        assert edge.event_types == ["held-0", "held-1", "held-2"]
        await alloy.aclose()


async def test_flush_says_what_became_of_the_events(tmp_path, file):
    """The line adds up, and what is left is said with the reason; variables do for options."""
    await leave(file, event("a"), event("b"))
    await keep_choice(tmp_path, "all")
    async with LoopbackEdge() as edge:
        async with aclosing(SQLiteOutbox(file)) as running:
            await running.write([event("c")], [], epoch=await running.open())
            done = await cli(
                "flush",
                ALLOY_ENDPOINT=edge.url,
                ALLOY_CONFIG_ID=VISITOR.datastream,
                ALLOY_ORG_ID=VISITOR.organisation,
                ALLOY_STATE_DIR=str(tmp_path),
                ALLOY_OUTBOX="sqlite",
            )
        assert edge.event_types == ["a", "b"]
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "2 events: 2 delivered",
        "1 left to running workers, which hold them.",
    ]


async def test_flush_takes_over_as_many_as_there_are(tmp_path, file):
    """More than are taken over in one step."""
    await leave(file, *[event(f"e{number}") for number in range(4_500)])
    await keep_choice(tmp_path, "all")
    async with LoopbackEdge() as edge:
        done = await cli("flush", *IDS, "--state-dir", tmp_path, "--endpoint", edge.url)
        assert (done.returncode, done.stdout) == (0, "4500 events: 4500 delivered\n")
        assert len(edge.events) == 4_500
    assert (await look(tmp_path))["events"] == 0


@pytest.mark.parametrize("choice", [None, "none", "theirs"])
async def test_flush_sends_nothing_without_a_stored_consent(tmp_path, file, choice):
    """No choice, a refusal, or the consent for another datastream: it says so, exit status 1."""
    await leave(file, event("a"))
    if choice is not None:
        visitor, purposes = (OTHER, "all") if choice == "theirs" else (VISITOR, choice)
        await keep_choice(tmp_path, purposes, visitor)
    async with LoopbackEdge() as edge:
        done = await cli("flush", *IDS, "--state-dir", tmp_path, "--endpoint", edge.url)
        assert edge.connections == 0
    said = 'The stored choice is "none"' if choice == "none" else "No consent is stored"
    assert done.returncode == 1 and said in done.stderr and "nothing was sent" in done.stderr
    assert done.stdout.splitlines()[0] == "0 events: 0 delivered"
    assert (await look(tmp_path))["events"] == 1


async def test_flush_leaves_what_it_could_not_send(tmp_path, file):
    """An endpoint that is down costs no event: they stay, and the reason is said."""
    await leave(file, event("a"), event("b"))
    await keep_choice(tmp_path, "all")
    done = await cli(
        "flush", *IDS, "--state-dir", tmp_path, "--endpoint", "http://127.0.0.1:9", "--wait", 0.2, "--json"
    )
    books = json.loads(done.stdout)
    assert done.returncode == 1 and "Not finished in 0.2 s" in done.stderr and "127.0.0.1:9" in done.stderr
    assert (books["accepted"], books["kept"], books["delivered"], books["free"]) == (2, 2, 0, 2)
    assert [row["id"] for row in (await look(tmp_path))["rows"]] == ["a", "b"]


async def test_flush_tells_of_options_that_cannot_be_used(tmp_path):
    """Exit status 2, with the option's name."""
    done = await cli("flush", *IDS, "--state-dir", tmp_path, "--endpoint", "ftp://edge.example")
    assert done.returncode == 2 and "endpoint" in done.stderr


async def test_a_running_worker_does_not_send_what_was_purged(tmp_path):
    """Purged events end with OutboxError; what was on the wire settles with the truth."""
    async with LoopbackEdge() as edge:
        alloy, events = await worker(edge, tmp_path, count=4)
        done = await cli("purge", "--all", "--yes", "--state-dir", tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Erased: 4 events.\nRunning workers held 4 of them;")
        edge.release()
        outcomes = await asyncio.gather(*events, return_exceptions=True)
        assert [type(one).__name__ for one in outcomes] == ["EventResult"] + ["OutboxError"] * 3
        assert isinstance(outcomes[1], OutboxError) and outcomes[1].action == "keep"
        assert (await alloy.event(type="later")).event_id
        await alloy.aclose()
        assert edge.event_types == ["held-0", "later"]


async def test_purge_takes_the_named_events_only(tmp_path, file):
    """Keys name them; the others stay."""
    first, _, third = await leave(file, event("a"), event("b"), event("c"))
    done = await cli("purge", first, third, third, "--yes", "--outbox", file)
    assert (done.returncode, done.stdout) == (0, "Erased: 2 events.\n")
    assert [row["id"] for row in (await look(tmp_path))["rows"]] == ["b"]


@pytest.mark.parametrize("words", [[], ["1", "--all"]], ids=["neither", "both"])
async def test_purge_wants_to_know_what(tmp_path, file, words):
    """Keys or --all: exit status 2."""
    await leave(file, event("a"))
    done = await cli("purge", *words, "--yes", "--state-dir", tmp_path)
    assert done.returncode == 2 and "--all" in done.stderr
    assert (await look(tmp_path))["events"] == 1


async def test_purge_asks_nobody_where_there_is_no_terminal(tmp_path, file):
    """Without --yes it refuses: exit status 2."""
    await leave(file, event("a"))
    done = await cli("purge", "--all", "--state-dir", tmp_path)
    assert done.returncode == 2 and "--yes" in done.stderr
    assert (await look(tmp_path))["events"] == 1


@pytest.mark.parametrize(("answer", "status", "left"), [("y\n", 0, 0), ("n\n", 1, 1), ("\x04", 1, 1)])
async def test_purge_asks_at_a_terminal(tmp_path, file, answer, status, left):
    """Yes erases; no, and the end of the input, leave everything as it is."""
    await leave(file, event("a"))
    with Person("outbox", "purge", "--all", "--state-dir", tmp_path) as person:
        person.wait_for("[y/n]")
        person.type(answer)
        assert person.end() == status
        assert ("Erased: 1 event." in person.seen) == (not left)
    assert (await look(tmp_path))["events"] == left


async def test_a_person_sees_a_table(tmp_path, file):
    """On a terminal the outcomes of flush are a table that adds up."""
    await leave(file, event("a"))
    await keep_choice(tmp_path, "all")
    async with LoopbackEdge() as edge:

        def sit() -> str:
            with Person(
                "outbox", "flush", *IDS, "--state-dir", tmp_path, "--endpoint", edge.url, COLUMNS="200"
            ) as person:
                assert person.end() == 0
                return person.seen

        seen = await asyncio.to_thread(sit)
    assert re.search(r"accepted +│ +1 ", seen) and re.search(r"= delivered +│ +1 ", seen)


async def test_ctrl_c_leaves_what_is_not_sent(tmp_path, file):
    """The summary comes all the same, with the exit status of an interruption; no event is lost."""
    await leave(file, event("a"))
    await keep_choice(tmp_path, "all")
    async with LoopbackEdge() as edge:
        edge.hold()
        person = Person("outbox", "flush", *IDS, "--state-dir", tmp_path, "--endpoint", edge.url)
        with person:
            await edge.until(lambda: edge.holding == 1)
            person.type("\x03")
            assert await asyncio.to_thread(person.end) == 130
        assert "left in the outbox, of no running worker" in person.seen
    assert [row["id"] for row in (await look(tmp_path))["rows"]] == ["a"]
