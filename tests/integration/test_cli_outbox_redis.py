"""``alloy-async outbox`` on the outbox in Redis, beside workers and relays that run."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
from contextlib import aclosing

import pytest

for _module in ("typer", "rich", "redis"):
    pytest.importorskip(_module)

from command_line import IDS, Person, command, environment, run  # noqa: E402 - after the check for its packages
from redis_server import redis_server  # noqa: E402 - as above

from alloy_async import Alloy  # noqa: E402 - as above
from alloy_async.errors import OutboxError  # noqa: E402 - as above
from alloy_async.outbox import OutboxEvent, SQLiteOutbox, VisitorKey  # noqa: E402 - as above
from alloy_async.outbox.redis import RedisOutbox  # noqa: E402 - as above
from alloy_async.testing import LoopbackEdge  # noqa: E402 - as above

pytestmark = pytest.mark.integration

VISITOR = VisitorKey("0123@AdobeOrg", "my-datastream")
OPTIONS = {"config_id": VISITOR.datastream, "ims_org_id": VISITOR.organisation}


@pytest.fixture(scope="module")
def shared():
    with redis_server("--appendonly", "yes") as server:
        yield server


@pytest.fixture
def server(shared):
    """A server that has nothing."""
    shared.command("FLUSHDB")
    return shared


def event(event_id: str, **more) -> OutboxEvent:
    xdm = {"_id": event_id, "eventType": event_id, "timestamp": "2026-09-21T14:13:20Z"}
    body = json.dumps({"xdm": xdm, **more}, ensure_ascii=False).encode()
    return OutboxEvent(VISITOR, event_id, body, False, True, 4_000_000_000.0)


async def leave(server, *events: OutboxEvent) -> list[int]:
    """Store events as a worker that ends before it could send them."""
    async with aclosing(RedisOutbox(server.url)) as outbox:
        stored = await outbox.write(events, [], epoch=await outbox.open())
    return list(stored.keys)


async def cli(*words, **variables):
    """Run ``alloy-async outbox`` while this loop goes on."""
    return await asyncio.to_thread(lambda: run("outbox", *map(str, words), **variables))


async def look(server, *words) -> dict:
    done = await cli("ls", "--redis", server.url, "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def worker(server, edge: LoopbackEdge, *, count: int) -> tuple[Alloy, list]:
    """Start a worker that has one event on the wire and the others behind it."""
    alloy = Alloy()
    await alloy.configure(
        **OPTIONS,
        opt_in_enabled=True,
        endpoint=edge.url,
        store="memory",
        outbox="redis",
        redis_url=server.url,
        max_in_flight=1,
        max_body_bytes=1_024,
    )
    await alloy.opt_in(purposes="all")
    edge.hold()
    events = [alloy.event(type=f"held-{number}", data={"room": "x" * 500}) for number in range(count)]
    await edge.until(lambda: edge.holding == 1)
    return alloy, events


async def test_it_lists_events_with_whose_they_are_and_totals(server):
    """A person sees each event and whether a running worker holds it; the list is cut, the totals are not."""
    keys = await leave(server, event("free-1"), event("[red]e\x1b[2J"))
    async with aclosing(RedisOutbox(server.url)) as running:
        await running.write([event("held-1")], [], epoch=await running.open())
        done = await cli("ls", "--redis", server.url)
        found = await look(server, "--limit", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(
        rf"^{keys[0]} +free-1 +my-datastream +\d+ +2096-.+ +collect +free$", done.stdout, re.MULTILINE
    )
    assert r"[red]e\x1b[2J" in done.stdout
    assert re.search(r"held-1 .* held$", done.stdout, re.MULTILINE)
    assert re.search(rf"^outbox +Redis at {server.url[7:]}$", done.stdout, re.MULTILINE)
    assert re.search(r"^held +1, by 1 running worker$", done.stdout, re.MULTILINE)
    assert re.search(r"^free +2, of no running worker$", done.stdout, re.MULTILINE)
    assert "erasing" not in done.stdout  # what Redis' own files hold nobody can tell
    assert [(row["id"], row["visitor"], row["held"]) for row in found["rows"]] == [("free-1", "", False)]
    assert found["redis"] == server.url[7:] and "path" not in found
    assert (found["events"], found["held"], found["free"], found["workers"]) == (3, 1, 2, 1)


async def test_an_empty_one_stays_as_it_is(server):
    """Where there is none, looking and purging make none."""
    assert (await look(server))["events"] == 0
    assert (await cli("ls", "--redis", server.url)).returncode == 0
    done = await cli("purge", "--all", "--redis", server.url)
    assert (done.returncode, done.stdout) == (0, "Erased: 0 events.\n")
    assert server.keys() == []


async def test_show_prints_the_event_and_nothing_that_a_terminal_obeys(server):
    """The JSON is exact; a key that is not there is an error."""
    wanted = event("a", data={"text": "\u202e\x9b é", "number": 0.1})
    [key] = await leave(server, wanted)
    done = await cli("show", key, "--redis", server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == json.loads(wanted.body) and r"\u202e\u009b é" in done.stdout
    done = await cli("show", 99, "--redis", server.url)
    assert (done.returncode, done.stdout) == (1, "") and "no event 99 in Redis at" in done.stderr


async def test_purge_takes_the_named_events_only(server):
    """Keys name them; a key that is not there is an error; what Redis' own files hold is said."""
    first, _, third = await leave(server, event("a"), event("b"), event("c"))
    done = await cli("purge", first, third, 99, "--yes", "--redis", server.url)
    assert done.returncode == 1 and "no event 99" in done.stderr
    assert done.stdout.startswith("Erased: 2 events.\n") and "BGREWRITEAOF" in done.stdout
    assert [row["id"] for row in (await look(server))["rows"]] == ["b"]


