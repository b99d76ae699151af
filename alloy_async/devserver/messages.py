"""What comes in and what goes back: a request and an answer of the edge, without sockets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .faults import Fault

__all__ = ["EdgeAnswer", "EdgeRequest"]


@dataclass(frozen=True, slots=True)
class EdgeRequest:
    """A request as it arrived.

    Attributes:
        method: the HTTP method, in upper case.
        path: the path, decoded.
        query: the query parameters, decoded.
        headers: the headers, names in lower case.
        body: the body; None when it was larger than the edge reads.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes | None


@dataclass(frozen=True, slots=True)
class EdgeAnswer:
    """What goes back.

    Attributes:
        status: the HTTP status; 0 when the connection was broken instead.
        headers: the headers, names in lower case.
        body: the body; empty for a 204.
        fault: what shall happen to it on its way; what a fault changes in the answer itself is changed already.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    fault: Fault | None = None
