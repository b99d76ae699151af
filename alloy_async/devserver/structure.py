"""Checks of an event that need no schema: its size, its envelope, its id, time and type, and whose it is.

What the edge refuses, or what the ExperienceEvent class contradicts, is an error; what is legal and hardly meant is a
warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from .findings import Finding, excerpt, place
from .well_known import EVENT_TYPES, NAMESPACES, nearest

__all__ = ["check_structure"]

_LIMIT = 65_536
_REQUEST_UNIT = 8_192
"""Bytes. Source: Adobe Experience Platform Edge Network API, guardrails: 64 KB a body, charged in pieces of 8 KB."""

_NEAR_LIMIT = 60_000
"""Bytes of an event beside which the rest of a request, with identities and state, hardly finds room."""

_MEMBERS = frozenset({"xdm", "data", "query", "meta"})
"""Source: adobe/alloy and the mobile SDKs: what an event holds."""

_CLOCK_SKEW = timedelta(minutes=15)
"""A clock may be wrong by this much; local time sent as UTC is wrong by more."""

_MAX_COMPARED = 50
"""Namespaces of one event that are compared with the well-known ones: comparing is slow."""

_AUTHENTICATED_STATES = frozenset({"ambiguous", "authenticated", "loggedOut"})

# The year to seconds of RFC 3339, whose T and Z may be small and whose T may be a blank; the offset is judged apart.
_DATE_TIME = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d+)?(?P<offset>[Zz]|[+-]\d\d:\d\d)?", re.ASCII
)
_ECID = re.compile("[0-9]{38}")
_UUID_V4 = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)


def check_structure(event: object, text: str, version: str, now: datetime) -> Iterator[Finding]:
    """Check one event.

    Args:
        event: the parsed event: an object with ``xdm``, and perhaps ``data``, ``query`` and ``meta``.
        text: its JSON, as it was received.
        version: of the API it was sent to, ``v1`` or ``v2``; they differ in what they ask for.
        now: the time of its arrival, timezone-aware.
    """
    yield from _size(text)
    if not isinstance(event, Mapping):
        yield _error(
            "event-not-object", "", f"The event is {excerpt(event)}.", "Send an object with 'xdm' in it."
        )
        return
    yield from _members(event, version)
    xdm = event.get("xdm")
    if xdm is None:
        yield _warning("xdm-missing", "xdm", "The event has no 'xdm'.", "Put its fields below 'xdm'.")
    elif not isinstance(xdm, Mapping):
        yield _error("xdm-not-object", "xdm", f"'xdm' is {excerpt(xdm)}.", "Send an object.")
    else:
        yield from _id(xdm)
        yield from _timestamp(xdm, now)
        yield from _event_type(xdm)
        yield from _identities(xdm.get("identityMap"), version)


def _error(code: str, path: str, message: str, advice: str) -> Finding:
    return Finding("error", code, path, message, advice)


def _warning(code: str, path: str, message: str, advice: str) -> Finding:
    return Finding("warning", code, path, message, advice)


# The envelope.


def _size(text: str) -> Iterator[Finding]:
    size = len(text.encode(errors="surrogatepass"))
    units = -(-size // _REQUEST_UNIT)
    if size > _LIMIT:
        message = f"The event has {size} bytes; a whole request may have {_LIMIT}."
        yield _error("size-over-limit", "", message, "Send less in it: it can never be delivered.")
    elif size > _NEAR_LIMIT:
        message = f"The event has {size} bytes of the {_LIMIT} that a whole request may have."
        yield _warning(
            "size-near-limit", "", message, "Send less in it: identities and state need room as well."
        )
    elif units > 1:
        message = (
            f"The event has {size} bytes: {units} request units of 8 KB, for each upstream of the datastream."
        )
        yield _warning("size-request-units", "", message, "Mind the quota where many events are as large.")


def _members(event: Mapping[str, Any], version: str) -> Iterator[Finding]:
    for name in event:
        if name not in _MEMBERS:
            meant = nearest(name, _MEMBERS, 0.7)
            advice = (
                f"Did you mean '{meant}'?" if meant else "Put XDM fields below 'xdm', all else below 'data'."
            )
            message = f"An event has no member {excerpt(name)}; the edge ignores it."
            yield _warning("unknown-member", place([name]), message, advice)
    if version == "v2" and "query" in event:
        message = "In v2 'query' stands beside the event, not in it."
        yield _warning("query-misplaced", "query", message, "Move it one level up.")


# What every ExperienceEvent has.


def _id(xdm: Mapping[str, Any]) -> Iterator[Finding]:
    event_id = xdm.get("_id")
    if event_id is None and _is_from_browser(xdm):
        return
    if event_id is None:
        advice = "Give each event a UUID of its own, and keep it when it is sent again."
        yield _warning(
            "id-missing",
            "xdm._id",
            "Without '_id' a second delivery cannot be told from a second event.",
            advice,
        )
    elif not isinstance(event_id, str) or not event_id:
        message = f"'_id' is {excerpt(event_id)}, and not text."
        yield _error("id-invalid", "xdm._id", message, "Send text, a UUID for example.")


def _is_from_browser(xdm: Mapping[str, Any]) -> bool:
    """Tell whether the browser's SDK made the event: it never gives an id, and nobody can make it.

    Source: adobe/alloy, implementation details.
    """
    made_by = xdm.get("implementationDetails")
    return isinstance(made_by, Mapping) and made_by.get("name") == "https://ns.adobe.com/experience/alloy"


def _timestamp(xdm: Mapping[str, Any], now: datetime) -> Iterator[Finding]:
    stated = xdm.get("timestamp")
    path = "xdm.timestamp"
    if stated is None:
        advice = "Send the time at which it happened: it may wait before it is sent."
        yield _warning("timestamp-missing", path, "Without 'timestamp' the time of arrival counts.", advice)
        return
    moment = _read_timestamp(stated)
    if moment is None:
        advice = "Send RFC 3339: 2026-11-23T15:20:48.830Z."
        yield _error("timestamp-unreadable", path, f"{excerpt(stated)} is no date and time.", advice)
    elif moment.tzinfo is None:
        message = f"{excerpt(stated)} has no offset from UTC, so nobody knows when it was."
        yield _error("timestamp-naive", path, message, "Convert it to UTC and end it with 'Z'.")
    elif moment - now > _CLOCK_SKEW:
        message = f"{excerpt(stated)} is in the future."
        yield _warning("timestamp-future", path, message, "Set the clock, or do not end local time with 'Z'.")


def _read_timestamp(value: object) -> datetime | None:
    form = _DATE_TIME.fullmatch(value) if isinstance(value, str) and len(value) <= 64 else None
    if form is None:
        return None
    try:
        # To seconds: fractions may have any number of digits, and do not matter here.
        moment = datetime.fromisoformat(
            form.string[:19].upper().replace(" ", "T") + (form["offset"] or "").upper()
        )
        return moment if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):  # the 31st of June; a year that ends before it begins in UTC
        return None


def _event_type(xdm: Mapping[str, Any]) -> Iterator[Finding]:
    event_type = xdm.get("eventType")
    path = "xdm.eventType"
    if event_type is None:
        advice = "Name what happened, 'commerce.purchases' for example."
        yield _warning("event-type-missing", path, "The event has no 'eventType'.", advice)
    elif not isinstance(event_type, str) or not event_type:
        message = f"'eventType' is {excerpt(event_type)}, and no name."
        yield _error("event-type-invalid", path, message, "Send text, 'commerce.purchases' for example.")
    elif meant := nearest(event_type, EVENT_TYPES, 0.9):
        message = f"{excerpt(event_type)} is not one of Adobe's event types, but nearly '{meant}'."
        yield _warning("event-type-nearly", path, message, f"Send '{meant}', unless the other name is meant.")


# Whose it is.


def _identities(identity_map: object, version: str) -> Iterator[Finding]:
    path = "xdm.identityMap"
    if identity_map is None:
        identity_map = {}
    if not isinstance(identity_map, Mapping):
        message = f"'identityMap' is {excerpt(identity_map)}."
        yield _error("identity-map-shape", path, message, "Send an object of arrays, one for each namespace.")
        return
    primaries = 0
    for count, (namespace, items) in enumerate(identity_map.items()):
        if count < _MAX_COMPARED:
            yield from _namespace(namespace)
        if not isinstance(items, list):
            message = f"The namespace holds {excerpt(items)}."
            yield _error("identity-map-shape", _at(namespace), message, "Send an array of objects.")
            continue
        for index, item in enumerate(items):
            yield from _identity(namespace, index, item)
            primaries += isinstance(item, Mapping) and item.get("primary") is True
    yield from _primaries(primaries, version)


def _at(namespace: str, *parts: str | int) -> str:
    return place(["xdm", "identityMap", namespace, *parts])


def _namespace(namespace: str) -> Iterator[Finding]:
    if meant := nearest(namespace, NAMESPACES, 0.85):
        message = f"{excerpt(namespace)} is not a well-known namespace, but nearly '{meant}'."
        yield _warning(
            "namespace-nearly", _at(namespace), message, f"Send '{meant}', unless it is one of your own."
        )


def _identity(namespace: str, index: int, item: object) -> Iterator[Finding]:
    if not isinstance(item, Mapping):
        message = f"An identity is {excerpt(item)}."
        yield _error("identity-map-shape", _at(namespace, index), message, "Send an object with 'id'.")
        return
    yield from _identity_id(namespace, index, item.get("id"))
    state = item.get("authenticatedState", "ambiguous")
    if not isinstance(state, str) or state not in _AUTHENTICATED_STATES:
        meant = nearest(state, _AUTHENTICATED_STATES, 0.7) if isinstance(state, str) else None
        advice = f"Did you mean '{meant}'?" if meant else "Send 'ambiguous', 'authenticated' or 'loggedOut'."
        message = f"{excerpt(state)} is no authenticated state."
        yield _error("authenticated-state", _at(namespace, index, "authenticatedState"), message, advice)
    if not isinstance(item.get("primary", False), bool):
        message = f"'primary' is {excerpt(item['primary'])}, and counts as false."
        yield _error("primary-invalid", _at(namespace, index, "primary"), message, "Send true or false.")


def _identity_id(namespace: str, index: int, identity: object) -> Iterator[Finding]:
    path = _at(namespace, index, "id")
    if not isinstance(identity, str) or not identity:
        message = "The identity has no 'id'." if identity is None else f"The 'id' is {excerpt(identity)}."
        yield _error(
            "identity-id-invalid", path, message, "Send text that is not empty, or leave the identity out."
        )
    elif namespace == "FPID" and not _UUID_V4.fullmatch(identity):
        yield _error(
            "identity-format", path, f"{excerpt(identity)} is no UUIDv4.", "Make FPIDs with uuid.uuid4()."
        )
    elif namespace == "ECID" and not _ECID.fullmatch(identity):
        message = f"{excerpt(identity)} does not have the 38 digits of an ECID, so it names no visitor."
        advice = "Send ECIDs as the edge gave them out: as text, leading zeros included."
        yield _warning("identity-format", path, message, advice)


def _primaries(primaries: int, version: str) -> Iterator[Finding]:
    """Require one in v2; in v1 the edge takes the ECID where none is named.

    Source: Adobe Experience Platform Edge Network API, authenticated endpoints.
    """
    path = "xdm.identityMap"
    if primaries > 1:
        message = f"{primaries} identities are primary."
        judged = _error if version == "v2" else _warning
        yield judged("primary-several", path, message, "Mark exactly one with 'primary': true.")
    elif not primaries and version == "v2":
        yield _error(
            "primary-missing", path, "No identity is primary.", "Mark exactly one with 'primary': true."
        )
