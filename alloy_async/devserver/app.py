"""The development edge as a Starlette application: streaming in, reading back out."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route

from .desk import DeskOnly
from .edge import DevelopmentEdge
from .feed import Feed
from .messages import EdgeRequest
from .page import page_response
from .readback import Readback

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

__all__ = ["create_app"]

_PATIENCE = 1_048_576
"""Bytes read of a body that is too large, so that a client a little over hears why instead of a reset connection."""


def create_app(edge: DevelopmentEdge | None = None) -> Starlette:
    """Make the application around a development edge.

    Besides the collection endpoints it serves, to loopback names and hosts that the operator named only:
    what it received, see `Readback`. ``GET /`` leads to its page.

    Args:
        edge: the edge; by default one that takes any datastream. It stands at ``app.state.edge``, and is closed when
            the application's lifespan ends. ``app.state.feed`` has to be closed before a server waits for its
            connections to end.
    """
    edge = DevelopmentEdge() if edge is None else edge
    feed = Feed(edge.recorder)
    app = Starlette(
        routes=[
            Route("/", RedirectResponse("/_dev/"), methods=["GET"]),
            Route("/_dev", RedirectResponse("/_dev/"), methods=["GET"]),
            Mount(
                "/_dev",
                routes=[Route("/", page_response(), methods=["GET"]), *Readback(edge, feed).routes()],
                middleware=[Middleware(DeskOnly, hosts=edge.hosts)],
            ),
            Route("/{path:path}", _Collection(edge)),
        ],
        lifespan=_closing,
    )
    app.state.edge = edge
    app.state.feed = feed
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
        try:
            body = await _read_bounded(request, self._edge.max_body)
        except ClientDisconnect:
            return  # nobody is left to hear an answer
        answer = self._edge.answer(_edge_request(request, body))
        await Response(answer.body, answer.status, answer.headers)(scope, receive, send)


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
