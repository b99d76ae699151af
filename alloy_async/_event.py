"""From the arguments of ``event`` to the bytes of one event; pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from ._clock import iso_timestamp
from ._json import Unfit, encode, normalise, overlay, take, write
from ._version import LIBRARY, __version__

__all__ = ["IDENTITY_ROOM", "EventContext", "EventParts", "build_event", "rebuild_event", "with_identity"]

IMPLEMENTATION = {"name": LIBRARY, "version": __version__, "environment": "server"}

IDENTITY_ROOM = 128
"""Bytes kept free in each event for an FPID or an ECID, which are added after consent. Customer ids may take more."""

MAX_DECISION_SCOPES = 30
MAX_IDENTITY_LENGTH = 1_024

# What a server can put into what it renders; dom-action changes a page that only a browser has.
PERSONALIZATION_SCHEMAS = [
    f"https://ns.adobe.com/personalization/{kind}"
    for kind in ("default-content-item", "html-content-item", "json-content-item", "redirect-item")
]

# Of what is added, these have fields of their own.
_OBJECTS = frozenset({"implementationDetails", "placeContext"})

_OPENING = b'{"xdm":{'

_OPENED = b'%b"implementationDetails":%b' % (
    _OPENING,
    json.dumps(IMPLEMENTATION, separators=(",", ":")).encode(),
)
"""How an event begins whose xdm says nothing of these details itself."""


class EventContext(dict[str, Any]):
    """What lies under a visitor's events: XDM that holds nothing but what JSON can hold, and that nobody changes."""


class EventParts(NamedTuple):
    """One event, ready to wait.

    Attributes:
        event_id: its ``_id``, the caller's or a new UUID.
        body: ``{"xdm": {...}, "data": ..., "query": {...}}`` as JSON in UTF-8; data and query only when given.
        has_identity: whether the caller named the person (``xdm.identityMap``); then no identity of ours is added.
    """

    event_id: str
    body: bytes
    has_identity: bool


def build_event(
    *,
    xdm: object,
    data: object,
    event_type: str | None,
    merge_id: str | None,
    decision_scopes: Sequence[str],
    now: float,
    new_id: str,
    local_time: bool = False,
    one_primary: bool = False,
    context: EventContext | None = None,
) -> EventParts:
    """Take the snapshot of an event.

    What the caller's ``xdm`` says wins over everything that is added here.

    Args:
        xdm: an object in XDM, or None.
        data: anything that JSON can hold, or None for nothing.
        event_type: sets ``xdm.eventType``.
        merge_id: sets ``xdm.eventMergeId``.
        decision_scopes: scopes to ask decisions for, at most 30.
        now: the moment of the call, seconds since 1970.
        new_id: the event's id unless the caller gave one.
        local_time: whether to add ``placeContext`` from this process's time zone.
        one_primary: whether an identity map of the caller's must have exactly one primary identity, as v2 wants it.
        context: what is known of the visitor's page and browser; object by object the caller's xdm wins.

    Raises:
        Unfit: something cannot be sent; its path says where.

    Source: adobe/alloy, sendEvent: ``type`` and ``mergeId`` set the two fields, the caller's xdm is merged over what
    is collected automatically. ``_id``: Adobe Experience Platform Mobile SDK, Edge extension.
    """
    given, given_text = _given_xdm(xdm, one_primary=one_primary, context=context)
    added: dict[str, Any] = {"_id": new_id, "timestamp": iso_timestamp(now)}
    if event_type is not None:
        added["eventType"] = _text(event_type, "type")
    if merge_id is not None:
        added["eventMergeId"] = _text(merge_id, "merge_id")
    if local_time:
        added["placeContext"] = _place_context(now)
    if context:
        added = {**context, **added}
    data, data_text = (None, None) if data is None else take(data, "data")
    query = _personalization_query(decision_scopes) if decision_scopes else None
    # Written only now: what is wrong with the arguments is told in their order, and before what UTF-8 cannot hold.
    pieces = _write_xdm(added, given, given_text)
    if data is not None:
        pieces += (b',"data":', data_text) if data_text is not None else _write_field("data", data)
    if query is not None:
        pieces += _write_field("query", query)
    pieces.append(b"}")
    # Joined at once, so that nothing but the body's own bytes waits with it.
    return EventParts(given.get("_id", new_id), b"".join(pieces), "identityMap" in given)


def rebuild_event(content: object, event_id: str, query: object, *, one_primary: bool = False) -> EventParts:
    """Take the snapshot again, after ``on_before_event_send`` has seen it; the ``_id`` stays.

    Args:
        content: ``{"xdm": {...}, "data": ...}`` as the hook left it.
        event_id: the id the event has had from the start.
        query: the event's query, which the hook never sees; None when it has none.
        one_primary: as in ``build_event``.

    Raises:
        Unfit: the hook put something in that cannot be sent; its path says where.
    """
    if not isinstance(content, Mapping):
        raise _unfit("must stay an object with the keys xdm and data.", "event")
    xdm, _ = _given_xdm(content.get("xdm"), one_primary=one_primary)
    event: dict[str, Any] = {"xdm": xdm | {"_id": event_id}}
    data = content.get("data")
    if data is not None:
        event["data"] = normalise(data, "data")
    if query is not None:
        event["query"] = query
    return EventParts(event_id, encode(event), "identityMap" in xdm)


