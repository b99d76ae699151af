"""Bodies that are read up to a bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["read_bounded"]

_PATIENCE = 1_048_576
"""Bytes read of a body that is too large, so that a client a little over hears why instead of a reset connection."""


async def read_bounded(request: Request, limit: int) -> bytes | None:
    """Read a body of at most ``limit`` bytes; None when it is larger. Never holds more than that in memory."""
    if _announced(request) > limit + _PATIENCE:
        return None
    kept, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit + _PATIENCE:
            return None
        if size <= limit:
            kept += chunk
    return bytes(kept) if size <= limit else None


def _announced(request: Request) -> int:
    try:
        return int(request.headers.get("content-length", "0"))
    except ValueError:
        return 0
