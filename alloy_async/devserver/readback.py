"""What was received, for the person at the desk: everything, one exchange, those that hold a text, or as it happens."""

from __future__ import annotations

import asyncio
import json
from itertools import islice
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .desk import refusal
from .feed import Feed, FeedFull
from .problems import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.requests import Request

    from .edge import DevelopmentEdge
    from .exchange import Exchange

__all__ = ["Readback", "holds"]

_CHUNK = 100
"""Records written, or searched, before others have their turn: a full memory must not hold up the loop."""

_EVENT_STREAM = "text/event-stream"
_MAX_MATCHES = 500
_MAX_DIGITS = 20


class Readback:
    """Routes below ``/_dev`` that read what the edge received, and forget it.

    Args:
        edge: the edge.
        feed: tells what it receives.
    """

    def __init__(self, edge: DevelopmentEdge, feed: Feed) -> None:
        self._edge = edge
        self._feed = feed

    def routes(self) -> list[Route]:
        """Return the routes, relative to ``/_dev``."""
        return [
            Route("/events", self._events, methods=["GET"]),
            Route("/requests", self._requests, methods=["GET"]),
            Route("/requests/{n}", self._request, methods=["GET"]),
            Route("/search", self._search, methods=["GET"]),
            Route("/feed", self._follow, methods=["GET"]),
            Route("/reset", self._reset, methods=["POST"]),
        ]

    async def _events(self, request: Request) -> Response:
        exchanges, _ = self._edge.recorder.exchanges()
        written = (one.as_event_json(event) for one in exchanges for event in one.recorded)
        return _listing("events", written, self._edge.recorder.dropped_events)

    async def _requests(self, request: Request) -> Response:
        exchanges, dropped = self._edge.recorder.exchanges()
        return _listing("requests", (exchange.as_request_json() for exchange in exchanges), dropped)

    async def _request(self, request: Request) -> Response:
        n = request.path_params["n"]
        exchange = self._edge.recorder.get(int(n)) if n.isdecimal() and len(n) < _MAX_DIGITS else None
        if exchange is None:
            return refusal(Problem("404", "No exchange of this number is kept."))
        return Response(exchange.as_json(), media_type="application/json")

    async def _search(self, request: Request) -> Response:
        """List the newest exchanges whose request holds a text, ``{"matches": [n, …]}``."""
        query = request.query_params.get("q", "")
        matches: list[int] = []
        exchanges, _ = self._edge.recorder.exchanges()
        for start in range(len(exchanges), 0, -_CHUNK):
            piece = exchanges[max(0, start - _CHUNK) : start]
            matches += [exchange.n for exchange in reversed(piece) if query and holds(exchange, query)]
            if len(matches) >= _MAX_MATCHES:
                break
            await asyncio.sleep(0)
        return JSONResponse({"matches": matches[:_MAX_MATCHES]})

    async def _follow(self, request: Request) -> Response:
        if request.method == "HEAD":  # which would wait for the end of what has none
            return Response(media_type=_EVENT_STREAM)
        messages = self._feed.messages(request.headers.get("last-event-id"))
        try:
            first = await anext(messages)
        except FeedFull:
            return refusal(Problem("503", "As many readers as are served at once follow already; close one."))
        return StreamingResponse(_continued(first, messages), media_type=_EVENT_STREAM)

    async def _reset(self, request: Request) -> Response:
        try:
            self._edge.reset()
        except Exception as error:  # noqa: BLE001 - a sink's own, whichever it is
            return refusal(
                Problem("500", f"The file could not be emptied, and would bring all back: {error}")
            )
        return Response(status_code=204)


def holds(exchange: Exchange, text: str) -> bool:
    """Tell whether the request of an exchange holds a text, in any case, as it is or as JSON escapes it."""
    content = (exchange.body or exchange.text or "").lower()
    text = text.lower()
    return text in content or json.dumps(text)[1:-1] in content


async def _continued(first: str, messages: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for message in messages:
        yield message


def _listing(name: str, written: Iterator[str], dropped: int) -> Response:
    return StreamingResponse(_write_listing(name, written, dropped), media_type="application/json")


async def _write_listing(name: str, written: Iterator[str], dropped: int) -> AsyncIterator[str]:
    yield f'{{"dropped": {dropped}, "{name}": ['
    comma = ""
    while piece := ",".join(islice(written, _CHUNK)):
        yield comma + piece
        comma = ","
        await asyncio.sleep(0)  # a server takes what a socket takes without a pause of its own
    yield "]}"
