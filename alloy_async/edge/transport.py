"""The border to the network: one request out, one answer back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["EdgeRequest", "EdgeResponse", "Transport", "Withdrawn"]


@dataclass(frozen=True, slots=True)
class EdgeRequest:
    """One POST.

    Attributes:
        url: the whole address.
        headers: names in lower case.
        body: JSON in UTF-8.
    """

    url: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class EdgeResponse:
    """One answer, read to its end.

    Attributes:
        status: HTTP status.
        headers: names in lower case.
        body: decompressed, at most ``max_answer_bytes`` long.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Withdrawn(Exception):
    """The request was not started, because ``may_start`` said no."""


class Transport(Protocol):
    """Sends requests.

    It follows no redirect, keeps no cookie, and tries once.
    """

    async def send(self, request: EdgeRequest, may_start: Callable[[], bool]) -> EdgeResponse:
        """Send a request and read its answer.

        Args:
            request: what to send.
            may_start: asked right before the first byte is written, after connecting; consent may be gone by then.

        Raises:
            Withdrawn: ``may_start`` said no; nothing was written.
            NetworkError: the edge could not be reached, or stopped answering.
            EdgeError: the answer is too long, or cannot be decompressed.
        """
        ...

    async def aclose(self) -> None:
        """Close connections."""