async def test_a_running_worker_does_not_send_what_was_purged(server):
    """Purged events end with OutboxError; what was on the wire settles with the truth; the books add up."""
    async with LoopbackEdge() as edge:
        alloy, events = await worker(server, edge, count=4)
        done = await cli("purge", "--all", "--yes", "--redis", server.url)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Erased: 4 events.\nRunning workers held 4 of them;")
        edge.release()
        outcomes = await asyncio.gather(*events, return_exceptions=True)
        assert [type(one).__name__ for one in outcomes] == ["EventResult"] + ["OutboxError"] * 3
        assert isinstance(outcomes[1], OutboxError) and outcomes[1].action == "keep"
        assert (await alloy.event(type="later")).event_id
        books = await alloy.aclose()
        assert (books.accepted, books.delivered, books.failed, books.open) == (5, 2, 3, 0)
        assert edge.event_types == ["held-0", "later"]
    found = await look(server)
    assert (found["events"], found["size"], found["workers"]) == (0, 0, 0)


async def test_a_running_relay_does_not_send_what_was_purged(server):
    """What it has on the wire arrives, the rest is gone; what comes later it sends."""
    async with LoopbackEdge() as edge:
        edge.hold()
        await leave(server, *[event(f"e{number}", data={"room": "x" * 60_000}) for number in range(20)])
        relay = await asyncio.to_thread(_start_relay, server, edge)
        try:
            await edge.until(lambda: edge.holding == 8)  # max_in_flight
            listed = await look(server)
            assert (listed["held"], listed["free"], listed["workers"]) == (20, 0, 1)
            done = await cli("purge", "--all", "--yes", "--redis", server.url)
            assert done.stdout.startswith("Erased: 20 events.\nRunning workers held 20 of them;"), done.stderr
            edge.release()
            await edge.until(lambda: len(edge.events) == 8)
            await leave(server, event("later"))
            await edge.until(lambda: "later" in edge.event_types)
            assert len(edge.events) == 9
        finally:
            relay.send_signal(signal.SIGTERM)
            await asyncio.to_thread(relay.communicate, timeout=30)
    found = await look(server)
    assert (found["events"], found["size"]) == (0, 0)


