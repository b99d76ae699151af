"""Who the visitor is: identity maps, first-party ids, ECIDs and the identity cookie."""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .problems import Problem

__all__ = [
    "IdentityMap",
    "ecid_from_fpid",
    "find_ecid",
    "mint_ecid",
    "pack_identity_cookie",
    "read_identity_map",
    "require_primary",
    "unpack_identity_cookie",
]

IdentityMap = Mapping[str, Sequence[Mapping[str, Any]]]

_ECID = re.compile(r"[0-9]{38}")
_UUID_V4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)


def read_identity_map(value: object, *, event_index: int | None = None) -> IdentityMap:
    """Check an ``identityMap``; one that is absent is empty.

    Raises:
        Problem: 0102-400 (shape), 0305-400 (an id that is missing or empty), 0308-400 (an FPID that is no UUIDv4).

    Source: Adobe Experience Platform Edge Network API, identityMap and first-party device ids. The code for an FPID
    of another format is presumed.
    """
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(_is_array_of_objects(items) for items in value.values()):
        raise Problem("0102-400", "'identityMap' must hold arrays of objects.", event_index=event_index)
    for namespace, items in value.items():
        for item in items:
            _check_id(namespace, item.get("id"), event_index)
    return value


def _is_array_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _check_id(namespace: str, identity: object, event_index: int | None) -> None:
    if not isinstance(identity, str) or not identity:
        raise Problem("0305-400", "An identity needs an 'id' that is not empty.", event_index=event_index)
    if namespace == "FPID" and not _UUID_V4.fullmatch(identity):
        raise Problem("0308-400", "An FPID must be a UUIDv4.", event_index=event_index)


def require_primary(identities: IdentityMap, *, event_index: int) -> None:
    """Require exactly one primary identity, as v2 does.

    Raises:
        Problem: 0306-400.

    Source: Adobe Experience Platform Edge Network API, authenticated endpoints.
    """
    primaries = sum(item.get("primary") is True for items in identities.values() for item in items)
    if primaries != 1:
        detail = f"The event #{event_index} has {primaries} primary identities; it needs exactly one."
        raise Problem("0306-400", detail, event_index=event_index)


def find_ecid(maps: Sequence[IdentityMap], from_cookie: str | None) -> str | None:
    """Find the visitor's ECID, or derive it from an FPID; None for a visitor who brings neither.

    Args:
        maps: identity maps, the nearest to the event first.
        from_cookie: the ECID of the identity cookie.

    An ECID of another form than 38 digits does not name a visitor here, yet its event is taken: published example
    events carry such ids.

    Source: Adobe Experience Platform Edge Network API, precedence of identities: ECID in the map, ECID in the cookie,
    FPID in the map.
    """
    for ecid in _ids(maps, "ECID"):
        if _ECID.fullmatch(ecid):
            return ecid
    if from_cookie is not None:
        return from_cookie
    return next((ecid_from_fpid(fpid) for fpid in _ids(maps, "FPID")), None)


def _ids(maps: Iterable[IdentityMap], namespace: str) -> Iterator[str]:
    return (item["id"] for identities in maps for item in identities.get(namespace, ()))


def ecid_from_fpid(fpid: str) -> str:
    """Derive the ECID that belongs to a first-party id, the same one every time.

    The edge's own derivation is not public; any stable hash to 38 digits serves a stand-in.
    """
    digest = hashlib.sha256(fpid.lower().encode()).digest()
    return f"{int.from_bytes(digest, 'big') % 10**38:038}"


def mint_ecid() -> str:
    """Make a new ECID: the halves of a random UUID, each as 19 digits.

    Source: Adobe Experience Platform mobile SDK, Identity for Edge Network, which mints locally in this way.
    """
    raw = uuid.uuid4().bytes
    halves = (int.from_bytes(raw[:8], "big", signed=True), int.from_bytes(raw[8:], "big", signed=True))
    return "".join(f"{abs(half):019}" for half in halves)


def pack_identity_cookie(ecid: str) -> str:
    """Write the smallest identity cookie that clients accept: field 1, 38 characters."""
    return base64.b64encode(b"\x0a\x26" + ecid.encode()).decode()


def unpack_identity_cookie(value: str) -> str | None:
    """Read the ECID out of an identity cookie; None when it cannot be read.

    Source: adobe/alloy, the identity cookie's protobuf: field 1 is the ECID; base64, plain or URL-safe.
    """
    try:
        raw = base64.b64decode(_plain_base64(value), validate=True)
        ecid = next((text for number, text in _protobuf_texts(raw) if number == 1), b"").decode("ascii")
    except (ValueError, IndexError):
        return None
    return ecid if _ECID.fullmatch(ecid) else None


def _plain_base64(value: str) -> str:
    text = value.rstrip("=").replace("-", "+").replace("_", "/")
    return text + "=" * (-len(text) % 4)


def _protobuf_texts(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of each length-delimited field, stepping over the others.

    Raises:
        IndexError: the message ends too early.
        ValueError: a wire type that protobuf no longer uses, or a number that is too long.
    """
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        length = 0
        match tag & 7:
            case 0:
                _, at = _varint(raw, at)
            case 1:
                at += 8
            case 2:
                length, at = _varint(raw, at)
                yield tag >> 3, raw[at : at + length]
            case 5:
                at += 4
            case _:
                raise ValueError("not a protobuf message")
        at += length


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    # 64 bits take ten bytes; without this bound, kilobytes of 0x80 would grow a number as long.
    for shift in range(0, 70, 7):
        value |= (raw[at] & 0x7F) << shift
        at += 1
        if not raw[at - 1] & 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")
