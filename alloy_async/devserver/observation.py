"""From a request and what the edge made of it to an exchange that can be kept and shown."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .body import Body
from .exchange import Exchange, Outcome, ReceivedEvent
from .findings import Finding
from .identity import find_ecid, read_identity_map
from .problems import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .consent import Choice
    from .messages import EdgeAnswer, EdgeRequest
    from .paths import Endpoint

__all__ = ["Notes", "observe"]

_REDACTED = "[REDACTED]"
# Cookies too: a browser sends those of every application on the same host, whatever its port.
_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})


@dataclass(slots=True)
class Notes:
    """What the edge finds out about one request on its way, also when a later step refuses it.

    Attributes:
        request_id: the id under which it is answered.
        received_at: when it arrived, RFC 3339 in UTC with milliseconds.
        fault: what a fault switch does to it.
        endpoint: what is asked of the edge; None for a path that it does not have.
        datastream_id: the datastream that it was sent to.
        ecid: whose it is as a whole.
        consent: the visitor's choice, when the request makes or brings one.
        ecids: whose each event is, by its index.
        withheld: indexes of the events that are ignored for lack of consent.
        findings: what somebody should look at, by the event's index.
    """

    request_id: str
    received_at: str
    fault: str | None = None
    endpoint: Endpoint | None = None
    datastream_id: str | None = None
    ecid: str | None = None
    consent: Choice | None = None
    ecids: dict[int, str | None] = field(default_factory=dict)
    withheld: set[int] = field(default_factory=set)
    findings: Mapping[int, Sequence[Finding]] = field(default_factory=dict)


def observe(
    request: EdgeRequest, reading: Body | None, answer: EdgeAnswer, notes: Notes, *, taken: bool
) -> Exchange:
    """Put together what is known of one request.

    Args:
        request: the request.
        reading: its body; None when it is not JSON, or was not read.
        answer: what goes back.
        notes: what the edge found out.
        taken: whether the edge took the request; if not, its events count as refused.
    """
    return Exchange(
        received_at=notes.received_at,
        request_id=notes.request_id,
        method=request.method,
        path=request.path,
        query=request.query,
        headers={
            name: _REDACTED if name in _SECRET_HEADERS else value for name, value in request.headers.items()
        },
        body=None if reading is None else reading.text,
        text=None if reading or not request.body else request.body.decode(errors="backslashreplace"),
        size=len(request.body or b""),
        answer=answer,
        action=None if notes.endpoint is None else notes.endpoint.action,
        datastream_id=notes.datastream_id,
        visitor=_named("ECID", notes.ecid),
        consent=notes.consent,
        fault=notes.fault,
        events=() if reading is None else _events(reading, notes, taken=taken),
    )


def _events(body: Body, notes: Notes, *, taken: bool) -> tuple[ReceivedEvent, ...]:
    return tuple(
        _event(index, span, value, notes, taken=taken) for index, (value, span) in enumerate(body.events())
    )


def _event(index: int, span: tuple[int, int], value: object, notes: Notes, *, taken: bool) -> ReceivedEvent:
    xdm = value.get("xdm") if isinstance(value, dict) else None
    fields: Mapping[str, Any] = xdm if isinstance(xdm, dict) else {}
    return ReceivedEvent(
        index=index,
        start=span[0],
        end=span[1],
        event_id=_text(fields.get("_id")),
        type=_text(fields.get("eventType")),
        visitor=_named("ECID", notes.ecids.get(index) or notes.ecid) or _brought(fields.get("identityMap")),
        outcome=_outcome(index, notes, taken=taken),
        timestamp=_text(fields.get("timestamp")),
        findings=tuple(notes.findings.get(index, ())),
    )


def _outcome(index: int, notes: Notes, *, taken: bool) -> Outcome:
    if not taken:
        return "refused"
    return "withheld" if index in notes.withheld else "recorded"


def _named(namespace: str, identity: str | None) -> str | None:
    return None if identity is None else f"{namespace} {identity}"


def _brought(identity_map: object) -> str | None:
    """Name a visitor by the ECID that belongs to an event, else by its primary identity, else by its first one."""
    if not isinstance(identity_map, dict):
        return None
    with suppress(Problem):
        ecid = find_ecid([read_identity_map(identity_map)], None)
        if ecid is not None:
            return _named("ECID", ecid)
    listed = [
        (namespace, item)
        for namespace, items in identity_map.items()
        if isinstance(items, list)
        for item in items
        if isinstance(item, dict) and isinstance(item.get("id"), str)
    ]
    listed.sort(key=lambda pair: pair[1].get("primary") is not True)
    return _named(listed[0][0], listed[0][1]["id"]) if listed else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
