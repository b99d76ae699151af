"""What arrived at an edge, for tests to look at and for people to read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeAlias

__all__ = ["Arrived", "Fate", "ReceivedEvent", "arrivals", "as_table"]

Fate: TypeAlias = Literal["recorded", "duplicate", "withheld", "refused"]
"""What the edge did with an event: taken; taken, though its ``_id`` was here before; ignored for lack of consent; not taken."""

_MOST_ROWS = 40


class ReceivedEvent(dict[str, Any]):
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


@dataclass(frozen=True, slots=True)
class Arrived:
    """One event of a request, or a request that carried none; a row of the table.

    Attributes:
        time: RFC 3339 in UTC.
        type: the event's type; of a request without events its action, in brackets.
        visitor: ``<namespace> <id>``; empty when nobody is named.
        outcome: the event's fate, with the HTTP status where it is a refusal; of a request without events its status.
    """

    time: str
    type: str
    visitor: str
    outcome: str


def arrivals(requests: Iterable[Mapping[str, Any]], events: Iterable[Mapping[str, Any]]) -> list[Arrived]:
    """Put together what became of each event of each request.

    Args:
        requests: as ``DevelopmentEdge.requests``.
        events: as ``DevelopmentEdge.events``.
    """
    recorded: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in events:
        recorded[record["requestId"]].append(record)
    return list(chain.from_iterable(_rows(request, recorded[request["requestId"]]) for request in requests))


def as_table(rows: Sequence[Arrived]) -> str:
    """Write rows below one another: time, type, visitor, outcome. The newest are shown when there are many."""
    hidden = len(rows) - _MOST_ROWS
    shown = [(row.time[11:23], row.type, row.visitor, row.outcome) for row in rows[-_MOST_ROWS:]]
    lines = [("time", "type", "visitor", "outcome"), *shown]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    text = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    return text if hidden <= 0 else f"{text}\n({hidden} earlier ones are not shown)"


def _rows(request: Mapping[str, Any], recorded: Sequence[Mapping[str, Any]]) -> list[Arrived]:
    body = _object(request["body"])
    carried = body.get("events", [body["event"]] if "event" in body else [])
    carried = [ReceivedEvent(_object(event)) for event in carried] if isinstance(carried, list) else []
    if not carried:
        action = request["path"].partition("/v1/")[2] or request["path"]
        return [Arrived(request["receivedAt"], f"({action})", "", f"status {request['status']}")]
    fates = _fates(carried, recorded, request["status"])
    return [
        Arrived(request["receivedAt"], event.type or "(no type)", _visitor(event.identity), fate)
        for event, fate in zip(carried, fates, strict=True)
    ]


def _fates(carried: Sequence[ReceivedEvent], recorded: Sequence[Mapping[str, Any]], status: int) -> list[str]:
    """Recorded events are those carried, in order, without those withheld."""
    kept = list(recorded)
    fates: list[str] = []
    for event in carried:
        if kept and kept[0]["event"] == event:
            fates.append("duplicate" if kept.pop(0)["duplicate"] else "recorded")
        else:
            fates.append(f"refused ({status})" if status >= 400 else "withheld")
    return fates


def _visitor(identity: Mapping[str, Any]) -> str:
    for namespace in sorted(identity, key=lambda name: (name != "ECID", name != "FPID")):
        for entry in identity[namespace] if isinstance(identity[namespace], list) else []:
            if isinstance(entry, dict) and entry.get("id"):
                return f"{namespace} {entry['id']}"
    return ""


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
