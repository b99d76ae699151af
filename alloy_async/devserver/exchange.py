"""One request and its answer, with what became of each event in it.

An exchange is the unit of everything that is kept and shown: the memory, the files, the feed and the page. The JSON
texts of a request and of its events are put in unchanged wherever they are written, and stand in memory once: an event
is a piece of its request's body.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from .advice import advice_for
from .consent import Choice
from .findings import Finding
from .messages import EdgeAnswer
from .paths import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Exchange", "Outcome", "ReceivedEvent"]

Outcome = Literal["recorded", "duplicate", "withheld", "refused"]
"""What became of an event: ``duplicate`` was recorded too, after another of its ``_id``; ``withheld`` was ignored for
lack of consent; ``refused`` came with a request that was refused, or that a fault broke."""

_OBJECT = 50
"""Characters that an object weighs beside its own: what Python takes for the shortest text."""


@dataclass(slots=True)
class ReceivedEvent:
    """One event of an exchange.

    Attributes:
        index: its place in the request, from 0.
        start: where its JSON begins in the request's body.
        end: where its JSON ends.
        event_id: its ``xdm._id``, if it has one.
        type: its ``xdm.eventType``, if it has one.
        visitor: whose it is, ``<namespace> <id>``; None when nothing in the request says so.
        outcome: what became of it.
        timestamp: its ``xdm.timestamp`` as it was sent, if it has one.
        findings: what somebody should look at.
    """

    index: int
    start: int
    end: int
    event_id: str | None
    type: str | None
    visitor: str | None
    outcome: Outcome
    timestamp: str | None
    findings: tuple[Finding, ...] = ()

    @property
    def is_recorded(self) -> bool:
        """Whether the edge took it."""
        return self.outcome in {"recorded", "duplicate"}

    @property
    def weight(self) -> int:
        """Characters it takes in memory beside the request's body, roughly."""
        own = sum(len(text or "") for text in (self.event_id, self.type, self.visitor, self.timestamp))
        return _OBJECT + own + sum(_OBJECT + len(found.path) + len(found.message) for found in self.findings)

    def entry(self, received_at: str) -> dict[str, Any]:
        """Summarise it as ``GET /_dev/feed`` does."""
        return {
            "index": self.index,
            "id": self.event_id,
            "type": self.type,
            "visitor": self.visitor,
            "outcome": self.outcome,
            "timestamp": self.timestamp,
            "waitedMs": _milliseconds(self.timestamp, received_at),
            "size": self.end - self.start,
            "findings": [finding.as_dict() for finding in self.findings],
        }


