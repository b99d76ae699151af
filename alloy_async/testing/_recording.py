"""An edge in memory that remembers what it was sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..edge.transport import EdgeRequest, EdgeResponse, Withdrawn

__all__ = ["RecordedRequest", "RecordingEdge"]

ECID = "41861666193140161934276845651148876988"


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request, as it arrived.

    Attributes:
        action: the last part of the path: ``interact``, ``collect`` or ``acquire``.
        url: the whole address.
        query: parameters of the address; each has one value.
        body: the JSON of the body.
        size: bytes of the body.
    """

    action: str
    url: str
    query: dict[str, str]
    body: Any
    size: int

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events it carried."""
        events: list[dict[str, Any]] = self.body.get("events", [])
        return events


class RecordingEdge:
    """A ``Transport`` that answers by itself; for ``configure(transport=...)``.

    It answers collect with 204, interact and identity/acquire with an ECID. Put responses or exceptions into
    ``answers`` to have them used first, one for each request; ``hold()`` keeps answers back until ``release()``.
    """

    def __init__(self) -> None:
        self.requests: list[RecordedRequest] = []
        self.answers: list[EdgeResponse | Exception] = []
        self.closed: bool = False
        self._held: list[asyncio.Future[None]] = []
        self._holding = False

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every event that arrived, in order."""
        return [event for request in self.requests for event in request.events]

    @property
    def event_types(self) -> list[str | None]:
        """``xdm.eventType`` of every event that arrived, in order."""
        return [event["xdm"].get("eventType") for event in self.events]

    def hold(self) -> None:
        """Keep back the answers to requests that start from now on."""
        self._holding = True

    def release(self, count: int | None = None) -> None:
        """Give the oldest held answers; all of them, and no longer hold any, when no count is given."""
        if count is None:
            self._holding = False
        for future in self._held[:count]:
            if not future.done():
                future.set_result(None)
        del self._held[:count]

    @property
    def holding(self) -> int:
        """How many requests wait for their answer."""
        return len(self._held)

    async def send(self, request: EdgeRequest, may_start: Callable[[], bool]) -> EdgeResponse:
        """Record a request and answer it."""
        if not may_start():
            raise Withdrawn
        recorded = _record(request)
        self.note(recorded)
        answer = self.answers.pop(0) if self.answers else _default_answer(recorded)
        if self._holding:
            await self._wait()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def note(self, recorded: RecordedRequest) -> None:
        """Remember a request, in the moment it starts; a place for checks of your own."""
        self.requests.append(recorded)

    async def aclose(self) -> None:
        """Note that it was closed."""
        self.closed = True

    async def _wait(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held.append(future)
        await future


def _record(request: EdgeRequest) -> RecordedRequest:
    parts = urlsplit(request.url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    action = parts.path.rpartition("/")[2]
    return RecordedRequest(action, request.url, query, json.loads(request.body), len(request.body))


def _default_answer(request: RecordedRequest) -> EdgeResponse:
    if request.action == "collect":
        return EdgeResponse(204, {}, b"")
    handle = {"type": "identity:result", "payload": [{"id": ECID, "namespace": {"code": "ECID"}}]}
    body = {"requestId": f"{request.query['requestId']}-0123456789abcdef", "handle": [handle]}
    return EdgeResponse(200, {"content-type": "application/json"}, json.dumps(body).encode())
