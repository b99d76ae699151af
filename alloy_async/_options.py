"""The options of ``configure`` as words: what they are called, and what is ignored.

Apart from ``settings``, where they are checked: there pydantic is needed, whose import takes longer than all of ours,
and a program that only imports the package, or is only asked for its version, should not pay for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

__all__ = ["BROWSER_ONLY", "ConfigureOptions", "Context", "EventFilter", "nearest"]

EventFilter: TypeAlias = Callable[[dict[str, Any]], bool | Awaitable[bool | None] | None]
"""``on_before_event_send``: takes ``{"xdm": {...}, "data": {...}}``, may change it, returns False to withhold it."""

Context = Literal["web", "device", "environment", "placeContext"]

BROWSER_ONLY = frozenset({
    "advertising", "autoCollectPropositionInteractions", "clickCollection", "clickCollectionEnabled",
    "conversation", "cookieDomain", "destinationsEnabled", "downloadLinkQualifier", "idMigrationEnabled",
    "idSyncContainerId", "idSyncEnabled", "onBeforeLinkClickSend", "personalizationStorageEnabled",
    "prehidingStyle", "pushNotifications", "streamingMedia", "targetMigrationEnabled", "thirdPartyCookiesEnabled",
})  # fmt: skip
"""Options of the JavaScript SDK that mean nothing outside a browser: taken, ignored, and said so once in the log.

Source: adobe/alloy, the options of ``configure``, 2019 and today.
"""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean …?`` with the most similar known word, or an empty string.

    Args:
        word: what was given, in any letter case or with underscores.
        known: the words that would have been right.
    """
    plain = {name.lower().replace("_", ""): name for name in sorted(known)}
    close = difflib.get_close_matches(str(word)[:100].lower().replace("_", ""), plain, n=1, cutoff=0.5)
    return f" Did you mean {plain[close[0]]}?" if close else ""


class ConfigureOptions(TypedDict, total=False):
    """The keywords of ``configure``, for editors and type checkers; described in ``Settings``."""

    config_id: str
    datastream_id: str
    ims_org_id: str
    org_id: str
    opt_in_enabled: bool
    endpoint: str | None
    edge_domain: str | None
    edge_base_path: str
    allow_insecure: bool
    on_before_event_send: EventFilter | None
    hooks: Sequence[Callable[[Any], object]]
    context: Sequence[Context]
    errors_enabled: bool
    debug_enabled: bool
    state_dir: str | Path | None
    store: Any
    preference_max_age: float
    max_parked: int
    max_parked_bytes: int
    parked_ttl: float
    max_visitors: int
    visitor_max_parked: int
    visitor_parked_ttl: float
    parked_wait: float
    redis_url: str
    when_outbox_fails: Literal["refuse", "wait", "local"]
    relay: bool
    outbox: str | Path | Any
    max_queued: int
    max_queued_bytes: int
    delivery_timeout: float | None
    max_attempts: int | None
    max_retry_after: float
    max_in_flight: int
    max_body_bytes: int
    max_answer_bytes: int
    linger: float
    ordered: bool
    request_timeout: float
    connect_timeout: float
    client_id: str | None
    client_secret: Any
    scopes: str | Sequence[str]
    ims_host: str
    proxy: str | None
    ca_bundle: str | Path | None
    transport: Any
    client: Any
    clock: Any
    ids: Any
