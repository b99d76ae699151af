"""The line of events: order, whatever comes back."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, strategies as st

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
    assert not list(line.returned())


def test_removing_what_has_gone_is_harmless():
    """An event that left in the meantime may be removed again."""
    line: Line[Event] = Line()
    event = Event(1)
    line.put(event)
    line.remove(event)
    line.remove(event)
    assert len(line) == 0