def _start_relay(server, edge) -> subprocess.Popen:
    return subprocess.Popen(
        command("relay", *IDS, "--redis", server.url, "--endpoint", edge.url),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


async def test_purge_asks_at_a_terminal(server):
    """The question names the place, and how many of them running workers hold."""
    await leave(server, event("a"))
    async with aclosing(RedisOutbox(server.url)) as running:
        await running.write([event("b")], [], epoch=await running.open())

        def refuse() -> None:
            with Person("outbox", "purge", "--all", "--redis", server.url) as person:
                seen = person.wait_for("[y/n]")
                assert (
                    f"Erase 2 events in Redis at {server.url[7:]}, 1 of them held by running workers?" in seen
                )
                person.type("n\n")
                assert person.end() == 1

        await asyncio.to_thread(refuse)
    assert (await look(server))["events"] == 2


# Which outbox is meant


@pytest.mark.parametrize(
    ("words", "variables", "expected"),
    [
        ([], {"ALLOY_REDIS_URL": "{url}"}, "redis"),
        ([], {"ALLOY_REDIS_URL": "{url}", "ALLOY_OUTBOX": "redis"}, "redis"),
        ([], {"ALLOY_REDIS_URL": "{url}", "ALLOY_OUTBOX": "redis", "ALLOY_STATE_DIR": "{folder}"}, "redis"),
        (["--outbox", "redis"], {"ALLOY_REDIS_URL": "{url}", "ALLOY_STATE_DIR": "{folder}"}, "redis"),
        (["--redis", "{url}"], {"ALLOY_OUTBOX": "{file}", "ALLOY_STATE_DIR": "{folder}"}, "redis"),
        (["--redis", "{url}", "--outbox", "redis"], {}, "redis"),
        # The URL may be there for the choices alone.
        ([], {"ALLOY_REDIS_URL": "{url}", "ALLOY_OUTBOX": "{file}"}, "file"),
        ([], {"ALLOY_REDIS_URL": "{url}", "ALLOY_OUTBOX": "sqlite", "ALLOY_STATE_DIR": "{folder}"}, "file"),
        ([], {"ALLOY_REDIS_URL": "{url}", "ALLOY_STATE_DIR": "{folder}"}, "file"),
        (["--outbox", "{file}"], {"ALLOY_REDIS_URL": "{url}", "ALLOY_OUTBOX": "redis"}, "file"),
        (["--state-dir", "{folder}"], {"ALLOY_REDIS_URL": "{url}", "ALLOY_OUTBOX": "redis"}, "file"),
    ],
)
async def test_which_one_is_meant(server, tmp_path, words, variables, expected):
    """The command line counts before the environment, and a file that is named before a URL that may be for choices."""
    file = tmp_path / "outbox.sqlite3"
    await leave(server, event("redis"))
    async with aclosing(SQLiteOutbox(file)) as outbox:
        await outbox.write([event("file")], [], epoch=await outbox.open())
    known = {"url": server.url, "file": file, "folder": tmp_path}
    done = await cli(
        "ls",
        "--json",
        *[word.format(**known) for word in words],
        **{name: text.format(**known) for name, text in variables.items()},
    )
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in json.loads(done.stdout)["rows"]] == [expected]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ls", "--outbox", "redis"], "ALLOY_REDIS_URL"),
        (["ls", "--redis", "redis://127.0.0.1", "--outbox", "a-file"], "say which"),
        (["purge", "--all", "--redis", "redis://127.0.0.1", "--state-dir", "."], "say which"),
        (["show", "1", "--redis", "http://127.0.0.1"], "--redis: the Redis URL cannot be used"),
        (["flush", *IDS, "--redis", "redis://127.0.0.1"], "alloy-async relay"),
        (["flush", *IDS, "--outbox", "redis"], "alloy-async relay"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_options_that_cannot_be_used(words, said):
    """Exit status 2, with what to do; the URL, which may hold a password, is not repeated."""
    done = await cli(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and "127.0.0.1" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["ls"], ["show", "1"], ["purge", "--all", "--yes"]], ids=" ".join)
async def test_a_redis_that_is_not_there(words):
    """It is said, without the password: exit status 1."""
    done = await cli(*words, "--redis", "redis://me:secret@127.0.0.1:9/0")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Redis at 127.0.0.1:9" in done.stderr and "secret" not in done.stderr
    assert "Traceback" not in done.stderr
