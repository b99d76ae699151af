"""The line of events: order, whatever comes back."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, strategies as st

from alloy_async._line import Line


@dataclass(eq=False)
class Event:
    order: int
    body: bytes = b"{}"


@given(st.data(), st.integers(1, 20))
def test_what_comes_back_takes_its_place(data, count):
    """Events that were taken and given back, in any portions and order, are handed out in the order of their calls."""
    events = [Event(order) for order in range(count)]
    line: Line[Event] = Line()
    for event in events:
        line.put(event)
    taken = data.draw(st.lists(st.sampled_from(events), unique=True))
    for event in taken:
        line.remove(event)
    cut = data.draw(st.integers(0, len(taken)))
    line.give_back(taken[cut:])
    for event in taken[:cut]:
        line.put(event)
    assert list(line.waiting()) == events
    assert len(line) == count


def test_removing_what_has_gone_is_harmless():
    """An event that left in the meantime may be removed again."""
    line: Line[Event] = Line()
    event = Event(1)
    line.put(event)
    line.remove(event)
    line.remove(event)
    assert len(line) == 0
