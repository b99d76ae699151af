"""Looking at what others did: one look at a time, and nothing is current before its answer."""

from __future__ import annotations

import asyncio
import logging

import pytest
from common import settle

from alloy_async import OutboxError
from alloy_async._lookout import AGAIN, PAUSE, Lookout


class World:
    """A lookout that asks the test."""

    def __init__(self, clock):
        self.clock = clock
        self.answers = []
        self.asked = 0
        self.told = 0
        self.told_back = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.lookout = Lookout(self.ask, clock=clock, logger=logging.getLogger("test"))

    async def ask(self):
        self.asked += 1
        await self.gate.wait()
        answer = self.answers.pop(0) if self.answers else True
        if isinstance(answer, Exception):
            raise answer
        return answer

    def tell(self):
        self.told += 1

    def tell_back(self):
        self.told_back += 1

    async def pass_time(self, seconds):
        self.clock.advance(seconds)
        await settle()


@pytest.fixture
def world(clock):
    """A lookout that is open."""
    world = World(clock)
    world.lookout.open(on_current=world.tell, on_back=world.tell_back)
    return world


async def test_nothing_is_current_before_it_is_open(clock):
    """It does not ask either, and asks once it is open."""
    world = World(clock)
    world.lookout.look()
    assert (world.lookout.is_current(), world.asked) == (False, 0)
    world.lookout.open(on_current=world.tell, on_back=world.tell_back)
    assert not world.lookout.is_current()
    await settle()
    assert (world.lookout.is_current(), world.asked, world.told) == (True, 1, 1)


async def test_nothing_is_current_while_it_looks(world):
    """However often it is asked to, it looks once, and tells once."""
    world.gate.clear()
    assert world.lookout.is_current()
    for _ in range(3):
        world.lookout.look()
        await settle()
        assert not world.lookout.is_current()
    world.gate.set()
    await settle()
    assert (world.lookout.is_current(), world.asked, world.told) == (True, 1, 1)


async def test_what_cannot_be_told_yet_is_asked_again_after_a_pause(world):
    """Nobody is told before that sending may go on."""
    world.answers = [False]
    world.lookout.look()
    await settle()
    assert (world.lookout.is_current(), world.asked, world.told) == (False, 1, 0)
    await world.pass_time(PAUSE)
    assert (world.lookout.is_current(), world.asked, world.told) == (True, 2, 1)


async def test_what_cannot_be_read_is_asked_again_later(world, caplog):
    """With a line in the log; what a foreign outbox raises is told by its kind."""
    world.answers = [OutboxError("read", "of the test", "it is down."), ValueError("secret")]
    world.lookout.look()
    await settle()
    await world.pass_time(AGAIN)
    assert (world.lookout.is_current(), world.told) == (False, 0)
    await world.pass_time(AGAIN)
    assert (world.lookout.is_current(), world.asked, world.told) == (True, 3, 1)
    assert ["down" in line or "ValueError" in line for line in caplog.messages] == [True, True]
    assert "secret" not in caplog.text


async def test_an_answer_is_told_that_comes_after_somebody_else_had_none(world):
    """Also where the next look is arranged already, and finds the outbox back."""
    world.lookout.look_later()
    world.lookout.out_of_reach()
    await settle()
    assert world.asked == 0
    await world.pass_time(AGAIN)
    assert (world.asked, world.told_back) == (1, 1)


async def test_an_answer_after_none_is_told_once(world):
    """However often there was none; and an answer after an answer is nothing to tell."""
    problem = OutboxError("read", "of the test", "it is down.")
    world.answers = [True, problem, problem, False]
    world.lookout.look()
    await settle()
    world.lookout.look()
    await settle()
    await world.pass_time(AGAIN)
    assert world.told_back == 0
    await world.pass_time(AGAIN)
    assert world.told_back == 1
    await world.pass_time(PAUSE)
    assert (world.lookout.is_current(), world.asked, world.told_back) == (True, 5, 1)


async def test_a_look_that_somebody_has_cancelled_is_done_again(world):
    """By whoever wants to send next."""
    world.gate.clear()
    world.lookout.look()
    await settle()
    for task in world.lookout.tasks():
        task.cancel()
    await settle()
    assert (world.lookout.is_current(), world.told) == (False, 0)
    world.gate.set()
    await settle()
    assert (world.lookout.is_current(), world.asked) == (True, 2)


async def test_a_look_that_was_cancelled_before_it_began_is_done_again(world):
    """Likewise: it has run nothing yet that could take note of it."""
    world.lookout.look()
    for task in world.lookout.tasks():
        task.cancel()
    await settle()
    assert (world.lookout.is_current(), world.asked, world.told) == (False, 0, 0)
    await settle()
    assert (world.lookout.is_current(), world.asked, world.told) == (True, 1, 1)


async def test_looking_later(world):
    """What is current stays so until then; a look at once takes its place."""
    world.lookout.look_later()
    world.lookout.make_sure()
    await settle()
    assert (world.lookout.is_current(), world.asked) == (True, 0)
    world.lookout.look()
    await settle()
    await world.pass_time(AGAIN)
    assert world.asked == 1


async def test_a_look_that_is_called_off(world):
    """It looks no more by itself, but when it is told to."""
    world.lookout.look_later()
    world.lookout.call_off()
    await world.pass_time(AGAIN)
    assert world.asked == 0
    world.lookout.look()
    await settle()
    assert world.asked == 1


async def test_after_the_end_it_looks_no_more(world):
    """Neither by itself nor when it is told to."""
    world.lookout.look_later()
    world.lookout.close()
    await world.pass_time(AGAIN)
    world.lookout.look()
    await settle()
    assert (world.asked, world.lookout.is_current(), world.lookout.tasks()) == (0, False, [])
