"""The development edge as a Starlette application: streaming in, reading back out."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from .delivery import deliver, reset_connection
from .desk import DeskOnly
from .edge import DevelopmentEdge, EdgeRequest
from .faults import FaultError, read_faults

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.types import Receive, Scope, Send

__all__ = ["create_app"]

_PATIENCE = 1_048_576
"""Bytes read of a body that is too large, so that a client a little over hears why instead of a reset connection."""

_CHUNK = 500
"""Records written at once by the read-back, so that a full memory does not hold up the loop."""


def create_app(edge: DevelopmentEdge | None = None) -> Starlette:
    """Make the application around a development edge.

    Besides the collection endpoints it serves, to loopback names and hosts that the operator named only:
    ``GET /_dev/events``, ``GET /_dev/requests``, ``POST /_dev/reset``, and ``GET``, ``POST`` and ``DELETE /_dev/faults``.

    Args:
        edge: the edge; by default one that takes any datastream. It stands at ``app.state.edge``, and is closed when
            the application's lifespan ends.
    """
    edge = DevelopmentEdge() if edge is None else edge
    desk = _Desk(edge)
    app = Starlette(
        routes=[
            Mount(
                "/_dev",
                routes=[
                    Route("/events", desk.events, methods=["GET"]),
                    Route("/requests", desk.requests, methods=["GET"]),
                    Route("/reset", desk.reset, methods=["POST"]),
                    Route("/faults", _FaultSwitches(edge), methods=["GET", "POST", "DELETE"]),
                ],
                middleware=[Middleware(DeskOnly, hosts=edge.hosts)],
            ),
            Route("/{path:path}", _Collection(edge)),
        ],
        lifespan=_closing,
    )
    app.state.edge = edge
    return app


@asynccontextmanager
async def _closing(app: Starlette) -> AsyncIterator[None]:
    yield
    app.state.edge.close()


class _Collection:
    """ASGI application: every path and method that is not the desk's goes to the edge, which knows what to refuse."""

    def __init__(self, edge: DevelopmentEdge) -> None:
        self._edge = edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if self._edge.faults and self._edge.loses(_edge_request(request, None)):
            await reset_connection(scope, receive)
            return
        try:
            body = await _read_bounded(request, self._edge.max_body)
        except ClientDisconnect:
            return  # nobody is left to hear an answer
        await deliver(self._edge.answer(_edge_request(request, body)), scope, receive, send)


async def _read_bounded(request: Request, limit: int) -> bytes | None:
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


def _edge_request(request: Request, body: bytes | None) -> EdgeRequest:
    names = dict.fromkeys(request.headers.keys())
    return EdgeRequest(
        method=request.method,
        path=request.scope["path"],
        query=dict(request.query_params),
        headers={name: ", ".join(request.headers.getlist(name)) for name in names},
        body=body,
    )


class _Record(Protocol):
    def as_json(self) -> str: ...


class _Desk:
    """The read-back for the person at the desk."""

    def __init__(self, edge: DevelopmentEdge) -> None:
        self._edge = edge

    async def events(self, request: Request) -> Response:
        events, dropped = self._edge.recorder.events()
        return _listing("events", events, dropped)

    async def requests(self, request: Request) -> Response:
        requests, dropped = self._edge.recorder.requests()
        return _listing("requests", requests, dropped)

    async def reset(self, request: Request) -> Response:
        self._edge.reset()
        return Response(status_code=204)


class _FaultSwitches:
    """ASGI application: shows and changes what goes wrong."""

    def __init__(self, edge: DevelopmentEdge) -> None:
        self._edge = edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
        except ClientDisconnect:
            return
        await answer(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        faults = self._edge.faults
        if request.method == "DELETE":
            faults.clear()
            return Response(status_code=204)
        if request.method == "POST":
            try:
                faults.replace(*read_faults(_parse(await _read_bounded(request, self._edge.max_body))))
            except FaultError as error:
                return _unusable(error)
        return JSONResponse(faults.as_json())


def _parse(body: bytes | None) -> object:
    if body is None:
        raise FaultError("", "the body is too large")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise FaultError("", "the body is not JSON") from None


def _unusable(error: FaultError) -> Response:
    problem = {
        "type": "about:blank",
        "status": 400,
        "title": "Faults that cannot be used",
        "detail": str(error),
        "path": error.path,
    }
    return JSONResponse(problem, 400, media_type="application/problem+json")


def _listing(name: str, records: Sequence[_Record], dropped: int) -> Response:
    return StreamingResponse(_write_listing(name, records, dropped), media_type="application/json")


async def _write_listing(name: str, records: Sequence[_Record], dropped: int) -> AsyncIterator[str]:
    yield f'{{"dropped": {dropped}, "{name}": ['
    for start in range(0, len(records), _CHUNK):
        comma = "," if start else ""
        yield comma + ",".join(record.as_json() for record in records[start : start + _CHUNK])
    yield "]}"
