"""The development edge as a Starlette application: streaming in, reading back out."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse
from starlette.routing import Mount, Route

from .bounded import read_bounded
from .delivery import deliver, reset_connection
from .desk import DeskOnly
from .edge import DevelopmentEdge
from .feed import Feed
from .messages import EdgeRequest
from .page import page_response
from .readback import Readback
from .switches import FaultSwitches

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

__all__ = ["create_app"]


def create_app(edge: DevelopmentEdge | None = None) -> Starlette:
    """Make the application around a development edge.

    Besides the collection endpoints it serves, to loopback names and hosts that the operator named only:
    what it received, see `Readback`, its page at ``/_dev/``, to which ``GET /`` leads, and ``GET``, ``POST`` and
    ``DELETE /_dev/faults``.

    Args:
        edge: the edge; by default one that takes any datastream. It stands at ``app.state.edge``, and is closed when
            the application's lifespan ends. ``app.state.feed`` has to be closed before a server waits for its
            connections to end.
    """
    edge = DevelopmentEdge() if edge is None else edge
    feed = Feed(edge.recorder, faults=edge.faults.as_json)
    edge.faults.listen(feed.wake)
    app = Starlette(
        routes=[
            Route("/", RedirectResponse("/_dev/"), methods=["GET"]),
            Route("/_dev", RedirectResponse("/_dev/"), methods=["GET"]),
            Mount(
                "/_dev",
                routes=[
                    Route("/", page_response(), methods=["GET"]),
                    *Readback(edge, feed).routes(),
                    Route("/faults", FaultSwitches(edge.faults), methods=["GET", "POST", "DELETE"]),
                ],
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
        asked = _edge_request(request)
        if self._edge.faults and self._edge.loses(asked):
            await reset_connection(scope, receive)
            return
        try:
            body = await read_bounded(request, self._edge.max_body)
        except ClientDisconnect:
            return  # nobody is left to hear an answer
        await deliver(self._edge.answer(replace(asked, body=body)), scope, receive, send)


def _edge_request(request: Request) -> EdgeRequest:
    """Take over all but the body."""
    headers: dict[str, list[str]] = {}
    for name, value in request.headers.items():  # in one pass: a head may hold thousands
        headers.setdefault(name, []).append(value)
    return EdgeRequest(
        method=request.method,
        path=request.scope["path"],
        query=dict(request.query_params),
        headers={name: ", ".join(values) for name, values in headers.items()},
        body=None,
    )
