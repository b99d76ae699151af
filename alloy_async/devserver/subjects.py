"""Whom and what a request speaks of, as far as that can be read; nothing is judged here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .identity import ecid_from_fpid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["event_types", "visitors"]


def visitors(fields: Mapping[str, Any], ecid: str | None = None) -> set[str]:
    """List everybody whom a request names, each as ``"<namespace> <id>"``.

    Args:
        fields: the body's members.
        ecid: the ECID of the identity cookie.

    Returns:
        The ids of all identity maps, the ECIDs that belong to FPIDs, and the cookie's ECID.
    """
    named = {f"{namespace} {name}" for place in _xdms(fields) for namespace, name in _identities(place)}
    derived = {f"ECID {ecid_from_fpid(one[5:])}" for one in named if one.startswith("FPID ")}
    return named | derived | ({f"ECID {ecid}"} if ecid else set())


def event_types(fields: Mapping[str, Any]) -> set[str]:
    """List the event types of a request."""
    types = (xdm.get("eventType") for xdm in _xdms(fields))
    return {name for name in types if isinstance(name, str)}


def _xdms(fields: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield what may hold an identity map: the request itself, its xdm, and the xdm of each event."""
    yield fields
    events = fields.get("events")
    listed = events if isinstance(events, list) else []
    for holder in (fields, fields.get("event"), *listed):
        if isinstance(holder, dict) and isinstance(holder.get("xdm"), dict):
            yield holder["xdm"]


def _identities(place: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    identity_map = place.get("identityMap")
    for namespace, items in identity_map.items() if isinstance(identity_map, dict) else ():
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict) and isinstance(item.get("id"), str):
                yield namespace, item["id"]
