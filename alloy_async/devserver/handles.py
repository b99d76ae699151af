"""What the edge answers with: handles, and the state that a client keeps for it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from .consent import Choice, read_consent_entry
from .identity import pack_identity_cookie, unpack_identity_cookie
from .problems import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "ClientState",
    "StateEntries",
    "identity_result",
    "location_hints",
    "media_session",
    "read_state",
    "state_store",
]

Handle = dict[str, Any]

# Source: Adobe Experience Platform Edge Network API, cookies and location hints. Lifetimes in seconds.
_IDENTITY_MAX_AGE = 34_128_000  # 395 days
_CONSENT_MAX_AGE = 15_552_000  # 180 days
_HINT_MAX_AGE = 1_800
_HINT = "or2"


@dataclass(frozen=True, slots=True)
class ClientState:
    """What a client sent back of the state it keeps.

    Attributes:
        ecid: from the identity cookie; None when there is none that can be read.
        consent: from the consent cookie; None when there is none that can be read.
    """

    ecid: str | None = None
    consent: Choice | None = None


class StateEntries:
    """Writes the entries of ``state:store`` under one organisation's names.

    Args:
        org_id: the IMS organisation; only its first ``@`` becomes ``_``, as clients do it.
    """

    def __init__(self, org_id: str) -> None:
        self._prefix = f"kndctr_{org_id.replace('@', '_', 1)}_"

    @property
    def identity_key(self) -> str:
        """Name of the identity cookie."""
        return f"{self._prefix}identity"

    @property
    def consent_key(self) -> str:
        """Name of the consent cookie."""
        return f"{self._prefix}consent"

    def identity(self, ecid: str) -> Handle:
        """Entry for the identity cookie."""
        return {
            "key": self.identity_key,
            "value": pack_identity_cookie(ecid),
            "maxAge": _IDENTITY_MAX_AGE,
            "attrs": {"SameSite": "None"},
        }

    def consent(self, choice: Choice) -> Handle:
        """Entry for the consent cookie."""
        return {"key": self.consent_key, "value": f"general={choice}", "maxAge": _CONSENT_MAX_AGE}

    def cluster(self) -> Handle:
        """Entry for the location hint."""
        return {"key": f"{self._prefix}cluster", "value": _HINT, "maxAge": _HINT_MAX_AGE}


def state_store(entries: Sequence[Handle]) -> Handle:
    """Ask the client to keep entries."""
    return {"type": "state:store", "payload": list(entries)}


def identity_result(ecid: str) -> Handle:
    """Tell the client its visitor's ECID."""
    return {"type": "identity:result", "payload": [{"id": ecid, "namespace": {"code": "ECID"}}]}


def location_hints() -> Handle:
    """Tell the client which region to ask next time."""
    scopes = (("Target", "35"), ("AAM", "9"), ("EdgeNetwork", _HINT))
    return {
        "type": "locationHint:result",
        "payload": [{"scope": scope, "hint": hint, "ttlSeconds": _HINT_MAX_AGE} for scope, hint in scopes],
    }


def media_session() -> Handle:
    """Tell the client the id that its later media events bring."""
    return {"type": "media-analytics:new-session", "payload": [{"sessionId": secrets.token_hex(32)}]}


def read_state(meta: object, keys: StateEntries, cookies: str = "") -> ClientState:
    """Read ``meta.state`` of a request; entries of other names or shapes are left alone.

    Args:
        meta: of the request's body.
        keys: the names of the entries.
        cookies: the ``Cookie`` header. A browser's client lists no entries when the edge is under the page's own
            domain, where cookies travel by themselves. It is read when cookies are enabled; an entry wins.

    Raises:
        Problem: 0110-400, cookies are enabled and no domain is named.

    Source: adobe/alloy, transfer of cookies.
    """
    state = meta.get("state") if isinstance(meta, dict) else None
    if not isinstance(state, dict):
        return ClientState()
    if state.get("cookiesEnabled") is True and not isinstance(state.get("domain"), str):
        raise Problem("0110-400", "'meta.state.domain' is required when cookies are enabled.")
    values = _cookie_values(cookies) if state.get("cookiesEnabled") is True else {}
    values |= _values(state.get("entries"))
    identity, consent = values.get(keys.identity_key), values.get(keys.consent_key)
    return ClientState(
        ecid=None if identity is None else unpack_identity_cookie(identity),
        consent=None if consent is None else read_consent_entry(consent),
    )


def _cookie_values(header: str) -> dict[str, str]:
    """Name and value of each cookie. The standard library's reader gives up at names that browsers send."""
    pairs = (pair.strip().partition("=") for pair in header.split(";"))
    return {name: unquote(value.strip('"')) for name, _, value in pairs}


def _values(entries: object) -> dict[str, str]:
    """Name and value of each entry; of a name that stands twice the last counts."""
    if not isinstance(entries, list):
        return {}
    pairs = ((entry.get("key"), entry.get("value")) for entry in entries if isinstance(entry, dict))
    return {key: value for key, value in pairs if isinstance(key, str) and isinstance(value, str)}
