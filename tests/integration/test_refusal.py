"""After a refusal no request of that visitor begins to be written: seen where bytes leave the process."""

from __future__ import annotations

import asyncio
import random
import re
from asyncio import selector_events
from contextlib import AsyncExitStack
from functools import partial

import httpcore
import httpx
import pytest
from common import IDS
from unkind import Hasty, UnkindServer

from alloy_async import Alloy, AlloyError
from alloy_async.stores import MemoryStore

pytestmark = pytest.mark.integration

MARK = re.compile(rb"mark-(\w+)-(\d+)-")


class Wire:
    """Notes each request of this process in the moment in which its first byte is handed to a socket's transport.

    Attributes:
        requests: for each the moment, and what was written of it.
    """

    def __init__(self, monkeypatch):
        self.requests = []
        self._now = 0
        self._current = {}
        kind = selector_events._SelectorSocketTransport
        write = kind.write
        monkeypatch.setattr(kind, "write", lambda transport, data: self._note(transport, data, write))
        if "writelines" in vars(kind):
            monkeypatch.setattr(kind, "writelines", lambda transport, parts: transport.write(b"".join(parts)))

    def moment(self):
        """Return a number that is higher than that of everything before."""
        self._now += 1
        return self._now

    def _note(self, transport, data, write):
        if bytes(data[:5]) == b"POST ":
            self._current[transport] = bytearray()
            self.requests.append((self.moment(), self._current[transport]))
        if transport in self._current:
            self._current[transport] += data
        write(transport, data)

    def late(self, whose, number, moment):
        """Return the requests that began after a moment with an event of somebody's below a number."""
        return [
            (began, found)
            for began, written in self.requests
            if began > moment
            for found in MARK.findall(bytes(written))
            if found[0].decode() == whose and int(found[1]) < number
        ]


class Edge(UnkindServer):
    """An HTTP/1.1 server that takes, refuses, resets, hesitates and hangs up at random."""

    def __init__(self, generator):
        self._random = generator

    async def serve_one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(head.split("content-length:")[1].split("\r\n")[0]))
        for _ in range(self._random.choice([0, 0, 0, 5, 20])):
            await asyncio.sleep(0)
        chance = self._random.random()
        if chance < 0.1:
            return self.reset(writer)
        status, more = 204, ""
        if chance < 0.4:
            status, more = self._random.choice([503, 429]), "Retry-After: 0\r\nContent-Length: 0\r\n"
        elif "/interact" in head.splitlines()[0]:
            status, more = 200, "Content-Length: 2\r\n"
        hangs_up = chance > 0.7
        more += "Connection: close\r\n" if hangs_up else ""
        writer.write(f"HTTP/1.1 {status} \r\n{more}\r\n".encode() + (b"{}" if status == 200 else b""))
        return not hangs_up


class SlowToConnect(httpcore.AnyIOBackend):
    """Connects after a random number of turns of the loop."""

    def __init__(self, generator):
        self._random = generator

    async def connect_tcp(self, *args, **kwargs):
        for _ in range(self._random.choice([0, 0, 3, 10, 30])):
            await asyncio.sleep(0)
        return await super().connect_tcp(*args, **kwargs)


class Person:
    """A visitor whose events are numbered, and whose refusals are checked."""

    def __init__(self, name, alloy, wire, generator):
        self.name = name
        self.alloy = alloy
        self.called = 0
        self.refusals = []
        self.futures = []
        self._wire = wire
        self._random = generator

    def call(self, ack="delivered"):
        """Call an event that says whose it is."""
        size = self._random.choice([10, 10, 10, 300, 20_000])
        mark = f"mark-{self.name}-{self.called}-"
        self.futures.append(
            self.alloy.event(
                data={"mark": mark, "pad": "x" * size}, view_start=self._random.random() < 0.2, ack=ack
            )
        )
        self.called += 1

    def choose(self, purposes):
        """Choose; from the moment in which this returns a refusal holds."""
        future = self.alloy.opt_in(purposes=purposes)
        self.futures.append(future)
        if purposes == "none":
            self.refusals.append((self.called, self._wire.moment()))
        return future

    def check(self):
        """Make sure that no request with a refused event began after the refusal."""
        late = [(refusal, self._wire.late(self.name, *refusal)) for refusal in self.refusals]
        assert [item for item in late if item[1]] == []


