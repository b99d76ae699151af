"""Workers whose shared outbox comes and goes, in whatever order things happen: nothing is lost, refused and sent, or overtaken."""

from __future__ import annotations

import asyncio
import random

import pytest
from common import settle
from test_fallback import Local, Shared, left_by_another, world  # noqa: F401 - a fixture

from alloy_async import ConsentDeclined, _fallback, _taking_over, _unwritten

NAMES = ("anne", "bert")
SLOW = ("write", "claim", "abandoned", "renew", "changes", "erase")
"""What an outbox is asked, each time with another delay before and after."""


class Storm:
    """Does one thing after another to two workers of a machine, and keeps what they were called with."""

    def __init__(self, world, seed):  # noqa: F811 - the fixture
        self.world = world
        self.chance = random.Random(seed)
        self.workers = []
        self.calls = []
        self.number = 0

    async def start(self):
        self.workers = [await self.world.start(down=down) for down in (self.chance.random() < 0.3, False)]
        for worker in self.workers:
            for name in NAMES:
                worker.visitor(name).opt_in(purposes="all")
        self.workers[0].visitor("carl").opt_in(purposes="none")
        await settle(20)

    async def do_something(self):
        deeds = {self.call: 9, self.fail: 3, self.refuse: 1, self.cancel: 1, self.leave: 2, self.wait: 4}
        (deed,) = self.chance.choices(list(deeds), list(deeds.values()))
        await deed(self.chance.choice(self.workers), self.chance.choice(NAMES))

    async def call(self, worker, name):
        self.number += 1
        ack = {"ack": "stored"} if self.chance.random() < 0.5 else {}
        future = worker.visitor(name).event(type=f"{name} {self.number}", **ack)
        self.calls.append((worker, name, f"{name} {self.number}", future))

    async def fail(self, worker, _):
        what = self.chance.choice(["down", "down", "full"])
        setattr(worker.shared, what, not getattr(worker.shared, what))

    async def refuse(self, worker, name):
        worker.visitor(name).opt_in(purposes="none")
        await settle(self.chance.choice([0, 1, 20]))
        worker.visitor(name).opt_in(purposes="all")

    async def cancel(self, *_):
        still_open = [future for *_, future in self.calls if not future.done()]
        if still_open:
            self.chance.choice(still_open).cancel()

    async def leave(self, worker, _):
        self.number += 1
        name, there = self.chance.choice([*NAMES, "carl"]), self.chance.random() < 0.3
        await left_by_another(self.world, name, f"left {self.number}", there=there)
        worker._engine._keeper.claim()

    async def wait(self, *_):
        if self.chance.random() < 0.3:
            await self.world.pass_time(self.chance.choice([0.05, 1.0, 5.0]))
        else:
            await settle(self.chance.choice([1, 5, 30]))

    async def end(self):
        for worker in self.workers:
            worker.shared.down = worker.shared.full = False
        for _ in range(8):
            await self.world.pass_time(1.0)
            await self.world.pass_time(5.0)


def delay(outbox, name, chance, monkeypatch):
    """Let a method take some turns of the loop, before it is done and after."""
    plain = getattr(outbox, name)

    async def slowly(self, *arguments, **keywords):
        await settle(chance.choice([0, 0, 1, 3]))
        answer = await plain(self, *arguments, **keywords)
        await settle(chance.choice([0, 0, 1, 3]))
        return answer

    monkeypatch.setattr(outbox, name, slowly)


@pytest.mark.parametrize("seed", range(25))
async def test_whatever_happens(world, edge, monkeypatch, seed):  # noqa: F811 - the fixture
    """Once all is well again every event has had one truthful end, and those of a visitor were sent in their order."""
    storm = Storm(world, seed)
    monkeypatch.setattr(_unwritten, "GROUP", storm.chance.choice([2, 3, 1_000]))
    monkeypatch.setattr(_taking_over, "CLAIM", storm.chance.choice([2, 2_000]))
    monkeypatch.setattr(_taking_over, "SHARE", storm.chance.choice([1, 2_000]))
    monkeypatch.setattr(_fallback, "ENDED", storm.chance.choice([1, 2_000]))
    for outbox in (Local, Shared):
        for name in SLOW:
            delay(outbox, name, storm.chance, monkeypatch)
    await storm.start()
    for _ in range(storm.chance.randint(15, 50)):
        await storm.do_something()
    await storm.end()
    assert all(future.done() for *_, future in storm.calls)
    await asyncio.gather(*(future for *_, future in storm.calls), return_exceptions=True)
    refused = [
        kind
        for *_, kind, future in storm.calls
        if not future.cancelled() and isinstance(future.exception(), ConsentDeclined)
    ]
    assert not {*refused} & {*edge.event_types}
    assert len(edge.event_types) == len({*edge.event_types})
    for worker in storm.workers:
        for name in NAMES:
            called = [call[2] for call in storm.calls if call[:2] == (worker, name)]
            assert [kind for kind in edge.event_types if kind in called] == [
                kind for kind in called if kind in edge.event_types
            ]
        books = worker.statistics()
        assert (books.open, books.accepted) == (0, books.ended)
    assert (world.stored_here(), world.stored_there()) == ([], [])
