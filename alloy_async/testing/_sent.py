"""What was sent to an edge, for tests to look at and for people to read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Row", "SentEvent", "as_table", "rows"]

_MOST_ROWS = 40


class SentEvent(dict[str, Any]):
    """One event as it arrived: a dict like ``{"xdm": {"_id": …, "eventType": …, …}, "data": {…}}``, with short ways in."""

    @property
    def type(self) -> str | None:
        """``xdm.eventType``."""
        return _text(self.xdm.get("eventType"))

    @property
    def id(self) -> str | None:
        """``xdm._id``."""
        return _text(self.xdm.get("_id"))

    @property
    def xdm(self) -> dict[str, Any]:
        """``xdm``; empty when it has none."""
        return _object(self.get("xdm"))

    @property
    def data(self) -> dict[str, Any]:
        """``data``; empty when it has none."""
        return _object(self.get("data"))

    @property
    def identity(self) -> dict[str, Any]:
        """``xdm.identityMap``: namespace to list of ``{"id": …, "primary": …}``; empty when it has none."""
        return _object(self.xdm.get("identityMap"))


class Row(NamedTuple):
    """An event, or a request without any.

    Attributes:
        time: time of day, in UTC with milliseconds.
        type: the event's type; of a request without events what it asks of the edge, in brackets.
        visitor: ``<namespace> <id>``; empty when nobody is named.
        outcome: what the edge did with it.
    """

    time: str
    type: str
    visitor: str
    outcome: str


def rows(entries: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Make a row for each event.

    Args:
        entries: summaries of exchanges, as ``GET /_dev/feed`` has them.
    """
    return [row for entry in entries for row in _rows(entry)]


def as_table(rows: Sequence[Row]) -> str:
    """Write rows below one another, under their names. The newest are shown when there are many."""
    hidden = len(rows) - _MOST_ROWS
    lines = [Row._fields, *rows[-_MOST_ROWS:]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(Row._fields))]
    text = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return text if hidden <= 0 else f"{text}\n({hidden} earlier ones are not shown)"


def _rows(entry: Mapping[str, Any]) -> list[Row]:
    time = entry["receivedAt"][11:23]
    if not entry["events"]:
        asked = f"({entry['action'] or entry['path']})"
        return [Row(time, asked, entry["visitor"] or "", f"status {entry['status']}")]
    return [
        Row(time, event["type"] or "(no type)", event["visitor"] or "", _outcome(event["outcome"], entry))
        for event in entry["events"]
    ]


def _outcome(outcome: str, entry: Mapping[str, Any]) -> str:
    if outcome != "refused":
        return outcome
    reason = f"fault {entry['fault']}" if entry["fault"] else entry["problem"]["detail"]
    return f"refused: {reason}"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
