"""What is a worker's own in an outbox: what lies where, what has ended, and the counts of both."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from alloy_async._held import Held
from alloy_async._ledger import Ledger
from alloy_async._taking_over import Returning
from alloy_async.outbox import VisitorKey

ANNE, BERT = (VisitorKey("org", "datastream", name) for name in ("anne", "bert"))


class World:
    """What a worker holds, and who counts."""

    def __init__(self):
        self.ledger, self.returning = Ledger(), Returning()
        self.held = Held(self.ledger, self.returning)

    def hold(self, key, visitor=ANNE, *, order=1):
        command = SimpleNamespace(key=key, visitor=SimpleNamespace(key=visitor), order=order)
        self.held.hold(command, key)
        return command

    def counts(self):
        return self.ledger.stored, self.returning.total, self.returning.of(ANNE)

    def ended(self):
        with self.held.erasing() as ended:
            return ended


@pytest.fixture
def world():
    """Nothing is held."""
    return World()


def test_what_is_held_is_counted_until_it_is_dropped(world):
    """What was taken over is counted by its visitor too; what is not there changes nothing."""
    new, left = world.hold(7), world.hold(3, order=-1)
    world.hold(5, BERT, order=-2)
    assert world.counts() == (3, 2, 1)
    assert (world.held.drop(3), world.held.drop(3)) == (left, None)
    assert world.counts() == (2, 1, 0)
    assert world.held.drop(7) is new
    assert world.counts() == (1, 1, 0)


def test_who_has_what_where(world):
    """Places are told in their order, and those of others are passed over."""
    last, first, bert = world.hold(7), world.hold(3), world.hold(5, BERT)
    assert world.held.at({7, 3, 100}) == [first, last]
    assert world.held.of(BERT) == [bert]
    assert world.held.visitors() == {ANNE, BERT}


def test_what_has_ended_is_erased_once(world):
    """By the next write that is completed."""
    for key in (2, 1):
        world.held.erase_later(key)
    assert world.held.has_ended()
    assert world.ended() == [2, 1]
    assert not world.held.has_ended()


@pytest.mark.parametrize("failure", [ValueError, asyncio.CancelledError])
def test_what_could_not_be_erased_is_erased_next(world, failure):
    """Before what has ended meanwhile; a cancelled write may not have been carried out."""
    world.held.erase_later(1)

    def write():
        with world.held.erasing():
            world.held.erase_later(2)
            raise failure

    with pytest.raises(failure):
        write()
    assert world.ended() == [1, 2]
