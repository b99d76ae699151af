"""The edge's side of a conversation: one request in, one answer out, no sockets.

Each step knows one concern and calls the next: path and method, datastream, credentials, body, action. What a step
refuses it raises as a `Problem`; the first step turns it into the answer, and records the request either way.
"""

from __future__ import annotations

import json
import secrets
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from .body import Body, read_body, read_media_type
from .checks import Checks
from .consent import ConsentMemory, consent_string_denies, decide
from .cors import allowing, is_preflight, preflight_headers
from .faults import Fault, Faults
from .findings import Finding
from .handles import (
    ClientState,
    Handle,
    StateEntries,
    identity_result,
    location_hints,
    media_session,
    read_state,
    state_store,
)
from .identity import IdentityMap, find_ecid, mint_ecid, read_identity_map, require_primary
from .messages import EdgeAnswer, EdgeRequest
from .observation import Notes, observe
from .paths import Action, Endpoint, Paths
from .personalization import Asked, Decisions, read_asked
from .problems import Problem, consent_warning
from .recorder import Recorder, Sink
from .spoiling import refuse, spoil
from .streaming import in_records, read_record_format
from .subjects import event_types, visitors

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from os import PathLike

__all__ = ["DEMO_ORG", "DevelopmentEdge", "EdgeAnswer", "EdgeRequest"]

DEMO_ORG = "0123456789ABCDEF01234567@AdobeOrg"
"""The organisation that a development edge belongs to unless told otherwise."""

MAX_BODY = 65_536
"""Bytes of one request. Source: Adobe Experience Platform Edge Network API, guardrails: 64 KB."""

_MAX_VISITORS = 100_000
_MAX_EFFORT = 1_000
"""Events of one request that are checked, and findings in them: 64 KB of nonsense would hold everybody up."""
_NOT_CHECKED = Finding(
    "error",
    "not-checked",
    "",
    f"The request has more than {_MAX_EFFORT} events and findings; from this event on nothing was checked.",
    "Mend the events before it first, then send again.",
)
_TAKES_EVENTS: frozenset[Action] = frozenset({"interact", "collect", "media"})
_JSON = "application/json;charset=utf-8"
_REGION = "OR2;9"


@dataclass(frozen=True, slots=True)
class _Call:
    """A request that passed the doors: who asks what, under which id."""

    endpoint: Endpoint
    request: EdgeRequest
    body: Body
    state: ClientState
    notes: Notes

    @property
    def fields(self) -> Mapping[str, Any]:
        return self.body.fields

    @property
    def request_id(self) -> str:
        return self.notes.request_id


@dataclass(frozen=True, slots=True)
class _Arrival:
    """One event, and whose it is."""

    index: int
    ecid: str | None
    consent_string_denies: bool
    withheld: bool


