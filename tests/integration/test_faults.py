"""Tens of thousands of events through an edge that fails in every way it can, while callers leave and consent flips."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter

import httpx
import pytest
from common import IDS
from unkind import Hasty, UnkindServer

from alloy_async import Alloy, ConsentDeclined, EdgeError, NetworkError

pytestmark = pytest.mark.integration


class MiserableEdge(UnkindServer):
    """An HTTP/1.1 server that answers at random, from a seed, and remembers what it read and what it took.

    Attributes:
        read: each event's text, by its ``_id``, as it first came.
        times: how often each event came.
        taken: ids of the events for which an answer said so, whether or not it arrived.
        did: how often it did what.
    """

    def __init__(self, generator):
        self.read = {}
        self.times = Counter()
        self.taken = set()
        self.did = Counter()
        self.kind = True
        self._random = generator

    async def serve_one(self, reader, writer):
        if not (first := await reader.read(1)):
            return False
        mood = self._mood()
        if mood == "reset before reading":
            self.did[mood] += 1
            return self.reset(writer)
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length:")[1].split("\r\n")[0])
        events = json.loads(await reader.readexactly(length))["events"]
        self._note(events)
        return await self._answer(mood, writer, events, collects="/collect" in head.splitlines()[0])

    def _mood(self):
        chance = 1.0 if self.kind else self._random.random()
        for mood, share in MOODS:
            if chance < share:
                return mood
            chance -= share
        return "take"

    def _note(self, events):
        for event in events:
            text = json.dumps(event)
            event_id = event["xdm"]["_id"]
            assert self.read.setdefault(event_id, text) == text, "a repetition differs"
            self.times[event_id] += 1

    async def _answer(self, mood, writer, events, *, collects):
        if mood == "reset after reading":
            self.did[mood] += 1
            return self.reset(writer)
        if mood in {"503", "429"}:
            return self._say(mood, writer, int(mood), b"", "Retry-After: 0\r\n" if mood == "429" else "")
        kinds = [event["data"]["kind"] for event in events]
        if "named" in kinds:
            detail = {"type": PROBLEM + "EXEG-0104-422", "report": {"eventIndex": kinds.index("named")}}
            return self._say("422", writer, 422, json.dumps(detail).encode())
        if "unnamed" in kinds:
            return self._say("400", writer, 400, json.dumps({"type": PROBLEM + "EXEG-0102-400"}).encode())
        self.taken.update(event["xdm"]["_id"] for event in events)
        body = b"" if collects else b'{"handle": []}'
        if mood == "cut":
            self._say(mood, writer, 200, b'{"handle": []}', missing=5)
            return False
        if mood == "slow":
            body = body or b'{"handle": []}'
            self._say(mood, writer, 200, b"", missing=len(body))
            for byte in body:
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            return True
        return self._say("take", writer, 200 if body else 204, body)

    def _say(self, mood, writer, status, body, headers="", *, missing=0):
        self.did[mood] += 1
        length = "" if status == 204 else f"Content-Length: {len(body) + missing}\r\n"
        writer.write(
            f"HTTP/1.1 {status} \r\nContent-Type: application/json\r\n{length}{headers}\r\n".encode() + body
        )
        return True


PROBLEM = "https://ns.adobe.com/aep/errors/"

MOODS = [
    ("503", 0.1),
    ("429", 0.1),
    ("reset before reading", 0.05),
    ("reset after reading", 0.05),
    ("cut", 0.05),
    ("slow", 0.1),
]


class Run:
    """One run: what was called, in which state of consent, and by whom it was left.

    Attributes:
        futures: of all events, by the text that each carries.
        kinds: what the edge minds in an event, by the same.
        barred: texts of events that were called while the visitor had declined.
        left: texts of events whose futures were cancelled in time.
        overtaken: texts of events that had not ended when the visitor declined.
    """

    def __init__(self, alloy, generator, *, durable):
        self.alloy = alloy
        self.futures = {}
        self.kinds = {}
        self.barred = set()
        self.left = set()
        self.overtaken = set()
        self._random = generator
        self._durable = durable
        self._purposes = "all"
        self._choices = []

    async def go(self, events):
        """Call events, leave some, change the choice; wait for nothing but the loop's turns and room."""
        chance = self._random
        while len(self.futures) < events:
            for _ in range(chance.randrange(1, 30)):
                self._call()
            if chance.random() < 0.5:
                self._leave()
            if chance.random() < (0.02 if self._purposes == "all" else 0.3):
                self._choose(chance.choice(["all", "none"]))
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            books = self.alloy.statistics()
            assert books.accepted == books.ended + books.open
            if books.open > 500 and self._purposes == "all":
                await self.alloy.flush()
        self._choose("all")
        await asyncio.gather(*self._choices)
        await self.alloy.flush()

    def _call(self):
        name, chance = str(len(self.futures)), self._random.random()
        kind = "named" if chance < 0.01 else "unnamed" if chance < 0.02 else "good"
        ack = "stored" if self._durable and self._random.random() < 0.2 else "delivered"
        self.futures[name] = self.alloy.event(
            data={"kind": kind, "name": name, "pad": "x" * self._random.randrange(300)},
            view_start=self._random.random() < 0.03,
            ack=ack,
        )
        self.kinds[name] = kind
        if self._purposes == "none":
            self.barred.add(name)

    def _leave(self):
        """Cancel some of the last events, of which a few have ended."""
        for name in range(max(0, len(self.futures) - 60), len(self.futures)):
            if self._random.random() < 0.5 and self.futures[str(name)].cancel():
                self.left.add(str(name))

    def _choose(self, purposes):
        self._purposes = purposes
        if purposes == "none":
            self.overtaken.update(name for name, future in self.futures.items() if not future.done())
        self._choices.append(self.alloy.opt_in(purposes=purposes))


