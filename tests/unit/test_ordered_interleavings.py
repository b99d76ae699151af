"""Visitors in trouble beside others, with ``ordered=True``: in whatever order things happen, all ends, in order, and once."""

from __future__ import annotations

import asyncio
import json
import random

import pytest
from common import IDS, settle

from alloy_async import Alloy, ConsentDeclined, NetworkError, _courier, _taking_over, _unwritten
from alloy_async._consent import _opt_in
from alloy_async.edge import EdgeResponse
from alloy_async.edge.transport import Withdrawn
from alloy_async.outbox import MemoryOutbox, MemoryShelf, OutboxEvent, VisitorKey
from alloy_async.stores import Preference
from alloy_async.testing import RecordingEdge

NAMES = ("anne", "bert", "carl")
HEALTHY = "zoe"
LINGER = 0.2
SEEDS = (0, 2, 3, 37, 47, 56, 76, 112, 134)
"""Storms in which one planted fault or another shows."""
SLOW = ("write", "claim", "abandoned", "changes")
"""What an outbox is asked, each time with another delay before and after."""


def problem(**report):
    body = {"type": "https://ns.adobe.com/aep/errors/EXEG-0104-400", "title": "bad", "report": report}
    return EdgeResponse(400, {"content-type": "application/problem+json"}, json.dumps(body).encode())


class Moody(RecordingEdge):
    """An edge that takes, refuses or loses what comes, at once or later; what is of the healthy visitor alone it takes."""

    def __init__(self, chance):
        super().__init__()
        self.chance = chance
        self.is_well = False
        self.on_the_wire = []
        self.overtaking = set()
        self.taken = []
        self.late = []

    async def send(self, request, may_start):
        await settle(self.chance.choice([0, 0, 2]))
        if not may_start():
            raise Withdrawn
        kinds = [event["xdm"]["eventType"] for event in json.loads(request.body)["events"]]
        visitors = {kind.split()[0] for kind in kinds}
        self.overtaking |= visitors.intersection(self.on_the_wire)
        self.on_the_wire += visitors
        try:
            return await self._answer(kinds, visitors, request, may_start)
        finally:
            for visitor in visitors:
                self.on_the_wire.remove(visitor)

    async def _answer(self, kinds, visitors, request, may_start):
        if visitors != {HEALTHY} and not self.is_well:
            answer = self._mood(len(kinds))
            await self._ponder()
            if isinstance(answer, Exception):
                raise answer
            if answer is not None:
                return answer
        self.taken += kinds
        return await super().send(request, lambda: True)

    def _mood(self, count):
        busy = EdgeResponse(
            self.chance.choice([429, 503]), {"retry-after": f"{self.chance.randint(1, 40)}"}, b""
        )
        answers = [
            (None, 6),
            (busy, 3),
            (EdgeResponse(429, {}, b""), 1),
            (problem(eventIndex=self.chance.randrange(count)), 1),
            (problem(), 2),
            (NetworkError("http://edge", "reset"), 1),
        ]
        (answer,) = self.chance.choices([answer for answer, _ in answers], [weight for _, weight in answers])
        return answer

    async def _ponder(self):
        if self.chance.random() < 0.3:
            later = asyncio.get_running_loop().create_future()
            self.late.append(later)
            await later
        else:
            await settle(self.chance.choice([0, 1, 4]))

    def answer_late_ones(self, count=None):
        for later in self.late[:count]:
            if not later.done():
                later.set_result(None)
        del self.late[:count]


class Slow(MemoryOutbox):
    """Takes some turns of the loop for what it is asked."""

    chance = random


def slowly(name):
    async def method(self, *arguments, **keywords):
        await settle(self.chance.choice([0, 0, 1, 3]))
        answer = await getattr(MemoryOutbox, name)(self, *arguments, **keywords)
        await settle(self.chance.choice([0, 0, 1, 3]))
        return answer

    return method


for name in SLOW:
    setattr(Slow, name, slowly(name))


