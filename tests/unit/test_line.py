"""The line of events: order, whatever comes back."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from itertools import islice, takewhile

import pytest
from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from alloy_async._line import Line


class Visitor:
    newest_in_line = 0


@dataclass(eq=False)
class Event:
    order: int
    visitor: Visitor = field(default_factory=Visitor)
    body: bytes = b"{}"


@given(st.data(), st.integers(1, 3), st.integers(1, 20))
def test_what_comes_back_takes_its_place(data, visitors, count):
    """Events that were taken, of each visitor the first ones, and given back, in any portions, keep each visitor's order."""
    persons = [Visitor() for _ in range(visitors)]
    events = [Event(order, data.draw(st.sampled_from(persons))) for order in range(1, count + 1)]
    line: Line[Event] = Line()
    for event in events:
        line.put(event)
    taken = []
    for person in persons:
        theirs = [event for event in events if event.visitor is person]
        taken += theirs[: data.draw(st.integers(0, len(theirs)))]
    line.remove(*taken)
    back = data.draw(st.permutations(taken))
    cut = data.draw(st.integers(0, len(back)))
    line.give_back(back[cut:])
    for event in back[:cut]:
        line.put(event)
    waiting = list(line.waiting())
    assert len(waiting) == len(line) == count
    assert line.size == count * 3
    for person in persons:
        of_person = [event.order for event in waiting if event.visitor is person]
        assert of_person == sorted(of_person)


def test_what_is_released_late_delays_nobody():
    """Events that were called early and released late, of one visitor among others, go to the end like all that come."""
    line: Line[Event] = Line()
    early, late = Visitor(), Visitor()
    events = [Event(5, late), Event(1, early), Event(6, late), Event(2, early)]
    for event in events:
        line.put(event)
    assert list(line.waiting()) == events
    assert not list(line.returned({early, late}))


def test_removing_what_has_gone_is_harmless():
    """An event that left in the meantime may be removed again."""
    line: Line[Event] = Line()
    event = Event(1)
    line.put(event)
    line.remove(event)
    line.remove(event)
    assert len(line) == 0


def test_what_comes_back_stands_before_what_was_set_aside_since():
    """It is older; nothing else of its visitor passes by."""
    line: Line[Event] = Line()
    anne, bert = Visitor(), Visitor()
    events = [Event(1, anne), Event(2, anne), Event(3, bert), Event(4, bert), Event(5, anne)]
    for event in events:
        line.put(event)
    line.remove(events[0], *events[2:4])
    line.set_aside(events[1:2])
    line.give_back([events[0], events[3]])
    line.give_back([events[2]])
    assert [event.order for event in line.waiting()] == [3, 4, 5]
    assert [event.order for event in line.waiting() if line.is_held_up(event)] == [5]
    line.let_pass(lambda _: True)
    assert [event.order for event in line.waiting()] == [1, 2, 3, 4, 5]
    assert not any(map(line.is_held_up, line))


@pytest.mark.parametrize(
    ("aside", "back", "stands_aside"),
    [
        (
            [-5, -4, 1, 2],
            [-3, -2],
            True,
        ),  # as the next part of what was left, between the last one and what is new
        ([-5, 1], [-6], True),
        ([-5, -4, 1, 2], [-3, 3], False),
        ([-5, -3, 1], [-4, -2], False),
        ([-5, 1], [-3, -4], False),
        ([-5, 1], [2, 3], False),
    ],
)
@pytest.mark.parametrize("in_front", [False, True])
def test_what_comes_back_in_the_midst_of_what_was_set_aside(aside, back, stands_aside, in_front):
    """It stands there too, where it stands together; else all of that comes back, in order."""
    line: Line[Event] = Line()
    anne = Visitor()
    events = {order: Event(order, anne, b"x" * abs(order)) for order in (*aside, *back, 9)}
    for order in (*aside, 9):
        line.put(events[order])
    line.set_aside([events[order] for order in aside])
    line.let_pass(lambda _: in_front)
    line.give_back([events[order] for order in back])
    in_order = sorted(events)
    assert [event.order for event in line] == in_order
    assert [event.order for event in line.waiting()] == ([9] if stands_aside and not in_front else in_order)
    line.let_pass(lambda _: True)
    assert [event.order for event in line.waiting()] == in_order
    line.remove(*line)
    assert (len(line), line.size) == (0, 0)


