"""What lets a page in a browser speak to the edge and read its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["allowing", "is_preflight", "preflight_headers"]

_DAY = "86400"  # seconds


def allowing(headers: Mapping[str, str]) -> dict[str, str]:
    """Allow the page that asks, whichever it is, to read the answer and to send cookies; nothing without ``Origin``.

    The edge takes events from every site of its customers. What was received is guarded elsewhere: below ``/_dev``.

    Source: Fetch standard: with credentials the origin is named, a star does not do.
    """
    origin = headers.get("origin")
    if origin is None:
        return {}
    return {
        "access-control-allow-origin": origin,
        "access-control-allow-credentials": "true",
        "access-control-expose-headers": "Retry-After, X-Adobe-Edge, X-Request-Id",
        "vary": "Origin",
    }


def is_preflight(method: str, headers: Mapping[str, str]) -> bool:
    """Tell whether a browser asks if it may send; browsers say so with both headers."""
    return method == "OPTIONS" and {"origin", "access-control-request-method"} <= headers.keys()


def preflight_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Allow a page to send what it wants to send."""
    asked = headers.get("access-control-request-headers")
    allowed = {} if asked is None else {"access-control-allow-headers": asked}
    return {"access-control-allow-methods": "POST", "access-control-max-age": _DAY, **allowed}
