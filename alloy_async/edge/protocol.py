"""The wire, without any input or output: commands to requests, answers to results.

Source: Adobe Experience Platform Edge Network, v1 ``interact``, ``collect`` and ``identity/acquire``; problem details
are RFC 9457.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from .._json import decode
from .._version import __version__
from ..errors import EdgeError
from .transport import EdgeRequest, EdgeResponse

__all__ = [
    "EventResult",
    "Handle",
    "Reply",
    "build_acquire",
    "build_collect",
    "build_interact",
    "cut",
    "event_room",
    "failing_event",
    "read_reply",
    "result_for",
    "was_ignored",
]

MAX_QUEUE_TIME = 300_000
"""Milliseconds at which ``meta.queueTimeMillis`` is capped. Source: adobe/alloy."""

RETRYABLE = frozenset({408, 429, 502, 503, 504, 507})
"""Statuses after which the same request may succeed later. Source: Edge Network documentation; Adobe's mobile SDKs."""

NO_CONSENT = "0301"
"""EXEG code of an event that the edge took and ignored for lack of consent."""

CHARACTER_SETS = {
    "utf-8": "utf-8-sig",
    "utf8": "utf-8-sig",
    "utf-16": "utf-16",
    "utf-16le": "utf-16-le",
    "utf-16be": "utf-16-be",
    "utf-32": "utf-32",
    "us-ascii": "ascii",
    "ascii": "ascii",
    "iso-8859-1": "latin-1",
    "windows-1252": "cp1252",
}
"""What an answer may be written in; some of Python's other codecs take minutes for a megabyte."""

_HEADERS = {
    "content-type": "application/json",
    "accept": "application/json",
    "accept-encoding": "identity",  # answers are short; what is not compressed cannot explode
    "user-agent": f"alloy-async/{__version__}",
}

_FETCH_ECID = b'"query":{"identity":{"fetch":["ECID"]}}'
_COLLECT = (b'{"events":[', b"]}")


class _Carried(Protocol):
    body: bytes


E = TypeVar("E", bound=_Carried)


