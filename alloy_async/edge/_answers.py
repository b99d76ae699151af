"""What every transport does with an answer: read it within bounds, and say what is wrong with it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from ..errors import EdgeError

__all__ = ["BoundedBody", "flat_headers", "origin"]


class BoundedBody:
    """Collects an answer's body, decompressed, and refuses it as soon as it is too long.

    Args:
        status: HTTP status of the answer.
        headers: names in lower case.
        limit: bytes that the body may have after decompression.

    Raises:
        EdgeError: the answer is compressed with something else than gzip or deflate.
    """

    def __init__(self, status: int, headers: Mapping[str, str], limit: int) -> None:
        self._status = status
        self._headers = headers
        self._limit = limit
        self._read = bytearray()
        self._inflate = self._decompressor(headers.get("content-encoding", "identity").strip().lower())

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes as they came over the wire.

        Raises:
            EdgeError: the body is too long, or its compression is damaged.
        """
        try:
            self._read += chunk if self._inflate is None else self._inflate.decompress(chunk, self._limit + 1)
        except zlib.error:
            raise self._unusable("its compression is damaged") from None
        if len(self._read) > self._limit:
            raise self._unusable(f"it is longer than max_answer_bytes={self._limit}")

    def whole(self) -> bytes:
        """Return what came."""
        return bytes(self._read)

    def _decompressor(self, encoding: str) -> Any:
        """Return what undoes the answer's compression in bounded steps, or None.

        We ask for none; a server that compresses all the same could make gigabytes of a few kilobytes.
        """
        if encoding in {"", "identity"}:
            return None
        if encoding in {"gzip", "x-gzip", "deflate"}:
            return zlib.decompressobj(zlib.MAX_WBITS | 32)  # reads either by its first bytes
        raise self._unusable(f"it is compressed with {encoding[:20]}, which was not asked for")

    def _unusable(self, problem: str) -> EdgeError:
        return EdgeError(
            self._status,
            title="the answer cannot be read",
            detail=f"{problem}; the edge may have taken the events",
            request_id=self._headers.get("x-request-id"),
        )


def flat_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by their names in lower case; those that came several times are joined by commas."""
    headers: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1").lower(), _text(value)
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def origin(url: str) -> str:
    """Return scheme, host and port of an address, to name it in an error."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
