"""What others did in an outbox, apart from what a worker did itself."""

from __future__ import annotations

import asyncio

import pytest
from common import settle

from alloy_async._outbox_epoch import OutboxEpoch
from alloy_async.outbox import MemoryOutbox, MemoryShelf, OutboxEvent, VisitorKey

ANNE, BERT = (VisitorKey("org", "datastream", name) for name in ("anne", "bert"))


class Slow(MemoryOutbox):
    """One that answers when it may, what it knew when it was asked."""

    gate: asyncio.Event | None = None

    async def changes(self, since):
        changes = await super().changes(since)
        if self.gate is not None:
            await self.gate.wait()
        return changes

    async def erase(self, visitor):
        epoch = await super().erase(visitor)
        if self.gate is not None:
            await self.gate.wait()
        return epoch


class World:
    """A worker that is looked at, and another one on the same shelf."""

    def __init__(self, clock):
        shelf = MemoryShelf()
        self.outbox = Slow(shelf, clock=clock)
        self.other = MemoryOutbox(shelf, clock=clock)
        self.behind = 0
        self.epoch = OutboxEpoch(self.outbox, on_behind=self.note)

    def note(self):
        self.behind += 1

    async def read(self):
        async with self.epoch.news() as news:
            return news


@pytest.fixture
async def world(clock):
    """Both outboxes are open."""
    world = World(clock)
    await world.epoch.open()
    await world.other.open()
    return world


async def test_a_refusal_of_ones_own_is_known_at_once(world):
    """When nothing else has happened there is nothing to ask for, and nothing new to be read."""
    await world.epoch.erase(ANNE)
    assert (world.epoch.is_latest(), world.behind) == (True, 0)
    assert (await world.read()).declined == set()


async def test_what_others_did_before_is_asked_for(world):
    """The refusal of our own is told along with it, and is no news."""
    await world.other.erase(BERT)
    await world.epoch.erase(ANNE)
    assert (world.epoch.is_latest(), world.behind) == (False, 1)
    news = await world.read()
    assert (news.refused, {*news.declined}, {*news.erased}) == ({BERT}, {ANNE, BERT}, {ANNE})
    assert world.epoch.is_latest()


async def test_a_later_refusal_elsewhere_of_the_same_visitor_is_news(world):
    """Whoever has erased hears of it when the visitor declines once more, in another worker."""
    await world.other.erase(BERT)
    await world.epoch.erase(ANNE)
    await world.other.erase(ANNE)
    assert (await world.read()).refused == {ANNE, BERT}


async def test_refusals_of_ones_own_are_forgotten_once_nobody_can_speak_of_them(world):
    """Each is told by the outbox once."""
    await world.other.erase(BERT)
    await world.epoch.erase(ANNE)
    await world.read()
    assert (await world.read()).erased == set()


@pytest.mark.parametrize("erases_first", [True, False])
async def test_a_refusal_of_ones_own_is_never_read_as_another_s(world, erases_first):
    """However slow the answers are: erasing and reading take turns."""
    await world.other.erase(BERT)
    world.outbox.gate = asyncio.Event()
    deeds = [lambda: world.epoch.erase(ANNE), world.read]
    tasks = [asyncio.ensure_future(deed()) for deed in (deeds if erases_first else deeds[::-1])]
    await settle()
    world.outbox.gate.set()
    (news,) = [told for told in await asyncio.gather(*tasks) if told is not None]
    assert news.refused == {BERT}
    assert (await world.read()).refused == set()


async def test_nothing_is_erased_until_the_news_has_been_applied(world):
    """What is applied is not about what is being erased meanwhile."""
    async with world.epoch.news():
        erasing = asyncio.ensure_future(world.epoch.erase(ANNE))
        await settle()
        assert not erasing.done()
    await erasing


async def test_nothing_is_erased_of_whom_that_is_no_longer_wanted(world):
    """The function is asked of the visitor once it is this one's turn."""
    asked = []
    await world.epoch.erase(ANNE, lambda visitor: bool(asked.append(visitor)))
    assert asked == [ANNE]
    assert world.epoch.number == (await world.other.changes(0)).epoch
    assert (await world.other.changes(0)).refused == {}


async def test_what_is_gone_is_told(world, clock):
    """By its place in the outbox."""
    row = OutboxEvent(ANNE, "1", b"{}", False, False, clock.time())
    stored = await world.outbox.write([row], [], epoch=world.epoch.number)
    await world.other.erase(ANNE)
    news = await world.read()
    assert (news.refused, news.gone) == ({ANNE}, {*stored.keys})
