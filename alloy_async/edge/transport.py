"""The border to the network: one request out, one answer back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from ..errors import AlloyError, NetworkError

__all__ = ["EdgeRequest", "EdgeResponse", "Transport", "Withdrawn", "send_once"]


@dataclass(frozen=True, slots=True)
class EdgeRequest:
    """One POST.

    Attributes:
        url: the whole address.
        headers: names in lower case; never shown, since one of them may hold an access token.
        body: as ``content-type`` says, to the edge JSON in UTF-8; never shown.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class EdgeResponse:
    """One answer, read to its end.

    Attributes:
        status: HTTP status.
        headers: names in lower case.
        body: decompressed, at most ``max_answer_bytes`` long; never shown, since it may be an access token's.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


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


async def send_once(
    transport: Transport, request: EdgeRequest, may_start: Callable[[], bool]
) -> EdgeResponse:
    """Send a request, and make a ``NetworkError`` of whatever a transport raises that it should not; see ``Transport``.

    It may be a transport of somebody else's, or its client may have been closed.
    """
    try:
        return await transport.send(request, may_start)
    except (AlloyError, Withdrawn):
        raise
    except Exception as error:  # noqa: BLE001 - as said above
        problem = type(error).__name__
    # Raised out here, without a cause: a foreign error may hold the request, and with it the visitor's events.
    origin = urlsplit(request.url)
    raise NetworkError(f"{origin.scheme}://{origin.netloc}", f"the transport failed with {problem}")
