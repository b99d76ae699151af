"""Taking over in an outbox what dead workers have left: in parts, one look at a time, and with a rest after a failure."""

from __future__ import annotations

import asyncio
import logging

import pytest
from common import settle

from alloy_async import OutboxError, _taking_over
from alloy_async._taking_over import Recovery, TakingOver
from alloy_async.outbox import LEASE, MemoryOutbox, MemoryShelf, OutboxEvent, VisitorKey

ANNE, BERT, DORA = (VisitorKey("org", "datastream", name) for name in ("anne", "bert", "dora"))


class Outbox(MemoryOutbox):
    """One that notes what it is asked, fails as told, and waits at its gate."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.looks = 0
        self.failing = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def abandoned(self):
        self.looks += 1
        await self.gate.wait()
        if self.failing:
            raise OutboxError("read", "of the test", "the disk is gone.")
        return await super().abandoned()


class World:
    """A worker's recovery, its outbox, and what it tells."""

    def __init__(self, clock):
        self.clock = clock
        self.shelf = MemoryShelf()
        self.outbox = Outbox(self.shelf, clock=clock)
        self.consents, self.declined = {ANNE, BERT}, {DORA}
        self.held, self.erased, self.told = [], [], []
        self.recovery = self.make()

    def make(self, **changes):
        recovery = Recovery(
            self.outbox,
            lifetime=LEASE,
            clock=self.clock,
            logger=logging.getLogger("test"),
            **{
                "on_lease_lost": lambda: self.told.append("lease lost"),
                "hold": self.hold,
                "erase_if": self.erase_if,
                "hand_over": None,
                **changes,
            },
        )
        recovery.open(
            TakingOver(
                consenting=self.consenting,
                read_again=self.read_again,
                has_declined=lambda visitor: visitor in self.declined,
                holds=lambda _: False,
                on_claimed=self.come_back,
            ),
            on_ended=lambda: self.told.append("ended"),
        )
        return recovery

    async def consenting(self, visitors):
        return dict.fromkeys(self.consents.intersection(visitors))

    async def read_again(self, visitor):
        self.told.append(f"read {visitor.visitor}")

    def come_back(self, claimed, _):
        return list(claimed)

    def hold(self, claimed):
        self.held += [one.event.event_id for one in claimed]
        for one in claimed:
            self.recovery.returning.add(one.event.visitor)

    def goes_on(self, visitor, count=1):
        """Events of a visitor go on; return whether there is room for more now."""
        for _ in range(count):
            self.recovery.returning.drop(visitor)
        return self.recovery.should_go_on(visitor)

    async def erase_if(self, visitor, still):
        if still(visitor):
            self.erased.append(visitor)

    async def leave(self, visitor, *names):
        """Leave events as a worker that has ended."""
        other = MemoryOutbox(self.shelf, clock=self.clock)
        epoch = await other.open()
        now = self.clock.time()
        await other.write(
            [OutboxEvent(visitor, name, b"{}", False, False, now) for name in names], [], epoch=epoch
        )
        await other.aclose()


@pytest.fixture
async def world(clock):
    """An open outbox, and nothing left in it."""
    world = World(clock)
    await world.outbox.open()
    return world


async def test_until_it_has_been_looked_nobody_has_recovered(world):
    """Not even a visitor of whom nothing is left."""
    assert (world.recovery.left(), world.recovery.has_recovered(ANNE)) == (None, False)
    world.recovery.start()
    assert world.recovery.is_claiming
    await settle()
    assert (world.recovery.left(), world.recovery.has_recovered(ANNE)) == (frozenset(), True)
    assert (world.recovery.is_claiming, world.told) == (False, ["ended"])


async def test_what_is_left_of_those_who_consent_is_held(world):
    """Oldest first; what is left of somebody who has not chosen stays."""
    world.consents = {ANNE}
    await world.leave(ANNE, "1", "2")
    await world.leave(BERT, "3")
    world.recovery.start()
    await settle()
    assert (world.held, world.recovery.left()) == (["1", "2"], {BERT})
    assert (world.recovery.has_recovered(ANNE), world.recovery.has_recovered(BERT)) == (True, False)


async def test_one_look_shows_all_and_no_second_one_is_made_for_it(world):
    """That nothing more is left of those who consent is known from claiming, without asking again."""
    await world.leave(ANNE, "1")
    world.recovery.start()
    world.recovery.start()
    await settle()
    assert (world.recovery.has_recovered(ANNE), world.outbox.looks) == (True, 1)


async def test_it_goes_on_when_half_of_a_part_has_gone_on(world, monkeypatch):
    """Until then memory holds as much as it should."""
    monkeypatch.setattr(_taking_over, "CLAIM", 4)
    await world.leave(ANNE, *"123456")
    world.recovery.start()
    await settle()
    assert (world.held, world.recovery.has_recovered(ANNE)) == ([*"1234"], False)
    assert not world.goes_on(ANNE)
    assert world.goes_on(ANNE)
    world.recovery.start()
    await settle()
    assert world.goes_on(ANNE, 2)
    world.recovery.start()
    await settle()
    assert (world.held, world.recovery.has_recovered(ANNE)) == ([*"123456"], True)
    assert not world.goes_on(ANNE)