class DevelopmentEdge:
    """A stand-in for the collection endpoint, for people at a desk.

    It answers as the edge does as far as the public documentation tells, keeps what it received, and lets it be read
    back. Events of a visitor who refused are answered with the warning EXEG-0301-200 and are not recorded.

    Args:
        org_id: the IMS organisation; it is part of the cookies' names and stands in no request.
        base_path: first part of the path, as the client's ``edge_base_path``.
        datastreams: the datastream ids that are known; None takes any.
        authenticated: whether v2 requests must bring their three headers with credentials.
        expired_tokens: access tokens that are refused as expired; the attribute of this name may be changed while it runs.
        max_body: bytes of one request.
        max_events: number of events, and of requests, kept in memory; beyond it, or beyond 256 million characters, the
            oldest are dropped.
        sink: file in which exchanges are kept as well, over restarts: `SQLiteFile` or `JSONLinesFile`.
        hosts: host names besides loopback under which ``/_dev`` may be read.
        faults: what shall go wrong; the attribute of this name is changed while it runs.
        checks: what is said about events; by default their structure alone is looked at.
        strict: whether a request is refused when its events have findings of level ``error``.
        decisions: JSON file with what is answered to clients that ask for decisions; read again when it changes.
        clock: returns the time of arrival, timezone-aware.

    Raises:
        DecisionsError: the file of decisions cannot be used.
        OSError, ValueError: the file of the sink cannot be used; a database raises errors of its own too.

    Source: Adobe Experience Platform Edge Network API, interactive and non-interactive data collection.
    """

    def __init__(
        self,
        *,
        org_id: str = DEMO_ORG,
        base_path: str = "ee",
        datastreams: Collection[str] | None = None,
        authenticated: bool = False,
        expired_tokens: Iterable[str] = (),
        max_body: int = MAX_BODY,
        max_events: int = 100_000,
        sink: Sink | None = None,
        hosts: Collection[str] = (),
        faults: Faults | Iterable[Fault] = (),
        checks: Checks | None = None,
        strict: bool = False,
        decisions: str | PathLike[str] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.expired_tokens: set[str] = set(expired_tokens)
        self.max_body = max_body
        self.hosts: frozenset[str] = frozenset(hosts)
        self.faults: Faults = faults if isinstance(faults, Faults) else Faults(faults)
        self._paths = Paths(base_path)
        self._datastreams = datastreams
        self._authenticated = authenticated
        self._entries = StateEntries(org_id)
        self._consent = ConsentMemory(_MAX_VISITORS)
        self._clock = clock
        self._checks = checks or Checks(clock=clock)
        self._strict = strict
        self._decisions = Decisions(decisions)
        # Last: it opens a file, and nothing after it may fail.
        self.recorder: Recorder = Recorder(max_events, sink)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def events(self) -> list[dict[str, Any]]:
        """What ``GET /_dev/events`` lists, parsed."""
        events, _ = self.recorder.events()
        return [json.loads(exchange.as_event_json(event)) for exchange, event in events]

    @property
    def requests(self) -> list[dict[str, Any]]:
        """What ``GET /_dev/requests`` lists, parsed."""
        return [json.loads(exchange.as_request_json()) for exchange in self.recorder.exchanges()[0]]

    def reset(self) -> None:
        """Forget events, requests and visitors, in the file too."""
        self._consent.clear()
        self.recorder.clear()

    def close(self) -> None:
        """Close the file; what is in memory can still be read."""
        self.recorder.close()

    def answer(self, request: EdgeRequest) -> EdgeAnswer:
        """Answer one request, and record it."""
        moment = self._clock()
        reading = self._read(request)
        fault = self._fault(request, reading)
        notes = self._notes(request, moment, fault)
        notes.findings = self._findings(notes.endpoint, reading)
        try:
            refuse(fault)
            answer, taken = self._admit(request, reading, notes), True
        except Problem as problem:
            answer, taken = _refusal(problem, notes.request_id), False
        answer = _shaped(request, reading, spoil(answer, fault, moment))
        self._record(request, reading, answer, notes, taken=taken)
        return answer if fault is None else replace(answer, fault=fault)

    def loses(self, request: EdgeRequest) -> bool:
        """Tell whether a fault resets the connection of a request that is not read yet, and record it if so.

        Args:
            request: without its body.
        """
        fault = self.faults.choose_unread(request.path) if request.method == "POST" else None
        if fault is None:
            return False
        notes = self._notes(request, self._clock(), fault)
        self._record(request, None, EdgeAnswer(0, {}, b""), notes, taken=False)
        return True

    # Faults: which one meets a request.

    def _fault(self, request: EdgeRequest, reading: Body | Problem) -> Fault | None:
        """Choose. A preflight, or a browser that looks for an icon, is none of the client's requests: none meets it."""
        if not self.faults or request.method != "POST":
            return None
        if isinstance(reading, Problem):
            return self.faults.choose(request.path)
        named = visitors(reading.fields, self._cookie_ecid(request, reading))
        return self.faults.choose(request.path, named, event_types(reading.fields))

    def _cookie_ecid(self, request: EdgeRequest, reading: Body) -> str | None:
        cookies = request.headers.get("cookie", "")
        try:
            return read_state(reading.fields.get("meta"), self._entries, cookies).ecid
        except Problem:
            return None  # refused for it further on

    def _notes(self, request: EdgeRequest, moment: datetime, fault: Fault | None) -> Notes:
        return Notes(
            request_id=_answered_id(request),
            received_at=_timestamp(moment),
            fault=None if fault is None else fault.label,
            endpoint=self._paths.find(request.path),
        )

    def _findings(self, endpoint: Endpoint | None, reading: Body | Problem) -> dict[int, list[Finding]]:
        if isinstance(reading, Problem) or endpoint is None or endpoint.action not in _TAKES_EVENTS:
            return {}
        findings: dict[int, list[Finding]] = {}
        effort = 0
        for index, (event, (start, end)) in enumerate(reading.events()):
            if effort >= _MAX_EFFORT:
                findings[index] = [_NOT_CHECKED]
                break
            findings[index] = self._checks.events(event, reading.text[start:end], endpoint.version)
            effort += 1 + len(findings[index])
        return findings

    # Doors: from a request to a call.

    def _read(self, request: EdgeRequest) -> Body | Problem:
        """Read the body before anything is judged: the record shows it parsed even for a path that nobody knows."""
        if request.body is None:
            return Problem("0112-413", f"The body is larger than {self.max_body} bytes.")
        try:
            return read_body(request.body)
        except Problem as problem:
            return problem

    def _record(
        self,
        request: EdgeRequest,
        reading: Body | Problem | None,
        answer: EdgeAnswer,
        notes: Notes,
        *,
        taken: bool,
    ) -> None:
        body = reading if isinstance(reading, Body) else None
        self.recorder.add(observe(request, body, answer, notes, taken=taken))

    def _admit(self, request: EdgeRequest, reading: Body | Problem, notes: Notes) -> EdgeAnswer:
        if notes.endpoint is not None and is_preflight(request.method, request.headers):
            return EdgeAnswer(204, {**_headers(notes.request_id), **preflight_headers(request.headers)}, b"")
        endpoint = _taking(request, notes.endpoint)
        notes.datastream_id = self._datastream(endpoint, request.query)
        if self._authenticated and endpoint.version == "v2":
            self._check_credentials(request.headers)
        read_media_type(request.headers.get("content-type"))
        if isinstance(reading, Problem):
            raise reading
        read_record_format(reading.fields.get("meta"))  # for its refusals; it is used once there is an answer
        if self._strict:
            _refuse_findings(notes.findings)
        state = read_state(reading.fields.get("meta"), self._entries, request.headers.get("cookie", ""))
        notes.ecid, notes.consent = state.ecid, state.consent
        return self._act(_Call(endpoint, request, reading, state, notes))

    def _datastream(self, endpoint: Endpoint, query: Mapping[str, str]) -> str:
        # Documentation spells the v2 name in two ways; both are taken.
        names = ("configId",) if endpoint.version == "v1" else ("datastreamId", "dataStreamId")
        datastream_id = next((query[name] for name in names if query.get(name)), None)
        if datastream_id is None:
            raise Problem("0002-400", f"The query parameter '{names[0]}' is missing.")
        if self._datastreams is not None and datastream_id not in self._datastreams:
            raise Problem("0003-400", "No datastream is known by this id.")
        return datastream_id

    def _check_credentials(self, headers: Mapping[str, str]) -> None:
        """Check form and expiry; whose token it is cannot be known here.

        Source: Adobe Experience Platform Edge Network API, authentication of server-to-server calls.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Problem("0500-401", "The header 'Authorization: Bearer <token>' is missing or malformed.")
        for name in ("x-api-key", "x-gw-ims-org-id"):
            if not headers.get(name):
                raise Problem("0500-401", f"The header '{name}' is missing.")
        if token.strip() in self.expired_tokens:
            raise Problem("0503-401", "The access token has expired.")

    # Actions: from a call to an answer.

    def _act(self, call: _Call) -> EdgeAnswer:
        match call.endpoint.action:
            case "interact":
                return self._interact(call)
            case "collect":
                return self._collect(call)
            case "privacy/set-consent":
                return self._set_consent(call)
            case "identity/acquire":
                return self._acquire(call)
            case "media":
                return self._media(call)

    def _interact(self, call: _Call) -> EdgeAnswer:
        arrivals = self._arrivals(call)
        asked = _asked(call, arrivals)
        ecid = call.notes.ecid = arrivals[0].ecid or mint_ecid()
        handles = [*self._visitor_handles(call, ecid), *self._denials(arrivals)]
        handles += [*_media_sessions(call, arrivals), *self._decisions.handles(asked)]
        return _answer(call, handles, warnings=_warnings(arrivals))

    def _collect(self, call: _Call) -> EdgeAnswer:
        """Answer without content, unless an event was withheld: a client that sent it must hear of it."""
        arrivals = self._arrivals(call)
        warnings = _warnings(arrivals)
        if warnings:
            return _answer(call, self._denials(arrivals), warnings=warnings)
        silent = call.request.query.get("silent", "").lower() == "true"
        if call.endpoint.version == "v1" or silent:
            return EdgeAnswer(204, _headers(call.request_id), b"")
        # The documentation's answer is the id alone; a browser's client rejects what has no list of handles.
        return _json_answer(202, call.request_id, {"requestId": call.request_id, "handle": []})

    def _media(self, call: _Call) -> EdgeAnswer:
        """Begin a session, or take what happens in one. Whether a session still lives is not looked at.

        Source: Adobe Experience Platform Edge Network API, media: 200 with the session's id, 204 for the rest.
        """
        if call.endpoint.media == "sessionStart":
            return self._interact(call)
        for index, event in enumerate(_events(call)):
            if not isinstance(_lookup(event, "xdm", "mediaCollection", "sessionID"), str):
                detail = f"'xdm.mediaCollection.sessionID' of the event #{index} is missing."
                raise Problem("0103-400", detail, event_index=index)
        return self._collect(call)

    def _set_consent(self, call: _Call) -> EdgeAnswer:
        """Store a choice. It is tied to an ECID, so that one is minted even for a refusal.

        Without ``query.consent.operation`` of "update" a statement replaces what was stored; if it does not speak of
        collection, the visitor is back at the default, which is in.

        Source: Adobe Experience Platform Edge Network API, set-consent.
        """
        choice = decide(call.fields.get("consent"))
        maps = [read_identity_map(call.fields.get("identityMap"))]
        ecid = call.notes.ecid = find_ecid(maps, call.state.ecid) or mint_ecid()
        if choice is None:
            updates = _lookup(call.fields, "query", "consent", "operation") == "update"
            choice = "out" if updates and self._is_out(ecid, call.state) else "in"
        self._consent.save(ecid, choice)
        call.notes.consent = choice
        stored = state_store([self._entries.identity(ecid), self._entries.consent(choice)])
        return _answer(call, [*_fetched(call, ecid), stored])

    def _acquire(self, call: _Call) -> EdgeAnswer:
        if not isinstance(_lookup(call.fields, "query", "identity", "fetch"), list):
            raise Problem("0103-400", "'query.identity.fetch' is missing.")
        ecid = find_ecid([_payload_identities(call.fields)], call.state.ecid) or mint_ecid()
        call.notes.ecid = ecid
        return _answer(call, self._visitor_handles(call, ecid))

    def _visitor_handles(self, call: _Call, ecid: str) -> list[Handle]:
        entries = [self._entries.cluster()]
        if call.state.ecid is None:
            entries.insert(0, self._entries.identity(ecid))
        return [*_fetched(call, ecid), state_store(entries), location_hints()]

    def _denials(self, arrivals: Sequence[_Arrival]) -> list[Handle]:
        """Ask the client to keep the refusal that a consent string on an event brought."""
        if not any(arrival.consent_string_denies for arrival in arrivals):
            return []
        return [state_store([self._entries.consent("out")])]

    # Events: whole requests are judged before any of their events counts as taken.

    def _arrivals(self, call: _Call) -> list[_Arrival]:
        shared = _payload_identities(call.fields) if call.endpoint.version == "v1" else {}
        arrivals = [self._arrival(call, shared, index, event) for index, event in enumerate(_events(call))]
        call.notes.ecids = {arrival.index: arrival.ecid for arrival in arrivals}
        call.notes.withheld = {arrival.index for arrival in arrivals if arrival.withheld}
        return arrivals

    def _arrival(self, call: _Call, shared: IdentityMap, index: int, event: object) -> _Arrival:
        xdm = _xdm(event, index)
        identities = read_identity_map(xdm.get("identityMap"), event_index=index)
        if call.endpoint.version == "v2":
            require_primary(identities, event_index=index)
        ecid = find_ecid([identities, shared], call.state.ecid)
        denies = consent_string_denies(xdm)
        return _Arrival(
            index=index,
            ecid=ecid,
            consent_string_denies=denies,
            withheld=denies or self._is_out(ecid, call.state),
        )

    def _is_out(self, ecid: str | None, state: ClientState) -> bool:
        """Ask the edge's own memory and the cookie; one refusal is enough."""
        return state.consent == "out" or self._consent.is_out(ecid)


def _taking(request: EdgeRequest, endpoint: Endpoint | None) -> Endpoint:
    if endpoint is None:
        raise Problem("404", "No endpoint of the edge has this path.")
    if request.method != "POST":
        raise Problem("405", "Endpoints of the edge take POST only.")
    return endpoint


def _events(call: _Call) -> Sequence[object]:
    """Return the events; v2 interact takes one as ``event``, all others take ``events``."""
    name = "event" if call.endpoint == Endpoint("v2", "interact") else "events"
    value = call.fields.get(name)
    if value is None or value == []:
        raise Problem("0103-400", f"'{name}' is missing or empty.")
    if name == "events" and not isinstance(value, list):
        raise Problem("0102-400", "'events' must be an array.")
    return value if isinstance(value, list) and name == "events" else [value]


def _refuse_findings(findings: Mapping[int, Sequence[Finding]]) -> None:
    """Refuse a request as the edge refuses what its validation finds.

    Raises:
        Problem: 0104-422, with a line for each finding of level ``error``.
    """
    errors = [
        (index, found) for index, listed in findings.items() for found in listed if found.level == "error"
    ]
    if errors:
        lines = [f"event #{index}, {found.path}: {found.message}" for index, found in errors]
        raise Problem(
            "0104-422", "Invalid request (report attached).", event_index=errors[0][0], errors=lines
        )


def _taken(call: _Call, arrivals: Sequence[_Arrival]) -> Iterator[tuple[int, object]]:
    """Yield index and content of the events that consent lets through."""
    pairs = zip(arrivals, _events(call), strict=True)
    return ((arrival.index, event) for arrival, event in pairs if not arrival.withheld)


def _asked(call: _Call, arrivals: Sequence[_Arrival]) -> list[Asked]:
    """Read what decisions are asked for: v1 has a query in each event, v2 one beside its event."""
    is_v2 = call.endpoint.version == "v2"
    queries = (
        (index, _lookup(call.fields if is_v2 else event, "query")) for index, event in _taken(call, arrivals)
    )
    return [asked for index, query in queries if (asked := read_asked(query, index)) is not None]


def _media_sessions(call: _Call, arrivals: Sequence[_Arrival]) -> list[Handle]:
    """Give an id to each media session that begins; the browser's client begins them by interact.

    Source: adobe/alloy, media: the event type ``media.sessionStart``.
    """
    begins = call.endpoint.media == "sessionStart"
    return [
        media_session()
        for _, event in _taken(call, arrivals)
        if begins or _lookup(event, "xdm", "eventType") == "media.sessionStart"
    ]


def _xdm(event: object, index: int) -> Mapping[str, Any]:
    if not isinstance(event, dict):
        raise Problem("0102-400", f"The event #{index} must be an object.", event_index=index)
    xdm = event.get("xdm", {})
    if not isinstance(xdm, dict):
        raise Problem("0102-400", f"'xdm' of the event #{index} must be an object.", event_index=index)
    return xdm


def _payload_identities(fields: Mapping[str, Any]) -> IdentityMap:
    """Read ``xdm.identityMap`` beside the events, which holds for all of them (v1 only)."""
    return read_identity_map(_lookup(fields, "xdm", "identityMap"))


def _lookup(fields: object, *names: str) -> object:
    for name in names:
        fields = fields.get(name) if isinstance(fields, dict) else None
    return fields


def _fetched(call: _Call, ecid: str) -> list[Handle]:
    fetch = _lookup(call.fields, "query", "identity", "fetch")
    return [identity_result(ecid)] if isinstance(fetch, list) and "ECID" in fetch else []


def _warnings(arrivals: Sequence[_Arrival]) -> list[dict[str, Any]]:
    return [consent_warning(arrival.index) for arrival in arrivals if arrival.withheld]


def _answered_id(request: EdgeRequest) -> str:
    """Add 16 hex digits to the id that was sent; mint one where none was."""
    sent = request.query.get("requestId") or request.headers.get("x-request-id") or str(uuid.uuid4())
    return f"{sent}-{secrets.token_hex(8)}"


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _answer(call: _Call, handles: Sequence[Handle], *, warnings: Sequence[dict[str, Any]] = ()) -> EdgeAnswer:
    content: dict[str, Any] = {"requestId": call.request_id, "handle": list(handles)}
    if warnings:
        content["warnings"] = list(warnings)
    return _json_answer(200, call.request_id, content)


def _refusal(problem: Problem, request_id: str) -> EdgeAnswer:
    answer = _json_answer(problem.status, request_id, problem.details(request_id))
    headers = {**answer.headers, "content-type": "application/problem+json"}
    if problem.status == 405:
        headers["allow"] = "POST"
    return EdgeAnswer(answer.status, headers, answer.body)


def _json_answer(status: int, request_id: str, content: Mapping[str, Any]) -> EdgeAnswer:
    # ASCII: a request id may hold what UTF-8 cannot.
    headers = {**_headers(request_id), "content-type": _JSON}
    return EdgeAnswer(status, headers, json.dumps(content).encode())


def _headers(request_id: str) -> dict[str, str]:
    # The id comes from the request: percent-encoded, it can neither break a header nor add one.
    return {"x-request-id": quote(request_id), "x-adobe-edge": _REGION}


def _shaped(request: EdgeRequest, reading: Body | Problem, answer: EdgeAnswer) -> EdgeAnswer:
    """Give an answer the form that its client reads: in records when asked for, and open to its page."""
    if isinstance(reading, Body) and answer.status < 300:
        answer = in_records(answer, read_record_format(reading.fields.get("meta")))
    opened = allowing(request.headers)
    return replace(answer, headers={**answer.headers, **opened}) if opened else answer