def with_identity(body: bytes, identity_map: bytes) -> bytes:
    """Put an identity map into an event's xdm.

    Spliced in as bytes: who the visitor is, is known only after consent, and reading and writing the whole event again
    would cost more than all the rest of its way.

    Args:
        body: an event of ``build_event``; its xdm always begins the body and is never empty.
        identity_map: the map as JSON.
    """
    return b"%b%b%b,%b" % (_OPENING, b'"identityMap":', identity_map, body[len(_OPENING) :])


def _given_xdm(
    xdm: object, *, one_primary: bool, context: EventContext | None = None
) -> tuple[dict[str, Any], bytes | None]:
    """Take the caller's xdm, and its JSON, laid over the context, where that can be used as it is."""
    if xdm is None:
        return {}, b"{}"
    given, text = take(xdm, "xdm", context)
    if not isinstance(given, dict):
        raise _unfit("must be an object (a mapping, dataclass or pydantic model).", "xdm")
    if "_id" in given:
        _check_text(given["_id"], "xdm", "_id")
    if "identityMap" in given:
        _check_identity_map(given["identityMap"])
        if one_primary:
            _check_one_primary(given["identityMap"])
    if text is None:
        return given, None
    # What is merged is written again, and must be a snapshot by then; otherwise the names are enough.
    return (dict(given), text) if _OBJECTS.isdisjoint(given) else (normalise(xdm, "xdm"), None)


def _write_xdm(added: dict[str, Any], given: dict[str, Any], text: bytes | None) -> list[bytes]:
    """Write the beginning of an event up to the end of its xdm, around the caller's own JSON if there is one."""
    if text is None:
        return [write({"xdm": overlay({"implementationDetails": IMPLEMENTATION, **added}, given)})[:-1]]
    if not added.keys().isdisjoint(given):
        added = {key: value for key, value in added.items() if key not in given}
    if "implementationDetails" in added:  # a context may have its own
        pieces = [write({"xdm": added})[:-2]]
    else:
        pieces = [_OPENED]
        if added:
            pieces += (b",", write({"xdm": added})[len(_OPENING) : -2])
    pieces += (b",", text[1:]) if given else (b"}",)
    return pieces


def _write_field(name: str, value: object) -> tuple[bytes, bytes]:
    """Write a field of the event; with its name, which is the first step of the path in an error."""
    return b",", write({name: value})[1:-1]


def _place_context(now: float) -> dict[str, Any]:
    """Source: XDM, placeContext: the offset is minutes *behind* UTC."""
    local = datetime.fromtimestamp(now).astimezone()
    offset = local.utcoffset()
    behind = -int(offset.total_seconds() // 60) if offset is not None else 0
    return {"localTime": local.isoformat(timespec="milliseconds"), "localTimezoneOffset": behind}


def _personalization_query(scopes: Sequence[str]) -> dict[str, Any]:
    if isinstance(scopes, str) or not isinstance(scopes, Sequence):
        raise _unfit("must be a list of texts.", "decision_scopes")
    if len(scopes) > MAX_DECISION_SCOPES:
        raise _unfit(
            f"holds {len(scopes)} scopes; the edge takes at most {MAX_DECISION_SCOPES}.", "decision_scopes"
        )
    names = [_text(scope, "decision_scopes", index) for index, scope in enumerate(scopes)]
    return {"personalization": {"schemas": PERSONALIZATION_SCHEMAS, "decisionScopes": names}}


def _text(value: object, *path: str | int) -> str:
    _check_text(value, *path)
    return str(value)


def _check_text(value: object, *path: str | int) -> None:
    if not isinstance(value, str) or not value:
        raise _unfit("must be a text that is not empty.", *path)


def _check_identity_map(identity_map: object) -> None:
    """Refuse what the edge would refuse, and with it the whole request.

    Source: Edge Network error codes 0304, 0305 and 0308.
    """
    if not isinstance(identity_map, dict):
        raise _unfit("must be an object: namespace to list of identities.", "xdm", "identityMap")
    for namespace, identities in identity_map.items():
        if not isinstance(identities, list):
            raise _unfit("must be a list of identities.", "xdm", "identityMap", namespace)
        for index, identity in enumerate(identities):
            _check_identity(identity, "xdm", "identityMap", namespace, index)


def _check_identity(identity: object, *path: str | int) -> None:
    if not isinstance(identity, dict):
        raise _unfit('must be an object such as {"id": "…"}.', *path)
    _check_text(identity.get("id"), *path, "id")
    if len(identity["id"]) > MAX_IDENTITY_LENGTH:
        raise _unfit(f"is longer than {MAX_IDENTITY_LENGTH} characters.", *path, "id")


def _check_one_primary(identity_map: dict[str, list[dict[str, Any]]]) -> None:
    """Refuse what v2 would refuse, and with it every other event of the request.

    Source: Edge Network error code 0306; identityMap of XDM: exactly one primary identity in an event. From browsers the
    edge adds an ECID and takes it as the primary one, from servers it does not.
    """
    identities = [identity for entries in identity_map.values() for identity in entries]
    count = sum(identity.get("primary") is True for identity in identities)
    if count != 1:
        raise _unfit(
            f"has {count} primary identities; with client_id and client_secret an event needs exactly one "
            'with "primary": True.',
            "xdm",
            "identityMap",
        )


def _unfit(problem: str, *path: str | int) -> Unfit:
    unfit = Unfit(problem)
    unfit.path = list(path)
    return unfit
