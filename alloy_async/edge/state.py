"""What a visitor's browser keeps for the edge: it goes up with a request, and comes back changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from .._json import encode
from .protocol import Reply

__all__ = ["MAX_STATE", "ClientState", "StateUpdate"]

MAX_STATE = 8_192
"""Bytes of state that go up with a request; more than that is no state of the edge's, and stays here."""


@dataclass(frozen=True, slots=True)
class StateUpdate:
    """One thing that the browser is to keep, as the edge hands it back.

    Attributes:
        key: name of the cookie.
        value: opaque.
        max_age: seconds; 0 or less: it is to be deleted; None: until the end of the visit.
        attrs: for example ``{"SameSite": "None"}``.

    Source: Edge Network, ``state:store``.
    """

    key: str
    value: str
    max_age: int | None = None
    attrs: Mapping[str, str] = field(default_factory=dict)


class ClientState:
    """The state of one visitor's browser during one request of theirs.

    Args:
        domain: the site's own, for example ``shop.example``.
        entries: names and values of its cookies that belong to the edge.

    Attributes:
        updates: what the edge has handed back so far, the newest of each name.

    Source: Edge Network, ``meta.state``; its documentation of hybrid personalization.
    """

    def __init__(self, domain: str, entries: Iterable[tuple[str, str]] = ()) -> None:
        self.domain = domain
        self.entries: tuple[tuple[str, str], ...] = tuple(entries)
        self.updates: dict[str, StateUpdate] = {}
        self._answer: dict[str, Any] = {}

    def to_json(self) -> bytes:
        """Return ``{"domain", "cookiesEnabled", "entries": [{"key", "value"}]}`` as it goes up."""
        entries = [{"key": key, "value": value} for key, value in self.entries]
        text = encode({"domain": self.domain, "cookiesEnabled": True, "entries": entries})
        if len(text) <= MAX_STATE:
            return text
        return encode({"domain": self.domain, "cookiesEnabled": True, "entries": []})

    def forget(self) -> None:
        """Forget everything: the visitor has declined, and nothing of before may go up again."""
        self.entries = ()
        self.updates.clear()
        self._answer = {}

    def learn(self, reply: Reply) -> None:
        """Take what an answer wants to be kept."""
        for item in reply.payload("state:store"):
            update = _update(item)
            if update is not None:
                self.updates[update.key] = update
        handles = [_handle(handle.type, handle.payload, handle.event_index) for handle in reply.handles]
        self._answer = _finite({"requestId": reply.request_id, "handle": handles})

    def browser_payload(self) -> dict[str, Any]:
        """Return what a page hands to ``applyResponse`` of the browser SDK; with the newest answer, or without any."""
        return {"responseHeaders": {}, "responseBody": self._answer or {"handle": []}}


def _update(item: object) -> StateUpdate | None:
    if not isinstance(item, dict) or not isinstance(item.get("key"), str):
        return None
    value, max_age, attrs = item.get("value", ""), item.get("maxAge"), item.get("attrs") or {}
    if not isinstance(value, str) or not isinstance(attrs, dict):
        return None
    is_number = isinstance(max_age, (int, float)) and not isinstance(max_age, bool) and isfinite(max_age)
    age = int(max_age) if is_number and max_age is not None else None
    texts = {name: text for name, text in attrs.items() if isinstance(name, str) and isinstance(text, str)}
    return StateUpdate(item["key"], value, age, texts)


def _finite(value: Any) -> Any:
    """Leave out numbers that a page could not read: Python reads ``1e999`` and ``NaN``, which are no JSON."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _handle(kind: str, payload: tuple[Any, ...], event_index: int | None) -> dict[str, Any]:
    handle: dict[str, Any] = {"type": kind, "payload": list(payload)}
    if event_index is not None:
        handle["eventIndex"] = event_index
    return handle
