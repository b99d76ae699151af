"""What was received: kept in memory within bounds, and in a sink as well when one is given."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["RecordedEvent", "RecordedRequest", "Recorder", "Sink"]

_log = logging.getLogger(__name__)

MAX_SIZE = 256 * 1024 * 1024
"""Characters of JSON kept for events, and as many for requests; the count bounds typical events, this bounds big ones."""

_REDACTED = "[REDACTED]"
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization"})


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """One event as it was received.

    Attributes:
        event: its JSON text, unchanged.
        event_id: its ``xdm._id``, if it has one.
        request_id: the id under which its request was answered.
        path: the request's path.
        datastream_id: the datastream that it was sent to.
        received_at: when, RFC 3339 in UTC with milliseconds.
        duplicate: whether an event of the same ``_id`` came before and is still kept.
    """

    event: str
    event_id: str | None
    request_id: str
    path: str
    datastream_id: str
    received_at: str
    duplicate: bool = False

    @property
    def size(self) -> int:
        """Characters it takes, roughly."""
        return len(self.event)

    def as_json(self) -> str:
        """Write it for the read-back; the event's own text is put in unchanged."""
        about = {
            "requestId": self.request_id,
            "path": self.path,
            "datastreamId": self.datastream_id,
            "receivedAt": self.received_at,
            "duplicate": self.duplicate,
        }
        return f'{{"event": {self.event}, {json.dumps(about)[1:]}'


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One whole request, and how it was answered.

    Attributes:
        method: the HTTP method.
        path: the path, decoded.
        query: the query parameters.
        headers: the headers, names in lower case.
        body: the body's JSON text; None when it was not JSON.
        text: the body's text when it was not JSON; None when it was, or when it was too large to be kept.
        status: the HTTP status of the answer; 0 when the connection was reset before the request was read.
        request_id: the id under which it was answered.
        received_at: when, RFC 3339 in UTC with milliseconds.
        fault: what a fault switch did to it; None when it went well.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: str | None
    text: str | None
    status: int
    request_id: str
    received_at: str
    fault: str | None = None

    @property
    def size(self) -> int:
        """Characters it takes, roughly."""
        headers = sum(len(name) + len(value) for name, value in self.headers.items())
        return len(self.body or self.text or "") + headers

    def as_json(self) -> str:
        """Write it for the read-back, credentials redacted; a JSON body is put in unchanged."""
        about: dict[str, Any] = {
            "method": self.method,
            "path": self.path,
            "query": dict(self.query),
            "headers": {n: _REDACTED if n in _SECRET_HEADERS else v for n, v in self.headers.items()},
            "text": self.text,
            "status": self.status,
            "requestId": self.request_id,
            "receivedAt": self.received_at,
            "fault": self.fault,
        }
        body = "null" if self.body is None else self.body
        return f'{{"body": {body}, {json.dumps(about)[1:]}'


class Sink(Protocol):
    """Where events are kept besides memory."""

    def load(self, limit: int) -> tuple[Sequence[RecordedEvent], int]:
        """Return the newest events of earlier runs, oldest first and at most ``limit``, and how many there are."""
        ...

    def write(self, events: Sequence[RecordedEvent]) -> None:
        """Keep the events of one request."""

    def clear(self) -> None:
        """Forget all of them."""

    def close(self) -> None:
        """Let go of files and connections; a later write opens them again."""


_Kept = TypeVar("_Kept", RecordedEvent, RecordedRequest)


@dataclass
class _Shelf(Generic[_Kept]):
    """The newest records, bounded by number and by size in characters."""

    max_count: int
    max_size: int
    records: deque[_Kept] = field(default_factory=deque)
    size: int = 0
    dropped: int = 0

    def put(self, record: _Kept) -> list[_Kept]:
        """Keep one; return those that had to go for it."""
        self.records.append(record)
        self.size += record.size
        gone = []
        while len(self.records) > self.max_count or (self.size > self.max_size and len(self.records) > 1):
            gone.append(self.records.popleft())
            self.size -= gone[-1].size
        self.dropped += len(gone)
        return gone

    def clear(self) -> None:
        self.records.clear()
        self.size = self.dropped = 0