@dataclass(slots=True)
class Exchange:
    """One whole request, and how it was answered.

    Attributes:
        received_at: when, RFC 3339 in UTC with milliseconds.
        request_id: the id under which it was answered.
        method: the HTTP method.
        path: the path, decoded.
        query: the query parameters.
        headers: the headers, names in lower case, credentials redacted.
        body: the body's JSON text; None when it was not JSON.
        text: the body's text when it was not JSON; None when it was, or when it was not read.
        size: bytes of the body, 0 when it was not read.
        answer: what went back.
        action: what was asked of the edge; None for a path that it does not have.
        datastream_id: the datastream that it was sent to.
        visitor: whose it is as a whole, ``<namespace> <id>``.
        consent: the visitor's choice, when the request made or brought one.
        fault: what a fault switch did to it.
        events: its events.
        n: its number in the order of arrival, from 1; given by the recorder.
    """

    received_at: str
    request_id: str
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: str | None
    text: str | None
    size: int
    answer: EdgeAnswer
    action: Action | None = None
    datastream_id: str | None = None
    visitor: str | None = None
    consent: Choice | None = None
    fault: str | None = None
    events: tuple[ReceivedEvent, ...] = ()
    n: int = 0

    @property
    def recorded(self) -> list[ReceivedEvent]:
        """The events that the edge took."""
        return [event for event in self.events if event.is_recorded]

    @property
    def weight(self) -> int:
        """Characters it takes in memory, roughly."""
        maps = (self.query, self.headers, self.answer.headers)
        named = sum(_OBJECT + len(name) + len(value) for texts in maps for name, value in texts.items())
        contents = len(self.body or self.text or "") + len(self.answer.body)
        return _OBJECT + len(self.path) + contents + named + sum(event.weight for event in self.events)

    @property
    def problem(self) -> dict[str, Any] | None:
        """Why it was refused as a whole, and what to do; None when it was not.

        Shape: ``{"code", "title", "detail", "advice", "eventIndex"}``.
        """
        # Of a success that a fault switch calls so, it is not true.
        if self.answer.status < 400 or "problem+json" not in self.answer.headers.get("content-type", ""):
            return None
        details = json.loads(self.answer.body)
        _, _, code = details["type"].rpartition("EXEG-")
        code = str(self.answer.status) if details["type"] == "about:blank" else code
        return {
            "code": code,
            "title": details["title"],
            "detail": details.get("detail", ""),
            "advice": advice_for(code),
            "eventIndex": details.get("report", {}).get("eventIndex"),
        }

    def entry(self) -> dict[str, Any]:
        """Summarise it as ``GET /_dev/feed`` does."""
        return {
            "n": self.n,
            "receivedAt": self.received_at,
            "method": self.method,
            "path": self.path,
            "action": self.action,
            "datastreamId": self.datastream_id,
            "requestId": self.request_id,
            "status": self.answer.status,
            "size": self.size,
            "tag": self.headers.get("x-test-tag"),
            "fault": self.fault,
            "visitor": self.visitor,
            "consent": self.consent,
            "problem": self.problem,
            "events": [event.entry(self.received_at) for event in self.events],
        }

    def as_json(self) -> str:
        """Write the whole of it, ``{"recorded", "request", "answer", "entry"}``; JSON bodies are put in unchanged.

        ``recorded`` is how many events the edge took. It stands first so that a file can be counted without reading all
        of it.
        """
        request = {
            "method": self.method,
            "path": self.path,
            "query": dict(self.query),
            "headers": dict(self.headers),
            "text": self.text,
        }
        body = self.body or "null"
        parts = [
            f'"recorded": {len(self.recorded)}',
            f'"request": {{"body": {body}, {json.dumps(request)[1:]}',
            f'"answer": {_answer_json(self.answer)}',
            f'"entry": {json.dumps(self.entry())}',
        ]
        return f"{{{', '.join(parts)}}}"

    def as_request_json(self) -> str:
        """Write the request for the read-back; a JSON body is put in unchanged."""
        about = {
            "n": self.n,
            "method": self.method,
            "path": self.path,
            "query": dict(self.query),
            "headers": dict(self.headers),
            "text": self.text,
            "status": self.answer.status,
            "requestId": self.request_id,
            "receivedAt": self.received_at,
            "fault": self.fault,
        }
        return f'{{"body": {self.body or "null"}, {json.dumps(about)[1:]}'

    def as_event_json(self, event: ReceivedEvent) -> str:
        """Write one of its events for the read-back; its own text is put in unchanged."""
        about = {
            "requestId": self.request_id,
            "path": self.path,
            "datastreamId": self.datastream_id,
            "receivedAt": self.received_at,
            "duplicate": event.outcome == "duplicate",
        }
        return f'{{"event": {self.event_text(event)}, {json.dumps(about)[1:]}'

    def event_text(self, event: ReceivedEvent) -> str:
        """Return the JSON of one of its events, as it was received."""
        return (self.body or "")[event.start : event.end]

    def flag_duplicates(self, is_known: Callable[[str], bool]) -> None:
        """Mark every recorded event whose ``_id`` came before, in this exchange or in an earlier one."""
        seen: set[str] = set()
        for event in self.events:
            if event.event_id is None or event.outcome != "recorded":
                continue
            if event.event_id in seen or is_known(event.event_id):
                event.outcome = "duplicate"
            seen.add(event.event_id)


def _milliseconds(since: str | None, until: str) -> int | None:
    """Return the time between two moments, None where the first cannot be read; never below 0: clocks differ."""
    try:
        passed = datetime.fromisoformat(until) - datetime.fromisoformat(since or "")
    except (ValueError, TypeError):
        return None
    return max(0, round(passed.total_seconds() * 1000))


def _answer_json(answer: EdgeAnswer) -> str:
    content = answer.body.decode(errors="backslashreplace")
    # Records are called JSON too, and are not.
    is_json = "json" in answer.headers.get("content-type", "") and _is_json(content)
    about = {
        "status": answer.status,
        "headers": dict(answer.headers),
        "text": None if is_json or not content else content,
    }
    return f'{{"body": {content if is_json else "null"}, {json.dumps(about)[1:]}'


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
