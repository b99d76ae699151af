"""Who the visitor is, as far as the edge is told: FPID, ECID, customer ids, region.

Nothing of it is made, kept or sent without consent, and a refusal erases it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._json import Unfit, decode, encode

__all__ = ["Identity", "StoredIdentity", "parse_customer_ids", "read_stored"]

_ECID = re.compile(r"\d{38}")
_HINT = re.compile(r"[A-Za-z0-9-]{1,32}")  # it becomes part of a path
_STATES = ("ambiguous", "authenticated", "loggedOut")
_CUSTOMER_KEYS = ("id", "authenticatedState", "primary", "hash")
_DEFAULT_HINT_TTL = 1_800.0
_LONGEST_HINT_TTL = 86_400.0


@dataclass(frozen=True, slots=True)
class StoredIdentity:
    """What is kept of an identity between two starts.

    Attributes:
        fpid: first-party id, a UUIDv4 that we made.
        ecid: the edge's own id, 38 digits; None until an answer told it.
        customer_ids: namespace to ``{"id", "authenticatedState", "primary"}``.
    """

    fpid: str
    ecid: str | None
    customer_ids: Mapping[str, Mapping[str, Any]]

    def copy(self) -> StoredIdentity:
        """Return one that shares nothing that could change."""
        return StoredIdentity(
            self.fpid, self.ecid, {name: dict(entry) for name, entry in self.customer_ids.items()}
        )


class Identity:
    """One visitor's identity in memory.

    It starts empty; ``adopt`` fills it once there is consent, ``erase`` empties it. An erased identity is another one
    from then on: answers to requests of the old one teach it nothing.
    """

    __slots__ = ("_hint", "_hint_until", "_map", "customer_ids", "ecid", "fpid")

    def __init__(self) -> None:
        self.erase()

    def erase(self) -> None:
        """Forget everything."""
        self.fpid: str | None = None
        self.ecid: str | None = None
        self.customer_ids: dict[str, dict[str, Any]] = {}
        self._hint: str | None = None
        self._hint_until = 0.0
        self._map: bytes | None = None

    def adopt(self, stored: StoredIdentity) -> None:
        """Take what was kept, under what has become known since: customer ids set meanwhile win."""
        self.fpid = stored.fpid
        self.ecid = self.ecid or stored.ecid
        since, self.customer_ids = (
            self.customer_ids,
            {name: dict(entry) for name, entry in stored.customer_ids.items()},
        )
        self.set_customer_ids(since)

    def snapshot(self) -> StoredIdentity:
        """Return what is to be kept."""
        if self.fpid is None:
            raise RuntimeError("an identity is kept only after it was adopted")
        return StoredIdentity(self.fpid, self.ecid, self.customer_ids).copy()

    def set_customer_ids(self, customer_ids: Mapping[str, Mapping[str, Any]]) -> None:
        """Add or replace customer ids, as ``parse_customer_ids`` returns them."""
        if any(entry["primary"] for entry in customer_ids.values()):
            self.customer_ids = {
                name: entry | {"primary": False} for name, entry in self.customer_ids.items()
            }
        self.customer_ids |= {name: dict(entry) for name, entry in customer_ids.items()}
        self._map = None

    def learn_ecid(self, ecid: object) -> bool:
        """Take the ECID of an answer; return whether it is news."""
        if not isinstance(ecid, str) or not _ECID.fullmatch(ecid) or ecid == self.ecid:
            return False
        self.ecid = ecid
        self._map = None
        return True

    def learn_hint(self, hint: object, ttl: object, now: float) -> None:
        """Take the region that an answer names, for the path of later requests.

        Args:
            hint: for example ``or2``.
            ttl: seconds it is valid.
            now: monotonic seconds.

        Source: Edge Network, locationHint:result with scope EdgeNetwork; 1 800 s by default.
        """
        if not isinstance(hint, str) or not _HINT.fullmatch(hint):
            return
        self._hint, self._hint_until = hint, now + _hint_ttl(ttl)

    def hint(self, now: float) -> str | None:
        """Return the region to call, or None while there is none (``now`` in monotonic seconds)."""
        return self._hint if now < self._hint_until else None

    def identity_map(self) -> bytes:
        """Return the identity map as JSON, with exactly one primary identity.

        Source: XDM identityMap; an ECID wins over an FPID once it is known, a customer id that is said to be primary
        wins over both.
        """
        if self._map is None:
            self._map = encode(self._build_map())
        return self._map

    def _build_map(self) -> dict[str, Any]:
        primary = next((name for name, entry in self.customer_ids.items() if entry["primary"]), None)
        namespace, own = ("ECID", self.ecid) if self.ecid is not None else ("FPID", self.fpid)
        entry = {"id": own, "authenticatedState": "ambiguous", "primary": primary is None}
        result: dict[str, Any] = {namespace: [entry]} if own is not None else {}
        for name, customer in self.customer_ids.items():
            result.setdefault(name, []).append(dict(customer) | {"primary": name == primary})
        return result


def parse_customer_ids(given: object) -> dict[str, dict[str, Any]]:
    """Check what ``set_customer_ids`` was given, and hash what is to be hashed.

    Args:
        given: namespace to ``{"id": text, "authenticatedState": "ambiguous" | "authenticated" | "loggedOut",
            "primary": bool, "hash": bool}``; only ``id`` is required.

    Returns:
        Namespace to ``{"id", "authenticatedState", "primary"}``.

    Raises:
        Unfit: names what cannot be used.

    Source: adobe/alloy (2019), setCustomerIds: ``hash`` sends the SHA-256 of the id, in hex. For the namespace
    Email_LC_SHA256 the address is trimmed and lower-cased first, as the identity service defines it.
    """
    if not isinstance(given, Mapping) or not given:
        raise _unfit('must be an object such as {"CRMID": {"id": "…"}}.')
    result = {_namespace(name): _customer(name, entry) for name, entry in given.items()}
    if sum(entry["primary"] for entry in result.values()) > 1:
        raise _unfit("more than one of them is primary; an event has exactly one primary identity.")
    return result


def read_stored(fpid: object, ecid: object, customer_ids: object) -> StoredIdentity | None:
    """Read what a store kept; None when any of it is not what was written."""
    if not isinstance(fpid, str) or not isinstance(ecid, str | None) or not isinstance(customer_ids, str):
        return None
    try:
        entries = decode(customer_ids)
        checked = parse_customer_ids(entries) if entries else {}
    except (ValueError, Unfit):
        return None
    return StoredIdentity(fpid, ecid, checked)


def _hint_ttl(ttl: object) -> float:
    if isinstance(ttl, (int, float)) and not isinstance(ttl, bool) and 0 < ttl <= _LONGEST_HINT_TTL:
        return ttl
    return _DEFAULT_HINT_TTL


def _namespace(name: object) -> str:
    if not isinstance(name, str) or not name or not name.isprintable():
        raise _unfit("a namespace must be a text that is not empty.")
    if name in {"ECID", "FPID"}:
        raise _unfit("the edge and this library take care of this one; leave it out.", name)
    return name


def _customer(name: str, entry: object) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise _unfit('must be an object such as {"id": "…"}.', name)
    unknown = [key for key in entry if key not in _CUSTOMER_KEYS]
    if unknown:
        raise _unfit(f"unknown key; known are {', '.join(_CUSTOMER_KEYS)}.", name, str(unknown[0]))
    state = entry.get("authenticatedState", "ambiguous")
    if state not in _STATES:
        raise _unfit(f"must be one of {', '.join(_STATES)}.", name, "authenticatedState")
    hashed = _boolean(entry, name, "hash")
    identifier = _identifier(entry.get("id"), name)
    return {
        "id": _sha256(identifier, name) if hashed else identifier,
        "authenticatedState": state,
        "primary": _boolean(entry, name, "primary"),
    }


def _identifier(value: object, name: str) -> str:
    if not isinstance(value, str) or not value or len(value) > 1_024:
        raise _unfit("must be a text of 1 to 1 024 characters.", name, "id")
    if not value.isprintable():  # also false for half of a surrogate pair, which UTF-8 cannot hold
        raise _unfit("holds line breaks, control characters or half of a surrogate pair.", name, "id")
    return value


def _boolean(entry: Mapping[str, Any], name: str, key: str) -> bool:
    value = entry.get(key, False)
    if not isinstance(value, bool):
        raise _unfit("must be True or False.", name, key)
    return value


def _sha256(identifier: str, name: str) -> str:
    if name == "Email_LC_SHA256":
        identifier = identifier.strip().lower()
    return hashlib.sha256(identifier.encode()).hexdigest()


def _unfit(problem: str, *path: str) -> Unfit:
    unfit = Unfit(problem)
    unfit.path = ["customer_ids", *path]
    return unfit