def test_what_was_set_aside_may_be_set_aside_again():
    """The next one of the visitor has to wait though the first one, which went away, had not."""
    line: Line[Event] = Line()
    anne = Visitor()
    first, second = Event(1, anne), Event(2, anne)
    line.put(first)
    line.put(second)
    line.set_aside([first, second])
    line.let_pass(lambda _: True)
    line.remove(first)
    line.set_aside([second])
    assert line.first() is None
    assert list(line) == list(line.oldest_aside()) == [second]
    line.remove(second)
    assert (len(line), line.size) == (0, 0)


class Lines(RuleBasedStateMachine):
    """Whatever is taken, given back, set aside and let pass: each visitor's events go in order, and none is lost."""

    def __init__(self):
        super().__init__()
        self.line: Line[Event] = Line()
        self.persons = [Visitor(), Visitor()]
        self.inside: set[Event] = set()
        self.taken: list[Event] = []
        self.order = self.too_old = 0

    def theirs(self, visitor):
        return [event.order for event in self.inside if event.visitor is visitor]

    @rule(person=st.sampled_from([0, 1]), count=st.integers(1, 4))
    def called(self, person, count):
        for _ in range(count):
            self.order += 1
            event = Event(self.order, self.persons[person], b"x" * (self.order % 7))
            self.line.put(event)
            self.inside.add(event)

    @rule(orders=st.integers(1, 3))
    def time_passed(self, orders):
        self.too_old = min(self.too_old + orders, self.order)

    @precondition(lambda self: self.inside)
    @rule(
        busy=st.sets(st.sampled_from([0, 1])),
        ahead=st.integers(1, 3),
        count=st.integers(0, 4),
        looks_aside=st.booleans(),
    )
    def looked_at(self, busy, ahead, count, looks_aside):
        """As the courier does: what has to wait, at the front, is set aside; then some go that need not wait.

        What has become too old is taken away when it comes to the front.
        """
        busy = {self.persons[person] for person in busy}
        if looks_aside:
            self.line.let_pass(lambda first: first.order <= self.too_old or first.visitor not in busy)
        bars = takewhile(
            lambda event: event.order <= self.too_old or event.visitor in busy or self.line.is_held_up(event),
            self.line.waiting(),
        )
        front = list(islice(bars, ahead))
        ended = [event for event in front if event.order <= self.too_old]
        self.line.set_aside(event for event in front if event not in ended)
        self.line.remove(*ended)
        self.inside.difference_update(ended)
        if len(front) < ahead:
            first = self.line.first()
            assert first is None or first.visitor not in busy
        free = [event for event in self.line.waiting() if not self.line.is_held_up(event)]
        go = [event for event in free if event.visitor not in busy][:count]
        for event in go:
            assert event.order == min(self.theirs(event.visitor))
            self.inside.discard(event)
        self.line.remove(*go)
        self.taken += go

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), at_once=st.booleans())
    def came_back(self, data, at_once):
        chosen = data.draw(st.sets(st.sampled_from(range(len(self.taken))), min_size=1))
        back = [event for number, event in enumerate(self.taken) if number in chosen]
        self.taken = [event for event in self.taken if event not in back]
        if at_once:
            self.line.give_back(back)
        else:
            for event in reversed(back):
                self.line.put(event)
        self.inside.update(back)

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def withdrawn(self, data):
        event = data.draw(st.sampled_from(sorted(self.inside, key=lambda event: event.order)))
        self.line.remove(event)
        self.line.remove(event)
        self.inside.discard(event)

    @invariant()
    def all_are_there(self):
        everything = list(self.line)
        assert len(everything) == len(self.line) == len(self.inside)
        assert {*everything} == self.inside
        for person in self.persons:
            theirs = [event.order for event in everything if event.visitor is person]
            assert theirs == sorted(theirs)

    @invariant()
    def each_stands_in_one_place(self):
        standing = list(self.line.waiting())
        assert len({*standing}) == len(standing)
        assert {*standing} <= self.inside
        rest = copy(self.line)
        rest.let_pass(lambda _: False)
        assert self.line.size == sum(len(event.body) + 1 for event in rest.waiting())

    @invariant()
    def the_oldest_that_was_set_aside_is_known(self):
        oldest = {}
        for event in self.line.returned({*self.persons}):
            oldest.setdefault(event.visitor, event.order)
        for event in self.line.oldest_aside():
            assert oldest[event.visitor] == min(self.theirs(event.visitor))


TestLines = Lines.TestCase
