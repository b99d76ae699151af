"""Whose events may be taken over: visitors are asked about as often as it is needed, and not again."""

import logging
from types import SimpleNamespace

from alloy_async._recovered import RecoveredEvents
from alloy_async.outbox.base import VisitorKey

ANNE = VisitorKey("org", "datastream", "anne")


class Anne:
    """A visitor who has chosen nothing until ``said``, and counts how often the store is asked.

    Attributes:
        readings: of the choice.
        lessons: readings of since when she consents.
    """

    key = ANNE

    def __init__(self, said=None):
        self.said, self.readings, self.lessons = said, 0, 0
        self.knows_choice = False
        self.keeper = SimpleNamespace(learn_of_refusals=self._learn)

    @property
    def gate(self):
        purposes = self.said if self.knows_choice and self.said else "pending"
        return SimpleNamespace(is_opted_in=purposes == "all", purposes=purposes, epoch=0)

    async def read_choice(self):
        self.readings += 1
        self.knows_choice = True

    async def _learn(self):
        self.lessons += 1


def to_take_over(anne, states, *, asks=True):
    """Return what is to be known of visitors; ``states`` are those that the instance knows."""

    def meet(key):
        return states.setdefault(key, anne)

    logger = logging.getLogger("alloy_async")
    return RecoveredEvents(states.get, meet, courier=None, asks=asks, logger=logger).of_shared_outbox()


async def test_who_has_chosen_nothing_is_not_asked_about_again():
    """Not with each look at the outbox, until the visitor comes; but once more when their events are left anew."""
    anne, states = Anne(), {}
    visitors = to_take_over(anne, states)
    for _ in range(3):
        assert await visitors.consenting([ANNE]) == {}
        states.clear()  # idle states are dropped
    assert anne.readings == 1
    assert await visitors.consenting([]) == {}  # all of theirs has gone on
    anne.said = "all"
    assert await visitors.consenting([ANNE]) == {ANNE: (anne, 0)}
    assert anne.readings == 2


async def test_since_when_a_visitor_consents_is_read_once():
    """Where the choice has been known for long; who was killed meanwhile may have refused last."""
    anne = Anne("all")
    anne.knows_choice = True
    visitors = to_take_over(anne, {ANNE: anne})
    for _ in range(2):
        assert await visitors.consenting([ANNE]) == {ANNE: (anne, 0)}
    assert anne.lessons == 1
    await visitors.consenting([])
    await visitors.consenting([ANNE])
    assert anne.lessons == 2


async def test_where_nobody_is_asked_the_outbox_alone_says_it():
    """A relay keeps no choices: it reads none, and a refusal of which the outbox has told holds."""
    anne = Anne("all")
    anne.knows_choice = True
    relay = to_take_over(anne, {ANNE: anne}, asks=False)
    assert await relay.consenting([ANNE]) == {ANNE: (anne, 0)}
    assert anne.lessons == 0
    assert relay.holds(ANNE)
    assert not to_take_over(anne, {ANNE: anne}).holds(ANNE)
