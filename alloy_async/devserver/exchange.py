"""One request and its answer, with what became of each event in it.

An exchange is the unit of everything that is kept and shown: the memory, the files, the feed and the page. The JSON
texts of a request and of its events are put in unchanged wherever they are written, and stand in memory once: an event
is a piece of its request's body.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from .advice import advice_for
from .body import read_text
from .consent import Choice
from .findings import Finding
from .messages import EdgeAnswer
from .paths import Action
from .problems import Problem

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Collection, Mapping

__all__ = ["Exchange", "Outcome", "ReceivedEvent", "read_exchanges"]

_log = logging.getLogger(__name__)

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

    @classmethod
    def from_json(cls, text: str) -> Exchange:
        """Read what `as_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            exchange = _read(text)
            _ = exchange.problem  # a refusal that cannot be shown
        except (KeyError, TypeError, AttributeError, IndexError, RecursionError, Problem) as error:
            raise ValueError(f"not an exchange of a development edge: {error!r}") from None
        return exchange


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


def read_exchanges(texts: deque[str], source: object) -> list[Exchange]:
    """Read what `Exchange.as_json` wrote; what it did not write is skipped, with a line in the log.

    Args:
        texts: one for each exchange; taken out one by one, so that memory never holds all of it twice.
        source: where they come from, for the log.
    """
    exchanges, broken = [], 0
    while texts:
        try:
            exchanges.append(Exchange.from_json(texts.popleft()))
        except ValueError:
            broken += 1
    if broken:
        _log.warning("%s: %d exchanges that no development edge wrote were skipped", source, broken)
    return exchanges


def _read(text: str) -> Exchange:
    whole = json.loads(text)
    request, answer, entry = whole["request"], whole["answer"], whole["entry"]
    body = _body_text(text, request["body"])
    spans = {} if body is None else read_text(body).event_spans
    found = spans.get("events") or spans.get("event") or ()
    return Exchange(
        received_at=_text(entry["receivedAt"]),
        request_id=_text(entry["requestId"]),
        method=_text(request["method"]),
        path=_text(request["path"]),
        query=_texts(request["query"]),
        headers=_texts(request["headers"]),
        body=body,
        text=_text_or_none(request["text"]),
        size=int(entry["size"]),
        answer=EdgeAnswer(int(answer["status"]), _texts(answer["headers"]), _answer_body(answer)),
        action=_one_of(get_args(Action), entry["action"]),
        datastream_id=_text_or_none(entry["datastreamId"]),
        visitor=_text_or_none(entry["visitor"]),
        consent=_one_of(get_args(Choice), entry["consent"]),
        fault=_text_or_none(entry["fault"]),
        events=tuple(_read_event(event, *found[event["index"]]) for event in entry["events"]),
        n=int(entry["n"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no text")
    return value


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _texts(value: Any) -> dict[str, str]:
    return {name: _text(content) for name, content in value.items()}


def _one_of(known: Collection[Any], value: Any) -> Any:
    if value is not None and value not in known:
        raise TypeError(f"{value!r:.80} is unknown")
    return value


def _body_text(text: str, body: object) -> str | None:
    """Cut the body's own text out; where the line was written by another tool, write the value anew."""
    if body is None:
        return None
    start = text.find('"body": ') + len('"body": ')
    if text.startswith('{"recorded": '):
        _, end = json.JSONDecoder().raw_decode(text, start)
        return text[start:end]
    return json.dumps(body)


def _answer_body(answer: Mapping[str, Any]) -> bytes:
    if answer["body"] is not None:
        return json.dumps(answer["body"]).encode()
    return (answer["text"] or "").encode(errors="backslashreplace")


def _read_event(entry: Mapping[str, Any], start: int, end: int) -> ReceivedEvent:
    return ReceivedEvent(
        index=entry["index"],
        start=start,
        end=end,
        event_id=_text_or_none(entry["id"]),
        type=_text_or_none(entry["type"]),
        visitor=_text_or_none(entry["visitor"]),
        outcome=_one_of(get_args(Outcome), _text(entry["outcome"])),
        timestamp=_text_or_none(entry["timestamp"]),
        findings=tuple(Finding(**_texts(finding)) for finding in entry["findings"]),  # type: ignore[arg-type]
    )