class Storm:
    """Does one thing after another to a worker, and keeps what it was called with."""

    def __init__(self, chance, options, clock, store):
        self.chance = chance
        self.clock = clock
        self.store = store
        self.edge = Moody(chance)
        self.shelf = MemoryShelf()
        self.is_durable = chance.random() < 0.6
        self.calls = []
        self.number = 0
        self.first_ones = []
        self.alloy = Alloy()
        self.options = options | {
            "transport": self.edge,
            "ordered": True,
            "linger": LINGER,
            "max_in_flight": chance.choice([1, 2, 3, 8]),
            "max_body_bytes": chance.choice([2_500, 65_536]),
            "delivery_timeout": chance.choice([45, 5_000]),
            "preference_max_age": chance.choice([30, 100_000]),
        }
        if self.is_durable:
            outbox = Slow(self.shelf, clock=clock)
            outbox.chance = chance
            self.options["outbox"] = outbox

    async def start(self):
        if self.is_durable:
            for _ in range(self.chance.randint(0, 6)):
                await self.leave(self.chance.choice(NAMES), known=True)
        await self.alloy.configure(**self.options)
        for visitor in (*NAMES, HEALTHY):
            self.alloy.visitor(visitor).opt_in(purposes="all")
        await settle(self.chance.choice([0, 30]))

    async def do_something(self):
        deeds = {
            self.call: 6,
            self.burst: 1,
            self.crowd: 4,
            self.refuse: 1,
            self.agree: 2,
            self.cancel: 2,
            self.wait: 6,
        }
        deeds |= {self.ask_for_healthy: 2, self.answer: 3}
        if self.is_durable:
            deeds |= {self.leave: 2, self.erase: 1}
        (deed,) = self.chance.choices(list(deeds), list(deeds.values()))
        await deed(self.chance.choice(NAMES))

    async def call(self, name, **changes):
        self.number += 1
        kind = f"{name} {self.number}"
        ack = {"ack": "stored"} if self.is_durable and self.chance.random() < 0.2 else {}
        options = {"view_start": self.chance.random() < 0.3} | ack | changes
        self.calls.append((name, kind, self.alloy.visitor(name).event(type=kind, **options)))

    async def burst(self, name):
        for _ in range(self.chance.randint(5, 30)):
            await self.call(name)

    async def crowd(self, _):
        """Several call in one turn of the loop, so that they travel together."""
        for name in self.chance.choices(NAMES, k=self.chance.randint(2, 12)):
            await self.call(name, view_start=self.chance.random() < 0.1)

    async def refuse(self, name):
        self.alloy.visitor(name).opt_in(purposes="none")
        await settle(self.chance.choice([0, 1, 20]))
        self.alloy.visitor(name).opt_in(purposes="all")

    async def agree(self, name):
        self.alloy.visitor(name).opt_in(purposes="all")

    async def cancel(self, _):
        still_open = [future for *_, future in self.calls if not future.done()]
        for future in self.chance.sample(still_open, min(len(still_open), self.chance.choice([1, 1, 10]))):
            future.cancel()

    async def leave(self, name, *, known=False):
        """Leave something behind, as a worker that has closed."""
        key = VisitorKey(IDS["ims_org_id"], IDS["config_id"], name)
        if known:
            await self.store.save_preference(key, Preference("all", self.clock.time(), 4_000_000_000.0))
        worker = MemoryOutbox(self.shelf, clock=self.clock)
        await worker.open()
        events = []
        for _ in range(self.chance.randint(1, 8)):
            self.number += 1
            kind = f"{name} left {self.number}"
            body = json.dumps({"xdm": {"eventType": kind}}).encode()
            events.append(OutboxEvent(key, kind, body, self.chance.random() < 0.2, True, self.clock.time()))
            if known:
                self.first_ones.append(kind)
        await worker.write(events, [], epoch=self.shelf.epoch)
        await worker.aclose()
        if not known and self.chance.random() < 0.5:
            self.alloy._engine.take_over()

    async def erase(self, name):
        """Decline elsewhere, and agree again."""
        key = VisitorKey(IDS["ims_org_id"], IDS["config_id"], name)
        other = MemoryOutbox(self.shelf, clock=self.clock)
        await other.open()
        await self.store.save_preference(key, Preference("none", self.clock.time(), 4_000_000_000.0))
        await other.erase(key)
        await settle(self.chance.choice([0, 5, 30]))
        self.alloy.visitor(name).opt_in(purposes="all")
        await other.aclose()

    async def answer(self, _):
        self.edge.answer_late_ones(self.chance.choice([1, None]))

    async def wait(self, _):
        if self.chance.random() < 0.5:
            await self.pass_time(self.chance.choice([0.05, 0.3, 2.0, 10.0, 31.0]))
        else:
            await settle(self.chance.choice([1, 5, 30]))

    async def pass_time(self, seconds):
        self.clock.advance(seconds)
        await settle(30)

    async def ask_for_healthy(self, _):
        """What is in trouble of others delays nobody, where a request may start."""
        await self.alloy.visitor(HEALTHY).opt_in(purposes="all")
        await settle(60)
        await self.call(HEALTHY, view_start=True)
        future = self.calls[-1][-1]
        await settle(100)
        await self.pass_time(LINGER)
        await settle(200)
        books = self.alloy.statistics()
        courier = self.alloy._engine._courier
        has_slot = len(courier._under_way) < courier._max_in_flight
        assert future.done() or not has_slot or books.circuit != "closed", "a healthy visitor waits"

    async def end(self):
        self.edge.is_well = True
        for _ in range(30):
            self.edge.answer_late_ones()
            for name in (*NAMES, HEALTHY):
                self.alloy.visitor(name).opt_in(purposes="all")
            await self.pass_time(6.0)
            if not self.alloy.statistics().open and not self.shelf.events:
                break
            await settle(100)