class Recorder:
    """Keeps events and requests in the order of their arrival.

    Every event is kept. One whose ``_id`` came before is flagged, not dropped: a retry that delivers twice is what
    somebody at a desk wants to see.

    Args:
        max_events: number of events, and of requests, kept in memory; beyond it the oldest are dropped.
        sink: keeps events as well, all of them; its earlier events are taken up.
    """

    def __init__(self, max_events: int = 100_000, sink: Sink | None = None) -> None:
        if max_events < 1:
            raise ValueError("max_events must be at least 1")
        # A test reads in its own thread while the server writes in another.
        self._lock = threading.Lock()
        self._events: _Shelf[RecordedEvent] = _Shelf(max_events, MAX_SIZE)
        self._requests: _Shelf[RecordedRequest] = _Shelf(max_events, MAX_SIZE)
        self._ids: Counter[str] = Counter()
        self._warned = False
        self._sink = sink
        if sink is not None:
            self._take_up(*sink.load(max_events))

    def _take_up(self, earlier: Sequence[RecordedEvent], total: int) -> None:
        for event in earlier:
            self._keep(event)
        self._events.dropped = total - len(self._events.records)

    def add_events(self, events: Iterable[RecordedEvent]) -> None:
        """Keep the events of one request, those seen before flagged."""
        with self._lock:
            kept = [self._keep(self._flagged(event)) for event in events]
            if self._sink is not None and kept:
                self._write(self._sink, kept)

    def add_request(self, request: RecordedRequest) -> None:
        """Keep one request."""
        with self._lock:
            self._warn_once(self._requests.put(request))

    def events(self) -> tuple[list[RecordedEvent], int]:
        """Return the events kept, and how many were dropped before them."""
        with self._lock:
            return list(self._events.records), self._events.dropped

    def requests(self) -> tuple[list[RecordedRequest], int]:
        """Return the requests kept, and how many were dropped before them."""
        with self._lock:
            return list(self._requests.records), self._requests.dropped

    def clear(self) -> None:
        """Forget everything, in the sink too: otherwise a restart would bring it back."""
        with self._lock:
            self._events.clear()
            self._requests.clear()
            self._ids.clear()
            if self._sink is not None:
                self._sink.clear()

    def close(self) -> None:
        """Close the sink; what is in memory stays."""
        with self._lock:
            if self._sink is not None:
                self._sink.close()

    def _flagged(self, event: RecordedEvent) -> RecordedEvent:
        if event.event_id is None or event.event_id not in self._ids:
            return event
        return replace(event, duplicate=True)

    def _keep(self, event: RecordedEvent) -> RecordedEvent:
        if event.event_id is not None:
            self._ids[event.event_id] += 1
        gone = self._events.put(event)
        # Ids are remembered as long as their events: a set of all ids ever seen would have no bound.
        for old in gone:
            self._forget_id(old.event_id)
        self._warn_once(gone)
        return event

    def _forget_id(self, event_id: str | None) -> None:
        if event_id is None:
            return
        self._ids[event_id] -= 1
        if not self._ids[event_id]:
            del self._ids[event_id]

    def _write(self, sink: Sink, events: Sequence[RecordedEvent]) -> None:
        try:
            sink.write(events)
        except Exception:  # noqa: BLE001 - a full disk must not become an answer that the real edge never gives
            _log.exception("Events could not be written to the sink; they are kept in memory only")

    def _warn_once(self, gone: Sequence[object]) -> None:
        if gone and not self._warned:
            self._warned = True
            _log.warning(
                "Memory for what is received is full; from now on the oldest is dropped, and counted"
            )
