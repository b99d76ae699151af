"""The outbox in memory: order, whatever comes back."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, strategies as st

from alloy_async.outbox import MemoryOutbox


@dataclass(eq=False)
class Event:
    order: int
    body: bytes = b"{}"


@given(st.data(), st.integers(1, 20))
def test_what_comes_back_takes_its_place(data, count):
    """Events that were taken and given back, in any portions and order, are handed out in the order of their calls."""
    events = [Event(order) for order in range(count)]
    outbox: MemoryOutbox[Event] = MemoryOutbox()
    for event in events:
        outbox.put(event)
    taken = data.draw(st.lists(st.sampled_from(events), unique=True))
    for event in taken:
        outbox.remove(event)
    cut = data.draw(st.integers(0, len(taken)))
    outbox.give_back(taken[cut:])
    for event in taken[:cut]:
        outbox.put(event)
    assert list(outbox.waiting()) == events
    assert len(outbox) == count


def test_removing_what_has_gone_is_harmless():
    """An event that left in the meantime may be removed again."""
    outbox: MemoryOutbox[Event] = MemoryOutbox()
    event = Event(1)
    outbox.put(event)
    outbox.remove(event)
    outbox.remove(event)
    assert len(outbox) == 0
