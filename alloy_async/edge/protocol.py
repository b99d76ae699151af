"""The wire, without any input or output: commands to requests, answers to results.

Source: Adobe Experience Platform Edge Network, v1 and v2 ``interact`` and ``collect``, v1 ``identity/acquire``; problem
details are RFC 9457.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from .._json import decode, encode
from .._version import __version__
from ..errors import EdgeError
from .transport import EdgeRequest, EdgeResponse

__all__ = [
    "V1",
    "V2",
    "Access",
    "Dialect",
    "EventResult",
    "Handle",
    "Reply",
    "authorised",
    "build_acquire",
    "build_collect",
    "build_interact",
    "cut",
    "event_room",
    "failing_event",
    "may_need_new_token",
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

TOKEN_CODES = frozenset({"0502", "0503", "0504", "0505"})
"""EXEG codes of a 401 after which another access token may be let in, where the one that was used was not.

- 0502, signature: the key that it was signed with may have been replaced since.
- 0503, expired.
- 0504, product, and 0505, scope: what a token may do is written into it when it is minted, and it is kept for a day;
  whoever repairs the project in the console helps new tokens only.

Not the others: 0500 finds the header missing or malformed, or a datastream that wants no v1; 0501 wants another kind of
credentials; 0506 a right to write to the sandbox. The next token would say the same.

Source: Edge Network error codes. The reasons are ours.
"""

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

_FETCH = {"identity": {"fetch": ["ECID"]}}
_FETCH_ECID = b'"query":{"identity":{"fetch":["ECID"]}}'
_COLLECT = b'{"events":[%b]}'
_QUERY = b'"query":'


class _Carried(Protocol):
    body: bytes


E = TypeVar("E", bound=_Carried)


@dataclass(frozen=True, slots=True)
class Dialect:
    """What the two versions of the API say differently.

    Attributes:
        version: part of the path.
        datastream: how the parameter with the datastream's id is called.
        interact_body: writes the body with one event that wants an answer; its second argument is milliseconds that
            the event has waited, from 0 to ``MAX_QUEUE_TIME``, the third ``meta.state`` as JSON, empty for none.

    ``collect`` has the same body in both.
    """

    version: str
    datastream: str
    interact_body: Callable[[bytes, int, bytes], bytes]


def _interact_v1(event: bytes, queue_time: int, state: bytes) -> bytes:
    meta = b'"meta":{"queueTimeMillis":%d%b}' % (queue_time, b',"state":' + state if state else b"")
    return b'{"events":[' + event + b"]," + _FETCH_ECID + b"," + meta + b"}"


def _interact_v2(event: bytes, queue_time: int, state: bytes) -> bytes:  # noqa: ARG001 - nobody says that v2 takes queueTimeMillis
    """Put the event's own query, which is rare, beside the event, where v2 has the query of the request."""
    query = _FETCH_ECID
    if _QUERY in event:  # perhaps only in a text, so it is read before it is believed
        content = decode(event)
        query = _QUERY + encode(_FETCH | content.pop("query", {}))
        event = encode(content)
    meta = b',"meta":{"state":' + state + b"}" if state else b""
    return b'{"event":' + event + b"," + query + meta + b"}"


V1 = Dialect("v1", "configId", _interact_v1)
"""Anybody's: from a browser, a phone or a script. Source: Edge Network, v1."""