@pytest.fixture
def storm(request, options, clock, store, monkeypatch):
    chance = random.Random(request.param)
    monkeypatch.setattr(_courier.random, "random", chance.random)
    for module, name, values in [
        (_courier, "SLICE", [2, 5, 500]),
        (_opt_in, "SLICE", [2, 500]),
        (_courier, "FORESIGHT", [1, 3, 2_000]),
        (_taking_over, "SHARE", [1, 3, 2_000]),
        (_taking_over, "CLAIM", [2, 5, 2_000]),
        (_unwritten, "GROUP", [2, 1_000]),
    ]:
        monkeypatch.setattr(module, name, chance.choice(values))
    return Storm(chance, options, clock, store)


@pytest.mark.parametrize("storm", SEEDS, indirect=True)
async def test_whatever_happens(storm):
    """Every event ends once, those of a visitor are taken in the order of their calls, and nobody waits for others."""
    await storm.start()
    for _ in range(storm.chance.randint(15, 60)):
        await storm.do_something()
    await storm.end()
    pending = [kind for _, kind, future in storm.calls if not future.done()]
    books = storm.alloy.statistics()
    taken = storm.edge.taken
    storm.clock.advance(10_000)
    closing = asyncio.ensure_future(storm.alloy.aclose(grace=1))
    await settle(50)
    storm.clock.advance(1)
    await settle(50)
    storm.clock.advance(10)
    await closing
    await asyncio.gather(*(future for *_, future in storm.calls), return_exceptions=True)
    assert not pending
    assert not storm.edge.overtaking
    assert (books.open, books.accepted) == (0, books.ended)
    assert not storm.shelf.events
    assert len(taken) == len({*taken})
    refused = {
        kind
        for _, kind, future in storm.calls
        if not future.cancelled() and isinstance(future.exception(), ConsentDeclined)
    }
    assert not refused.intersection(taken)
    for name in (*NAMES, HEALTHY):
        theirs = [kind for kind in taken if kind.split()[0] == name]
        called = [kind for kind in theirs if "left" not in kind]
        left = [kind for kind in theirs if "left" in kind]
        assert called == sorted(called, key=lambda kind: int(kind.split()[-1]))
        assert left == sorted(left, key=lambda kind: int(kind.split()[-1]))
        first_ones = [kind for kind in theirs if kind in storm.first_ones]
        assert theirs[: len(first_ones)] == first_ones