@pytest.mark.parametrize(("outbox", "events"), [("memory", 20_000), ("sqlite", 4_000)])
async def test_every_event_has_one_true_outcome_whatever_the_edge_does(tmp_path, outbox, events):
    """Under faults, cancellations and changes of mind the books are exact, and no future says what is not so."""
    asyncio.get_running_loop().set_debug(
        False
    )  # it keeps a stack for each future, which takes half of the time
    generator = random.Random(2030)
    async with asyncio.timeout(120), MiserableEdge(generator) as edge, httpx.AsyncClient() as client:
        alloy = Alloy()
        await alloy.configure(
            **IDS,
            endpoint=edge.url,
            opt_in_enabled=True,
            client=client,
            clock=Hasty(),
            state_dir=tmp_path,
            store="memory",
            outbox=outbox,
            max_attempts=1_000,
            delivery_timeout=1e9,
        )
        await alloy.opt_in(purposes="all")
        edge.kind = False
        run = Run(alloy, generator, durable=outbox == "sqlite")
        await run.go(events)
        pool = client._transport._pool
        assert all(connection.is_idle() for connection in pool.connections)
        assert not pool._requests
        books = await alloy.aclose()
    assert books.accepted == len(run.futures) >= events
    assert books.accepted == books.delivered + books.refused + books.cancelled + books.failed
    assert books.open == books.kept == 0
    assert len(run.left) > events / 3
    assert set(edge.did) == {mood for mood, _ in MOODS} | {"take", "400", "422"}
    check_futures(run, edge)
    check_books(run, books)


def check_futures(run, edge):
    """Each future has ended, and what it says can be seen at the edge."""
    seen = {json.loads(text)["data"]["name"]: event_id for event_id, text in edge.read.items()}
    assert not seen.keys() & run.barred
    for name, future in run.futures.items():
        assert future.done()
        if future.cancelled():
            continue
        error = future.exception()
        if error is None:
            result = future.result()
            assert result.stored or result.event_id in edge.taken
            assert result.stored or result.event_id == seen[name]
            assert run.kinds[name] == "good" or result.stored
        elif isinstance(error, EdgeError) and not error.retryable:
            assert error.status == {"named": 422, "unnamed": 400}[run.kinds[name]]
        else:  # anything else is tried again, unless the visitor has declined meanwhile
            assert isinstance(error, (ConsentDeclined, EdgeError, NetworkError))
            assert name in run.overtaken | run.barred


def check_books(run, books):
    """What the futures say adds up to what the books say; who has left does not know how their event ended."""
    said = Counter(
        "left" if future.cancelled() else type(future.exception()).__name__ for future in run.futures.values()
    )
    told = [future for future in run.futures.values() if not future.cancelled() and not future.exception()]
    blind = said["left"] + sum(future.result().stored for future in told)
    delivered = sum(not future.result().stored for future in told)
    assert delivered <= books.delivered <= delivered + blind
    assert said["ConsentDeclined"] <= books.refused <= said["ConsentDeclined"] + blind
    failed = said["EdgeError"] + said["NetworkError"]
    assert failed <= books.failed <= failed + blind
    assert books.cancelled <= said["left"]