async def settled(futures):
    """Wait until all have ended, however."""
    for outcome in await asyncio.gather(*futures, return_exceptions=True):
        assert not isinstance(outcome, BaseException) or isinstance(outcome, AlloyError)


async def opened(stack, edge, transport, generator, number):
    """Return an instance; with httpx one that is slow to connect."""
    more = {"transport": transport}
    if transport == "httpx":
        http = httpx.AsyncHTTPTransport()
        http._pool = httpcore.AsyncConnectionPool(network_backend=SlowToConnect(generator))
        more["client"] = await stack.enter_async_context(httpx.AsyncClient(transport=http))
    alloy = await stack.enter_async_context(Alloy(f"number-{number}"))
    await alloy.configure(
        config_id=f"datastream-{number}",
        ims_org_id=IDS["ims_org_id"],
        opt_in_enabled=True,
        endpoint=edge.url,
        store=MemoryStore(),
        clock=Hasty(),
        max_attempts=50,
        delivery_timeout=1e9,
        **more,
    )
    return alloy


@pytest.mark.parametrize("transport", ["httpx", "aiohttp"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_no_request_begins_after_a_refusal(monkeypatch, transport, seed):
    """In thousands of interleavings nothing that was called before a refusal begins to be written after it."""
    pytest.importorskip(transport)
    asyncio.get_running_loop().set_debug(
        False
    )  # it keeps a stack for each future, which takes half of the time
    generator, wire = random.Random(seed), Wire(monkeypatch)
    async with asyncio.timeout(60), Edge(generator) as edge, AsyncExitStack() as stack:
        people = [
            Person(f"p{number}", await opened(stack, edge, transport, generator, number), wire, generator)
            for number in range(4)
        ]
        for _ in range(2_000):
            person = generator.choice(people)
            act = generator.choices(
                [person.call, partial(person.choose, "all"), partial(person.choose, "none")], [6, 2, 1]
            )[0]
            act()
            for _ in range(generator.choice([0, 1, 1, 2, 3, 5, 8])):
                await asyncio.sleep(0)
        for person in people:
            await person.choose("all")
            await person.alloy.flush()
            await settled(person.futures)
    assert len(wire.requests) > 200
    for person in people:
        assert len(person.refusals) > 20
        person.check()


async def test_no_request_of_another_worker_begins_once_a_refusal_has_ended(monkeypatch, tmp_path):
    """Two workers share one file: what one of them has declined, the other does not begin to write any more."""
    asyncio.get_running_loop().set_debug(False)
    generator, wire = random.Random(9), Wire(monkeypatch)
    async with asyncio.timeout(60), Edge(generator) as edge, AsyncExitStack() as stack:
        people = []
        for name in ("one", "two"):
            alloy = await stack.enter_async_context(Alloy(name))
            await alloy.configure(
                **IDS,
                opt_in_enabled=True,
                endpoint=edge.url,
                outbox="sqlite",
                state_dir=tmp_path,
                clock=Hasty(),
                delivery_timeout=1e9,
            )
            people.append(Person(name, alloy, wire, generator))
        refusals = []
        for _ in range(60):
            for person in people:
                await person.choose("all")
            for _ in range(generator.randrange(1, 40)):
                person = generator.choice(people)
                person.call(ack="stored")
                if generator.random() < 0.2:
                    await settled(person.futures[-1:])
            refusing = generator.choice(people)
            before = {person.name: person.called for person in people}
            future = refusing.choose("none")
            for _ in range(generator.randrange(5)):
                generator.choice(people).call()
            assert await future == "none"
            refusals.append((before, wire.moment()))
            for _ in range(generator.choice([0, 10, 100])):
                await asyncio.sleep(0)
        for person in people:
            await person.choose("all")
            await person.alloy.flush()
            await settled(person.futures)
    assert len(wire.requests) > 100
    late = [
        found
        for before, moment in refusals
        for name, called in before.items()
        for found in wire.late(name, called, moment)
    ]
    assert late == []