V2 = Dialect("v2", "datastreamId", _interact_v2)
"""From server to server, with an access token.

Source: Edge Network, v2: one ``event``, ``query`` beside it; ``datastreamId`` as its documentation spells it now.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Access:
    """What lets a v2 request in.

    Two of them are never equal, even with the same token: they were handed out at different times.

    Attributes:
        token: of the identity service, secret.
        client_id: the client that it was given to.
        ims_org_id: the organisation, with ``@``.
    """

    token: str = field(repr=False)
    client_id: str
    ims_org_id: str


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

    @property
    def is_plain(self) -> bool:
        """Whether it says nothing but that the request was taken."""
        return not (self.handles or self.warnings or self.errors)

    def payload(self, kind: str) -> list[Any]:
        """Return the items of all handles of one type, in order."""
        return [item for handle in self.handles if handle.type == kind for item in handle.payload]


@dataclass(frozen=True)
class EventResult:
    """What became of one event.

    Attributes:
        event_id: its ``_id``.
        request_id: the request's id as the edge knows it; None when the edge named none, or nothing was sent.
        handles: what the edge handed back for this event or for the whole request.
        warnings: problem objects for this event or the whole request.
        errors: upstream services that failed; the event was taken all the same.
        withheld: whether ``on_before_event_send`` stopped it; then nothing was sent.
        stored: whether this says only that the event is safe in a durable outbox (``ack="stored"``); it is sent later.
    """

    event_id: str
    request_id: str | None = None
    handles: tuple[Handle, ...] = ()
    warnings: tuple[Mapping[str, Any], ...] = ()
    errors: tuple[Mapping[str, Any], ...] = ()
    withheld: bool = False
    stored: bool = False

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

    @classmethod
    def plain(cls, event_id: str, request_id: str | None) -> EventResult:
        """Make the result of an event for which the edge handed nothing back, as collect does for thousands.

        What is not said is read from the class. The constructor of a frozen record sets each field by a call of its
        own, which takes longer than all the rest of settling an event.
        """
        result = object.__new__(cls)
        said = result.__dict__
        said["event_id"], said["request_id"] = event_id, request_id
        return result


def event_room(max_body: int, dialect: Dialect = V1) -> int:
    """Return how many bytes one event may have, alone in a request of ``max_body`` bytes.

    Interact decides: its envelope is the longer one. An event with a query of its own takes no more room, since a query
    that moves beside its event shares the braces of the one that is there.
    """
    return max_body - len(dialect.interact_body(b"", MAX_QUEUE_TIME, b""))


def cut(events: Iterable[E], max_body: int) -> list[E]:
    """Return the first events that fit into one collect request, at least one.

    Args:
        events: in order.
        max_body: bytes of the body, envelope included.
    """
    room = max_body - len(_COLLECT % b"") + 1  # the first event needs no comma
    batch: list[E] = []
    for event in events:
        room -= len(event.body) + 1
        if room < 0 and batch:
            break
        batch.append(event)
    return batch


def build_interact(
    base: str,
    config_id: str,
    hint: str | None,
    request_id: str,
    event: bytes,
    queue_time: int,
    *,
    state: bytes = b"",
    dialect: Dialect = V1,
) -> EdgeRequest:
    """Build the request for one event that wants an answer.

    Args:
        base: what each address starts with, for example ``https://edge.adobedc.net/ee``.
        config_id: the datastream.
        hint: region to call, or None.
        request_id: a UUID.
        event: ``{"xdm": …}`` as JSON.
        queue_time: milliseconds since the event was called, its time in parking included.
        state: ``meta.state`` as JSON; empty: none.
        dialect: the version of the API.
    """
    body = dialect.interact_body(event, min(max(queue_time, 0), MAX_QUEUE_TIME), state)
    return _request(base, hint, "interact", config_id, request_id, body, dialect)


def build_collect(
    base: str,
    config_id: str,
    hint: str | None,
    request_id: str,
    events: Sequence[bytes],
    *,
    dialect: Dialect = V1,
) -> EdgeRequest:
    """Build the request for a batch of events that want no answer; see ``build_interact``.

    There is no ``queueTimeMillis``: it stands once for a request, and each event of a batch has waited differently.
    """
    body = _COLLECT % b",".join(events)
    return _request(base, hint, "collect", config_id, request_id, body, dialect)


def build_acquire(
    base: str, config_id: str, hint: str | None, request_id: str, identity_map: bytes
) -> EdgeRequest:
    """Build the request that asks for the visitor's ECID; see ``build_interact``.

    The first-party id goes with it at payload level, where v1 takes an identity map for the whole request: the same
    FPID always gives the same ECID. There is no such request in v2.
    """
    body = b'{"xdm":{"identityMap":' + identity_map + b"}," + _FETCH_ECID + b"}"
    return _request(base, hint, "identity/acquire", config_id, request_id, body, V1)


def authorised(request: EdgeRequest, access: Access) -> EdgeRequest:
    """Return a request with the headers that let it in.

    Source: Edge Network, authentication of server-to-server calls.
    """
    headers = {
        "authorization": f"Bearer {access.token}",
        "x-api-key": access.client_id,
        "x-gw-ims-org-id": access.ims_org_id,
    }
    return replace(request, headers={**request.headers, **headers})


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


def may_need_new_token(error: EdgeError) -> bool:
    """Return whether a v2 request was refused for its token, so that another token may be let in.

    A 401 without a code is of a gateway in front of the edge, which minds nothing but the token.
    """
    return error.status == 401 and error.code in TOKEN_CODES | {""}


def _request(
    base: str,
    hint: str | None,
    action: str,
    config_id: str,
    request_id: str,
    body: bytes,
    dialect: Dialect,
) -> EdgeRequest:
    region = f"/{hint}" if hint else ""
    query = f"{dialect.datastream}={quote(config_id, safe='')}&requestId={quote(request_id, safe='')}"
    return EdgeRequest(f"{base}{region}/{dialect.version}/{action}?{query}", _HEADERS, body)


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
        retry_after=response.headers.get("retry-after"),
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