async def test_one_visitor_leaves_room_for_others(world, monkeypatch):
    """However much was left of somebody whose events do not go on; more follows when half of that has gone on."""
    monkeypatch.setattr(_taking_over, "SHARE", 4)
    await world.leave(ANNE, *"123456789")
    await world.leave(BERT, *"abc")
    await world.leave(ANNE, "10")
    world.recovery.start()
    await settle()
    assert (world.held, world.recovery.left()) == ([*"1234abc"], {ANNE})
    assert not world.goes_on(ANNE)
    assert not world.goes_on(BERT, 3)
    assert world.goes_on(ANNE)
    world.recovery.start()
    await settle()
    assert world.held == [*"1234abc5678"]
    assert world.goes_on(ANNE, 5)
    world.recovery.start()
    await settle()
    assert (world.held[11:], world.recovery.has_recovered(ANNE)) == (["9", "10"], True)


async def test_what_goes_on_while_more_is_taken_over_makes_room_at_once(world, monkeypatch):
    """Nobody says so later, when the last of it has gone on."""
    monkeypatch.setattr(_taking_over, "SHARE", 2)
    await world.leave(ANNE, *"123")
    await world.leave(BERT, *"ab")
    claim = world.outbox.claim

    async def slowly(visitors, **keywords):
        claimed = await claim(visitors, **keywords)
        if BERT in visitors and ANNE not in visitors and world.recovery.returning.of(ANNE):
            world.goes_on(ANNE, 2)
        return claimed

    monkeypatch.setattr(world.outbox, "claim", slowly)
    world.recovery.start()
    await settle()
    assert (sorted(world.held), world.recovery.has_recovered(ANNE)) == ([*"123ab"], True)


async def test_what_has_failed_rests(world, clock, caplog):
    """Newer events go on waiting; it is told that it has ended, and tried again when it has rested, or is told to."""
    world.outbox.failing = True
    world.recovery.start()
    await settle()
    assert (world.recovery.has_recovered(ANNE), world.told) == (False, ["ended"])
    assert "tried again" in caplog.text
    world.recovery.start()
    assert not world.recovery.is_claiming
    world.recovery.stop_resting()
    world.recovery.start()
    await settle()
    assert world.outbox.looks == 2
    world.outbox.failing = False
    clock.advance(LEASE / 3)
    world.recovery.start()
    await settle()
    assert (world.recovery.has_recovered(ANNE), world.outbox.looks) == (True, 3)


async def test_a_lease_that_had_run_out_is_told(world, clock):
    """Each time, and only then."""
    clock.advance(LEASE)
    world.recovery.start()
    await settle()
    world.recovery.start()
    await settle()
    assert world.told == ["lease lost", "ended", "ended"]


async def test_a_cancelled_look_leaves_nothing_behind(world):
    """It tells nobody that it has ended, and the next start begins anew."""
    await world.leave(ANNE, "1")
    world.outbox.gate.clear()
    world.recovery.start()
    await settle()
    (task,) = world.recovery.tasks()
    task.cancel()
    await settle()
    assert (world.recovery.tasks(), world.told, world.recovery.has_recovered(ANNE)) == ([], [], False)
    world.outbox.gate.set()
    world.recovery.start()
    await settle()
    assert (world.held, world.told) == (["1"], ["ended"])


async def test_a_look_that_was_cancelled_before_it_began_is_taken_again(world):
    """Otherwise the lease would never be renewed again."""
    await world.leave(ANNE, "1")
    world.recovery.start()
    (task,) = world.recovery.tasks()
    task.cancel()
    await settle()
    assert (world.recovery.is_claiming, world.told) == (False, [])
    world.recovery.start()
    await settle()
    assert (world.held, world.told) == (["1"], ["ended"])


async def test_erasing_that_was_cancelled_before_it_began_begins_again(world):
    """With the next look."""
    await world.leave(DORA, "1")
    world.recovery.start()
    while not (erasing := [task for task in asyncio.all_tasks() if task.get_name() == "alloy-outbox-erase"]):
        await settle(1)
    erasing[0].cancel()
    await settle()
    assert world.erased == []
    world.recovery.start()
    await settle()
    assert world.erased == [DORA]


async def test_after_the_end_the_lease_is_renewed_and_nothing_taken_over(world):
    """What is under way is cancelled."""
    await world.leave(ANNE, "1")
    world.outbox.gate.clear()
    world.recovery.start()
    await settle()
    await world.recovery.finish()
    assert world.recovery.tasks() == []
    world.outbox.gate.set()
    world.recovery.start()
    await settle()
    assert (world.held, world.told, world.outbox.looks) == ([], ["ended"], 1)


async def test_what_was_declined_is_erased_beside(world):
    """Once the choice has been read again; taking over has ended before."""
    await world.leave(ANNE, "1")
    await world.leave(DORA, "2")
    world.recovery.start()
    await settle()
    assert (world.held, world.erased, world.told) == (["1"], [DORA], ["ended", "read dora"])
    assert world.recovery.tasks() == []


async def test_what_is_consented_to_when_the_choice_is_read_again_stays(world, monkeypatch):
    """The choice that was known is not the one that holds."""
    await world.leave(DORA, "1")

    async def read_again(visitor):
        world.declined.remove(visitor)

    monkeypatch.setattr(world, "read_again", read_again)
    world.recovery = world.make()
    world.recovery.start()
    await settle()
    assert (world.erased, world.declined) == ([], set())


async def test_a_worker_that_hands_over_takes_over_nothing(world):
    """Nothing of what is left waits for it, and nothing waits behind that."""
    await world.leave(ANNE, "1")

    async def hand_over():
        world.told.append("handed over")

    world.recovery = world.make(hand_over=hand_over)
    world.recovery.start()
    await settle()
    assert (world.told, world.held, world.outbox.looks) == (["handed over", "ended"], [], 0)
    assert (world.recovery.left(), world.recovery.has_recovered(ANNE)) == (frozenset(), True)