@dataclass(frozen=True, slots=True)
class Handle:
    """One thing that the edge hands back.

    Attributes:
        type: for example ``personalization:decisions``; types unknown to this library are kept too.
        payload: its items, as they came.
        event_index: the event it belongs to; None when it belongs to the whole request.
    """

    type: str
    payload: tuple[Any, ...]
    event_index: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the edge, read.

    Attributes:
        request_id: the request's id as the edge knows it.
        handles: in the order in which they came.
        warnings: problem objects, ``{"type", "status", "title", "report"}``, fields may be missing.
        errors: likewise: upstream services that failed although the event was taken.
    """

    request_id: str | None = None
    handles: tuple[Handle, ...] = ()
    warnings: tuple[Mapping[str, Any], ...] = ()
    errors: tuple[Mapping[str, Any], ...] = ()

    def payload(self, kind: str) -> list[Any]:
        """Return the items of all handles of one type, in order."""
        return [item for handle in self.handles if handle.type == kind for item in handle.payload]


@dataclass(frozen=True, slots=True)
class EventResult:
    """What became of one event.

    Attributes:
        event_id: its ``_id``.
        request_id: the request's id as the edge knows it; None when the edge named none, or nothing was sent.
        handles: what the edge handed back for this event or for the whole request.
        warnings: problem objects for this event or the whole request.
        errors: upstream services that failed; the event was taken all the same.
        withheld: whether ``on_before_event_send`` stopped it; then nothing was sent.
    """

    event_id: str
    request_id: str | None = None
    handles: tuple[Handle, ...] = ()
    warnings: tuple[Mapping[str, Any], ...] = ()
    errors: tuple[Mapping[str, Any], ...] = ()
    withheld: bool = False

    @property
    def propositions(self) -> list[Any]:
        """Decisions for this event: ``{"id", "scope", "scopeDetails", "items"}``."""
        return self._payload("personalization:decisions")

    @property
    def destinations(self) -> list[Any]:
        """Audiences for this event: ``{"type", "id", "alias", "segments"}``."""
        return self._payload("activation:pull")

    def _payload(self, kind: str) -> list[Any]:
        return [item for handle in self.handles if handle.type == kind for item in handle.payload]


def event_room(max_body: int) -> int:
    """Return how many bytes one event may have, alone in a request of ``max_body`` bytes."""
    return max_body - len(_interact_body(b"", MAX_QUEUE_TIME))


def cut(events: Iterable[E], max_body: int) -> list[E]:
    """Return the first events that fit into one collect request, at least one.

    Args:
        events: in order.
        max_body: bytes of the body, envelope included.
    """
    room = max_body - sum(map(len, _COLLECT)) + 1  # the first event needs no comma
    batch: list[E] = []
    for event in events:
        room -= len(event.body) + 1
        if room < 0 and batch:
            break
        batch.append(event)
    return batch


def build_interact(
    base: str, config_id: str, hint: str | None, request_id: str, event: bytes, queue_time: int
) -> EdgeRequest:
    """Build the request for one event that wants an answer.

    Args:
        base: what each address starts with, for example ``https://edge.adobedc.net/ee``.
        config_id: the datastream.
        hint: region to call, or None.
        request_id: a UUID.
        event: ``{"xdm": …}`` as JSON.
        queue_time: milliseconds since the event was called, its time in parking included.
    """
    body = _interact_body(event, min(max(queue_time, 0), MAX_QUEUE_TIME))
    return _request(base, hint, "interact", config_id, request_id, body)


def build_collect(
    base: str, config_id: str, hint: str | None, request_id: str, events: Sequence[bytes]
) -> EdgeRequest:
    """Build the request for a batch of events that want no answer; see ``build_interact``.

    There is no ``queueTimeMillis``: it stands once for a request, and each event of a batch has waited differently.
    """
    opening, closing = _COLLECT
    return _request(base, hint, "collect", config_id, request_id, opening + b",".join(events) + closing)


def build_acquire(
    base: str, config_id: str, hint: str | None, request_id: str, identity_map: bytes
) -> EdgeRequest:
    """Build the request that asks for the visitor's ECID; see ``build_interact``.

    The first-party id goes with it at payload level, where v1 takes an identity map for the whole request: the same
    FPID always gives the same ECID.
    """
    body = b'{"xdm":{"identityMap":' + identity_map + b"}," + _FETCH_ECID + b"}"
    return _request(base, hint, "identity/acquire", config_id, request_id, body)


def read_reply(response: EdgeResponse) -> Reply:
    """Read an answer.

    Returns:
        What it says, for every status from 200 to 299.

    Raises:
        EdgeError: another status, or an answer that cannot be read.
    """
    if not 200 <= response.status < 300:
        raise _problem(response)
    if not response.body.strip():
        return Reply(request_id=response.headers.get("x-request-id"))
    return _merge([_read_record(record, response) for record in _records(response)], response)


def result_for(reply: Reply, index: int, event_id: str) -> EventResult:
    """Return one event's own part of an answer.

    Args:
        reply: the answer to the whole request.
        index: the event's place in the request.
        event_id: its ``_id``.
    """
    if not (reply.handles or reply.warnings or reply.errors):  # as collect answers, for thousands of events
        return EventResult(event_id, reply.request_id)
    return EventResult(
        event_id=event_id,
        request_id=reply.request_id,
        handles=tuple(handle for handle in reply.handles if handle.event_index in {None, index}),
        warnings=_problems_for(reply.warnings, index),
        errors=_problems_for(reply.errors, index),
    )


def was_ignored(result: EventResult) -> bool:
    """Return whether the edge says that it ignored the event for lack of consent."""
    return any(_code(problem) == NO_CONSENT for problem in (*result.warnings, *result.errors))


def failing_event(error: EdgeError) -> int | None:
    """Return the index of the one event that a refusal of the whole request names, or None."""
    index = error.report.get("eventIndex")
    return index if isinstance(index, int) and not isinstance(index, bool) and index >= 0 else None


def _interact_body(event: bytes, queue_time: int) -> bytes:
    meta = b'"meta":{"queueTimeMillis":%d}' % queue_time
    return b'{"events":[' + event + b"]," + _FETCH_ECID + b"," + meta + b"}"


def _request(
    base: str, hint: str | None, action: str, config_id: str, request_id: str, body: bytes
) -> EdgeRequest:
    region = f"/{hint}" if hint else ""
    query = f"configId={quote(config_id, safe='')}&requestId={quote(request_id, safe='')}"
    return EdgeRequest(f"{base}{region}/v1/{action}?{query}", _HEADERS, body)


def _records(response: EdgeResponse) -> list[str]:
    """Split a streaming answer into its records; any other answer is one record.

    A streaming answer may end in the middle of a record, when the connection is cut: what came before is good.

    Source: Adobe's mobile SDKs: U+0000 before and a line feed after each record.
    """
    text = _text(response)
    if not text.startswith("\0"):
        return [text]
    complete, _, rest = text.rpartition("\n")
    records = [record.strip("\0 \r\n") for record in complete.split("\n")]
    return [record for record in records if record] or [rest.strip("\0 \r\n")]


def _text(response: EdgeResponse) -> str:
    _, _, charset = response.headers.get("content-type", "").lower().partition("charset=")
    codec = CHARACTER_SETS.get(charset.split(";")[0].strip(' "') or "utf-8")
    try:
        if codec is not None:
            return response.body.decode(codec)
    except UnicodeError:
        pass  # raised below, outside, because Python's own error holds the whole body
    raise _unreadable(response, "it is not text in the character set it names")


def _read_record(record: str, response: EdgeResponse) -> dict[str, Any]:
    try:
        document = decode(record)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise _unreadable(response, "it is not a JSON object")
    return document


def _merge(documents: list[dict[str, Any]], response: EdgeResponse) -> Reply:
    request_id = next(
        (text for text in map(_request_id, documents) if text), response.headers.get("x-request-id")
    )
    return Reply(
        request_id=request_id,
        handles=tuple(handle for document in documents for handle in _handles(document)),
        warnings=tuple(item for document in documents for item in _objects(document.get("warnings"))),
        errors=tuple(item for document in documents for item in _objects(document.get("errors"))),
    )


def _request_id(document: Mapping[str, Any]) -> str | None:
    value = document.get("requestId")
    return value if isinstance(value, str) else None


def _handles(document: Mapping[str, Any]) -> list[Handle]:
    return [
        Handle(item["type"], tuple(_items(item.get("payload"))), _event_index(item))
        for item in _objects(document.get("handle"))
        if isinstance(item.get("type"), str)
    ]


def _items(payload: object) -> list[Any]:
    return payload if isinstance(payload, list) else []


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in _items(value) if isinstance(item, dict)]


def _event_index(item: Mapping[str, Any]) -> int | None:
    index = item.get("eventIndex")
    return index if isinstance(index, int) and not isinstance(index, bool) else None


def _problems_for(problems: tuple[Mapping[str, Any], ...], index: int) -> tuple[Mapping[str, Any], ...]:
    return tuple(problem for problem in problems if _report_index(problem) in {None, index})


def _report_index(problem: Mapping[str, Any]) -> int | None:
    report = problem.get("report")
    return _event_index(report) if isinstance(report, dict) else None


def _code(problem: Mapping[str, Any]) -> str:
    kind = problem.get("type")
    return kind.rpartition("EXEG-")[2][:4] if isinstance(kind, str) and "EXEG-" in kind else ""


def _problem(response: EdgeResponse) -> EdgeError:
    """Read a refusal; plain text, as a gateway writes it, becomes the title."""
    try:
        document = decode(_text(response))
    except (ValueError, EdgeError):
        document = None
    if not isinstance(document, dict):
        document = {"title": _first_line(response)}
    report = document.get("report")
    report = report if isinstance(report, dict) else {}
    return EdgeError(
        response.status,
        type=_string(document.get("type")) or "about:blank",
        title=_string(document.get("title")) or "no reason given",
        detail=_string(document.get("detail")),
        report=report,
        request_id=_string(report.get("requestId")) or response.headers.get("x-request-id"),
        retryable=response.status in RETRYABLE,
    )


def _string(value: object) -> str:
    return value[:500] if isinstance(value, str) else ""


def _first_line(response: EdgeResponse) -> str:
    text = response.body[:2_000].decode("utf-8", "replace").strip()
    return text.splitlines()[0][:200] if text else ""


def _unreadable(response: EdgeResponse, problem: str) -> EdgeError:
    return EdgeError(
        response.status,
        title="the answer cannot be read",
        detail=f"{problem}; the edge may have taken the events",
        request_id=response.headers.get("x-request-id"),
    )
