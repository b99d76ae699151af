"""Where the events of a test are, as the hooks of its instances tell."""

from __future__ import annotations

from collections import Counter

from ..errors import AlloyError
from ..hooks import CircuitChanged, Delivered, Failed, Lost, Parked, Record, Refused, Released

__all__ = ["Whereabouts"]


class Whereabouts:
    """A hook that keeps track of events; for ``configure(hooks=[...])``, of as many instances as there are."""

    def __init__(self) -> None:
        # Counted: two events may have the same id, if the application chose it.
        self._parked: Counter[str] = Counter()
        self._under_way: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        self._errors: dict[str, AlloyError] = {}

    def __call__(self, record: Record) -> None:
        """Note what happened to one event."""
        if isinstance(record, CircuitChanged) or record.command != "event":
            return
        if isinstance(record, Parked):
            self._parked[record.event_id] += 1
        elif isinstance(record, Released):
            _take(self._parked, record.event_id)
            self._under_way[record.event_id] += 1
        elif isinstance(record, Delivered | Refused | Failed | Lost):
            self._end(record)

    def _end(self, record: Delivered | Refused | Failed | Lost) -> None:
        _take(self._parked if self._parked[record.event_id] else self._under_way, record.event_id)
        if isinstance(record, Delivered):
            return
        reason = _reason(record)
        self._ended[reason] += 1
        if isinstance(record, Failed):
            self._errors.setdefault(reason, record.error)

    @property
    def parked(self) -> int:
        """How many wait for consent."""
        return self._parked.total()

    @property
    def under_way(self) -> int:
        """How many have consent and have not ended: they wait for the wire, or are on it."""
        return self._under_way.total()

    def describe(self) -> list[str]:
        """Say in a sentence each where the events are that did not arrive."""
        sentences = []
        if self.parked:
            sentences.append(f"{_events(self.parked)} parked: the visitor has not chosen (opt_in).")
        if self.under_way:
            sentences.append(f"{_events(self.under_way)} on the way: released, without an answer so far.")
        return sentences + [self._farewell(reason, count) for reason, count in self._ended.items()]

    def _farewell(self, reason: str, count: int) -> str:
        error = self._errors.get(reason)
        if error is None:
            return f"{_events(count)} gone: {reason}."
        return f"{_events(count)} gone: {reason}; {'the first: ' if count > 1 else ''}{error}"


def _take(events: Counter[str], event_id: str) -> None:
    events[event_id] -= 1
    if events[event_id] <= 0:
        del events[event_id]


def _events(count: int) -> str:
    return "1 event is" if count == 1 else f"{count} events are"


def _reason(record: Refused | Failed | Lost) -> str:
    if isinstance(record, Refused):
        return "the visitor declined" if record.by == "visitor" else "the edge says that the visitor declined"
    if isinstance(record, Failed):
        return type(record.error).__name__
    return record.reason
